//! Looks how the batches at one provider stand, each when its next look is due.
//!
//! Where many are due, pages of the provider's list serve all that are on them; where few are, each is asked for.
//! When the next look is due lies in the run's row: the job itself remembers nothing, and rests until then.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt as _;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::budget;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use crate::app::Account;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::ids::JobId;
use crate::ids::RunId;
use crate::jobs;
use crate::jobs::Ending;
use crate::jobs::WatchBatch;
use crate::jobs::leases;
use crate::jobs::retry;
use crate::jobs::retry::Verdict;
use crate::notices::Hint;
use crate::providers::ErrorKind;
use crate::providers::ProviderBatchId;
use crate::providers::ProviderError;
use crate::providers::RemoteBatch;
use crate::runs::observation;
use crate::runs::observation::Rhythm;
use crate::runs::store;
use crate::runs::store::Run;
use crate::traces::Description;
use crate::traces::KeyValue;
use crate::traces::Origin;
use crate::traces::Span;
use crate::traces::SpanKind;

/// Runs that are taken up at once.
const MOST_DUE: u32 = 500;
/// With more than this due, the list is read instead of each.
const FEW: usize = 3;
/// Runs that changed, in one transaction.
const CHUNK: usize = 20;
/// A watch that is older ends, and is followed by another.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long to rest at most after the provider was at fault.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// How long to rest while the provider is not configured.
const NOT_CONFIGURED_PAUSE: Duration = Duration::from_secs(60);

pub async fn run(attempt: &Attempt, payload: &WatchBatch) -> Done {
    let conclusion = tokio::select! {
        conclusion = watch(attempt, &payload.provider) => conclusion,
        // Whatever was seen is written, run by run.
        stop = attempt.lease.stopped() => Conclusion::of_stop(stop),
    };
    let effects = Rest { provider: payload.provider.clone(), job: attempt.job.id };
    Done { conclusion, effects: Arc::new(effects) }
}

async fn watch(attempt: &Attempt, provider: &str) -> Conclusion {
    let Some(account) = attempt.app.providers.get(provider) else {
        return Conclusion::Again { after: NOT_CONFIGURED_PAUSE, failure: None };
    };
    // Its attempts are kept for as long as it is: so it is another one each day.
    while attempt.job.lease_until.since(attempt.job.started_at) < LONGEST_LIFE {
        let due = match due(attempt, provider).await {
            Ok(due) => due,
            Err(error) => return Conclusion::without_database(&error),
        };
        if due.is_empty() {
            return match store::next_look(attempt.app.db.read(), provider).await {
                Ok(None) => Conclusion::Succeeded,
                Ok(Some(after)) => Conclusion::Again { after, failure: None },
                Err(error) => Conclusion::without_database(&error),
            };
        }
        if let Err(conclusion) = (Look { attempt, account }).at(due).await {
            return conclusion;
        }
    }
    Conclusion::Succeeded
}

/// What is due; and if something is, what will be soon: runs that were looked at together are due one after another,
/// and the list serves them together again.
async fn due(attempt: &Attempt, provider: &str) -> Result<Vec<Run>, DbErr> {
    let db = attempt.app.db.read();
    if store::due(db, provider, Duration::ZERO, 1).await?.is_empty() {
        return Ok(Vec::new());
    }
    store::due(db, provider, attempt.app.config.batches.poll / 5, MOST_DUE).await
}

struct Look<'a> {
    attempt: &'a Attempt,
    account: &'a Account,
}

impl Look<'_> {
    async fn at(&self, due: Vec<Run>) -> Result<(), Conclusion> {
        let can_list = self.account.driver.capabilities().can_list_batches;
        let unseen = if can_list && due.len() > FEW { self.at_list(due).await? } else { due };
        for run in unseen {
            self.at_one(run).await?;
        }
        Ok(())
    }

    /// Reads the list until all that are due were on it, or until to ask for each of the rest is no more work. Answers
    /// those.
    async fn at_list(&self, due: Vec<Run>) -> Result<Vec<Run>, Conclusion> {
        let mut unseen: HashMap<RunId, Run> = due.into_iter().map(|run| (run.id, run)).collect();
        let mut after: Option<ProviderBatchId> = None;
        for pages in 1.. {
            budget::spend(&self.attempt.app, self.account).await?;
            let page = match self.account.driver.list_batches(after.as_ref()).await {
                Ok(page) => page,
                // The list is of no use, as where a page of it cannot be read: each is asked for.
                Err(error) if !is_of_the_provider(&error) => break,
                Err(error) => return Err(Conclusion::of_error(&error)),
            };
            for seen in self.see(page.batches).await? {
                unseen.remove(&seen);
            }
            after = page.next;
            if unseen.len() <= pages || after.is_none() {
                break;
            }
        }
        Ok(unseen.into_values().collect())
    }

    async fn at_one(&self, run: Run) -> Result<(), Conclusion> {
        let Some(id) = run.provider_batch_id.clone() else { return Ok(()) };
        budget::spend(&self.attempt.app, self.account).await?;
        match self.account.driver.batch(&ProviderBatchId(id)).await {
            Ok(batch) => self.see(vec![batch]).await.map(|_| ()),
            Err(error) if error.kind == ErrorKind::NotFound => {
                let trace = self.attempt.app.traces.within(|| origin(&run));
                self.write(vec![Seen { run, batch: None, trace }]).await
            }
            Err(error) if is_of_the_provider(&error) => Err(Conclusion::of_error(&error)),
            // Something about this batch alone: the others are looked at all the same.
            Err(error) => {
                tracing::warn!(
                    run.id = %run.id, provider.name = %run.provider, error.code = error.kind.code(),
                    "could not look at a batch; trying again later: {}", error.message
                );
                let looks = run.looks_alike.saturating_add(1);
                self.look_later(&[(run.id, self.rhythm().after(looks))]).await
            }
        }
    }

    /// Writes what the provider shows of batches, as far as they are runs of ours. Answers those.
    async fn see(&self, batches: Vec<RemoteBatch>) -> Result<Vec<RunId>, Conclusion> {
        let ids: Vec<String> = batches.iter().map(|batch| batch.id.0.clone()).collect();
        let name = &self.account.settings.name;
        let runs = store::of_provider_batches(self.attempt.app.db.read(), name, &ids).await;
        let runs = runs.map_err(|error| Conclusion::without_database(&error))?;
        let mut batches: HashMap<String, RemoteBatch> =
            batches.into_iter().map(|batch| (batch.id.0.clone(), batch)).collect();
        let seen = runs.iter().map(|run| run.id).collect();
        let (mut alike, mut changed) = (Vec::new(), Vec::new());
        for run in runs.into_iter().filter(|run| run.next_look_at.is_some()) {
            let id = run.provider_batch_id.as_deref().unwrap_or_default();
            let Some(batch) = batches.remove(id) else { continue };
            if observation::looks_alike(&run, &batch) {
                alike.push((run.id, self.rhythm().after(run.looks_alike.saturating_add(1))));
            } else {
                let trace = self.trace(&run, &batch);
                changed.push(Seen { run, batch: Some(batch), trace });
            }
        }
        if !alike.is_empty() {
            self.look_later(&alike).await?;
        }
        // In one order for all who hold several batches.
        changed.sort_by_key(|seen| seen.run.batch_id);
        while !changed.is_empty() {
            let rest = changed.split_off(changed.len().min(CHUNK));
            self.write(std::mem::replace(&mut changed, rest)).await?;
        }
        Ok(seen)
    }

    /// The place in a run's own trace where a look saw something new. A step from one state to the next is a span there;
    /// counts that grow are none.
    fn trace(&self, run: &Run, batch: &RemoteBatch) -> Span {
        let traces = &self.attempt.app.traces;
        if run.provider_status.as_deref() == Some(&*batch.status) {
            return traces.within(|| origin(run));
        }
        traces.begin(0, || {
            let attributes = vec![
                KeyValue::new("job.id", self.attempt.job.id.to_string()),
                KeyValue::new("job.name", jobs::WATCH_BATCH),
                KeyValue::new("job.epoch", self.attempt.job.epoch),
                KeyValue::new("owner.id", run.owner.clone()),
                KeyValue::new("batch.id", run.batch_id.to_string()),
                KeyValue::new("provider.name", run.provider.clone()),
                KeyValue::new("batch.provider_status", batch.status.to_string()),
            ];
            (origin(run), Description::new(jobs::WATCH_BATCH, SpanKind::Consumer, attributes))
        })
    }

    fn rhythm(&self) -> Rhythm {
        let batches = &self.attempt.app.config.batches;
        Rhythm { poll: batches.poll, poll_max: batches.poll_max, jitter: rand::rng().random() }
    }

    async fn look_later(&self, runs: &[(RunId, Duration)]) -> Result<(), Conclusion> {
        let (fence, runs): (_, Arc<[_]>) = (self.attempt.fence.clone(), runs.into());
        let written: Result<bool, DbErr> = self
            .attempt
            .app
            .db
            .work(move |tx| {
                let (fence, runs) = (fence.clone(), Arc::clone(&runs));
                Box::pin(async move {
                    if !leases::advance(tx, &fence).await? {
                        return Ok(false);
                    }
                    store::look_later(tx, &runs).await?;
                    Ok(true)
                })
            })
            .await;
        is_ours(written)
    }

    async fn write(&self, seen: Vec<Seen>) -> Result<(), Conclusion> {
        let (fence, seen) = (self.attempt.fence.clone(), Arc::new(seen));
        let (now, rhythm) = (self.attempt.app.clock.now(), self.rhythm());
        let written: Result<bool, DbErr> = self
            .attempt
            .app
            .db
            .work_alone(move |tx| {
                let (fence, seen) = (fence.clone(), Arc::clone(&seen));
                Box::pin(async move {
                    if !leases::advance(tx, &fence).await? {
                        return Ok(false);
                    }
                    for Seen { run, batch, trace } in seen.iter() {
                        let here = trace.here();
                        match batch {
                            Some(batch) => {
                                here.hold(observation::observe(tx, now, run, batch, &rhythm))
                                    .await?;
                            }
                            None => here.hold(observation::missed(tx, now, run, &rhythm)).await?,
                        }
                    }
                    Ok(true)
                })
            })
            .await;
        self.attempt.app.notices.hint(Hint::Change);
        self.attempt.app.notices.hint(Hint::Work);
        is_ours(written)
    }
}

/// A run, and what its provider shows; nothing where it does not know the batch.
struct Seen {
    run: Run,
    batch: Option<RemoteBatch>,
    /// Of the run: what follows goes on in it.
    trace: Span,
}

fn origin(run: &Run) -> Origin {
    Origin::of_text(run.traceparent.as_deref())
}

fn is_ours(written: Result<bool, DbErr>) -> Result<(), Conclusion> {
    match written {
        Ok(true) => Ok(()),
        Ok(false) => Err(Conclusion::HandedBack),
        Err(error) => Err(Conclusion::without_database(&error)),
    }
}

/// Whether an error speaks against the provider, and not against the one thing that was asked for.
fn is_of_the_provider(error: &ProviderError) -> bool {
    error.kind != ErrorKind::Garbled && matches!(retry::judge(error), Verdict::Lane(_))
}

/// What follows from the end of a watch.
struct Rest {
    provider: String,
    job: JobId,
}

#[async_trait]
impl Effects for Rest {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        leases::forget_deaths(tx, self.job).await?;
        // Held, so that a batch that comes meanwhile is seen here, or sees that nobody watches.
        observation::hold_lane(tx, &self.provider).await?;
        match (ending, store::next_look(tx, &self.provider).await?) {
            (Ending::Succeeded, Some(_)) => observation::watch(tx, now, &self.provider).await,
            (Ending::Retry { failure: None, .. }, Some(rest)) => {
                jobs::store::hasten_to(tx, self.job, rest).await
            }
            (Ending::Retry { failure: Some(_), .. }, _) => {
                jobs::store::hasten_to(tx, self.job, LONGEST_REST).await
            }
            _ => Ok(()),
        }
    }
}
