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
use crate::blobs::BlobError;
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
    let mut passed_over = 0u32;
    loop {
        ticks.tick().await;
        if !app.installation.is_trusted {
            // The rows that need these blobs may be in another database.
            continue;
        }
        let mut kept = Kept::default();
        if let Err(error) = of_deleted_files(&app, &mut passed_over, &mut kept).await {
            tracing::warn!(error = %error, "could not delete the bytes of deleted files; trying again");
        }
        if round.is_multiple_of(CARRIED_EVERY)
            && let Keep::For(time) = app.config.blobs.keep
            && let Err(error) = of_carried_files(&app, time, &mut kept).await
        {
            tracing::warn!(error = %error, "could not delete bytes that were kept long enough; trying again");
        }
        kept.tell();
        round = round.wrapping_add(1);
    }
}

/// What a round could not delete.
#[derive(Default)]
struct Kept {
    files: u64,
    example: Option<(FileId, BlobError)>,
}

impl Kept {
    fn note(&mut self, file: FileId, error: BlobError) {
        self.files += 1;
        self.example.get_or_insert((file, error));
    }

    fn tell(self) {
        let Some((file, error)) = self.example else { return };
        let error = anyhow::Error::from(error);
        tracing::warn!(
            files = self.files,
            file.id = %file,
            "could not delete the bytes of deleted files, such as this one; trying again: {error:#}"
        );
    }
}

/// Files that could not be deleted come first again, and must not stand before all others: `passed_over` of them,
/// counted over the rounds.
async fn of_deleted_files(app: &App, passed_over: &mut u32, kept: &mut Kept) -> Result<(), Error> {
    loop {
        let files = spent::of_deleted(app.db.scan(), *passed_over, CHUNK).await?;
        let found = files.len();
        let gone = delete(app, files, kept).await;
        *passed_over += u32::try_from(found - gone.len()).unwrap_or(u32::MAX);
        if gone.is_empty() && found == CHUNK as usize {
            // The store takes no deletes, as it seems. The next round sees to those behind these.
            return Ok(());
        }
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
            *passed_over = 0;
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
async fn of_carried_files(app: &App, time: Duration, kept: &mut Kept) -> Result<(), Error> {
    // By the store's own clock, which the keys of this process may be behind or ahead of.
    let before = BlobKey::first_of(app.blobs.now().await?.before(time));
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
        if delete(app, files, kept).await.is_empty() && !released.is_empty() {
            // No more keys are taken from files whose bytes stay.
            return Ok(());
        }
    }
}

/// Answers which are gone.
async fn delete(app: &App, spent: Vec<Spent>, kept: &mut Kept) -> Vec<Spent> {
    let deletes = futures_util::stream::iter(spent).map(|spent| async move {
        let deleted = app.blobs.delete(&BlobKey::Stored(spent.blob_key.clone())).await;
        deleted.map(|()| spent.clone()).map_err(|error| (spent.id, error))
    });
    let mut deletes = deletes.buffer_unordered(AT_ONCE);
    let mut gone = Vec::new();
    while let Some(deleted) = deletes.next().await {
        match deleted {
            Ok(spent) => gone.push(spent),
            Err((file, error)) => kept.note(file, error),
        }
    }
    metrics::counter!("longshore_blobs_deleted_total").increment(gone.len() as u64);
    gone
}
