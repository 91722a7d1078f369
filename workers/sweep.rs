//! Runs a sweep: takes its files a chunk at a time, then queues their deletes as fast as they go.
//!
//! Where it is lies in the sweep's row, written with every chunk, so another worker goes on from there.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::attempt::Conclusion;
use super::attempt::Done;
use super::attempt::Effects;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::ids::SweepId;
use crate::jobs;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::leases;
use crate::notices::Hint;
use crate::sweeps;
use crate::sweeps::MAX_QUEUED;
use crate::sweeps::store;
use crate::sweeps::store::Sweep;

/// Files of one transaction: short enough for the one writer of SQLite.
const CHUNK: u32 = 100;
/// Files that are counted at once, where that is all.
const COUNTED: u32 = 2000;
/// How long it rests while enough of its deletes are queued.
const REST: Duration = Duration::from_millis(250);
/// After this long it lets another sweep have its place, if one waits.
const SLICE: Duration = Duration::from_secs(30);

pub async fn run(attempt: &Attempt, payload: &jobs::Sweep) -> Done {
    let conclusion = tokio::select! {
        conclusion = sweep(attempt, payload.sweep_id) => conclusion,
        // Every chunk is whole, or it is not there.
        stop = attempt.lease.stopped() => Conclusion::of_stop(stop),
    };
    Done { conclusion, effects: Arc::new(Ended { id: payload.sweep_id }) }
}

async fn sweep(attempt: &Attempt, id: SweepId) -> Conclusion {
    let begun = Instant::now();
    while begun.elapsed() < SLICE {
        let sweep = match store::find(attempt.app.db.read(), id).await {
            Ok(Some(sweep)) => sweep,
            Ok(None) => {
                return Conclusion::permanent(
                    "sweep_missing",
                    "the sweep of this job does not exist",
                );
            }
            Err(error) => return Conclusion::without_database(&error),
        };
        let step =
            if sweep.is_matched { queue(attempt, sweep).await } else { take(attempt, sweep).await };
        match step {
            Ok(Step::More) => {}
            Ok(Step::Rest) => tokio::time::sleep(REST).await,
            Ok(Step::Done) => return Conclusion::Succeeded,
            Ok(Step::Lost) => return Conclusion::HandedBack,
            Err(error) => return Conclusion::without_database(&error),
        }
    }
    Conclusion::Again { after: Duration::ZERO, failure: None }
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
    let is_ours = app
        .db
        .work(move |tx| {
            let (fence, sweep, found) = (fence.clone(), Arc::clone(&sweep), Arc::clone(&found));
            Box::pin(async move {
                if !leases::advance(tx, &fence).await? {
                    return Ok(false);
                }
                sweeps::take(tx, now, &sweep, &found).await?;
                Ok::<_, DbErr>(true)
            })
        })
        .await?;
    app.notices.hint(Hint::Cancel);
    app.notices.hint(Hint::Change);
    Ok(if is_ours { Step::More } else { Step::Lost })
}

/// Queues the deletes of the next files that were taken.
async fn queue(attempt: &Attempt, sweep: Sweep) -> Result<Step, DbErr> {
    let (app, fence) = (&attempt.app, attempt.fence.clone());
    let room = MAX_QUEUED - store::in_queue(app.db.read(), &sweep, MAX_QUEUED).await?;
    // Not a few at a time, each with a transaction of its own.
    if room < CHUNK {
        return Ok(Step::Rest);
    }
    let (now, sweep) = (app.clock.now(), Arc::new(sweep));
    let step = app
        .db
        .work(move |tx| {
            let (fence, sweep) = (fence.clone(), Arc::clone(&sweep));
            Box::pin(async move {
                if !leases::advance(tx, &fence).await? {
                    return Ok(Step::Lost);
                }
                let were_there = sweeps::queue(tx, now, &sweep, CHUNK).await?;
                Ok::<_, DbErr>(if were_there { Step::More } else { Step::Done })
            })
        })
        .await?;
    app.notices.hint(Hint::Work);
    Ok(step)
}

struct Ended {
    id: SweepId,
}

#[async_trait]
impl Effects for Ended {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
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
