//! What a provider shows of a batch, and what follows from it here: the run moves on, or its end is known and its
//! results are fetched.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use serde_json::json;

use super::Outcome;
use super::RunStatus;
use super::end;
use super::make_room;
use super::store;
use super::store::Ended;
use super::store::Run;
use super::store::Seen;
use super::submission;
use super::submission::Origin;
use crate::batches;
use crate::batches::MAX_ATTEMPTS;
use crate::clock::Timestamp;
use crate::files;
use crate::ids::JobId;
use crate::jobs;
use crate::jobs::Failure;
use crate::jobs::IngestBatch;
use crate::jobs::Lane;
use crate::jobs::NewJob;
use crate::jobs::WatchBatch;
use crate::jobs::Work;
use crate::jobs::lanes;
use crate::mappings::Marker;
use crate::providers::RemoteBatch;
use crate::providers::RemoteBatchState;

/// How long a run whose provider has no room waits at least, and at most, unless a batch of ours ends there.
const SHORTEST_CAPACITY_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_CAPACITY_PAUSE: Duration = Duration::from_secs(15 * 60);
/// A batch that its provider does not show for this long is lost there. It may lag after the create.
pub const LOST_AFTER: Duration = Duration::from_secs(3600);
/// The code of a run whose batch its provider does not show any more.
pub const PROVIDER_BATCH_LOST: &str = "provider_batch_lost";
/// As [`LOST_AFTER`] where it shows none of ours: the account may be a wrong one.
const ALL_LOST_AFTER: Duration = Duration::from_secs(25 * 3600);
/// The same for an imported one, whose name may be mistyped. It can be imported again.
const IMPORT_LOST_AFTER: Duration = Duration::from_secs(60);

/// When to look next: rarer while nothing changes, and never all at once.
#[derive(Clone, Copy, Debug)]
pub struct Rhythm {
    pub poll: Duration,
    pub poll_max: Duration,
    /// Uniform in `0.0..1.0`.
    pub jitter: f64,
}

impl Rhythm {
    pub fn first(&self) -> Duration {
        self.after(0)
    }

    /// How long to rest after as many looks that showed the same.
    pub fn after(&self, looks_alike: i32) -> Duration {
        let growth = 1.5f64.powi(looks_alike.clamp(0, 40));
        let rest = self.poll.mul_f64(growth.min(1e6)).min(self.poll_max.max(self.poll));
        rest.mul_f64(0.9 + 0.2 * self.jitter)
    }
}

/// How long a run rests that found no room, from how long it has waited.
pub fn capacity_pause(waited: Duration, jitter: f64) -> Duration {
    let pause = (waited / 4).clamp(SHORTEST_CAPACITY_PAUSE, LONGEST_CAPACITY_PAUSE);
    pause.mul_f64(0.5 + 0.5 * jitter)
}

/// Whether the provider shows a batch that has not ended just as it did before.
pub fn looks_alike(run: &Run, remote: &RemoteBatch) -> bool {
    Outcome::of(remote.state).is_none()
        && run.provider_status.as_deref() == Some(&*remote.status)
        && run.missed_for().is_none()
        && !run.endpoint.is_empty()
        && counts(remote).is_none_or(|counts| counts == (run.total, run.completed, run.failed))
}

/// Writes what the provider shows. What has ended here is left as it is, whatever it shows.
///
/// # Errors
///
/// What the database says.
pub async fn observe(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    remote: &RemoteBatch,
    rhythm: &Rhythm,
) -> Result<(), DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    let Some(run) = store::find(tx, run.id).await? else { return Ok(()) };
    let is_it = run.provider_batch_id.as_ref() == Some(&remote.id.0);
    if !is_it || run.ended_at.is_some() || run.outcome()?.is_some() {
        return Ok(());
    }
    if run.endpoint.is_empty() {
        if let Some(failure) = belongs_to_another(tx, &run, remote).await? {
            store::release(tx, run.id).await?;
            return end(tx, now, &run, RunStatus::Failed, Some(&failure)).await;
        }
        describe(tx, &run, remote).await?;
    }
    match Outcome::of(remote.state) {
        None => {
            let looks =
                if looks_alike(&run, remote) { run.looks_alike.saturating_add(1) } else { 0 };
            open(tx, now, &run, remote, rhythm.after(looks), looks).await?;
        }
        Some(Outcome::Failed)
            if is_full(remote) && run.cancelling_at.is_none() && run.marker.is_some() =>
        {
            if !submit_again(tx, now, &run, remote, rhythm).await? {
                conclude(tx, now, &run, remote, Outcome::Failed).await?;
            }
        }
        // Answered, and nowhere to be found: it may lag, so it is looked at once more.
        Some(Outcome::Completed) if lacks_files(remote) && run.missed_for().is_none() => {
            store::missed(tx, run.id, rhythm.first()).await?;
        }
        Some(outcome) => conclude(tx, now, &run, remote, outcome).await?,
    }
    batches::settle(tx, now, run.batch_id).await
}

/// Why an imported batch may not be taken over: it was created from here, for a run that has not been given up, or for
/// another owner's.
async fn belongs_to_another(
    tx: &impl ConnectionTrait,
    run: &Run,
    remote: &RemoteBatch,
) -> Result<Option<Failure>, DbErr> {
    let Some(marker) = &remote.marker else { return Ok(None) };
    let creator = store::of_marker(tx, marker).await?.filter(|creator| creator.id != run.id);
    Ok(creator.filter(|creator| creator.owner != run.owner || creator.ended_at.is_none()).map(
        |_| {
            Failure::permanent(
                "batch_known",
                "the batch was created from here; cancel that one first, if it is yours",
            )
        },
    ))
}

/// What an imported batch is, once its provider shows it.
async fn describe(tx: &impl ConnectionTrait, run: &Run, remote: &RemoteBatch) -> Result<(), DbErr> {
    let provider_file = remote.input_file_id.as_ref().map_or("", |id| &id.0);
    let file = files::store::of_copy(tx, &run.provider, provider_file, &run.owner).await?;
    let input = match &file {
        Some(copy) => {
            store::set_mapping(tx, run.id, copy.mapping_id).await?;
            (Some(copy.file_id), copy.managed_id.as_str())
        }
        None => (None, provider_file),
    };
    batches::store::describe(tx, run.batch_id, &remote.endpoint, &remote.completion_window, input)
        .await
}

/// A batch that has not ended.
pub(super) async fn open(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    remote: &RemoteBatch,
    next_look_in: Duration,
    looks_alike: i32,
) -> Result<(), DbErr> {
    if remote.state == RemoteBatchState::Unknown {
        tracing::warn!(
            provider.name = %run.provider, provider.status = %remote.status,
            "the provider shows a batch in a state that is not known here; the last one stays"
        );
        metrics::counter!("longshore_unknown_batch_states_total", "provider" => run.provider.clone())
            .increment(1);
    }
    if let Some(status) = run.status()?.seen(remote.state) {
        store::advance(tx, now, run.id, status).await?;
    }
    let seen = Seen {
        provider_status: &remote.status,
        counts: counts(remote),
        expires_at: remote.expires_at.map(Timestamp::from_unix_seconds),
        next_look_in,
        looks_alike,
    };
    store::seen(tx, run.id, &seen).await
}

fn counts(remote: &RemoteBatch) -> Option<(i64, i64, i64)> {
    remote
        .counts
        .map(|counts| (signed(counts.total), signed(counts.completed), signed(counts.failed)))
}

/// The batch has ended at its provider: its results are taken in, also where there are none.
async fn conclude(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    remote: &RemoteBatch,
    outcome: Outcome,
) -> Result<(), DbErr> {
    let ended = Ended {
        outcome,
        provider_status: &remote.status,
        output_file_id: remote.output_file_id.as_ref().map(|id| id.0.as_str()),
        error_file_id: remote.error_file_id.as_ref().map(|id| id.0.as_str()),
        counts: counts(remote),
        errors: errors(remote)?,
    };
    if !store::ended(tx, run.id, &ended).await? {
        return Ok(());
    }
    store::advance(tx, now, run.id, RunStatus::Finalizing).await?;
    make_room(tx, &run.provider).await?;
    let job = NewJob {
        id: JobId::mint(),
        work: Work::IngestBatch(IngestBatch { run_id: run.id }),
        lane: Lane::ingestion(&run.provider),
        owner: run.owner.clone(),
        max_attempts: MAX_ATTEMPTS,
        delay: Duration::ZERO,
        file_id: None,
        batch_id: Some(run.batch_id),
        model: Some(run.model.clone()),
        request_id: run.request_id.clone(),
    };
    jobs::store::enqueue(tx, now, &[job]).await
}

fn errors(remote: &RemoteBatch) -> Result<Option<String>, DbErr> {
    if remote.errors.is_empty() {
        return Ok(None);
    }
    let errors: Vec<_> = remote
        .errors
        .iter()
        .map(|error| {
            json!({"code": error.code, "message": error.message, "param": error.param, "line": error.line})
        })
        .collect();
    serde_json::to_string(&errors).map(Some).map_err(|error| DbErr::Json(error.to_string()))
}

fn lacks_files(remote: &RemoteBatch) -> bool {
    remote.output_file_id.is_none()
        && remote.error_file_id.is_none()
        && remote.counts.is_some_and(|counts| counts.completed + counts.failed > 0)
}

/// Whether a batch failed only because the provider had no room for it: the same file can go later.
fn is_full(remote: &RemoteBatch) -> bool {
    remote.errors.iter().any(|error| error.code.as_deref() == Some("token_limit_exceeded"))
}

/// Under another marker, by which the failed one is not taken for the new one. `false` when it has waited for long
/// enough.
async fn submit_again(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    remote: &RemoteBatch,
    rhythm: &Rhythm,
) -> Result<bool, DbErr> {
    if submission::has_waited_enough(tx, now, run).await? {
        return Ok(false);
    }
    let installation = run.marker.as_deref().unwrap_or_default().chars();
    let installation: String = installation.take(crate::mappings::INSTALLATION_LENGTH).collect();
    store::advance(tx, now, run.id, RunStatus::Validating).await?;
    store::unsubmit(tx, run.id, &Marker::mint(&installation).0).await?;
    let message = remote.errors.iter().find_map(|error| error.message.clone());
    let message = message.unwrap_or_else(|| "the provider has no room for the batch".to_owned());
    let failure = Failure::transient("provider_capacity", message);
    store::set_error(tx, run.id, Some(&failure)).await?;
    let rest = capacity_pause(now.since(run.created_at), rhythm.jitter);
    let job = submission::job(run.id, &Origin::from(run), rest);
    store::set_job(tx, run.id, job.id).await?;
    jobs::store::enqueue(tx, now, &[job]).await?;
    Ok(true)
}

/// The provider does not show a batch that it had taken. It may lag; after long it is lost: sooner where the provider
/// shows others of ours, so that the account is the right one.
///
/// # Errors
///
/// What the database says.
pub async fn missed(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    rhythm: &Rhythm,
) -> Result<(), DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    let Some(run) = store::find(tx, run.id).await? else { return Ok(()) };
    if run.next_look_at.is_none() {
        return Ok(());
    }
    let patience = if run.marker.is_none() {
        IMPORT_LOST_AFTER
    } else if store::shows_others(tx, &run.provider, run.id).await? {
        LOST_AFTER
    } else {
        ALL_LOST_AFTER
    };
    if run.missed_for().is_none_or(|missed| missed < patience) {
        return store::missed(tx, run.id, rhythm.first().min(patience)).await;
    }
    let id = run.provider_batch_id.as_deref().unwrap_or_default();
    let message = format!(
        "`{}` does not know the batch `{id}`; if it does after all, import it",
        run.provider
    );
    let failure = Failure::permanent(PROVIDER_BATCH_LOST, message);
    store::release(tx, run.id).await?;
    end(tx, now, &run, RunStatus::Failed, Some(&failure)).await
}

/// Holds the lane of a provider's watch until the transaction ends: imports, creates whose answers come late, and the
/// end of the watch see each other by it.
///
/// # Errors
///
/// What the database says.
pub async fn hold_lane(tx: &impl ConnectionTrait, provider: &str) -> Result<(), DbErr> {
    let lane = Lane::watching(provider);
    lanes::ensure(tx, &lane).await?;
    lanes::enter(tx, &lane).await.map(|_| ())
}

/// Makes sure that somebody looks at the batches of a provider, and soon.
///
/// The lane is held, so that a watch that is just ending for want of batches sees the new one.
///
/// # Errors
///
/// What the database says.
pub async fn watch(tx: &impl ConnectionTrait, now: Timestamp, provider: &str) -> Result<(), DbErr> {
    let lane = Lane::watching(provider);
    hold_lane(tx, provider).await?;
    if jobs::store::hasten_lane(tx, &lane).await? {
        return Ok(());
    }
    let job = NewJob {
        id: JobId::mint(),
        work: Work::WatchBatch(WatchBatch { provider: provider.to_owned() }),
        lane,
        owner: crate::owners::ADMIN.to_owned(),
        max_attempts: u32::MAX,
        delay: Duration::ZERO,
        file_id: None,
        batch_id: None,
        model: None,
        request_id: None,
    };
    jobs::store::enqueue(tx, now, &[job]).await
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn looks_become_rarer_up_to_the_limit(looks in 0i32..100, jitter in 0.0f64..1.0) {
            let rhythm = Rhythm { poll: Duration::from_secs(30), poll_max: Duration::from_secs(300), jitter };
            let rest = rhythm.after(looks);
            prop_assert!(rest >= Duration::from_secs(27) && rest <= Duration::from_secs(330));
            prop_assert!(rhythm.after(looks + 1) >= rest);
        }

        #[test]
        fn a_run_without_room_rests_for_a_minute_or_so_and_never_for_long(waited in 0u64..1_000_000, jitter in 0.0f64..1.0) {
            let pause = capacity_pause(Duration::from_secs(waited), jitter);
            prop_assert!(pause >= SHORTEST_CAPACITY_PAUSE / 2 && pause <= LONGEST_CAPACITY_PAUSE);
        }
    }
}
