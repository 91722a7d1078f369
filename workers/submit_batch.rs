//! Creates a batch at one provider: once, since a second one costs money.
//!
//! Before the create is sent, the run is marked as of unknown outcome, and only an answer takes that back. While it
//! stands, the provider's list is looked through for the run's marker; the create is sent again only after two
//! complete lists without it, the second long after the first request can have taken effect.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt as _;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::listing::Unread;
use super::registry::Nothing;
use super::strays;
use crate::app::Account;
use crate::batches;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::SubmitBatch;
use crate::jobs::leases;
use crate::jobs::retry;
use crate::mappings;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::providers::ErrorKind;
use crate::providers::NewBatch;
use crate::providers::ProviderError;
use crate::providers::ProviderFileId;
use crate::providers::RemoteBatch;
use crate::providers::SentWhole;
use crate::runs::observation;
use crate::runs::observation::Rhythm;
use crate::runs::store;
use crate::runs::store::Run;
use crate::runs::submission;
use crate::runs::submission::Certainty;
use crate::runs::submission::OUTCOME_UNKNOWN;
use crate::runs::submission::UNKNOWN_FOR;

/// When the list is looked at again, after as much time since the outcome became unknown. The last look is at
/// [`UNKNOWN_FOR`].
const LOOKS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(180)];

/// How long to rest when a page of the list could not be read.
const GARBLED_PAUSE: Duration = Duration::from_secs(60);

pub async fn run(attempt: &Attempt, payload: &SubmitBatch) -> Done {
    let nothing_done =
        |conclusion| Done { conclusion, effects: Arc::new(Nothing) as Arc<dyn Effects> };
    let run = match store::find(attempt.app.db.read(), payload.run_id).await {
        Ok(Some(run)) => run,
        Ok(None) => {
            let message = "the run of this job does not exist";
            return nothing_done(Conclusion::permanent("run_missing", message));
        }
        Err(error) => return nothing_done(Conclusion::without_database(&error)),
    };
    // An attempt before this one got as far as the provider's answer.
    if run.ended_at.is_some() || run.is_there() {
        return nothing_done(Conclusion::Succeeded);
    }
    let sent = SentWhole::default();
    // Dropped when it has to stop: nothing more is sent then, and `sent` tells how far it got.
    let result = tokio::select! {
        biased;
        result = submit(attempt, &run, sent.clone()) => result,
        stop = attempt.lease.stopped() => {
            let certainty = match run.unknown_for() {
                _ if sent.is_set() => Certainty::Unknown,
                None => Certainty::Absent,
                Some(_) => Certainty::Unchanged,
            };
            Submitted { certainty, ..Submitted::of(Conclusion::of_stop(stop)) }
        }
    };
    let rhythm = rhythm(attempt);
    let Submitted { conclusion, certainty, batch, looked, capacity } = result;
    let effects = Submission { run, certainty, batch, looked, capacity, rhythm };
    Done { conclusion, effects: Arc::new(effects) }
}

/// When this installation looks at batches.
pub fn rhythm(attempt: &Attempt) -> Rhythm {
    let batches = &attempt.app.config.batches;
    Rhythm { poll: batches.poll, poll_max: batches.poll_max, jitter: rand::rng().random() }
}

/// What an attempt came to.
struct Submitted {
    conclusion: Conclusion,
    certainty: Certainty,
    batch: Option<RemoteBatch>,
    /// The provider's list was read to its end and did not show the batch.
    looked: bool,
    /// The provider has no room.
    capacity: Option<Failure>,
}

impl Submitted {
    fn of(conclusion: Conclusion) -> Self {
        Self {
            conclusion,
            certainty: Certainty::Unchanged,
            batch: None,
            looked: false,
            capacity: None,
        }
    }
}

async fn submit(attempt: &Attempt, run: &Run, sent: SentWhole) -> Submitted {
    let Some(account) = attempt.app.providers.get(&run.provider) else {
        let message = format!("the provider `{}` is not configured any more", run.provider);
        return Submitted::of(Conclusion::transient("provider_not_configured", message));
    };
    if !attempt.app.installation.is_trusted {
        return Submitted::of(strays::untrusted());
    }
    if run.unknown_for().is_some() {
        match settle(attempt, account, run).await {
            Ok(()) => {}
            Err(submitted) => return *submitted,
        }
    }
    if run.cancelling_at.is_some() {
        let certainty = Certainty::Absent;
        return Submitted { certainty, ..Submitted::of(Conclusion::Cancelled) };
    }
    match input(attempt, run).await {
        Ok(input) => create(attempt, account, run, input, sent).await,
        // Nothing is there: else it would have been found.
        Err(conclusion) => Submitted { certainty: Certainty::Absent, ..Submitted::of(conclusion) },
    }
}

/// Looks whether the provider has what an earlier attempt may have created. `Ok` when it certainly has not.
async fn settle(attempt: &Attempt, account: &Account, run: &Run) -> Result<(), Box<Submitted>> {
    let (Some(waited), Some(marker)) = (run.unknown_for(), run.marker.clone()) else {
        return Ok(());
    };
    let say = |conclusion| Box::new(Submitted::of(conclusion));
    if !account.driver.capabilities().can_list_batches {
        return Err(say(cannot_know(account)));
    }
    let lag = account.settings.list_lag;
    if waited < lag {
        return Err(say(Conclusion::Again { after: lag - waited, failure: None }));
    }
    let (app, marker) = (&attempt.app, Marker(marker));
    let look = attempt.listings.look_for_batch(app, account, &marker, run.created_at);
    let batches = match look.await {
        Ok(batches) => batches,
        Err(unread) if unread.has_no_list() => return Err(say(cannot_know(account))),
        // An entry that cannot be read may be anybody's: it says nothing against the provider.
        Err(Unread::Refused(error)) if error.kind == ErrorKind::Garbled => {
            let failure = Some(retry::failure(&error));
            return Err(say(Conclusion::Again { after: GARBLED_PAUSE, failure }));
        }
        Err(unread) => return Err(say(unread.conclusion())),
    };
    // The oldest is the one whose answer was lost.
    if let Some(batch) = batches.into_iter().min_by_key(|batch| batch.created_at) {
        tracing::info!(provider.batch_id = %batch.id, "found the batch whose answer was lost; it is adopted");
        metrics::counter!("longshore_rescues_total", "how" => "batch_adopted").increment(1);
        return Err(Box::new(Submitted {
            batch: Some(batch),
            ..Submitted::of(Conclusion::Succeeded)
        }));
    }
    if run.looked_at.is_some() && waited >= UNKNOWN_FOR {
        return Ok(());
    }
    let next = LOOKS.into_iter().find(|look| *look > waited).unwrap_or(UNKNOWN_FOR);
    let failure = Failure::transient(
        OUTCOME_UNKNOWN,
        "the answer to the create was lost; it is not repeated before the provider's list has been looked at for long \
         enough",
    );
    let after = next.saturating_sub(waited).max(lag);
    let again = Conclusion::Again { after, failure: Some(failure) };
    Err(Box::new(Submitted { looked: true, ..Submitted::of(again) }))
}

fn cannot_know(account: &Account) -> Conclusion {
    Conclusion::permanent(
        OUTCOME_UNKNOWN,
        format!(
            "the answer to the create of a batch was lost, and `{}` offers no way to find out whether it took effect; \
             look there: if it is there, cancel this batch and import that one, if not, retry this job",
            account.settings.name
        ),
    )
}

/// What the provider calls the copy that the batch is to run on.
async fn input(attempt: &Attempt, run: &Run) -> Result<ProviderFileId, Conclusion> {
    let lost = |what: &str| {
        let message = format!("{what}; upload the file again, and make another batch");
        Err(Conclusion::permanent("input_lost", message))
    };
    let Some(mapping) = run.mapping_id else { return lost("the batch has no input") };
    let found = mappings::store::find_upload(attempt.app.db.read(), mapping).await;
    let found = found.map_err(|error| Conclusion::without_database(&error))?;
    let Some(upload) = found else { return lost("the mapping of the input does not exist") };
    match (upload.status(), upload.provider_file_id) {
        (Ok(MappingStatus::Ready), Some(id)) => Ok(ProviderFileId(id)),
        (Ok(status), _) => lost(&format!("the provider's copy of the input is `{status}`")),
        (Err(error), _) => Err(Conclusion::without_database(&error)),
    }
}

async fn create(
    attempt: &Attempt,
    account: &Account,
    run: &Run,
    input: ProviderFileId,
    sent: SentWhole,
) -> Submitted {
    match begin(attempt, run).await {
        Ok(true) => {}
        // It is another worker's by now, or nobody waits for the batch any more: the next attempt sees which.
        Ok(false) => return Submitted::of(Conclusion::HandedBack),
        Err(error) => return Submitted::of(Conclusion::without_database(&error)),
    }
    let new = NewBatch {
        input_file_id: input,
        endpoint: run.endpoint.clone(),
        completion_window: run.completion_window.clone(),
        marker: run.marker.clone().unwrap_or_default(),
        output_expires_after: run
            .output_expires_after
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs),
        sent,
    };
    if !attempt.lease.holds() {
        let certainty = Certainty::Absent;
        return Submitted { certainty, ..Submitted::of(Conclusion::HandedBack) };
    }
    match account.driver.create_batch(new).await {
        Ok(batch) => {
            metrics::counter!("longshore_batches_created_total", "provider" => run.provider.clone()).increment(1);
            tracing::info!(provider.name = %run.provider, provider.batch_id = %batch.id, "created batch");
            Submitted { batch: Some(batch), ..Submitted::of(Conclusion::Succeeded) }
        }
        Err(error) => refused(attempt, account, run, &error),
    }
}

/// Writes the intent. `false` when nothing is to be created here any more.
async fn begin(attempt: &Attempt, run: &Run) -> Result<bool, DbErr> {
    let (fence, id, batch) = (attempt.fence.clone(), run.id, run.batch_id);
    attempt
        .app
        .db
        .work_alone(move |tx| {
            let fence = fence.clone();
            Box::pin(async move {
                if !leases::check(tx, &fence).await? {
                    return Ok(false);
                }
                batches::store::lock(tx, batch).await?;
                store::begin_create(tx, id).await
            })
        })
        .await
}

fn refused(attempt: &Attempt, account: &Account, run: &Run, error: &ProviderError) -> Submitted {
    let now = attempt.app.clock.now();
    if error.outcome_unknown {
        metrics::counter!("longshore_unknown_outcomes_total", "provider" => run.provider.clone())
            .increment(1);
        let can_list = account.driver.capabilities().can_list_batches;
        let conclusion = if can_list { Conclusion::of_error(error) } else { cannot_know(account) };
        return Submitted { certainty: Certainty::Unknown, ..Submitted::of(conclusion) };
    }
    let certainty = Certainty::Absent;
    if error.kind == ErrorKind::Capacity {
        let failure = retry::failure(error);
        let jitter = rand::rng().random();
        let after = observation::capacity_pause(now.since(run.created_at), jitter);
        let again = Conclusion::Again { after, failure: Some(failure.clone()) };
        return Submitted { certainty, capacity: Some(failure), ..Submitted::of(again) };
    }
    Submitted { certainty, ..Submitted::of(Conclusion::of_error(error)) }
}

/// What an attempt writes with its end.
struct Submission {
    run: Run,
    certainty: Certainty,
    batch: Option<RemoteBatch>,
    looked: bool,
    capacity: Option<Failure>,
    rhythm: Rhythm,
}

#[async_trait]
impl Effects for Submission {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        let run = &self.run;
        match (ending, &self.batch) {
            (_, Some(batch)) => submission::submitted(tx, now, run, batch, &self.rhythm).await,
            (Ending::Succeeded, None) => Ok(()),
            (Ending::Retry { .. }, None) => {
                if let Some(failure) = &self.capacity {
                    return submission::refuse_for_now(tx, now, run, failure).await.map(|_| ());
                }
                submission::postpone(tx, now, run, self.certainty).await?;
                if self.looked { store::looked(tx, run.id).await } else { Ok(()) }
            }
            (Ending::Failed(failure), None) => {
                submission::abandon(tx, now, run, self.certainty, failure).await
            }
            (Ending::Cancelled, None) => match self.certainty {
                Certainty::Absent => submission::call_off(tx, now, run).await,
                certainty => submission::postpone(tx, now, run, certainty).await,
            },
        }
    }

    async fn write_after_loss(&self, tx: &Transaction, now: Timestamp) -> Result<(), DbErr> {
        match &self.batch {
            Some(batch) => submission::submitted(tx, now, &self.run, batch, &self.rhythm).await,
            None => Ok(()),
        }
    }
}

/// Nobody can say how the attempt ended. If a create was sent, that is on disk already.
pub async fn ended_unseen(
    tx: &Transaction,
    now: Timestamp,
    payload: &SubmitBatch,
    ending: &Ending,
) -> Result<(), DbErr> {
    let Some(run) = store::find(tx, payload.run_id).await? else { return Ok(()) };
    match ending {
        Ending::Failed(failure) => {
            submission::abandon(tx, now, &run, Certainty::Unchanged, failure).await
        }
        Ending::Cancelled | Ending::Retry { .. } | Ending::Succeeded => Ok(()),
    }
}
