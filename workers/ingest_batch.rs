//! Fetches what a batch produced at one provider, and reads it line by line.
//!
//! First the bytes of a file come here, whole; then its lines are indexed, a chunk in a transaction that also says
//! how far that is. So a worker that dies costs a file that was not whole yet, or one chunk.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::attempt::Conclusion;
use super::attempt::Done;
use super::attempt::Effects;
use super::budget;
use super::download;
use super::download::Download;
use super::download::Moved;
use crate::app::Account;
use crate::batches;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::files;
use crate::files::store::File;
use crate::ids::RunId;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::IngestBatch;
use crate::jobs::leases;
use crate::mappings::store::Copy;
use crate::providers::ProviderFileId;
use crate::results::Ids;
use crate::results::Indexed;
use crate::results::Indexer;
use crate::results::Line;
use crate::results::Lines;
use crate::results::Source;
use crate::results::Tally;
use crate::results::store;
use crate::results::store::Output;
use crate::results::store::Stored;
use crate::results::stored;
use crate::runs;
use crate::runs::ingestion;
use crate::runs::ingestion::Found;
use crate::runs::ingestion::Produced;
use crate::runs::store::Run;

/// Lines of one transaction, and how long one may hold the one writer of SQLite before it ends earlier.
const CHUNK: usize = 500;
const LONGEST: Duration = Duration::from_millis(10);
/// Rows that are read at once.
const READ: u32 = 5000;

pub async fn run(attempt: &Attempt, payload: &IngestBatch) -> Done {
    let result = tokio::select! {
        result = ingest(attempt, payload.run_id) => result,
        // Every chunk is whole, or it is not there.
        stop = attempt.lease.stopped() => Err(Conclusion::of_stop(stop)),
    };
    let (conclusion, found) = match result {
        Ok(found) => (Conclusion::Succeeded, found),
        Err(conclusion) => (conclusion, None),
    };
    Done { conclusion, effects: Arc::new(Ingestion { run_id: payload.run_id, found }) }
}

/// `None` where the run has ended before.
async fn ingest(attempt: &Attempt, id: RunId) -> Result<Option<Found>, Conclusion> {
    let app = &attempt.app;
    let found = runs::store::find(app.db.read(), id).await.map_err(unreachable)?;
    let Some(run) = found else {
        let message = "the run of this job does not exist";
        return Err(Conclusion::permanent("run_missing", message));
    };
    if run.ended_at.is_some() {
        return Ok(None);
    }
    let Some(account) = app.providers.get(&run.provider) else {
        let message = format!("the provider `{}` is not configured any more", run.provider);
        return Err(Conclusion::transient("provider_not_configured", message));
    };
    let input = input(attempt, &run).await?;
    let requests = input.as_ref().and_then(|input| input.lines);
    let mut ingestion =
        Ingesting { attempt, account, run, input, moved: Moved::default(), lost: None };
    ingestion.fetch().await?;
    ingestion.index().await?;
    ingestion.found(requests).await.map(Some)
}

/// The input of the run's batch, if it is known here.
async fn input(attempt: &Attempt, run: &Run) -> Result<Option<File>, Conclusion> {
    let db = attempt.app.db.read();
    let batch = batches::store::find_by_id(db, run.batch_id).await.map_err(unreachable)?;
    let Some(id) = batch.and_then(|batch| batch.input_file_id) else { return Ok(None) };
    let view = files::store::find_by_id(db, id).await.map_err(unreachable)?;
    Ok(view.map(|view| view.file))
}

struct Ingesting<'a> {
    attempt: &'a Attempt,
    account: &'a Account,
    run: Run,
    input: Option<File>,
    moved: Moved,
    /// Why a file did not come.
    lost: Option<Failure>,
}

impl Ingesting<'_> {
    /// The files that the provider has named.
    fn named(&self) -> Vec<(Source, ProviderFileId)> {
        let run = &self.run;
        let output = run.provider_output_file_id.clone().map(|id| (Source::Output, id));
        let error = run.provider_error_file_id.clone().map(|id| (Source::Error, id));
        let error = error.filter(|(_, id)| output.as_ref().is_none_or(|(_, output)| output != id));
        output.into_iter().chain(error).map(|(source, id)| (source, ProviderFileId(id))).collect()
    }

    async fn outputs(&self) -> Result<Vec<Output>, Conclusion> {
        store::outputs(self.attempt.app.db.read(), self.run.id).await.map_err(unreachable)
    }

    async fn fetch(&mut self) -> Result<(), Conclusion> {
        let here = self.outputs().await?;
        for output in &here {
            let Some(stored) = &output.stored else { continue };
            self.moved.expect(stored.bytes.saturating_sub(output.indexed_to).unsigned_abs());
        }
        let last = self.run.failure();
        for (source, id) in self.named() {
            if here.iter().any(|output| output.source == source && output.stored.is_some()) {
                continue;
            }
            let moved = &mut self.moved;
            let fetched = download::download(self.attempt, self.account, &id, last.as_ref(), moved);
            match fetched.await? {
                Download::Here(stored) => self.keep(source, &id, stored).await?,
                Download::Lost(failure) => {
                    tracing::error!(provider.file_id = %id, "the provider does not have the results that it named");
                    self.lost = Some(failure);
                }
            }
        }
        Ok(())
    }

    async fn keep(
        &self,
        source: Source,
        id: &ProviderFileId,
        stored: Stored,
    ) -> Result<(), Conclusion> {
        let (run, fence) = (self.run.id, self.attempt.fence.clone());
        let (file, kept): (Arc<str>, _) = (id.0.as_str().into(), Arc::new(stored.clone()));
        let is_ours = self
            .attempt
            .app
            .db
            .work_alone(move |tx| {
                let (fence, file, kept) = (fence.clone(), Arc::clone(&file), Arc::clone(&kept));
                Box::pin(async move {
                    if !leases::advance(tx, &fence).await? {
                        return Ok(false);
                    }
                    store::downloaded(tx, run, source, &file, &kept).await?;
                    Ok::<_, DbErr>(true)
                })
            })
            .await
            .map_err(unreachable)?;
        if is_ours {
            tracing::info!(provider.file_id = %id, bytes = stored.bytes, "fetched the {source} file of a batch");
            return Ok(());
        }
        download::discard(self.attempt, &stored).await;
        Err(Conclusion::HandedBack)
    }

    async fn index(&mut self) -> Result<(), Conclusion> {
        let outputs = self.outputs().await?;
        let is_indexed = |output: &Output| {
            output.stored.as_ref().is_none_or(|stored| output.indexed_to >= stored.bytes)
        };
        if outputs.iter().all(is_indexed) {
            return Ok(());
        }
        let mut ids = self.ids(&outputs).await?;
        for output in outputs {
            let Some(stored) = &output.stored else { continue };
            self.index_file(&output, stored, &mut ids).await?;
        }
        Ok(())
    }

    /// What is known of the run's requests: those of the input, and those with a result.
    async fn ids(&self, outputs: &[Output]) -> Result<Ids, Conclusion> {
        let mut ids = Ids::default();
        if let Some(input) = &self.input {
            self.ask(input, &mut ids).await?;
        }
        for output in outputs {
            let mut after = 0;
            loop {
                let db = self.attempt.app.db.scan();
                let rows = store::custom_ids(db, self.run.id, output.source, None, after, READ);
                let rows = rows.await.map_err(unreachable)?;
                let Some((last, _)) = rows.last() else { break };
                after = *last;
                for (_, custom_id) in &rows {
                    ids.answer(custom_id);
                }
            }
        }
        Ok(ids)
    }

    async fn ask(&self, input: &File, ids: &mut Ids) -> Result<(), Conclusion> {
        let Some(key) = input.blob_key.clone().map(BlobKey::Stored) else { return Ok(()) };
        let total = input.bytes.unsigned_abs();
        let mut body = match self.attempt.app.blobs.read(&key, 0..total).await {
            Ok(body) => body,
            // Then it is not known which requests there were.
            Err(BlobError::Missing(_)) => return Ok(()),
            Err(error) => return Err(unreadable(&error)),
        };
        let mut ask = |text: Option<&[u8]>| {
            if let Some(line) = text.and_then(Line::read) {
                ids.ask(&stored(&line.custom_id));
            }
        };
        let mut lines = Lines::starting_at(0);
        while let Some(chunk) = body.next().await {
            lines.feed(&chunk.map_err(|error| unreadable(&error.into()))?, |line| ask(line.text));
        }
        lines.finish(|line| ask(line.text));
        Ok(())
    }

    async fn index_file(
        &mut self,
        output: &Output,
        stored: &Stored,
        ids: &mut Ids,
    ) -> Result<(), Conclusion> {
        let (begin, end) = (output.indexed_to.unsigned_abs(), stored.bytes.unsigned_abs());
        if begin >= end {
            return Ok(());
        }
        let key = BlobKey::Stored(stored.blob_key.clone());
        let body = self.attempt.app.blobs.read(&key, begin..end).await;
        let mut body = body.map_err(|error| unreadable(&error))?;
        let mut indexer = Indexer::behind(output.tally.lines, begin);
        let (mut rows, mut tally) = (Vec::new(), output.tally);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| unreadable(&error.into()))?;
            indexer.feed(&chunk, ids, &mut rows);
            self.moved.count(self.attempt, chunk.len());
            if rows.len() >= CHUNK {
                self.write(output.source, std::mem::take(&mut rows), None, &mut tally).await?;
            }
        }
        indexer.finish(ids, &mut rows);
        self.write(output.source, rows, Some(stored.bytes), &mut tally).await
    }

    /// Writes lines, and how far the file is: behind the last one, or at its end.
    async fn write(
        &self,
        source: Source,
        rows: Vec<Indexed>,
        end: Option<i64>,
        tally: &mut Tally,
    ) -> Result<(), Conclusion> {
        let rows: Arc<[Indexed]> = rows.into();
        let mut written = 0;
        while written < rows.len() || (end.is_some() && rows.is_empty()) {
            let (run, fence, counted) = (self.run.id, self.attempt.fence.clone(), *tally);
            let rest = Arc::clone(&rows);
            let step = self.attempt.app.db.work_alone(move |tx| {
                let (fence, rest) = (fence.clone(), Arc::clone(&rest));
                Box::pin(async move {
                    if !leases::advance(tx, &fence).await? {
                        return Ok(None);
                    }
                    let rest = &rest[written..];
                    insert(tx, run, source, rest, end, counted).await.map(Some)
                })
            });
            match step.await.map_err(unreachable)? {
                Some((count, counted)) => {
                    written += count;
                    *tally = counted;
                }
                None => return Err(Conclusion::HandedBack),
            }
            if rows.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// What the run came to, with everything indexed.
    async fn found(self, requests: Option<i64>) -> Result<Found, Conclusion> {
        let deletes_copies = self.attempt.app.config.batches.delete_provider_files;
        let (mut tally, mut produced) = (Tally::default(), Vec::new());
        for output in self.outputs().await? {
            let Some(stored) = &output.stored else { continue };
            tally += output.tally;
            let copy = self.copy(&output.provider_file_id).await?;
            produced.push(Produced::new(
                &self.run,
                &output,
                stored,
                copy,
                self.attempt.job.id,
                &self.attempt.app.installation.id,
                self.attempt.app.clock.now(),
            ));
        }
        let failure = self.lost;
        Ok(Found { run: self.run, produced, tally, requests, failure, deletes_copies })
    }

    /// The provider's copy of a file. Until when it keeps it is good to know, and no more.
    async fn copy(&self, id: &str) -> Result<Copy, Conclusion> {
        budget::spend(&self.attempt.app, self.account).await?;
        let told = self.account.driver.file(&ProviderFileId(id.to_owned())).await;
        let expires_at = told.ok().and_then(|file| file.expires_at);
        let expires_at = expires_at.map(Timestamp::from_unix_seconds);
        Ok(Copy { provider_file_id: id.to_owned(), expires_at })
    }
}

/// Writes as many of these lines as one transaction may take. Answers how many, and what all lines came to.
async fn insert(
    tx: &Transaction,
    run: RunId,
    source: Source,
    rows: &[Indexed],
    end: Option<i64>,
    mut tally: Tally,
) -> Result<(usize, Tally), DbErr> {
    let (begun, mut written) = (Instant::now(), 0);
    for part in rows.chunks(store::ROWS) {
        store::insert(tx, run, source, part).await?;
        part.iter().for_each(|row| tally.add(row));
        written += part.len();
        if written >= CHUNK || begun.elapsed() >= LONGEST {
            break;
        }
    }
    let is_last = written == rows.len();
    let behind = rows[..written].last().map(|row| row.next_at);
    if let Some(indexed_to) = end.filter(|_| is_last).or(behind) {
        store::indexed(tx, run, source, indexed_to, &tally).await?;
    }
    Ok((written, tally))
}

fn unreachable(error: DbErr) -> Conclusion {
    Conclusion::without_database(&error)
}

fn unreadable(error: &BlobError) -> Conclusion {
    Conclusion::transient("source_unreadable", error.to_string())
}

/// What an attempt writes with its end.
struct Ingestion {
    run_id: RunId,
    found: Option<Found>,
}

#[async_trait]
impl Effects for Ingestion {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        match (ending, &self.found) {
            (Ending::Succeeded, Some(found)) => ingestion::finish(tx, now, found).await,
            (Ending::Failed(failure) | Ending::Retry { failure: Some(failure), .. }, _) => {
                runs::store::set_error(tx, self.run_id, Some(failure)).await
            }
            (Ending::Succeeded | Ending::Retry { .. } | Ending::Cancelled, _) => Ok(()),
        }
    }
}

/// Nobody can say how the attempt ended; what it wrote is whole. The next one goes on, if there is one.
pub async fn ended_unseen(
    tx: &Transaction,
    _now: Timestamp,
    payload: &IngestBatch,
    ending: &Ending,
) -> Result<(), DbErr> {
    match ending {
        Ending::Failed(failure) => runs::store::set_error(tx, payload.run_id, Some(failure)).await,
        Ending::Cancelled | Ending::Retry { .. } | Ending::Succeeded => Ok(()),
    }
}
