//! Deletes bytes that nobody needs any more: of files that are deleted, and, where `blobs.keep` is a
//! time, of files that every model has had for that long.
//!
//! The bytes go first and their key afterwards, so that a crash in between leaves a key of nothing, which
//! the next round finds, and never bytes of no key.

use std::time::Duration;

use futures_util::StreamExt as _;

use crate::app::App;
use crate::blobs::BlobKey;
use crate::config::Keep;
use crate::error::Error;
use crate::files::store;
use crate::files::store::Spent;
use crate::ids::FileId;

const EVERY: Duration = Duration::from_secs(5);
const CHUNK: u32 = 200;
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
    loop {
        let spent = store::spent(app.db.scan(), CHUNK).await?;
        let found = spent.len();
        let deleted = delete(app, spent).await?;
        // What failed comes first again, and would be found for ever.
        if found < CHUNK as usize || deleted < found {
            return Ok(());
        }
    }
}

async fn of_carried_files(app: &App, kept: Duration) -> Result<(), Error> {
    let before = BlobKey::first_of(app.clock.now().before(kept));
    let mut after = String::new();
    loop {
        let carried = store::carried(app.db.scan(), &after, &before, CHUNK).await?;
        let Some(last) = carried.last() else { return Ok(()) };
        after = last.blob_key.clone();
        delete(app, carried).await?;
    }
}

/// Answers how many are gone.
async fn delete(app: &App, spent: Vec<Spent>) -> Result<usize, Error> {
    let deletes = futures_util::stream::iter(spent).map(|spent| async move {
        match app.blobs.delete(&BlobKey::Stored(spent.blob_key)).await {
            Ok(()) => Some(spent.id),
            Err(error) => {
                tracing::warn!(file.id = %spent.id, error = %error, "could not delete the bytes of a file");
                None
            }
        }
    });
    let gone: Vec<FileId> =
        deletes.buffer_unordered(AT_ONCE).filter_map(|gone| async move { gone }).collect().await;
    let count = gone.len();
    if count > 0 {
        app.db
            .work(move |tx| {
                let gone = gone.clone();
                Box::pin(async move { store::forget_blobs(tx, &gone).await })
            })
            .await?;
        metrics::counter!("longshore_blobs_deleted_total").increment(count as u64);
    }
    Ok(count)
}
