//! A new batch of what has come to nothing in one that has ended: the requests that failed or never ran.

use std::collections::HashSet;

use futures_util::TryStreamExt as _;
use sea_orm::ConnectionTrait;
use sha2::Digest as _;
use sha2::Sha256;
use uuid::Uuid;

use super::NewBatch;
use super::create;
use super::create::Wanted;
use super::store::Batch;
use super::store::BatchView;
use crate::app::App;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::error::Error;
use crate::files;
use crate::files::create::Destination;
use crate::files::store::File;
use crate::files::store::NewFile;
use crate::ids::BatchId;
use crate::ids::FileId;
use crate::ids::RunId;
use crate::ids::managed::ManagedId;
use crate::results;
use crate::results::Digest;
use crate::results::Line;
use crate::results::LineOutcome;
use crate::results::Lines;
use crate::results::RawLine;
use crate::results::Source;
use crate::runs::store::Run;

/// Rows that are read at once.
const READ: u32 = 5000;

/// A batch to be made of the rest of another, on a file of its own, whose bytes are written already.
#[derive(Clone, Debug)]
pub struct Retry {
    pub file: NewFile,
    pub destinations: Vec<Destination>,
    pub batch: NewBatch,
}

/// Writes the requests that a batch has not answered to the blob store, byte for byte as they were. Of several runs
/// `model` chooses; without it, all must lack the same.
///
/// # Errors
///
/// When the batch has not ended, its input is not here any more, or there is nothing to retry.
pub async fn prepare(
    app: &App,
    view: &BatchView,
    model: Option<&str>,
    request_id: &str,
) -> Result<Retry, Error> {
    let batch = &view.batch;
    if batch.ended_at.is_none() {
        let message =
            "the batch has not ended: what it lacks is known then; `cancel` ends it".to_owned();
        return Err(conflict("batch_not_ended", message));
    }
    let runs = chosen(&view.runs, model)?;
    let input = input(app.db.read(), batch).await?;
    let (mut answered, mut names) = (Vec::with_capacity(runs.len()), Vec::new());
    for run in &runs {
        let all = succeeded(app.db.scan(), run.id).await?;
        let lacks_some = input.lines.is_none_or(|lines| all.len() < lines.unsigned_abs() as usize);
        // One that lacks nothing is left alone, if it was not asked for.
        if lacks_some || runs.len() == 1 {
            answered.push(all);
            names.push(run.model.clone());
        }
    }
    if answered.is_empty() {
        return Err(nothing_to_retry());
    }
    names.dedup();
    let destinations = app.destinations(&names)?;
    let may_differ = model.is_some();
    let rest = write_rest(app, &input, &answered, may_differ).await?;
    let (lines, bytes) = (rest.lines, rest.bytes);
    let retry = rest.retry(app.clock.now(), batch, &input, destinations, request_id);
    let checked = app.check_batch(&retry.destinations, lines, bytes);
    if let Err(error) = checked {
        discard(app, &retry.file.blob_key).await;
        return Err(error);
    }
    Ok(retry)
}

/// Writes the file and the batch.
///
/// # Errors
///
/// As [`create::create`].
pub async fn create(
    tx: &Transaction,
    now: Timestamp,
    retry: &Retry,
    sending: &files::create::Dispatch,
    dispatch: &create::Dispatch,
) -> Result<BatchView, Error> {
    let Retry { file, destinations, batch } = retry;
    files::create::create(tx, now, file, destinations, sending).await?;
    let wanted = Wanted { file_id: file.id, models: None };
    create::create(tx, now, batch, &wanted, dispatch).await
}

/// Takes back the bytes of a retry that came to nothing, unless a file has them all the same. What stays is an
/// orphan like any other.
pub async fn take_back(app: &App, retry: &Retry) {
    let key = &retry.file.blob_key;
    match files::store::known_blobs(app.db.read(), std::slice::from_ref(key)).await {
        Ok(known) if known.is_empty() => discard(app, key).await,
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(blob.key = %key, error = %error, "cannot tell whether a blob is of use");
        }
    }
}

async fn discard(app: &App, key: &str) {
    if let Err(error) = app.blobs.delete(&BlobKey::Stored(key.to_owned())).await {
        tracing::warn!(blob.key = %key, error = %error, "could not delete a blob that is of no use");
    }
}

fn conflict(code: &'static str, message: String) -> Error {
    Error::Conflict { code, message, retry_after: None }
}

fn nothing_to_retry() -> Error {
    let message = "every request of the batch has succeeded: there is nothing to retry".to_owned();
    conflict("nothing_to_retry", message)
}

fn chosen<'r>(runs: &'r [Run], model: Option<&str>) -> Result<Vec<&'r Run>, Error> {
    let Some(model) = model else { return Ok(runs.iter().collect()) };
    let runs: Vec<_> = runs.iter().filter(|run| run.model == model).collect();
    if runs.is_empty() {
        return Err(Error::invalid("model", "`model` must be one that the batch ran on"));
    }
    Ok(runs)
}

async fn input(db: &impl ConnectionTrait, batch: &Batch) -> Result<File, Error> {
    let Some(id) = batch.input_file_id else {
        let message = "the input of this batch is not here: it was made elsewhere".to_owned();
        return Err(conflict("input_unknown", message));
    };
    let view = files::store::find_by_id(db, id).await?;
    let file = view.map(|view| view.file);
    file.filter(|file| file.deleted_at.is_none() && file.blob_key.is_some()).ok_or_else(input_gone)
}

fn input_gone() -> Error {
    let message =
        "the input of this batch is no longer kept here; upload what is to be retried".to_owned();
    conflict("input_gone", message)
}

async fn succeeded(db: &impl ConnectionTrait, run: RunId) -> Result<HashSet<Digest>, Error> {
    let mut found = HashSet::new();
    for source in Source::ALL {
        let mut after = 0;
        loop {
            let outcome = Some(LineOutcome::Succeeded);
            let rows = results::store::custom_ids(db, run, source, outcome, after, READ).await?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            found.extend(rows.iter().map(|(_, custom_id)| Digest::of(custom_id)));
        }
    }
    Ok(found)
}

/// What is left of an input, as it was written.
struct Rest {
    key: BlobKey,
    sha256: String,
    bytes: u64,
    lines: u64,
}

impl Rest {
    fn retry(
        self,
        now: Timestamp,
        batch: &Batch,
        input: &File,
        destinations: Vec<Destination>,
        request_id: &str,
    ) -> Retry {
        let id = FileId::mint();
        let mut names: Vec<_> =
            destinations.iter().map(|destination| destination.model.clone()).collect();
        names.dedup();
        let managed_id = ManagedId::File {
            content_type: input.content_type.clone(),
            uuid: id.0,
            target_model_names: names,
            output: None,
        };
        let file = NewFile {
            id,
            managed_id: managed_id.encode(),
            owner: batch.owner.clone(),
            filename: filename(&input.filename),
            content_type: input.content_type.clone(),
            purpose: input.purpose.clone(),
            bytes: self.bytes,
            sha256: self.sha256,
            metadata: input.metadata(),
            blob_key: self.key.path(),
            expires_at: input.expires_at.map(|at| now.after(at.since(input.created_at))),
            lines: Some(self.lines),
        };
        let batch = NewBatch {
            id: BatchId::mint(),
            owner: batch.owner.clone(),
            input_file_id: Some(id),
            input_file: file.managed_id.clone(),
            endpoint: batch.endpoint.clone(),
            completion_window: batch.completion_window.clone(),
            metadata: batch.metadata(),
            output_expires_after: batch.output_expires_after,
            is_imported: false,
            request_id: Some(request_id.to_owned()),
        };
        Retry { file, destinations, batch }
    }
}

/// `in.jsonl` → `in.retry.jsonl`.
fn filename(of_input: &str) -> String {
    let stem = of_input.strip_suffix(".jsonl").unwrap_or(of_input);
    let stem = stem.strip_suffix(".retry").unwrap_or(stem);
    format!("{stem}.retry.jsonl")
}

/// Writes the lines that some of the runs lack; that must be all of them, unless they `may_differ`.
async fn write_rest(
    app: &App,
    input: &File,
    answered: &[HashSet<Digest>],
    may_differ: bool,
) -> Result<Rest, Error> {
    let from = BlobKey::Stored(input.blob_key.clone().unwrap_or_default());
    let mut body = match app.blobs.read(&from, 0..input.bytes.unsigned_abs()).await {
        Ok(body) => body,
        Err(BlobError::Missing(_)) => return Err(input_gone()),
        Err(error) => return Err(error.into()),
    };
    let key = BlobKey::Upload { at: app.clock.now(), id: Uuid::now_v7() };
    // Dropped before its end, it leaves nothing.
    let mut writer = app.blobs.writer(&key);
    let mut sha256 = Sha256::new();
    let mut kept = Kept { answered, ..Kept::default() };
    let (mut lines, mut bytes) = (Lines::starting_at(0), 0);
    let mut is_open = true;
    while is_open {
        match body.try_next().await.map_err(BlobError::from)? {
            Some(chunk) => lines.feed(&chunk, |line| kept.look_at(line)),
            None => {
                is_open = false;
                std::mem::replace(&mut lines, Lines::starting_at(0))
                    .finish(|line| kept.look_at(line));
            }
        }
        kept.check(may_differ)?;
        let text = std::mem::take(&mut kept.text);
        sha256.update(&text);
        bytes += text.len() as u64;
        writer.write(text.into()).await?;
    }
    if kept.lines == 0 {
        return Err(nothing_to_retry());
    }
    writer.finish().await?;
    let sha256 = data_encoding::HEXLOWER.encode(&sha256.finalize());
    Ok(Rest { key, sha256, bytes, lines: kept.lines })
}

/// The lines to be written.
#[derive(Default)]
struct Kept<'a> {
    answered: &'a [HashSet<Digest>],
    text: Vec<u8>,
    lines: u64,
    /// Some run has answered what another lacks.
    differs: bool,
    is_too_long: bool,
}

impl Kept<'_> {
    fn look_at(&mut self, line: RawLine<'_>) {
        let Some(text) = line.text else {
            self.is_too_long = true;
            return;
        };
        // The intake has let no other lines pass.
        let Some(read) = Line::read(text) else { return };
        let digest = Digest::of(&results::stored(&read.custom_id));
        let lacking = self.answered.iter().filter(|answered| !answered.contains(&digest)).count();
        if lacking == 0 {
            return;
        }
        self.differs |= lacking < self.answered.len();
        self.lines += 1;
        self.text.extend_from_slice(text);
        self.text.push(b'\n');
    }

    fn check(&self, may_differ: bool) -> Result<(), Error> {
        if self.differs && !may_differ {
            return Err(Error::missing(
                "model",
                "the models of this batch lack different requests; say for which one to retry: `model`",
            ));
        }
        if self.is_too_long {
            let message =
                "a request of the input is too long to be picked out; upload what is to be retried";
            return Err(conflict("line_too_long", message.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(answered: &[&[&str]], input: &[u8]) -> (Vec<u8>, u64, bool) {
        let sets: Vec<HashSet<Digest>> =
            answered.iter().map(|ids| ids.iter().map(|id| Digest::of(id)).collect()).collect();
        let mut kept = Kept { answered: &sets, ..Kept::default() };
        let mut lines = Lines::starting_at(0);
        lines.feed(input, |line| kept.look_at(line));
        lines.finish(|line| kept.look_at(line));
        (kept.text, kept.lines, kept.differs)
    }

    #[test]
    fn what_has_no_success_is_kept_byte_for_byte() {
        let input = b"{\"custom_id\":\"a\"}\r\n\n{ \"custom_id\": \"\\u0062\", \"x\": 1.0 }\n{\"custom_id\":\"c\"}";
        let (text, lines, differs) = kept(&[&["a"]], input);
        let expected = "{ \"custom_id\": \"\\u0062\", \"x\": 1.0 }\n{\"custom_id\":\"c\"}\n";
        assert_eq!(
            (String::from_utf8(text).unwrap().as_str(), lines, differs),
            (expected, 2, false)
        );
        assert_eq!(kept(&[&["a", "b", "c"]], input), (Vec::new(), 0, false));
    }

    #[test]
    fn runs_that_lack_different_requests_are_seen() {
        let input = b"{\"custom_id\":\"a\"}\n{\"custom_id\":\"b\"}\n";
        assert!(!kept(&[&["a"], &["a"]], input).2);
        assert!(kept(&[&["a"], &["b"]], input).2);
    }

    #[test]
    fn a_retry_is_named_after_its_input_once() {
        assert_eq!(filename("in.jsonl"), "in.retry.jsonl");
        assert_eq!(filename("in.retry.jsonl"), "in.retry.jsonl");
        assert_eq!(filename("in"), "in.retry.jsonl");
    }
}
