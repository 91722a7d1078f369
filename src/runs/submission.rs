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
use crate::ids::BatchId;
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

/// The code of what nobody here can find out.
pub const OUTCOME_UNKNOWN: &str = "outcome_unknown";
/// The code of a run whose batch another one was made of.
pub const BATCH_IMPORTED: &str = "batch_imported";
/// How long a run waits for room at its provider, and how often it is refused where nothing else of ours takes room.
const LONGEST_WAIT_FOR_ROOM: Duration = Duration::from_secs(7 * 24 * 3600);
const MOST_REFUSALS: i32 = 12;

/// The job that submits a run.
pub fn job(run: RunId, origin: &Origin<'_>, delay: Duration) -> NewJob {
    NewJob {
        id: JobId::mint(),
        work: Work::SubmitBatch(SubmitBatch { run_id: run }),
        lane: Lane::of_provider(origin.provider),
        owner: origin.owner.to_owned(),
        max_attempts: origin.max_attempts,
        delay,
        file_id: None,
        batch_id: Some(origin.batch_id),
        model: Some(origin.model.to_owned()),
        request_id: origin.request_id.map(str::to_owned),
    }
}

/// What a job of a run says of where it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'b> {
    pub batch_id: BatchId,
    pub owner: &'b str,
    pub provider: &'b str,
    pub model: &'b str,
    pub max_attempts: u32,
    pub request_id: Option<&'b str>,
}

impl<'b> From<&'b Run> for Origin<'b> {
    fn from(run: &'b Run) -> Self {
        Self {
            batch_id: run.batch_id,
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
        let job = job(run.id, &Origin::from(&run), Duration::ZERO);
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
    // As it is now: the attempt may have been frozen for long.
    let Some(current) = store::find(tx, run.id).await? else { return Ok(()) };
    if current.provider_batch_id.as_ref() == Some(id) {
        return Ok(());
    }
    if current.is_there() || current.ended_at.is_some() {
        return stop(tx, now, run, Some(id)).await;
    }
    if let Some(holder) = holder(tx, run, id).await? {
        let message = format!(
            "the provider's batch `{id}` was imported meanwhile, as another batch ({holder})"
        );
        return end(
            tx,
            now,
            run,
            RunStatus::Failed,
            Some(&Failure::permanent(BATCH_IMPORTED, message)),
        )
        .await;
    }
    let has_ended =
        remote.state.is_terminal() || provider_events::has_come(tx, &run.provider, id).await?;
    let next_look_in = if has_ended { Duration::ZERO } else { rhythm.first() };
    store::submitted(tx, now, run.id, id, next_look_in).await?;
    if current.status()? == RunStatus::NeedsAttention {
        store::advance(tx, now, run.id, RunStatus::Validating).await?;
    }
    watch(tx, now, &run.provider).await?;
    if current.cancelling_at.is_some() {
        stop(tx, now, run, None).await?;
    }
    let Some(current) = store::find(tx, run.id).await? else { return Ok(()) };
    observation::open(tx, now, &current, remote, next_look_in, 0).await?;
    batches::settle(tx, now, run.batch_id).await
}

/// The batch whose run has a provider's batch already.
async fn holder(
    tx: &impl ConnectionTrait,
    run: &Run,
    provider_batch_id: &str,
) -> Result<Option<BatchId>, DbErr> {
    // Imports hold the lane too.
    observation::hold_lane(tx, &run.provider).await?;
    let ids = [provider_batch_id.to_owned()];
    let known = store::of_provider_batches(tx, &run.provider, &ids).await?;
    Ok(known.into_iter().next().map(|run| run.batch_id))
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
        ..job(run.id, &Origin::from(run), Duration::ZERO)
    };
    jobs::store::enqueue(tx, now, &[job]).await
}

/// Likewise for the run's own batch, unless that is still to be done.
///
/// # Errors
///
/// What the database says.
pub async fn stop_once(tx: &impl ConnectionTrait, now: Timestamp, run: &Run) -> Result<(), DbErr> {
    let work = Work::CancelBatch(CancelBatch { run_id: run.id, stray: None });
    if jobs::store::is_pending(tx, run.batch_id, &work).await? {
        return Ok(());
    }
    stop(tx, now, run, None).await
}

/// What is known of the provider's side after an attempt that did not bring the batch there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// The provider does not have it.
    Absent,
    /// It may have it.
    Unknown,
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
    if current.cancelling_at.is_some() && current.unknown_for().is_none() && !current.is_there() {
        return end(tx, now, run, RunStatus::Cancelled, None).await;
    }
    Ok(())
}

async fn note(tx: &impl ConnectionTrait, run: &Run, certainty: Certainty) -> Result<(), DbErr> {
    match certainty {
        Certainty::Absent => store::set_unknown(tx, run.id, false).await,
        Certainty::Unknown => store::set_unknown(tx, run.id, true).await,
        Certainty::Unchanged => Ok(()),
    }
}

/// The provider has no room. The run waits until a batch of ours ends there, or for a while. `false` when it has
/// waited for long enough, and has failed.
///
/// # Errors
///
/// What the database says.
pub async fn refuse_for_now(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    failure: &Failure,
) -> Result<bool, DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    store::wait_for_capacity(tx, run.id).await?;
    store::set_error(tx, run.id, Some(failure)).await?;
    let Some(current) = store::find(tx, run.id).await? else { return Ok(false) };
    if has_waited_enough(tx, now, &current).await? {
        let failure = Failure { retryable: false, ..failure.clone() };
        end(tx, now, run, RunStatus::Failed, Some(&failure)).await?;
        return Ok(false);
    }
    postpone(tx, now, run, Certainty::Absent).await?;
    Ok(true)
}

/// Whether a run that was refused for want of room will never find any: it has waited for a week, or been refused again
/// and again while nothing else of ours takes any room there.
pub(super) async fn has_waited_enough(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
) -> Result<bool, DbErr> {
    if now.since(run.created_at) > LONGEST_WAIT_FOR_ROOM {
        return Ok(true);
    }
    Ok(run.refusals >= MOST_REFUSALS && !store::has_others_open(tx, &run.provider, run.id).await?)
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
    if current.unknown_for().is_none() {
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

/// Goes on with a run that needs attention, whose job is retried. Where nothing here can find out whether the provider
/// has the batch, who retries has judged that it has not; else it is looked for again first. `false` when the run waits
/// for nothing of the sort.
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
    let is_judged = current.failure().is_some_and(|failure| failure.code == OUTCOME_UNKNOWN);
    if is_judged {
        store::set_unknown(tx, run.id, false).await?;
    } else {
        store::look_anew(tx, run.id).await?;
    }
    store::set_error(tx, run.id, None).await?;
    batches::settle(tx, now, run.batch_id).await?;
    Ok(true)
}
