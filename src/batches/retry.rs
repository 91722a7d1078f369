//! A new batch of what has come to nothing in one that has ended: the requests that failed or never ran.

use futures_util::TryStreamExt as _;
use sea_orm::ConnectionTrait;
use sha2::Digest as _;
use sha2::Sha256;
use uuid::Uuid;

use super::NewBatch;
use super::create;
use super::create::Wanted;
use super::store;
use super::store::Batch;
use super::store::BatchView;
use crate::app::App;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::ByteStream;
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
use crate::results::Digests;
use crate::results::Line;
use crate::results::Lines;
use crate::results::RawLine;
use crate::results::Source;
use crate::runs;
use crate::runs::ingestion;
use crate::runs::observation;
use crate::runs::store::Run;
use crate::runs::submission;

/// Rows that are read at once.
const READ: u32 = 5000;

/// A batch to be made of the rest of another, on a file of its own, whose bytes are written already.
#[derive(Clone, Debug)]
pub struct Retry {
    pub file: NewFile,
    pub destinations: Vec<Destination>,
    pub batch: NewBatch,
    of: Batch,
    /// How many runs had to do with these requests.
    related: usize,
}

/// Which requests are to be retried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// Those of one model's runs, or of one run; without either, all runs must lack the same.
    pub model: Option<&'a str>,
    pub deployment_id: Option<&'a str>,
    /// Also those that may have been answered, or may be running still.
    pub force: bool,
}

/// Writes the requests that no run has answered, nor a retry of it, to the blob store, byte for byte as they were.
///
/// # Errors
///
/// When the batch or a retry of it has not ended, it is not known what was answered, the input is not here any more, or
/// there is nothing to retry.
pub async fn prepare(
    app: &App,
    view: &BatchView,
    asked: Asked<'_>,
    request_id: &str,
) -> Result<Retry, Error> {
    let batch = &view.batch;
    if batch.ended_at.is_none() {
        let message =
            "the batch has not ended: what it lacks is known then; `cancel` ends it".to_owned();
        return Err(conflict("batch_not_ended", message));
    }
    let runs = chosen(&view.runs, asked)?;
    let mut destinations =
        runs.iter().map(|run| destination(app, run)).collect::<Result<Vec<_>, _>>()?;
    let mut related = related(app.db.read(), batch, &destinations).await?;
    if !asked.force {
        let retries = related.iter().filter(|run| run.batch_id != batch.first());
        runs.iter().copied().chain(retries).try_for_each(check_known)?;
    }
    let input = input(app.db.read(), batch).await?;
    let mut answered = Vec::with_capacity(runs.len());
    for run in &runs {
        let mut found = Digests::default();
        for related in related.iter().filter(|it| it.deployment_id == run.deployment_id) {
            add_succeeded(app.db.scan(), related.id, &mut found).await?;
        }
        answered.push(found);
    }
    if answered.len() > 1 {
        // A run that lacks nothing is left alone.
        let lacks_some = lacks_some(app, &input, &answered).await?;
        let (mut run, mut sent) = (lacks_some.iter(), lacks_some.iter());
        answered.retain(|_| run.next() == Some(&true));
        destinations.retain(|_| sent.next() == Some(&true));
        related.retain(|run| destinations.iter().any(|it| it.deployment_id == run.deployment_id));
    }
    let rest = write_rest(app, &input, &answered).await?;
    let (lines, bytes) = (rest.lines, rest.bytes);
    let related = related.len();
    let retry = rest.retry(app.clock.now(), batch, &input, destinations, related, request_id);
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
/// As [`create::create`], and when another retry of these requests was made meanwhile.
pub async fn create(
    tx: &Transaction,
    now: Timestamp,
    retry: &Retry,
    sending: &files::create::Dispatch,
    dispatch: &create::Dispatch,
) -> Result<BatchView, Error> {
    let Retry { file, destinations, of, related: known, batch } = retry;
    // Held, so that of two retries at once the second sees the first.
    store::lock(tx, of.first()).await?;
    if related(tx, of, destinations).await?.len() != *known {
        let message = "the requests were retried by another batch meanwhile".to_owned();
        return Err(conflict("retry_superseded", message));
    }
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

fn chosen<'r>(runs: &'r [Run], asked: Asked<'_>) -> Result<Vec<&'r Run>, Error> {
    let is_asked = |run: &&Run| {
        asked.model.is_none_or(|model| run.model == model)
            && asked.deployment_id.is_none_or(|id| run.deployment_id == id)
    };
    let chosen: Vec<_> = runs.iter().filter(is_asked).collect();
    if chosen.is_empty() {
        let (param, message) = match asked.deployment_id {
            Some(_) => ("deployment_id", "`deployment_id` must be one that the batch ran on"),
            None => ("model", "`model` must be one that the batch ran on"),
        };
        return Err(Error::invalid(param, message));
    }
    Ok(chosen)
}

/// Where a run was, whatever its model leads to by now.
fn destination(app: &App, run: &Run) -> Result<Destination, Error> {
    if app.providers.get(&run.provider).is_none() {
        let message = format!("the provider `{}` is not configured any more", run.provider);
        return Err(conflict("provider_not_configured", message));
    }
    Ok(Destination {
        deployment_id: run.deployment_id.clone(),
        model: run.model.clone(),
        provider: run.provider.clone(),
        provider_model: run.provider_model.clone(),
    })
}

/// The runs of a batch at these deployments, and those of the first one that it retries and of all retries of that: all
/// have ended.
async fn related(
    db: &impl ConnectionTrait,
    batch: &Batch,
    destinations: &[Destination],
) -> Result<Vec<Run>, Error> {
    let batches = store::with_retries(db, batch.first()).await?;
    let ids: Vec<_> = batches.iter().map(|batch| batch.id).collect();
    let mut runs = runs::store::of_batches(db, &ids).await?;
    runs.retain(|run| destinations.iter().any(|it| it.deployment_id == run.deployment_id));
    let Some(open) = runs.iter().find(|run| run.ended_at.is_none()) else { return Ok(runs) };
    let open = batches.iter().find(|batch| batch.id == open.batch_id);
    let message = format!(
        "these requests are being retried by the batch `{}`; wait for its end, or cancel it",
        open.map_or("", |batch| &batch.managed_id)
    );
    Err(conflict("retry_under_way", message))
}

/// Whether it is known what a run has answered.
fn check_known(run: &Run) -> Result<(), Error> {
    let failure = run.failure();
    let why = match failure.as_ref().map(|failure| failure.code.as_str()) {
        Some(ingestion::LOST | ingestion::UNAVAILABLE | ingestion::INCOMPLETE) => {
            "has answered requests whose results are not here"
        }
        Some(observation::PROVIDER_BATCH_LOST | submission::BATCH_IMPORTED) => {
            "may be running, or have answered, all of them"
        }
        _ if run.unknown_for().is_some() => "may be running, or have answered, all of them",
        _ => return Ok(()),
    };
    let message = format!(
        "the run on `{}` {why}; with `\"force\": true` they are run, and paid for, once more",
        run.model
    );
    Err(conflict("answers_unknown", message))
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

async fn add_succeeded(
    db: &impl ConnectionTrait,
    run: RunId,
    found: &mut Digests,
) -> Result<(), Error> {
    for source in Source::ALL {
        let mut after = 0;
        loop {
            let rows = results::store::succeeded(db, run, source, after, READ).await?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            for (_, custom_id) in &rows {
                found.insert(Digest::of(custom_id));
            }
        }
    }
    Ok(())
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
        related: usize,
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
        let new = NewBatch {
            id: BatchId::mint(),
            owner: batch.owner.clone(),
            input_file_id: Some(id),
            input_file: file.managed_id.clone(),
            endpoint: batch.endpoint.clone(),
            completion_window: batch.completion_window.clone(),
            metadata: batch.metadata(),
            output_expires_after: batch.output_expires_after,
            is_imported: false,
            retry_of: Some(batch.first()),
            request_id: Some(request_id.to_owned()),
        };
        Retry { file, destinations, batch: new, of: batch.clone(), related }
    }
}

/// `in.jsonl` → `in.retry.jsonl`.
fn filename(of_input: &str) -> String {
    let stem = of_input.strip_suffix(".jsonl").unwrap_or(of_input);
    let stem = stem.strip_suffix(".retry").unwrap_or(stem);
    format!("{stem}.retry.jsonl")
}

/// Which of the runs lack an answer to some line.
async fn lacks_some(app: &App, input: &File, answered: &[Digests]) -> Result<Vec<bool>, Error> {
    let mut found = vec![false; answered.len()];
    let mut look_at = |line: RawLine<'_>| {
        let Some(line) = line.text.and_then(Line::read) else { return };
        let digest = Digest::of(&line.custom_id);
        for (lacks_some, answered) in found.iter_mut().zip(answered) {
            *lacks_some |= !answered.contains(digest);
        }
    };
    let (mut body, mut lines) = (read(app, input).await?, Lines::starting_at(0));
    while let Some(chunk) = body.try_next().await.map_err(BlobError::from)? {
        lines.feed(&chunk, &mut look_at);
    }
    lines.finish(look_at);
    Ok(found)
}

async fn read(app: &App, input: &File) -> Result<ByteStream, Error> {
    let key = BlobKey::Stored(input.blob_key.clone().unwrap_or_default());
    app.blobs.read(&key, 0..input.bytes.unsigned_abs()).await.map_err(|error| match error {
        BlobError::Missing(_) => input_gone(),
        error => error.into(),
    })
}

/// Writes the lines that the runs lack: all of them the same.
async fn write_rest(app: &App, input: &File, answered: &[Digests]) -> Result<Rest, Error> {
    let mut body = read(app, input).await?;
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
        kept.check()?;
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
    answered: &'a [Digests],
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
        let digest = Digest::of(&read.custom_id);
        let lacking = self.answered.iter().filter(|answered| !answered.contains(digest)).count();
        if lacking == 0 {
            return;
        }
        self.differs |= lacking < self.answered.len();
        self.lines += 1;
        self.text.extend_from_slice(text);
        self.text.push(b'\n');
    }

    fn check(&self) -> Result<(), Error> {
        if self.differs {
            return Err(Error::missing(
                "model",
                "the runs of this batch lack different requests; say for which one to retry, by its `model` or its \
                 `deployment_id`",
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
        let mut sets = Vec::new();
        for ids in answered {
            let mut set = Digests::default();
            ids.iter().for_each(|id| assert!(set.insert(Digest::of(id))));
            sets.push(set);
        }
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
