//! Writes the outputs of a batch's runs into one file, each line with the model that it is of.
//!
//! Nothing of it is kept between attempts: what one that died has written is an orphan like any other.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::StreamExt as _;
use sea_orm::DbErr;
use sha2::Digest as _;
use sha2::Sha256;
use uuid::Uuid;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::download::Moved;
use crate::batches;
use crate::batches::store::BatchView;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::BlobWriter;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::files;
use crate::files::store::NewFile;
use crate::ids::BatchId;
use crate::ids::managed::ManagedId;
use crate::jobs::Ending;
use crate::jobs::MergeBatch;
use crate::results::Lines;
use crate::results::Merged;
use crate::results::Source;
use crate::results::store;
use crate::results::store::Output;
use crate::results::store::Stored;
use crate::runs::ingestion;
use crate::runs::store::Run;

pub async fn run(attempt: &Attempt, payload: &MergeBatch) -> Done {
    let result = tokio::select! {
        result = merge(attempt, payload.batch_id) => result,
        stop = attempt.lease.stopped() => Err(Conclusion::of_stop(stop)),
    };
    let (conclusion, files) = match result {
        Ok(files) => (Conclusion::Succeeded, files),
        Err(conclusion) => (conclusion, None),
    };
    Done { conclusion, effects: Arc::new(Merging { batch_id: payload.batch_id, files }) }
}

/// The merged files; none of a batch that has ended before.
async fn merge(
    attempt: &Attempt,
    id: BatchId,
) -> Result<Option<Vec<(Source, NewFile)>>, Conclusion> {
    let unreachable = |error: DbErr| Conclusion::without_database(&error);
    let db = attempt.app.db.read();
    let Some(batch) = batches::store::find_by_id(db, id).await.map_err(unreachable)? else {
        let message = "the batch of this job does not exist";
        return Err(Conclusion::permanent("batch_missing", message));
    };
    if batch.ended_at.is_some() {
        return Ok(None);
    }
    let view = batches::view(db, batch).await.map_err(unreachable)?;
    let mut outputs = Vec::new();
    for run in &view.runs {
        for output in store::outputs(db, run.id).await.map_err(unreachable)? {
            // What its client has deleted does not come back in another file.
            if let Some(id) = run.file(output.source)
                && files::store::is_live(db, id).await.map_err(unreachable)?
            {
                outputs.push((run, output));
            }
        }
    }
    let mut moved = Moved::default();
    for stored in outputs.iter().filter_map(|(_, output)| output.stored.as_ref()) {
        moved.expect(stored.bytes.unsigned_abs());
    }
    let mut files = Vec::new();
    for source in Source::ALL {
        let of_source = outputs.iter().filter(|(_, output)| output.source == source);
        let parts: Vec<_> = of_source.collect();
        if parts.iter().all(|(_, output)| output.stored.is_none()) {
            continue;
        }
        let mut file = Writing::begin(attempt);
        for (run, output) in parts {
            file.append(run, output, &mut moved).await?;
        }
        let (stored, lines) = file.finish().await?;
        files.push((source, managed(attempt, &view, source, &stored, lines)));
    }
    Ok(Some(files))
}

fn managed(
    attempt: &Attempt,
    view: &BatchView,
    source: Source,
    stored: &Stored,
    lines: i64,
) -> NewFile {
    let (id, batch) = (Uuid::now_v7(), &view.batch);
    let managed_id = ManagedId::File {
        content_type: ingestion::CONTENT_TYPE.to_owned(),
        uuid: id,
        target_model_names: view.runs.iter().map(|run| run.model.clone()).collect(),
        output: None,
    };
    let filename = format!("{}_{source}.jsonl", batch.id);
    let expires_at = ingestion::expires_at(batch.output_expires_after, attempt.app.clock.now());
    let managed_id = managed_id.encode();
    ingestion::new_file(id, managed_id, &batch.owner, filename, stored, lines, expires_at)
}

/// A merged file that is being written.
struct Writing<'a> {
    attempt: &'a Attempt,
    key: BlobKey,
    writer: BlobWriter,
    sha256: Sha256,
    bytes: i64,
    lines: i64,
}

impl<'a> Writing<'a> {
    fn begin(attempt: &'a Attempt) -> Self {
        let key = BlobKey::Output { at: attempt.app.clock.now(), id: Uuid::now_v7() };
        let writer = attempt.app.blobs.writer(&key);
        Self { attempt, key, writer, sha256: Sha256::new(), bytes: 0, lines: 0 }
    }

    async fn append(
        &mut self,
        run: &Run,
        output: &Output,
        moved: &mut Moved,
    ) -> Result<(), Conclusion> {
        let Some(stored) = &output.stored else { return Ok(()) };
        let key = BlobKey::Stored(stored.blob_key.clone());
        let mut body = match self.attempt.app.blobs.read(&key, 0..stored.bytes.unsigned_abs()).await
        {
            Ok(body) => body,
            // Its client has deleted that file already.
            Err(BlobError::Missing(_)) => {
                tracing::warn!(run.id = %run.id, "the {} file of a run is gone: it is not merged", output.source);
                return Ok(());
            }
            Err(error) => return Err(failed(&error)),
        };
        let (mut lines, mut merged) = (Lines::starting_at(0), Merged::of_model(&run.model));
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| failed(&error.into()))?;
            lines.feed(&chunk, |line| merged.add(line));
            moved.count(self.attempt, chunk.len());
            self.write_merged(&mut merged, &key).await?;
        }
        lines.finish(|line| merged.add(line));
        self.write_merged(&mut merged, &key).await?;
        self.lines += merged.lines();
        Ok(())
    }

    async fn write_merged(&mut self, merged: &mut Merged, key: &BlobKey) -> Result<(), Conclusion> {
        for piece in merged.take() {
            if let Some(range) = piece.copied {
                self.copy(key, range).await?;
            }
            self.write(piece.text.into()).await?;
        }
        Ok(())
    }

    async fn copy(&mut self, key: &BlobKey, range: Range<u64>) -> Result<(), Conclusion> {
        let body = self.attempt.app.blobs.read(key, range).await;
        let mut body = body.map_err(|error| failed(&error))?;
        while let Some(chunk) = body.next().await {
            self.write(chunk.map_err(|error| failed(&error.into()))?).await?;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: bytes::Bytes) -> Result<(), Conclusion> {
        self.sha256.update(&bytes);
        self.bytes += i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        self.writer.write(bytes).await.map_err(|error| failed(&error))
    }

    async fn finish(self) -> Result<(Stored, i64), Conclusion> {
        self.writer.finish().await.map_err(|error| failed(&error))?;
        let stored = Stored {
            blob_key: self.key.path(),
            bytes: self.bytes,
            sha256: data_encoding::HEXLOWER.encode(&self.sha256.finalize()),
        };
        Ok((stored, self.lines))
    }
}

fn failed(error: &BlobError) -> Conclusion {
    Conclusion::transient("blob_store_failed", error.to_string())
}

/// What an attempt writes with its end.
struct Merging {
    batch_id: BatchId,
    files: Option<Vec<(Source, NewFile)>>,
}

#[async_trait]
impl Effects for Merging {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        if let Ending::Failed(failure) = ending {
            return batches::merge_failed(tx, self.batch_id, failure).await;
        }
        let Some(files) = self.files.as_ref().filter(|_| *ending == Ending::Succeeded) else {
            return Ok(());
        };
        // Held before anything is made: the batch may have ended, or go on.
        let Some(view) = batches::begin_merge(tx, self.batch_id).await? else { return Ok(()) };
        for (_, file) in files {
            files::create::produced(tx, now, file, None).await?;
        }
        let file =
            |wanted| files.iter().find(|(source, _)| *source == wanted).map(|(_, file)| file.id);
        batches::merged(tx, now, view, file(Source::Output), file(Source::Error)).await
    }
}

/// Nobody can say how the attempt ended. Half a merged file is an orphan; the next attempt begins anew, if there is one.
pub async fn ended_unseen(
    tx: &Transaction,
    payload: &MergeBatch,
    ending: &Ending,
) -> Result<(), DbErr> {
    match ending {
        Ending::Failed(failure) => batches::merge_failed(tx, payload.batch_id, failure).await,
        Ending::Cancelled | Ending::Retry { .. } | Ending::Succeeded => Ok(()),
    }
}
