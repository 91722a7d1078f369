//! Batches: requests of a file, run on one or several deployments, watched and ingested.
//!
//! A batch is what a client sees; what is done at each deployment is a run ([`crate::runs`]). The batch
//! follows its runs: [`settle`] derives it anew whenever one of them changed.

pub mod cancel;
pub mod create;
pub mod import;
pub mod retry;
pub mod status;
pub mod store;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

pub use self::status::BatchStatus;
use self::store::Batch;
use self::store::BatchView;
use self::store::Standing;
use crate::clock::Timestamp;
use crate::events;
use crate::events::Event;
use crate::files::store::Metadata;
use crate::ids::BatchId;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::managed::ManagedId;
use crate::jobs;
use crate::jobs::Failure;
use crate::jobs::Lane;
use crate::jobs::MergeBatch;
use crate::jobs::NewJob;
use crate::jobs::Work;
use crate::runs;
use crate::runs::RunStatus;
use crate::runs::Usage;
use crate::runs::store::Run;

/// What a batch may take to come about is bounded by time, not by a number of attempts.
pub const MAX_ATTEMPTS: u32 = 1000;

/// Why a batch does not end whose runs have.
const MERGE_FAILED: &str = "merge_failed";

/// A batch to be written.
#[derive(Clone, Debug)]
pub struct NewBatch {
    pub id: BatchId,
    pub owner: String,
    /// None where the provider's batch was made elsewhere, on a file that is not known here (yet).
    pub input_file_id: Option<FileId>,
    pub input_file: String,
    pub endpoint: String,
    pub completion_window: String,
    pub metadata: Option<Metadata>,
    /// Seconds.
    pub output_expires_after: Option<i64>,
    pub is_imported: bool,
    /// The first batch of which it retries requests: retries of retries have the same.
    pub retry_of: Option<BatchId>,
    pub request_id: Option<String>,
}

impl NewBatch {
    /// Its managed id, which names the deployment where there is only one.
    fn managed_id(&self, deployments: &[&str]) -> String {
        let deployment_id = match deployments {
            [one] => (*one).to_owned(),
            _ => String::new(),
        };
        let batch = self.id.0.as_hyphenated().to_string();
        ManagedId::Batch { deployment_id, batch }.encode()
    }
}

/// A batch by its managed id, with its runs.
///
/// # Errors
///
/// What the database says.
pub async fn find(db: &impl ConnectionTrait, managed_id: &str) -> Result<Option<BatchView>, DbErr> {
    match store::find(db, managed_id).await? {
        Some(batch) => view(db, batch).await.map(Some),
        None => Ok(None),
    }
}

/// A batch with its runs.
///
/// # Errors
///
/// What the database says.
pub async fn view(db: &impl ConnectionTrait, batch: Batch) -> Result<BatchView, DbErr> {
    let runs = runs::store::of_batches(db, &[batch.id]).await?;
    Ok(BatchView { batch, runs })
}

/// Derives a batch from its runs, and announces what is new. When all runs have ended, so has a batch with one
/// run; of several, the outputs are merged first.
///
/// The caller holds the batch (see [`store::lock`]).
///
/// # Errors
///
/// What the database says.
pub async fn settle(tx: &impl ConnectionTrait, now: Timestamp, id: BatchId) -> Result<(), DbErr> {
    let Some(batch) = store::find_by_id(tx, id).await? else { return Ok(()) };
    if batch.ended_at.is_some() {
        return Ok(());
    }
    let runs = runs::store::of_batches(tx, &[id]).await?;
    let mut standing = stand(&batch, &runs)?;
    if standing.status.is_final() {
        match &runs[..] {
            [run] => store::set_files(tx, id, run.output_file_id, run.error_file_id).await?,
            several if several.iter().any(has_output) => {
                queue_merge(tx, now, &batch).await?;
                standing.status = BatchStatus::Finalizing;
            }
            _ => {}
        }
    }
    write(tx, now, &batch, &standing).await
}

/// Holds a batch whose runs' outputs are to become one file; none where it has ended, or a run goes on.
///
/// # Errors
///
/// What the database says.
pub async fn begin_merge(
    tx: &impl ConnectionTrait,
    id: BatchId,
) -> Result<Option<BatchView>, DbErr> {
    store::lock(tx, id).await?;
    let batch = store::find_by_id(tx, id).await?;
    let Some(batch) = batch.filter(|batch| batch.ended_at.is_none()) else { return Ok(None) };
    let view = view(tx, batch).await?;
    Ok(Some(view).filter(|view| view.runs.iter().all(|run| run.ended_at.is_some())))
}

/// The outputs of the runs of a batch, which is held, are one file now.
///
/// # Errors
///
/// What the database says.
pub async fn merged(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    mut view: BatchView,
    output: Option<FileId>,
    error: Option<FileId>,
) -> Result<(), DbErr> {
    let BatchView { batch, runs } = &mut view;
    for run in runs.iter_mut().filter(|run| has_merge_failed(run)) {
        runs::store::set_error(tx, run.id, None).await?;
        if let Some(current) = runs::store::find(tx, run.id).await? {
            *run = current;
        }
    }
    let standing = stand(batch, runs)?;
    store::set_files(tx, batch.id, output, error).await?;
    write(tx, now, batch, &standing).await
}

/// The outputs of a batch's runs do not become one file, unless the job is retried. What a run itself failed of is not
/// written over.
///
/// # Errors
///
/// What the database says.
pub async fn merge_failed(
    tx: &impl ConnectionTrait,
    id: BatchId,
    failure: &Failure,
) -> Result<(), DbErr> {
    let failure = Failure { code: MERGE_FAILED.to_owned(), ..failure.clone() };
    for run in runs::store::of_batches(tx, &[id]).await? {
        if run.failure().is_none() {
            runs::store::set_error(tx, run.id, Some(&failure)).await?;
        }
    }
    Ok(())
}

fn has_merge_failed(run: &Run) -> bool {
    run.failure().is_some_and(|failure| failure.code == MERGE_FAILED)
}

async fn write(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    batch: &Batch,
    standing: &Standing,
) -> Result<(), DbErr> {
    if store::stand(tx, now, batch.id, standing).await? {
        let event = Event::of_batch(standing.status.event(), &batch.owner, batch.id);
        events::append(tx, now, &[event]).await?;
        if standing.status.is_final() {
            tracing::info!(batch.id = %batch.id, owner.id = %batch.owner, batch.status = %standing.status, "batch ended");
        }
    }
    Ok(())
}

fn has_output(run: &Run) -> bool {
    run.output_file_id.is_some() || run.error_file_id.is_some()
}

async fn queue_merge(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    batch: &Batch,
) -> Result<(), DbErr> {
    let work = Work::MergeBatch(MergeBatch { batch_id: batch.id });
    if jobs::store::is_pending(tx, batch.id, &work).await? {
        return Ok(());
    }
    let job = NewJob {
        id: JobId::mint(),
        work,
        lane: Lane::merges(),
        owner: batch.owner.clone(),
        max_attempts: MAX_ATTEMPTS,
        delay: std::time::Duration::ZERO,
        file_id: None,
        batch_id: Some(batch.id),
        model: None,
        request_id: batch.request_id.clone(),
    };
    jobs::store::enqueue(tx, now, &[job]).await
}

fn stand(batch: &Batch, runs: &[Run]) -> Result<Standing, DbErr> {
    let statuses = runs.iter().map(Run::status).collect::<Result<Vec<RunStatus>, _>>()?;
    let mut usage: Option<Usage> = None;
    for run in runs {
        if let Some(used) = run.usage() {
            *usage.get_or_insert_default() += used;
        }
    }
    let status = BatchStatus::of_runs(&statuses, batch.cancelling_at.is_some());
    Ok(Standing {
        status,
        total: runs.iter().map(|run| run.total).sum(),
        completed: runs.iter().map(|run| run.completed).sum(),
        failed: runs.iter().map(|run| run.failed).sum(),
        // Before all of it is here it would be less than was used.
        usage: usage.filter(|_| status.is_final()),
        errors: errors(runs)?,
        expires_at: runs.iter().filter_map(|run| run.expires_at).max(),
    })
}

/// The errors of all runs as OpenAI's `errors.data`: what the providers found wrong with the input, and what kept
/// a run from its provider.
fn errors(runs: &[Run]) -> Result<Option<String>, DbErr> {
    let mut all: Vec<serde_json::Value> = Vec::new();
    for run in runs {
        if let Some(errors) = &run.errors {
            let errors: Vec<serde_json::Value> =
                serde_json::from_str(errors).map_err(|error| DbErr::Json(error.to_string()))?;
            all.extend(errors);
        } else if let Some(failure) = run.failure().filter(|_| run.ended_at.is_some()) {
            let message = format!("`{}`: {}", run.model, failure.message);
            all.push(serde_json::json!({
                "code": failure.code, "message": message, "param": null, "line": null,
            }));
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(&all).map(Some).map_err(|error| DbErr::Json(error.to_string()))
}
