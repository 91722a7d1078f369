//! What has to be done now and then: jobs that wait in vain, history that is old, blobs that nobody names.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::db::Transaction;
use futures_util::StreamExt as _;
use sea_orm::DbErr;

use super::delete_file;
use super::unnamed::Unnamed;
use crate::app::Account;
use crate::app::App;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::clock::Timestamp;
use crate::db::warn_of;
use crate::error::Error;
use crate::events;
use crate::files;
use crate::idempotency;
use crate::ids::JobId;
use crate::jobs;
use crate::jobs::Failure;
use crate::jobs::JobStatus;
use crate::jobs::Lane;
use crate::jobs::deliveries;
use crate::jobs::lanes;
use crate::jobs::lanes::Patience;
use crate::jobs::lanes::PauseReason;
use crate::notices::Hint;
use crate::processes;
use crate::provider_events;
use crate::reconciliations;
use crate::results;
use crate::runs;
use crate::runs::observation;
use crate::sweeps;
use crate::webhooks;

const EVERY: Duration = Duration::from_secs(60);
/// How long a job waits for a credential, for money, or for its provider, before it fails.
const PATIENCE: Patience =
    Patience { most_jobs: Duration::from_secs(24 * 3600), deletes: delete_file::PATIENCE };
/// Rows of one deletion: short enough for the one writer of SQLite.
const CHUNK: u32 = 500;
const MAX_CHUNKS: usize = 200;
/// OpenAI repeats an event for up to three days.
const PROVIDER_EVENTS_KEPT: Duration = Duration::from_secs(4 * 24 * 3600);
/// How long a watch is put off whose provider is not configured here. The start of a worker that has it makes it due.
const UNSERVED_PAUSE: Duration = Duration::from_secs(3600);
/// A blob that no row names and nobody has written to for this long is an orphan; in a bucket, once it was seen so twice.
const ORPHAN_AFTER: Duration = Duration::from_secs(3600);
const ORPHANS_EVERY: u32 = 60;
/// An upload in parts that got none for this long has nobody who ends it: the slowest sender that is put up with
/// (1 KiB/s) fills one in 85 minutes.
const ABANDONED_AFTER: Duration = Duration::from_secs(2 * 3600);

/// Runs until it is dropped.
pub async fn run(app: App) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u32;
    let mut unnamed = Unnamed::default();
    loop {
        ticks.tick().await;
        if let Err(error) = fail_those_who_wait_in_vain(&app).await {
            warn_of(&error, "could not look for jobs that wait in vain");
        }
        if let Err(error) = fail_those_whom_nobody_serves(&app).await {
            warn_of(&error, "could not look for jobs that nobody serves");
        }
        if let Err(error) = go_on_with_sweeps(&app).await {
            warn_of(&error, "could not look for sweeps without a job");
        }
        if let Err(error) = watch_batches(&app).await {
            warn_of(&error, "could not look for batches that nobody watches");
        }
        if let Err(error) = reconcile(&app).await {
            tracing::warn!(error = %error, "could not plan reconciliations");
        }
        if let Err(error) = cancel_stranded_deliveries(&app).await {
            warn_of(&error, "could not look for deliveries that nobody wants any more");
        }
        if let Err(error) = prune(&app).await {
            warn_of(&error, "could not prune old rows");
        }
        if round.is_multiple_of(ORPHANS_EVERY) {
            if let Err(error) = sweep_orphans(&app, &mut unnamed).await {
                tracing::warn!(error = %error, "could not sweep orphaned blobs");
            }
            // Apart from these: a key may be allowed to list objects, and not this.
            if let Err(error) = call_off_abandoned(&app).await {
                let error = anyhow::Error::from(error);
                tracing::warn!("could not call off abandoned uploads to the blob store: {error:#}");
            }
        }
        round = round.wrapping_add(1);
    }
}

async fn fail_those_who_wait_in_vain(app: &App) -> Result<(), DbErr> {
    for (reason, code, message) in [
        (
            PauseReason::CredentialRejected,
            "provider_credential_rejected",
            "the provider has rejected the key for too long; configure another, then retry",
        ),
        (
            PauseReason::OutOfMoney,
            "provider_out_of_money",
            "the provider's account has been out of credit for too long; fill it up, then retry",
        ),
    ] {
        for id in lanes::given_up(app.db.scan(), reason, PATIENCE).await? {
            fail(app, id, code, message).await?;
        }
    }
    Ok(())
}

/// Jobs for a provider that is not configured any more: nobody claims them.
async fn fail_those_whom_nobody_serves(app: &App) -> Result<(), DbErr> {
    let served: Vec<_> = app.providers.iter().flat_map(Account::lanes).collect();
    for id in lanes::unserved(app.db.scan(), &served, PATIENCE).await? {
        let message = "its provider has not been configured for too long; configure it, then retry";
        fail(app, id, "provider_not_configured", message).await?;
    }
    Ok(())
}

async fn fail(
    app: &App,
    id: JobId,
    code: &'static str,
    message: &'static str,
) -> Result<(), DbErr> {
    let Some(job) = jobs::store::find(app.db.read(), id).await? else { return Ok(()) };
    let now = app.clock.now();
    app.db
        .work(move |tx| {
            let job = job.clone();
            Box::pin(async move {
                jobs::control::fail_waiting(tx, now, &job, &Failure::permanent(code, message)).await
            })
        })
        .await?;
    tracing::error!(job.id = %id, error.code = code, "job failed for good: {message}");
    app.notices.hint(Hint::Change);
    Ok(())
}

/// Queues what a sweep has taken whose job has ended before it queued it: it would be left for ever.
async fn go_on_with_sweeps(app: &App) -> Result<(), DbErr> {
    for sweep in sweeps::store::stranded(app.db.scan()).await? {
        let (now, sweep) = (app.clock.now(), Arc::new(sweep));
        for lane in sweeps::store::lanes(app.db.scan(), sweep.id).await? {
            let provider: Arc<str> = lane.provider.into();
            loop {
                let (sweep, provider) = (Arc::clone(&sweep), Arc::clone(&provider));
                let queued = app
                    .db
                    .work_alone(move |tx| {
                        let (sweep, provider) = (Arc::clone(&sweep), Arc::clone(&provider));
                        Box::pin(async move { sweeps::queue(tx, now, &sweep, &provider).await })
                    })
                    .await?;
                if queued == 0 {
                    break;
                }
            }
        }
        app.notices.hint(Hint::Work);
    }
    Ok(())
}

/// Batches are watched until they end, whatever became of the job that did. A watch that nobody here serves is put
/// off: what is due and cannot be taken keeps workers looking.
async fn watch_batches(app: &App) -> Result<(), DbErr> {
    for provider in runs::store::watched_providers(app.db.scan()).await? {
        let lane = Lane::watching(&provider);
        let is_served = app.providers.get(&provider).is_some();
        let is_watched = jobs::store::is_lane_alive(app.db.scan(), &lane).await?;
        if is_served && is_watched {
            continue;
        }
        let (now, provider) = (app.clock.now(), Arc::<str>::from(provider));
        app.db
            .work_alone(move |tx| {
                let (provider, lane) = (Arc::clone(&provider), lane.clone());
                Box::pin(async move {
                    if is_watched {
                        jobs::store::put_off_lane(tx, &lane, UNSERVED_PAUSE).await
                    } else {
                        observation::watch(tx, now, &provider).await
                    }
                })
            })
            .await?;
        app.notices.hint(Hint::Work);
    }
    Ok(())
}

/// Plans what is due of comparing what the providers hold.
async fn reconcile(app: &App) -> Result<(), Error> {
    let every = app.config.sweeps.reconcile_every;
    let most = app.config.retry.max_attempts.get();
    for account in app.providers.iter() {
        if !account.driver.capabilities().can_list_files {
            continue;
        }
        let (name, now) = (account.settings.name.clone(), app.clock.now());
        let is_planned = app
            .db
            .work_alone(move |tx| {
                let name = name.clone();
                Box::pin(
                    async move { reconciliations::schedule(tx, now, &name, every, most).await },
                )
            })
            .await?;
        if is_planned {
            app.notices.hint(Hint::Work);
        }
    }
    Ok(())
}

/// Cancels what waits for an endpoint that is deleted or disabled, as far as its end did not.
async fn cancel_stranded_deliveries(app: &App) -> Result<(), DbErr> {
    let now = app.clock.now();
    in_chunks(app, move |tx| Box::pin(deliveries::cancel_stranded(tx, now, CHUNK))).await
}

async fn prune(app: &App) -> Result<(), DbErr> {
    let now = app.clock.now();
    let kept = &app.config.retention;
    for (status, kept) in [
        (JobStatus::Succeeded, kept.finished_jobs),
        (JobStatus::Cancelled, kept.finished_jobs),
        (JobStatus::Failed, kept.failed_jobs),
    ] {
        let before = now.before(kept);
        in_chunks(app, move |tx| Box::pin(jobs::store::prune(tx, status, before, CHUNK))).await?;
    }
    let before = now.before(kept.failed_jobs);
    in_chunks(app, move |tx| Box::pin(reconciliations::store::prune(tx, before, CHUNK))).await?;
    in_chunks(app, move |tx| Box::pin(webhooks::store::prune(tx, before, CHUNK))).await?;
    in_chunks(app, move |tx| Box::pin(webhooks::store::forget_previous(tx, now))).await?;
    in_chunks(app, move |tx| Box::pin(events::prune(tx, now.before(events::KEPT), CHUNK))).await?;
    in_chunks(app, move |tx| Box::pin(processes::prune(tx, CHUNK))).await?;
    let before = now.before(PROVIDER_EVENTS_KEPT);
    in_chunks(app, move |tx| Box::pin(provider_events::prune(tx, before, CHUNK))).await?;
    in_chunks(app, move |tx| Box::pin(idempotency::prune(tx, now, CHUNK))).await
}

/// Repeats a deletion until nothing is left of it, in transactions of their own.
async fn in_chunks<F>(app: &App, delete: F) -> Result<(), DbErr>
where
    F: for<'t> Fn(&'t Transaction) -> futures_util::future::BoxFuture<'t, Result<u64, DbErr>>
        + Clone
        + Send
        + Sync
        + 'static,
{
    for _ in 0..MAX_CHUNKS {
        if app.db.work(delete.clone()).await? < u64::from(CHUNK) {
            break;
        }
    }
    Ok(())
}

/// Deletes what a crash between the blob and its row left behind.
async fn sweep_orphans(app: &App, unnamed: &mut Unnamed) -> Result<(), Error> {
    if !app.installation.is_trusted {
        // The rows that name these blobs may be in another database.
        return Ok(());
    }
    // By the store's own clock: ours may be ahead, and a blob whose row is being committed look old.
    let before: Timestamp = app.blobs.now().await?.before(ORPHAN_AFTER);
    unnamed.look();
    let mut old = app.blobs.contents_before(before).chunks(CHUNK as usize);
    while let Some(chunk) = old.next().await {
        let keys = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
        let mut known = files::store::known_blobs(app.db.scan(), &keys).await?;
        // What is being ingested is no file yet.
        known.extend(results::store::known_blobs(app.db.scan(), &keys).await?);
        for key in keys.into_iter().filter(|key| !known.contains(key)) {
            if !app.blobs.tells_last_write() && !unnamed.is_orphan(&key, Instant::now()) {
                continue;
            }
            tracing::info!(blob.key = %key, "deleted an orphaned blob");
            app.blobs.delete(&BlobKey::Stored(key)).await?;
        }
    }
    unnamed.looked();
    Ok(())
}

/// Calls off what a crash in the middle of a write left behind in an object store. In a folder it is an orphan.
async fn call_off_abandoned(app: &App) -> Result<(), BlobError> {
    if !app.installation.is_trusted {
        return Ok(());
    }
    let aborted = app.blobs.abort_abandoned(ABANDONED_AFTER).await?;
    metrics::counter!("longshore_blob_uploads_abandoned_total").increment(aborted);
    Ok(())
}
