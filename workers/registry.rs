//! Every kind of job there is: who runs it, and what becomes of it when nobody can say how it ended.

use std::sync::Arc;

use crate::db::Transaction;
use async_trait::async_trait;
use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::cancel_batch;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::delete_file;
use super::deliver_webhook;
use super::ingest_batch;
use super::merge_batch;
use super::reconcile;
use super::submit_batch;
use super::sweep;
use super::upload_file;
use super::verify_upload;
use super::watch_batch;
use crate::clock::Timestamp;
use crate::ids::BatchId;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::jobs::Ending;
use crate::jobs::Work;
use crate::jobs::claims::Claimed;
use crate::mappings;
use crate::mappings::store::Certainty;
use crate::runs;
use crate::runs::submission;

/// Runs a job.
pub async fn run(attempt: &Attempt, work: &Work) -> Done {
    match work {
        Work::UploadFile(payload) => upload_file::run(attempt, payload).await,
        Work::VerifyUpload(payload) => verify_upload::run(attempt, payload).await,
        Work::DeleteFile(payload) => delete_file::run(attempt, payload).await,
        Work::SubmitBatch(payload) => submit_batch::run(attempt, payload).await,
        Work::WatchBatch(payload) => watch_batch::run(attempt, payload).await,
        Work::CancelBatch(payload) => cancel_batch::run(attempt, payload).await,
        Work::IngestBatch(payload) => ingest_batch::run(attempt, payload).await,
        Work::MergeBatch(payload) => merge_batch::run(attempt, payload).await,
        Work::Sweep(payload) => sweep::run(attempt, payload).await,
        Work::Reconcile(payload) => reconcile::run(attempt, payload).await,
        Work::DeliverWebhook(payload) => deliver_webhook::run(attempt, payload).await,
    }
}

/// Writes, with the claim, what has to be on disk before a job begins.
pub async fn claimed(tx: &impl ConnectionTrait, jobs: &[Claimed]) -> Result<(), DbErr> {
    let uploads: Vec<_> = jobs
        .iter()
        .filter_map(|job| match Work::read(&job.kind, &job.payload) {
            Ok(Work::UploadFile(payload)) => Some(payload.mapping_id),
            _ => None,
        })
        .collect();
    mappings::store::begin_uploads(tx, &uploads).await
}

/// Writes what follows when an attempt ended and nobody can say how: its worker died, or it panicked.
pub async fn ended_unseen(
    tx: &Transaction,
    now: Timestamp,
    work: &Work,
    ending: &Ending,
) -> Result<(), DbErr> {
    match work {
        Work::UploadFile(payload) => upload_file::ended_unseen(tx, now, payload, ending).await,
        // It looks and deletes, and the next look sees what is left.
        Work::VerifyUpload(_) => Ok(()),
        // The receiver may be told twice, by the same id.
        Work::DeliverWebhook(_) => Ok(()),
        Work::DeleteFile(payload) => delete_file::ended_unseen(tx, now, payload, ending).await,
        Work::SubmitBatch(payload) => submit_batch::ended_unseen(tx, now, payload, ending).await,
        Work::IngestBatch(payload) => ingest_batch::ended_unseen(tx, now, payload, ending).await,
        // What was seen is written run by run, and asking to stop twice is harmless.
        Work::WatchBatch(_) | Work::CancelBatch(_) => Ok(()),
        Work::MergeBatch(payload) => merge_batch::ended_unseen(tx, payload, ending).await,
        Work::Sweep(payload) => sweep::ended_unseen(tx, now, payload, ending).await,
        Work::Reconcile(payload) => reconcile::ended_unseen(tx, now, payload, ending).await,
    }
}

/// The end of an attempt that panicked.
pub fn panicked(work: &Work) -> Done {
    Done {
        conclusion: Conclusion::transient(
            "job_panicked",
            "the attempt ended in a panic; see the log of the worker",
        ),
        effects: Arc::new(Unseen(work.clone())),
    }
}

/// What follows from the end of an attempt that this process does not run. `was_begun` if it ever did, so that nobody
/// knows what was sent.
pub fn unrun(work: Work, file: Option<FileId>, was_begun: bool) -> Arc<dyn Effects> {
    if was_begun { Arc::new(Unseen(work)) } else { Arc::new(Unbegun { work, file }) }
}

/// The end of an attempt at a job whose payload is not of its kind's shape: nothing was begun.
pub fn unreadable(job: &Claimed, error: &serde_json::Error) -> Done {
    Done {
        conclusion: Conclusion::permanent(
            "payload_unreadable",
            format!("the payload of the job cannot be read: {error}"),
        ),
        effects: Arc::new(Unreadable {
            job_id: job.id,
            file_id: job.file_id,
            batch_id: job.batch_id,
        }),
    }
}

/// No effects beside the job's own row.
pub struct Nothing;

#[async_trait]
impl Effects for Nothing {
    async fn write(&self, _: &Transaction, _: Timestamp, _: &Ending) -> Result<(), DbErr> {
        Ok(())
    }
}

/// The end of an attempt that was claimed and never begun: certainly nothing was sent.
struct Unbegun {
    work: Work,
    file: Option<FileId>,
}

#[async_trait]
impl Effects for Unbegun {
    fn file(&self) -> Option<FileId> {
        self.file
    }

    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        if let (Work::UploadFile(payload), Ending::Retry { .. }) = (&self.work, ending) {
            let upload = mappings::store::find_upload(tx, payload.mapping_id).await?;
            let Some(upload) = upload else { return Ok(()) };
            return mappings::outcome::postpone(tx, &upload, Certainty::Unchanged, None).await;
        }
        ended_unseen(tx, now, &self.work, ending).await
    }
}

struct Unseen(Work);

#[async_trait]
impl Effects for Unseen {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        ended_unseen(tx, now, &self.0, ending).await
    }
}

/// The mapping or the run that an unreadable job was for is found by the job: it would wait for ever.
struct Unreadable {
    job_id: JobId,
    file_id: Option<FileId>,
    batch_id: Option<BatchId>,
}

#[async_trait]
impl Effects for Unreadable {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        let Ending::Failed(failure) = ending else { return Ok(()) };
        if let Some(batch) = self.batch_id
            && let Some(run) = runs::store::of_job(tx, batch, self.job_id).await?
        {
            let certainty = submission::Certainty::Unchanged;
            return submission::abandon(tx, now, &run, certainty, failure).await;
        }
        let Some(file_id) = self.file_id else { return Ok(()) };
        let Some(id) = mappings::store::of_job(tx, file_id, self.job_id).await? else {
            return Ok(());
        };
        let Some(upload) = mappings::store::find_upload(tx, id).await? else { return Ok(()) };
        mappings::outcome::abandon(tx, now, &upload, Certainty::Unchanged, failure).await?;
        mappings::deletion::give_up(tx, now, &upload, failure).await
    }
}
