//! The lines of a run's files: read, judged and written, a chunk at a time.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt as _;
use sea_orm::DbErr;

use super::super::conclusion::Conclusion;
use super::ingesting::Ingesting;
use super::unreachable;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::db::Transaction;
use crate::files::store::File;
use crate::ids::RunId;
use crate::results::Ids;
use crate::results::Indexed;
use crate::results::Indexer;
use crate::results::Lines;
use crate::results::Source;
use crate::results::Tally;
use crate::results::store;
use crate::results::store::Output;
use crate::results::store::Stored;

/// Lines of one transaction, and how long one may hold the one writer of SQLite before it ends earlier.
const CHUNK: usize = 500;
const LONGEST: Duration = Duration::from_millis(10);
/// Rows that are read at once.
const READ: u32 = 5000;
/// Rows that are deleted at once.
const DELETED: u32 = 1000;

impl Ingesting<'_> {
    /// Reads the lines that are not read yet.
    pub async fn index(&mut self) -> Result<(), Conclusion> {
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
                let rows = store::answered(db, self.run.id, output.source, after, READ);
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
        let mut lines = Lines::starting_at(0);
        while let Some(chunk) = body.next().await {
            lines.feed(&chunk.map_err(|error| unreadable(&error.into()))?, |line| ids.ask(line));
        }
        lines.finish(|line| ids.ask(line));
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
        let mut body = match self.attempt.app.blobs.read(&key, begin..end).await {
            Ok(body) => body,
            Err(BlobError::Missing(_)) => return Err(self.fetch_anew(output.source).await),
            Err(error) => return Err(unreadable(&error)),
        };
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

    /// The bytes of a file are gone before they were read: nothing of it is known any more, and the next attempt
    /// fetches it again.
    async fn fetch_anew(&self, source: Source) -> Conclusion {
        let run = self.run.id;
        loop {
            let step = self.fenced(move |tx| {
                Box::pin(async move {
                    let deleted = store::delete_lines(tx, run, source, DELETED).await?;
                    if deleted == 0 {
                        store::forget_blob(tx, run, source).await?;
                    }
                    Ok(deleted)
                })
            });
            match step.await {
                Ok(0) => break,
                Ok(_) => {}
                Err(conclusion) => return conclusion,
            }
        }
        let message = format!("the bytes of the {source} file are gone; it is fetched again");
        Conclusion::transient("source_unreadable", message)
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
            let (run, counted, rest) = (self.run.id, *tally, Arc::clone(&rows));
            let step = self.fenced(move |tx| {
                let rest = Arc::clone(&rest);
                Box::pin(
                    async move { insert(tx, run, source, &rest[written..], end, counted).await },
                )
            });
            let (count, counted) = step.await?;
            written += count;
            *tally = counted;
            if rows.is_empty() {
                break;
            }
        }
        Ok(())
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

fn unreadable(error: &BlobError) -> Conclusion {
    Conclusion::transient("source_unreadable", error.to_string())
}
