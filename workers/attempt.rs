//! One attempt at one job: what stands between apalis and a job's `run`. The span, the slot, the
//! panic, and the transaction that ends it all.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::FutureExt as _;
use rand::RngExt as _;
use sea_orm::DbErr;
use tracing::Instrument as _;

use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::decide;
use super::conclusion::outcome;
use super::conclusion::report;
use super::dispatch::Slot;
use super::endings;
use super::endings::Decided;
use super::endings::Endings;
use super::held::Held;
use super::held::Lease;
use super::listing::Listings;
use super::registry;
use super::traced::Ended;
use super::traced::Traced;
use crate::app::Account;
use crate::app::App;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db::warn_of;
use crate::jobs::Ending;
use crate::jobs::Fence;
use crate::jobs::Lane;
use crate::jobs::Spend;
use crate::jobs::Work;
use crate::jobs::claims::Claimed;
use crate::jobs::lanes;
use crate::jobs::lanes::Report;
use crate::jobs::leases;
use crate::jobs::leases::End;
use crate::jobs::retry::RetryPolicy;
use crate::notices::Hint;
use crate::traces;

/// How long to rest between tries to write the end of an attempt, while the database is away.
const ENDING_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_ENDING_PAUSE: Duration = Duration::from_secs(5);
/// How long a job rests that met a key which was replaced meanwhile.
const STALE_PAUSE: Duration = Duration::from_secs(1);
/// After this long without a database the end of an attempt is left to the reaper.
const GIVE_UP_ENDING: Duration = Duration::from_secs(1800);

/// A claimed job, on its way through apalis.
pub struct Attempt {
    pub app: App,
    pub job: Claimed,
    pub fence: Fence,
    pub lease: Arc<Lease>,
    pub lease_length: Duration,
    /// The one job that is let through to see whether its provider is back.
    pub is_probe: bool,
    pub held: Held,
    pub endings: Endings,
    pub listings: Listings,
    /// Held until the end is written, since the claim counts what runs.
    pub _slot: Slot,
}

impl Attempt {
    /// Runs the job and writes its end. Nothing that happens in it reaches apalis.
    pub async fn run(self: Arc<Self>) {
        let traced = Traced::begin(&self.app.traces, &self.app.clock, &self.job);
        let span = traced.log_span(&self.job);
        let this = Arc::clone(&self);
        let run = async move {
            let ended = traced.hold(this.run_in_span()).await;
            traced.end(&this.app.traces, &this.job, &ended);
        };
        // A task of its own, so that it has a thread when it needs one, and so that a panic stays in it.
        let task = tokio::spawn(run.instrument(span));
        if let Err(error) = task.await {
            self.held.unwritten(self.job.id, self.job.epoch);
            tracing::error!(job.id = %self.job.id, error = %error, "an attempt ended outside of its own handling");
        }
        self.held.remove(self.job.id, self.job.epoch);
    }

    async fn run_in_span(&self) -> Ended {
        let started = Instant::now();
        let done = match Work::read(&self.job.kind, &self.job.payload) {
            Ok(work) => {
                let run =
                    std::panic::AssertUnwindSafe(registry::run(self, &work)).catch_unwind().await;
                run.unwrap_or_else(|_| registry::panicked(&work))
            }
            Err(error) => registry::unreadable(&self.job, &error),
        };
        let seconds = started.elapsed().as_secs_f64();
        metrics::histogram!("longshore_attempt_seconds", "kind" => self.job.kind.clone())
            .record(seconds);
        self.end(&done).await
    }

    /// Writes the end, again and again while the database is away: the lease is renewed meanwhile, and
    /// lost at the worst.
    async fn end(&self, done: &Done) -> Ended {
        let (since, mut pause) = (Instant::now(), ENDING_PAUSE);
        let mut ended = self.end_with_others(done).await;
        // Had it not been tried, nothing can have ended it.
        let mut is_unsure = ended.is_none() && self.settled(&done.conclusion).is_some();
        let ended = loop {
            let tried = match ended.take() {
                Some(ended) => Ok(ended),
                None => self.try_end(done, is_unsure).await,
            };
            is_unsure = true;
            match tried {
                Ok(ended) => break ended,
                Err(error) if since.elapsed() < GIVE_UP_ENDING => {
                    warn_of(&error, "could not write the end of an attempt; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_ENDING_PAUSE);
                }
                Err(error) => {
                    tracing::error!(error = %error, "gave up writing the end of an attempt; it will be run again");
                    self.held.unwritten(self.job.id, self.job.epoch);
                    return ("unwritten", None);
                }
            }
        };
        let Some((ending, outcome)) = ended else {
            tracing::warn!(
                "the job was taken over by another worker; what this attempt did does not count"
            );
            metrics::counter!("longshore_attempts_total", "kind" => self.job.kind.clone(), "outcome" => "lost").increment(1);
            return ("lost", None);
        };
        metrics::counter!("longshore_attempts_total", "kind" => self.job.kind.clone(), "outcome" => outcome).increment(1);
        match &ending {
            Ending::Succeeded => tracing::info!("job succeeded"),
            Ending::Cancelled => tracing::info!("job cancelled"),
            Ending::Retry { after, failure: Some(failure), .. } => {
                tracing::warn!(error.code = %failure.code, retry_in_ms = millis(*after), "attempt failed, will be repeated: {}", failure.message);
            }
            Ending::Retry { after, .. } => {
                tracing::debug!(retry_in_ms = millis(*after), "job goes on later")
            }
            Ending::Failed(failure) => {
                tracing::error!(error.code = %failure.code, "job failed for good: {}", failure.message);
            }
        }
        self.app.notices.hint(Hint::Change);
        // What the end made ready may be a job: its own next attempt, or a look at what it left.
        self.app.notices.hint(Hint::Work);
        (outcome, Some(ending))
    }

    /// Writes the end together with those of other attempts. `None` when that is of no use, or failed.
    async fn end_with_others(&self, done: &Done) -> Option<Option<(Ending, &'static str)>> {
        if !self.app.db.is_postgres() {
            return None;
        }
        let ending = self.settled(&done.conclusion)?;
        let outcome = outcome(&done.conclusion, &ending);
        let end = End {
            fence: self.fence.clone(),
            claimed_at: self.claimed_at(),
            ending: ending.clone(),
            outcome,
        };
        let effects = Arc::clone(&done.effects);
        let (owner, kind) = (self.job.owner.clone(), self.job.kind.clone());
        let has_ended =
            self.endings.write(Decided { end, owner, kind, effects, here: traces::here() }).await?;
        Some(has_ended.then_some((ending, outcome)))
    }

    /// How the attempt ends, if that depends on nothing that is in the database: neither on its lane nor on
    /// a cancellation that rules out the next.
    fn settled(&self, conclusion: &Conclusion) -> Option<Ending> {
        if report(conclusion, self.is_probe).is_some() {
            return None;
        }
        let ending = decide(conclusion, &self.job, &policy(&self.app), Spend::Attempt, 0.0);
        (!matches!(ending, Ending::Retry { .. })).then_some(ending)
    }

    /// By the database's clock.
    pub fn claimed_at(&self) -> Timestamp {
        self.job.lease_until.before(self.lease_length)
    }

    /// Whether a try before this one has ended it, although its answer was lost.
    async fn has_ended(&self) -> Result<bool, DbErr> {
        let fence = self.fence.clone();
        self.app
            .db
            .work_alone(move |tx| {
                let fence = fence.clone();
                Box::pin(async move { leases::has_ended(tx, &fence).await })
            })
            .await
    }

    async fn try_end(
        &self,
        done: &Done,
        is_unsure: bool,
    ) -> Result<Option<(Ending, &'static str)>, DbErr> {
        if is_unsure && self.app.db.is_postgres() && self.has_ended().await? {
            let ending =
                decide(&done.conclusion, &self.job, &policy(&self.app), Spend::Attempt, 0.0);
            let outcome = outcome(&done.conclusion, &ending);
            return Ok(Some((ending, outcome)));
        }
        let (app, job, fence) = (self.app.clone(), self.job.clone(), self.fence.clone());
        let (conclusion, effects) = (done.conclusion.clone(), Arc::clone(&done.effects));
        let claimed_at = self.claimed_at();
        let jitter: f64 = rand::rng().random();
        let is_probe = self.is_probe;
        let account =
            Lane(self.job.lane.clone()).provider().and_then(|name| self.app.providers.get(name));
        let credential = account.map(Account::credential).unwrap_or_default();
        self.app
            .db
            .work_alone(move |tx| {
                let (app, job, fence) = (app.clone(), job.clone(), fence.clone());
                let credential = credential.clone();
                let (conclusion, effects) = (conclusion.clone(), Arc::clone(&effects));
                Box::pin(async move {
                    let now = app.clock.now();
                    let lane = Lane(job.lane.clone()).at_fault();
                    let report = report(&conclusion, is_probe);
                    let policy = policy(&app);
                    let (ending, next) = match report {
                        None => (decide(&conclusion, &job, &policy, Spend::Attempt, jitter), None),
                        Some(report) => {
                            let state = lanes::enter(tx, &lane).await?;
                            // A late answer to a key that was replaced says nothing about the new one.
                            let is_stale = report == Report::CredentialRejected
                                && state
                                    .credential
                                    .as_ref()
                                    .is_some_and(|known| *known != credential);
                            if is_stale {
                                let ending = Ending::Retry {
                                    after: STALE_PAUSE,
                                    spend: Spend::Nothing,
                                    failure: None,
                                };
                                (ending, None)
                            } else {
                                let (pause, failures, spend) = lanes::after(&state, report, jitter);
                                let ending = decide(&conclusion, &job, &policy, spend, jitter);
                                (ending, Some((state.now, pause, failures)))
                            }
                        }
                    };
                    // A cancellation that came too late for this attempt still rules out the next.
                    let ending = match ending {
                        Ending::Retry { .. }
                            if leases::is_cancel_requested(tx, fence.job_id).await? =>
                        {
                            Ending::Cancelled
                        }
                        ending => ending,
                    };
                    let outcome = outcome(&conclusion, &ending);
                    let end = End { fence, claimed_at, ending: ending.clone(), outcome };
                    let (owner, kind) = (job.owner.clone(), job.kind.clone());
                    let decided = Decided { end, owner, kind, effects, here: traces::here() };
                    if endings::write(tx, now, &[decided]).await? != [true] {
                        return Ok(None);
                    }
                    if let Some((lane_now, pause, failures)) = next {
                        lanes::save(tx, &lane, lane_now, pause, failures).await?;
                    }
                    Ok(Some((ending, outcome)))
                })
            })
            .await
    }
}

fn policy(app: &App) -> RetryPolicy {
    let retry = &app.config.retry;
    RetryPolicy {
        max_attempts: retry.max_attempts.get(),
        base_delay: retry.base_delay,
        max_delay: retry.max_delay,
    }
}
