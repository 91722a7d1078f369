//! The daemon: apalis as the runtime, and beside it what claims, renews, reaps and tidies up.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use apalis::prelude::*;
use sea_orm::DbErr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use super::backend::Claims;
use super::backend::Untaken;
use super::dispatch::Dispatcher;
use super::endings;
use super::expiry;
use super::held::Held;
use super::held::Stop;
use super::maintenance;
use super::reaper;
use super::spent_blobs;
use crate::app::App;
use crate::jobs;
use crate::jobs::Lane;
use crate::jobs::LeaseTimes;
use crate::jobs::WorkerId;
use crate::jobs::lanes;

/// How long attempts that were told to stop may take to hand their jobs back.
const HAND_BACK: Duration = Duration::from_millis(1500);

/// Runs jobs as `worker` until `shutdown`; then stops claiming, lets what runs finish within `workers.drain`, and
/// hands the rest back.
///
/// # Errors
///
/// When the lanes cannot be opened, or apalis fails.
pub async fn run(app: App, worker: WorkerId, shutdown: CancellationToken) -> anyhow::Result<()> {
    open_lanes(&app).await?;
    let times = LeaseTimes::new(app.config.workers.lease);
    let (held, stop) = (Held::default(), CancellationToken::new());
    let (claimed, claims) = mpsc::channel(1);
    let untaken = Untaken::new(claims);
    let (endings, writer) = endings::channel();
    let dispatcher = Dispatcher::new(
        app.clone(),
        worker.clone(),
        times,
        held.clone(),
        endings,
        (claimed, untaken.clone()),
    );
    tracing::info!(worker = %worker, slots = dispatcher.slots(), "workers started");

    // Leases are kept until the last attempt has ended, also while it drains.
    let mut keeping = tokio::spawn({
        let (held, app, worker) = (held.clone(), app.clone(), worker.clone());
        async move { held.keep(app, worker, times).await }
    });
    // Likewise.
    let mut ending = tokio::spawn(writer.run(app.clone()));
    let mut reaping = tokio::spawn(reaper::run(app.clone(), times));
    let tidying = tokio::spawn(maintenance::run(app.clone()));
    let expiring = tokio::spawn(expiry::run(app.clone()));
    let emptying = tokio::spawn(spent_blobs::run(app.clone()));
    let mut dispatching = tokio::spawn(dispatcher.run(stop.clone()));

    let mut draining =
        tokio::spawn(drain(app.config.workers.drain, held.clone(), shutdown.clone(), stop.clone()));
    let name = worker.to_string();
    let monitor = Monitor::new().register(move |_restarts| {
        let claims = Claims::new(untaken.clone(), stop.clone());
        WorkerBuilder::new(name.as_str()).backend(claims).build(handle)
    });
    let signal = async {
        shutdown.cancelled().await;
        io::Result::Ok(())
    };
    // None of them ends by itself before that: a panic ends the process, in whose place another is started.
    let failed = async {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => std::future::pending().await,
            ended = &mut keeping => ("renews leases", ended),
            ended = &mut ending => ("writes the ends of attempts", ended),
            ended = &mut reaping => ("takes over jobs", ended),
            ended = &mut dispatching => ("claims jobs", ended),
        }
    };
    // Whatever still runs when the drain and the hand-back are over (the database may be away) is left
    // to the reaper of another process.
    let ended = tokio::select! {
        ended = monitor.run_with_signal(signal) => {
            // A claim that is under way is not to be left unrun; what apalis did not take any more ends by
            // itself, within the drain.
            let rest = async {
                drop((&mut dispatching).await);
                while held.count() > 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::select! {
                () = rest => {}
                _ = &mut draining => {}
            }
            ended.map_err(|error| anyhow::anyhow!("the worker runtime failed: {error}"))
        }
        (part, ended) = failed => {
            let cause = ended.err().map(|error| format!(": {error}")).unwrap_or_default();
            tracing::error!("the part of the workers that {part} has ended{cause}; the process ends");
            Err(anyhow::anyhow!("the part of the workers that {part} has ended{cause}"))
        }
        _ = &mut draining => Ok(()),
    };
    for task in [keeping, ending, reaping, tidying, expiring, emptying, dispatching, draining] {
        task.abort();
    }
    tracing::info!("workers stopped");
    ended
}

/// What apalis calls for each claim. It always hears that all is well: the outcome is in our table.
async fn handle(attempt: Arc<Attempt>) -> Result<(), BoxDynError> {
    attempt.run().await;
    Ok(())
}

async fn drain(drain: Duration, held: Held, shutdown: CancellationToken, stop: CancellationToken) {
    shutdown.cancelled().await;
    stop.cancel();
    let running = held.count();
    if running > 0 {
        tracing::info!(running, "stopping: finishing what runs, for {} s at most", drain.as_secs());
    }
    tokio::time::sleep(drain).await;
    if held.count() > 0 {
        tracing::info!(
            running = held.count(),
            "the time to drain is over; handing back what still runs"
        );
    }
    held.stop_all(Stop::Shutdown);
    tokio::time::sleep(HAND_BACK).await;
}

async fn open_lanes(app: &App) -> anyhow::Result<()> {
    for account in app.providers.iter() {
        let (all, credential) = (account.lanes(), account.credential());
        app.db
            .work(move |tx| {
                let (all, credential) = (all.clone(), credential.clone());
                Box::pin(async move {
                    for lane in &all {
                        lanes::open(tx, lane, &credential).await?;
                    }
                    // It may have been put off while nobody served it.
                    let [_, watching, _] = &all;
                    jobs::store::hasten_lane(tx, watching).await?;
                    Ok::<_, DbErr>(())
                })
            })
            .await?;
    }
    for lane in [Lane::sweeps(), Lane::merges(), Lane::webhooks()] {
        app.db
            .work(move |tx| {
                let lane = lane.clone();
                Box::pin(async move { lanes::ensure(tx, &lane).await })
            })
            .await?;
    }
    Ok(())
}
