//! Runs a sweep: takes its files a chunk at a time, then queues their deletes as fast as they go.
//!
//! Where it is lies in the sweep's row, written with every chunk, so another worker goes on from there.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::ids::JobId;
use crate::ids::SweepId;
use crate::jobs;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::leases;
use crate::notices::Hint;
use crate::sweeps;
use crate::sweeps::store;
use crate::sweeps::store::Sweep;
use crate::sweeps::store::SweepLane;

/// Files of one transaction: short enough for the one writer of SQLite.
const CHUNK: u32 = 100;
/// Files that are counted at once, where that is all.
const COUNTED: u32 = 2000;
/// How long it rests while enough of its deletes are queued.
const REST: Duration = Duration::from_millis(500);
/// After this long it lets another sweep have its place, if one waits.
const SLICE: Duration = Duration::from_secs(20);

pub async fn run(attempt: &Attempt, payload: &jobs::Sweep) -> Done {
    let conclusion = tokio::select! {
        conclusion = sweep(attempt, payload.sweep_id) => conclusion,
        // Every chunk is whole, or it is not there.
        stop = attempt.lease.stopped() => Conclusion::of_stop(stop),
    };
    Done { conclusion, effects: Arc::new(Ended { id: payload.sweep_id, job: attempt.job.id }) }
}

async fn sweep(attempt: &Attempt, id: SweepId) -> Conclusion {
    let (begun, mut has_rested) = (Instant::now(), false);
    while begun.elapsed() < SLICE {
        let sweep = match store::find(attempt.app.db.read(), id).await {
            Ok(Some(sweep)) => sweep,
            Ok(None) => {
                let message = "the sweep of this job does not exist";
                return Conclusion::permanent("sweep_missing", message);
            }
            Err(error) => return Conclusion::without_database(&error),
        };
        let step =
            if sweep.is_matched { queue(attempt, sweep).await } else { take(attempt, sweep).await };
        match step {
            Ok(Step::More) => {}
            Ok(Step::Rest) => {
                // It has come as far as it can: if its worker dies now, that is not its doing.
                if !has_rested && let Err(error) = survive(attempt).await {
                    return Conclusion::without_database(&error);
                }
                has_rested = true;
                tokio::time::sleep(REST).await;
            }
            Ok(Step::Done) => return Conclusion::Succeeded,
            Ok(Step::Lost) => return Conclusion::HandedBack,
            Err(error) => return Conclusion::without_database(&error),
        }
    }
    Conclusion::Again { after: Duration::ZERO, failure: None }
}

async fn survive(attempt: &Attempt) -> Result<bool, DbErr> {
    let fence = attempt.fence.clone();
    attempt
        .app
        .db
        .work_alone(move |tx| {
            let fence = fence.clone();
            Box::pin(async move { leases::advance(tx, &fence).await })
        })
        .await
}

enum Step {
    More,
    /// Enough is queued for now.
    Rest,
    Done,
    /// The job is another worker's by now.
    Lost,
}

/// Takes the next files from their client.
async fn take(attempt: &Attempt, sweep: Sweep) -> Result<Step, DbErr> {
    let (app, fence) = (&attempt.app, attempt.fence.clone());
    let limit = if sweep.is_dry_run { COUNTED } else { CHUNK };
    let found = Arc::new(store::next_files(app.db.scan(), &sweep, limit).await?);
    let (now, sweep) = (app.clock.now(), Arc::new(sweep));
    let taken = app
        .db
        .work_alone(move |tx| {
            let (fence, sweep, found) = (fence.clone(), Arc::clone(&sweep), Arc::clone(&found));
            Box::pin(async move {
                if !leases::advance(tx, &fence).await? {
                    return Ok(Step::Lost);
                }
                if sweeps::take(tx, now, &sweep, &found).await? {
                    Ok(Step::More)
                } else {
                    // An error undoes it.
                    Err(DbErr::RecordNotUpdated)
                }
            })
        })
        .await;
    app.notices.hint(Hint::Cancel);
    app.notices.hint(Hint::Change);
    match taken {
        // It was cancelled meanwhile.
        Err(DbErr::RecordNotUpdated) => Ok(Step::More),
        taken => taken,
    }
}

/// Queues the next deletes at every provider that has room for them: one that stands still holds up no other.
async fn queue(attempt: &Attempt, sweep: Sweep) -> Result<Step, DbErr> {
    let (app, fence) = (&attempt.app, attempt.fence.clone());
    let lanes = store::lanes(app.db.read(), sweep.id).await?;
    if lanes.is_empty() {
        return Ok(Step::Done);
    }
    let (now, sweep) = (app.clock.now(), Arc::new(sweep));
    let mut step = Step::Rest;
    for lane in lanes.into_iter().filter(SweepLane::has_room) {
        let (fence, sweep, lane) = (fence.clone(), Arc::clone(&sweep), Arc::new(lane));
        let is_ours = app
            .db
            .work_alone(move |tx| {
                let (fence, sweep, lane) = (fence.clone(), Arc::clone(&sweep), Arc::clone(&lane));
                Box::pin(async move {
                    if !leases::advance(tx, &fence).await? {
                        return Ok(false);
                    }
                    sweeps::queue(tx, now, &sweep, &lane.provider).await?;
                    Ok::<_, DbErr>(true)
                })
            })
            .await?;
        if !is_ours {
            return Ok(Step::Lost);
        }
        step = Step::More;
        app.notices.hint(Hint::Work);
    }
    Ok(step)
}

struct Ended {
    id: SweepId,
    job: JobId,
}

#[async_trait]
impl Effects for Ended {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        // It may rest for days, and none of the deaths of its workers meanwhile was its own doing.
        leases::forget_deaths(tx, self.job).await?;
        give_up(tx, now, self.id, ending).await
    }
}

/// Nobody can say how the attempt ended; what it wrote is whole. The next one goes on, if there is one.
pub async fn ended_unseen(
    tx: &Transaction,
    now: Timestamp,
    payload: &jobs::Sweep,
    ending: &Ending,
) -> Result<(), DbErr> {
    give_up(tx, now, payload.sweep_id, ending).await
}

async fn give_up(
    tx: &Transaction,
    now: Timestamp,
    id: SweepId,
    ending: &Ending,
) -> Result<(), DbErr> {
    match ending {
        Ending::Failed(failure) => sweeps::fail(tx, now, id, failure).await,
        Ending::Cancelled => {
            let failure = Failure::permanent("cancelled", "the job of the sweep was cancelled");
            sweeps::fail(tx, now, id, &failure).await
        }
        Ending::Succeeded | Ending::Retry { .. } => Ok(()),
    }
}
