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

/// `false` when the batch has ended. One that is being cancelled already is left to that.
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
    if !store::request_cancel(tx, now, id).await? {
        let batch = store::find_by_id(tx, id).await?;
        return Ok(batch.is_some_and(|batch| batch.ended_at.is_none()));
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
        return submission::stop(tx, now, run, None).await;
    }
    // What a person was to decide is decided: nobody waits for it.
    let is_unknown = run.unknown_since.is_some() && run.status()? != RunStatus::NeedsAttention;
    let has_stopped = match run.job_id {
        None => true,
        Some(_) if is_unknown => false,
        Some(job) => stop_job(tx, now, &run.owner, job).await?,
    };
    if has_stopped || run.status()? == RunStatus::NeedsAttention {
        return submission::call_off(tx, now, run).await;
    }
    // Its submission runs, or has to find out whether an earlier one took effect: its end sees that nobody waits.
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
        return Ok(false);
    }
    let event = Event::of_job(EventKind::JobCancelled, owner, job);
    events::append(tx, now, &[event]).await?;
    Ok(true)
}
