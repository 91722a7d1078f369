//! Deletes bytes that nobody needs any more: of files that are deleted, and, where `blobs.keep` is a
//! time, of files that every model has had for that long.
//!
//! Of a deleted file the bytes go first and their key afterwards, so that a crash in between leaves a key of
//! nothing, which the next round finds.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use sea_orm::DbErr;

use crate::app::App;
use crate::blobs::BlobKey;
use crate::config::Keep;
use crate::error::Error;
use crate::files::spent;
use crate::files::spent::Spent;
use crate::ids::FileId;
use crate::results;

const EVERY: Duration = Duration::from_secs(5);
const CHUNK: u32 = 200;
/// Lines of results that one transaction deletes.
const LINES: u32 = 1000;
/// Deletes at the same time.
const AT_ONCE: usize = 8;
/// Rounds from one look for files that were carried everywhere to the next.
const CARRIED_EVERY: u32 = 60;

/// Runs until it is dropped.
pub async fn run(app: App) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut round = 0u32;
    loop {
        ticks.tick().await;
        if !app.installation.is_trusted {
            // The rows that need these blobs may be in another database.
            continue;
        }
        if let Err(error) = of_deleted_files(&app).await {
            tracing::warn!(error = %error, "could not delete the bytes of deleted files; trying again");
        }
        if round.is_multiple_of(CARRIED_EVERY)
            && let Keep::For(time) = app.config.blobs.keep
            && let Err(error) = of_carried_files(&app, time).await
        {
            tracing::warn!(error = %error, "could not delete bytes that were kept long enough; trying again");
        }
        round = round.wrapping_add(1);
    }
}

async fn of_deleted_files(app: &App) -> Result<(), Error> {
    let mut failed = 0;
    loop {
        let files = spent::of_deleted(app.db.scan(), failed, CHUNK).await?;
        let found = files.len();
        let gone = delete(app, files).await;
        // What could not be deleted comes first again, and must not stand before all others.
        failed += u32::try_from(found - gone.len()).unwrap_or(u32::MAX);
        for spent in &gone {
            forget_results(app, &spent.blob_key).await?;
        }
        let gone: Vec<FileId> = gone.iter().map(|spent| spent.id).collect();
        app.db
            .work(move |tx| {
                let gone = gone.clone();
                Box::pin(async move { spent::forget(tx, &gone).await })
            })
            .await?;
        if found < CHUNK as usize {
            return Ok(());
        }
    }
}

/// Deletes the rows of the lines that lay in these bytes. The key of the file goes last, so a crash leaves nothing.
async fn forget_results(app: &App, blob_key: &str) -> Result<(), DbErr> {
    let Some((run, source)) = results::store::of_blob(app.db.read(), blob_key).await? else {
        return Ok(());
    };
    loop {
        let delete = app.db.work(move |tx| {
            Box::pin(async move { results::store::delete_lines(tx, run, source, LINES).await })
        });
        if delete.await? < u64::from(LINES) {
            return Ok(());
        }
    }
}

/// Here the keys go first: what is left after a crash is an orphan, which is swept.
async fn of_carried_files(app: &App, kept: Duration) -> Result<(), Error> {
    // By the store's own clock, which the keys of this process may be behind or ahead of.
    let before = BlobKey::first_of(app.blobs.now().await?.before(kept));
    let mut after = BlobKey::UPLOADS.to_owned();
    loop {
        let carried = Arc::new(spent::of_carried(app.db.scan(), &after, &before, CHUNK).await?);
        let Some(last) = carried.last() else { return Ok(()) };
        after = last.blob_key.clone();
        let files = Arc::clone(&carried);
        let released: Vec<FileId> = app
            .db
            .work(move |tx| {
                let files = Arc::clone(&files);
                Box::pin(async move { spent::release(tx, &files).await })
            })
            .await?;
        let files = carried.iter().filter(|file| released.contains(&file.id)).cloned().collect();
        delete(app, files).await;
    }
}

/// Answers which are gone.
async fn delete(app: &App, spent: Vec<Spent>) -> Vec<Spent> {
    let deletes = futures_util::stream::iter(spent).map(|spent| async move {
        match app.blobs.delete(&BlobKey::Stored(spent.blob_key.clone())).await {
            Ok(()) => Some(spent),
            Err(error) => {
                tracing::warn!(file.id = %spent.id, error = %error, "could not delete the bytes of a file");
                None
            }
        }
    });
    let gone: Vec<Spent> =
        deletes.buffer_unordered(AT_ONCE).filter_map(|gone| async move { gone }).collect().await;
    metrics::counter!("longshore_blobs_deleted_total").increment(gone.len() as u64);
    gone
}
