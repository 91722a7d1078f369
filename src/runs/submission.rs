//! Submitting a run: each way in which it can go, for whoever ends it (the worker that tried, the reaper, a client
//! that cancels). All of it runs inside the transaction that ends the job.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use super::RunStatus;
use super::end;
use super::fail;
use super::observation;
use super::observation::Rhythm;
use super::store;
use super::store::Run;
use crate::batches;
use crate::batches::MAX_ATTEMPTS;
use crate::clock::Timestamp;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::RunId;
use crate::jobs;
use crate::jobs::CancelBatch;
use crate::jobs::Failure;
use crate::jobs::Lane;
use crate::jobs::NewJob;
use crate::jobs::SubmitBatch;
use crate::jobs::Work;
use crate::mappings::store::Upload;
use crate::provider_events;
use crate::providers::RemoteBatch;
use crate::runs::observation::watch;

/// After an unknown outcome, a create counts as not done when its own time limit and this much more have passed
/// and the provider's list still does not show it.
pub const UNKNOWN_FOR: Duration = Duration::from_secs(60 + 600);

/// The job that submits a run.
pub fn job(run: RunId, batch: &Submitted<'_>, delay: Duration) -> NewJob {
    NewJob {
        id: JobId::mint(),
        work: Work::SubmitBatch(SubmitBatch { run_id: run }),
        lane: Lane::of_provider(batch.provider),
        owner: batch.owner.to_owned(),
        max_attempts: batch.max_attempts,
        delay,
        file_id: None,
        batch_id: Some(batch.id),
        model: Some(batch.model.to_owned()),
        request_id: batch.request_id.map(str::to_owned),
    }
}

/// What a submission says of its batch.
#[derive(Clone, Copy, Debug)]
pub struct Submitted<'b> {
    pub id: crate::ids::BatchId,
    pub owner: &'b str,
    pub provider: &'b str,
    pub model: &'b str,
    pub max_attempts: u32,
    pub request_id: Option<&'b str>,
}

impl<'b> From<&'b Run> for Submitted<'b> {
    fn from(run: &'b Run) -> Self {
        Self {
            id: run.batch_id,
            owner: &run.owner,
            provider: &run.provider,
            model: &run.model,
            max_attempts: MAX_ATTEMPTS,
            request_id: run.request_id.as_deref(),
        }
    }
}

/// A copy of an input has reached its provider: the runs that waited for it can go.
///
/// # Errors
///
/// What the database says.
pub async fn upload_ready(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
) -> Result<(), DbErr> {
    for run in waiting(tx, upload).await? {
        let job = job(run.id, &Submitted::from(&run), Duration::ZERO);
        store::set_job(tx, run.id, job.id).await?;
        jobs::store::enqueue(tx, now, &[job]).await?;
    }
    Ok(())
}

/// A copy of an input will not reach its provider: the runs that waited for it have failed.
///
/// # Errors
///
/// What the database says.
pub async fn upload_failed(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    failure: &Failure,
) -> Result<(), DbErr> {
    for run in waiting(tx, upload).await? {
        fail(tx, now, &run, failure).await?;
    }
    Ok(())
}

async fn waiting(tx: &impl ConnectionTrait, upload: &Upload) -> Result<Vec<Run>, DbErr> {
    // An upload pays for the question only where there can be an answer.
    if upload.purpose != crate::files::Purpose::Batch.as_str() {
        return Ok(Vec::new());
    }
    let id: MappingId = upload.id;
    store::waiting_for_upload(tx, id).await
}

/// The provider has the batch. One that came too late, when the run had ended or had another, is stopped there:
/// it costs money.
///
/// # Errors
///
/// What the database says.
pub async fn submitted(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    remote: &RemoteBatch,
    rhythm: &Rhythm,
) -> Result<(), DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    let id = &remote.id.0;
    let has_ended =
        remote.state.is_terminal() || provider_events::has_come(tx, &run.provider, id).await?;
    let next_look_in = if has_ended { Duration::ZERO } else { rhythm.first() };
    if !store::submitted(tx, now, run.id, id, next_look_in).await? {
        let current = store::find(tx, run.id).await?;
        let is_known = current.is_some_and(|run| run.provider_batch_id.as_ref() == Some(id));
        return if is_known { Ok(()) } else { stop(tx, now, run, Some(id)).await };
    }
    if run.status()? == RunStatus::NeedsAttention {
        store::advance(tx, now, run.id, RunStatus::Validating).await?;
    }
    watch(tx, now, &run.provider).await?;
    let current = store::find(tx, run.id).await?;
    if current.is_some_and(|run| run.cancelling_at.is_some()) {
        stop(tx, now, run, None).await?;
    }
    observation::open(tx, now, run, remote, next_look_in, 0).await?;
    batches::settle(tx, now, run.batch_id).await
}

/// Queues the request to the provider to stop a batch: the run's, or one that no run has.
///
/// # Errors
///
/// What the database says.
pub async fn stop(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    stray: Option<&str>,
) -> Result<(), DbErr> {
    let payload = CancelBatch { run_id: run.id, stray: stray.map(str::to_owned) };
    let job = NewJob {
        work: Work::CancelBatch(payload),
        ..job(run.id, &Submitted::from(run), Duration::ZERO)
    };
    jobs::store::enqueue(tx, now, &[job]).await
}

/// What is known of the provider's side after an attempt that did not bring the batch there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// The provider does not have it.
    Absent,
    /// It may have it, since this time at the latest.
    Unknown(Timestamp),
    /// As it was before: nothing was sent.
    Unchanged,
}

/// The submission is to be tried again. A run that is to be cancelled, and is certainly not at the provider, ends
/// here instead.
///
/// # Errors
///
/// What the database says.
pub async fn postpone(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    certainty: Certainty,
) -> Result<(), DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    note(tx, run, certainty).await?;
    let Some(current) = store::find(tx, run.id).await? else { return Ok(()) };
    if current.cancelling_at.is_some() && current.unknown_since.is_none() && !current.is_there() {
        return end(tx, now, run, RunStatus::Cancelled, None).await;
    }
    Ok(())
}

async fn note(tx: &impl ConnectionTrait, run: &Run, certainty: Certainty) -> Result<(), DbErr> {
    match certainty {
        Certainty::Absent => store::set_unknown(tx, run.id, None).await,
        Certainty::Unknown(at) => store::set_unknown(tx, run.id, Some(at)).await,
        Certainty::Unchanged => Ok(()),
    }
}

/// The provider has no room. The run waits until a batch of ours ends there, or for a while.
///
/// # Errors
///
/// What the database says.
pub async fn refuse_for_now(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    failure: &Failure,
) -> Result<(), DbErr> {
    store::wait_for_capacity(tx, run.id).await?;
    store::set_error(tx, run.id, Some(failure)).await?;
    postpone(tx, now, run, Certainty::Absent).await
}

/// The submission is given up. Where nobody knows whether the provider has the batch, a person decides.
///
/// # Errors
///
/// What the database says.
pub async fn abandon(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    certainty: Certainty,
    failure: &Failure,
) -> Result<(), DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    note(tx, run, certainty).await?;
    let Some(current) = store::find(tx, run.id).await? else { return Ok(()) };
    if current.is_there() || current.ended_at.is_some() {
        return Ok(());
    }
    if current.unknown_since.is_none() {
        return end(tx, now, run, RunStatus::Failed, Some(failure)).await;
    }
    store::set_error(tx, run.id, Some(failure)).await?;
    if store::advance(tx, now, run.id, RunStatus::NeedsAttention).await? {
        tracing::error!(
            run.id = %run.id, provider.name = %run.provider,
            "a batch may or may not have been created, and nobody here can find out: a person has to decide"
        );
        metrics::counter!("longshore_batches_needing_attention_total", "provider" => run.provider.clone())
            .increment(1);
    }
    batches::settle(tx, now, run.batch_id).await
}

/// The run is cancelled, and certainly not at the provider.
///
/// # Errors
///
/// What the database says.
pub async fn call_off(tx: &impl ConnectionTrait, now: Timestamp, run: &Run) -> Result<(), DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    end(tx, now, run, RunStatus::Cancelled, None).await
}

/// A run whose outcome a person has judged, by retrying its job: the provider does not have it. `false` when it
/// waits for no such judgement.
///
/// # Errors
///
/// What the database says.
pub async fn revive(tx: &impl ConnectionTrait, now: Timestamp, run: &Run) -> Result<bool, DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    let Some(current) = store::find(tx, run.id).await? else { return Ok(false) };
    if current.status()? != RunStatus::NeedsAttention
        || !store::advance(tx, now, run.id, RunStatus::Validating).await?
    {
        return Ok(false);
    }
    store::set_unknown(tx, run.id, None).await?;
    store::set_error(tx, run.id, None).await?;
    batches::settle(tx, now, run.batch_id).await?;
    Ok(true)
}
