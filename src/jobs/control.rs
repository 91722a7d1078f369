//! What a person does to a job: cancel it, or queue a dead letter again.

use crate::db::Transaction;
use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use super::Ending;
use super::Failure;
use super::JobStatus;
use super::Work;
use super::store;
use super::store::Job;
use crate::batches;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::files;
use crate::files::FileStatus;
use crate::mappings;
use crate::mappings::store::Certainty;
use crate::reconciliations;
use crate::runs;
use crate::runs::ingestion;
use crate::runs::submission;
use crate::sweeps;

/// Cancels a job that waits, and asks the worker of one that runs to stop.
pub async fn cancel(tx: &Transaction, now: Timestamp, job: &Job) -> Result<(), Error> {
    check_kind(job)?;
    if job.kind == "sweep" {
        return Err(Error::Conflict {
            code: "job_of_a_sweep",
            message:
                "what this sweep has taken must be deleted by its job; cancel the sweep itself"
                    .to_owned(),
            retry_after: None,
        });
    }
    if job.kind.ends_with("_batch") {
        return Err(Error::Conflict {
            code: "job_of_a_batch",
            message: "what is at the provider has to be stopped too; cancel the batch itself"
                .to_owned(),
            retry_after: None,
        });
    }
    store::lock(tx, job.id).await?;
    if store::cancel_waiting(tx, now, job.id).await? {
        let failure = Failure::permanent("cancelled", "the job was cancelled");
        give_up(tx, now, job, &failure).await?;
        events::append(tx, now, &[Event::of_job(EventKind::JobCancelled, &job.owner, job.id)])
            .await?;
        return Ok(());
    }
    if store::request_cancel(tx, now, job.id).await? {
        return Ok(());
    }
    Err(Error::Conflict {
        code: "job_ended",
        message: format!(
            "the job has already ended as `{}`: there is nothing left to cancel",
            job.status
        ),
        retry_after: None,
    })
}

/// What else has to change with a job only a version that knows its kind can tell.
fn check_kind(job: &Job) -> Result<(), Error> {
    if Work::is_known(&job.kind) {
        return Ok(());
    }
    Err(Error::Conflict {
        code: "job_of_newer_version",
        message: format!(
            "jobs of the kind `{}` are of a newer version than this process; ask one of that version",
            job.kind
        ),
        retry_after: None,
    })
}

/// Ends, as failed, a job that waits in vain. `false` when it does not wait any more.
pub async fn fail_waiting(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    job: &Job,
    failure: &Failure,
) -> Result<bool, DbErr> {
    if !store::fail_waiting(tx, now, job.id, failure).await? {
        return Ok(false);
    }
    give_up(tx, now, job, failure).await?;
    let said = EventKind::of_ending(&Ending::Failed(failure.clone()), &job.kind);
    let said = said.map(|kind| Event::of_job(kind, &job.owner, job.id));
    events::append(tx, now, said.as_slice()).await?;
    Ok(true)
}

/// What a job that will not run (again) leaves of what it was for.
async fn give_up(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    job: &Job,
    failure: &Failure,
) -> Result<(), DbErr> {
    match Work::read(&job.kind, &job.payload) {
        Ok(Work::UploadFile(payload)) => {
            let Some(upload) = mappings::store::find_upload(tx, payload.mapping_id).await? else {
                return Ok(());
            };
            mappings::outcome::abandon(tx, now, &upload, Certainty::Unchanged, failure).await
        }
        Ok(Work::DeleteFile(payload)) => {
            let Some(upload) = mappings::store::find_upload(tx, payload.mapping_id).await? else {
                return Ok(());
            };
            mappings::deletion::give_up(tx, now, &upload, failure).await
        }
        Ok(Work::SubmitBatch(payload)) => {
            let Some(run) = runs::store::find(tx, payload.run_id).await? else { return Ok(()) };
            submission::abandon(tx, now, &run, submission::Certainty::Unchanged, failure).await
        }
        // The results are at the provider still: the job can be retried.
        Ok(Work::IngestBatch(payload)) => {
            ingestion::give_up(tx, now, payload.run_id, failure).await
        }
        Ok(Work::MergeBatch(payload)) => batches::merge_failed(tx, payload.batch_id, failure).await,
        // A payload that cannot be read stands for nothing that could be given up.
        Ok(
            Work::VerifyUpload(_)
            | Work::WatchBatch(_)
            | Work::CancelBatch(_)
            | Work::DeliverWebhook(_),
        )
        | Err(_) => Ok(()),
        Ok(Work::Sweep(payload)) => sweeps::fail(tx, now, payload.sweep_id, failure).await,
        Ok(Work::Reconcile(payload)) => {
            let id = payload.reconciliation_id;
            reconciliations::finish(tx, now, id, Err(failure)).await
        }
    }
}

/// Queues a failed or cancelled job again, with all its attempts.
pub async fn retry(tx: &Transaction, now: Timestamp, job: &Job) -> Result<(), Error> {
    check_kind(job)?;
    if !matches!(job.status()?, JobStatus::Failed | JobStatus::Cancelled) {
        return Err(Error::Conflict {
            code: "job_not_failed",
            message: format!(
                "the job is `{}`; only a failed or cancelled one can be retried",
                job.status
            ),
            retry_after: None,
        });
    }
    let superseded = || Error::Conflict {
        code: "job_superseded",
        message: "what this job was for has been settled otherwise since".to_owned(),
        retry_after: None,
    };
    if job.kind == "upload_file" {
        let file_id = job.file_id.ok_or_else(superseded)?;
        // Another mapping that ends meanwhile must see this one at work again.
        files::store::lock(tx, file_id).await?;
        let file = files::store::find_by_id(tx, file_id)
            .await?
            .filter(|view| view.file.deleted_at.is_none());
        let mapping = mappings::store::of_job(tx, file_id, job.id).await?;
        if file.is_none() || mapping.is_none() {
            return Err(superseded());
        }
    }
    let queued = store::requeue(tx, &[job.id]).await?;
    if queued.is_empty() {
        return Err(superseded());
    }
    if let Ok(Work::SubmitBatch(payload)) = Work::read(&job.kind, &job.payload) {
        let run = runs::store::find(tx, payload.run_id).await?.ok_or_else(superseded)?;
        if !submission::revive(tx, now, &run).await? {
            return Err(superseded());
        }
    }
    if let Ok(Work::IngestBatch(payload)) = Work::read(&job.kind, &job.payload)
        && !ingestion::reopen(tx, now, payload.run_id).await?
    {
        return Err(superseded());
    }
    if let Ok(Work::Sweep(payload)) = Work::read(&job.kind, &job.payload)
        && !sweeps::store::reopen(tx, payload.sweep_id).await?
    {
        return Err(superseded());
    }
    if let Ok(Work::Reconcile(payload)) = Work::read(&job.kind, &job.payload)
        && !reconciliations::store::reopen(tx, payload.reconciliation_id).await?
    {
        return Err(superseded());
    }
    if let Ok(Work::DeleteFile(payload)) = Work::read(&job.kind, &job.payload) {
        let upload = mappings::store::find_upload(tx, payload.mapping_id).await?;
        let upload = upload.ok_or_else(superseded)?;
        if !mappings::deletion::revive(tx, now, &upload, job.id).await? {
            return Err(superseded());
        }
    }
    if mappings::store::revive(tx, &queued).await? > 0
        && let Some(file_id) = job.file_id
    {
        files::store::set_status(tx, file_id, FileStatus::Uploaded, None).await?;
    }
    Ok(())
}
