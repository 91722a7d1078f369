//! Cancelling a batch, in every state before its end: what is not at its provider ends at once, and the providers
//! of the others are asked to stop.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use super::settle;
use super::store;
use crate::clock::Timestamp;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::ids::BatchId;
use crate::ids::JobId;
use crate::jobs;
use crate::runs;
use crate::runs::RunStatus;
use crate::runs::store::Run;
use crate::runs::submission;

/// `false` when the batch has ended. For one that is being cancelled already, what got stuck on the way is done again.
///
/// # Errors
///
/// What the database says.
pub async fn cancel(tx: &impl ConnectionTrait, now: Timestamp, id: BatchId) -> Result<bool, DbErr> {
    // In the order in which the end of a submission takes them, so that the two never wait for each other.
    for job in submissions(&runs::store::of_batches(tx, &[id]).await?) {
        jobs::store::lock(tx, job).await?;
    }
    store::lock(tx, id).await?;
    store::request_cancel(tx, now, id).await?;
    let batch = store::find_by_id(tx, id).await?;
    if batch.is_none_or(|batch| batch.ended_at.is_some()) {
        return Ok(false);
    }
    for run in runs::store::of_batches(tx, &[id]).await? {
        cancel_run(tx, now, &run).await?;
    }
    settle(tx, now, id).await?;
    Ok(true)
}

fn submissions(runs: &[Run]) -> Vec<JobId> {
    let mut jobs: Vec<_> =
        runs.iter().filter(|run| run.ended_at.is_none()).filter_map(|run| run.job_id).collect();
    jobs.sort_unstable();
    jobs
}

async fn cancel_run(tx: &impl ConnectionTrait, now: Timestamp, run: &Run) -> Result<(), DbErr> {
    // It has ended, here or at its provider.
    if run.ended_at.is_some() || run.outcome()?.is_some() {
        return Ok(());
    }
    if run.is_there() {
        runs::store::advance(tx, now, run.id, RunStatus::Cancelling).await?;
        return submission::stop_once(tx, now, run).await;
    }
    // What a person was to decide is decided: nobody waits for it.
    let needs_attention = run.status()? == RunStatus::NeedsAttention;
    let has_stopped = match run.job_id {
        Some(_) if needs_attention => true,
        // It has to find out whether an earlier create took effect.
        Some(_) if run.unknown_for().is_some() => false,
        Some(job) => stop_job(tx, now, &run.owner, job).await?,
        None => true,
    };
    if has_stopped {
        return submission::call_off(tx, now, run).await;
    }
    // Its end sees that nobody waits.
    runs::store::advance(tx, now, run.id, RunStatus::Cancelling).await?;
    match run.job_id {
        Some(job) => jobs::store::hasten(tx, job).await,
        None => Ok(()),
    }
}

/// `false` when the job runs.
async fn stop_job(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    owner: &str,
    job: JobId,
) -> Result<bool, DbErr> {
    if !jobs::store::cancel_waiting(tx, now, job).await? {
        return Ok(!jobs::store::is_running(tx, job).await?);
    }
    let event = Event::of_job(EventKind::JobCancelled, owner, job);
    events::append(tx, now, &[event]).await?;
    Ok(true)
}
