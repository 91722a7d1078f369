//! The end of a run whose results are here: its files become managed ones, and it is what its provider said it is.

use std::sync::Arc;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use uuid::Uuid;

use super::complete;
use super::store;
use super::store::Ingested;
use super::store::Run;
use crate::batches;
use crate::clock::Timestamp;
use crate::files;
use crate::files::Purpose;
use crate::files::store::Metadata;
use crate::files::store::NewFile;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::RunId;
use crate::ids::managed::ManagedId;
use crate::ids::managed::OutputFile;
use crate::installation;
use crate::jobs::Failure;
use crate::mappings;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::mappings::deletion::Doomed;
use crate::mappings::store::Copy;
use crate::mappings::store::NewMapping;
use crate::results;
use crate::results::Source;
use crate::results::Tally;
use crate::results::store::Output;
use crate::results::store::Stored;

/// Why a run has not all of its results: the provider does not have a file, does not give it, or says that there are
/// more.
pub const LOST: &str = "output_lost";
pub const UNAVAILABLE: &str = "results_unavailable";
pub const INCOMPLETE: &str = "output_incomplete";
const RETRY: &str = "retry the `ingest_batch` job to have them fetched again";

/// What lines are written as.
pub const CONTENT_TYPE: &str = "application/jsonl";

/// A file of a run as it is to be managed, and the provider's copy of it.
#[derive(Clone, Debug)]
pub struct Produced {
    pub source: Source,
    pub file: NewFile,
    pub mapping: NewMapping,
    pub copy: Copy,
}

impl Produced {
    /// Of a file whose bytes are here. `job` is the one that fetched them.
    pub fn new(
        run: &Run,
        output: &Output,
        stored: &Stored,
        copy: Copy,
        job: JobId,
        installation_id: &Arc<str>,
        now: Timestamp,
    ) -> Self {
        let (id, source, lines) = (FileId::mint(), output.source, output.tally.lines);
        let managed_id = ManagedId::File {
            content_type: CONTENT_TYPE.to_owned(),
            uuid: id.0,
            target_model_names: vec![run.model.clone()],
            output: Some(OutputFile {
                provider_file_id: copy.provider_file_id.clone(),
                deployment_id: run.deployment_id.clone(),
            }),
        };
        let filename = format!("{}_{source}.jsonl", run.batch_id);
        let expires_at = expires_at(run.output_expires_after, now);
        let mapping = NewMapping {
            id: MappingId::mint(),
            file_id: id,
            position: 0,
            deployment_id: run.deployment_id.clone(),
            model: run.model.clone(),
            provider: run.provider.clone(),
            provider_model: run.provider_model.clone(),
            marker: Marker::mint(installation_id).0,
            job_id: job,
        };
        let managed_id = managed_id.encode();
        let file = new_file(id.0, managed_id, &run.owner, filename, stored, lines, expires_at);
        Self { source, file, mapping, copy }
    }
}

/// A file of results as it is to be managed.
pub fn new_file(
    id: Uuid,
    managed_id: String,
    owner: &str,
    filename: String,
    stored: &Stored,
    lines: i64,
    expires_at: Option<Timestamp>,
) -> NewFile {
    NewFile {
        id: FileId(id),
        managed_id,
        owner: owner.to_owned(),
        filename,
        content_type: CONTENT_TYPE.to_owned(),
        purpose: Purpose::BatchOutput.as_str().to_owned(),
        bytes: stored.bytes.unsigned_abs(),
        sha256: stored.sha256.clone(),
        metadata: Metadata::new(),
        blob_key: stored.blob_key.clone(),
        expires_at,
        lines: Some(lines.unsigned_abs()),
    }
}

/// When a file of results expires that is made now, of a batch that says after how many seconds.
pub fn expires_at(output_expires_after: Option<i64>, now: Timestamp) -> Option<Timestamp> {
    output_expires_after
        .map(|seconds| Timestamp(now.0.saturating_add(seconds.saturating_mul(1000))))
}

/// What ingestion found of a run.
#[derive(Clone, Debug)]
pub struct Found {
    pub run: Run,
    pub produced: Vec<Produced>,
    pub tally: Tally,
    /// The requests of the input, if it is known.
    pub requests: Option<i64>,
    /// Why not all of it is here.
    pub failure: Option<Failure>,
    /// Whether the provider is to keep nothing: neither the results nor the input.
    pub deletes_copies: bool,
}

impl Found {
    /// Why a file did not come, if one did not: it can be fetched later.
    pub fn missing(&self) -> Option<&Failure> {
        self.failure.as_ref().filter(|failure| failure.code != INCOMPLETE)
    }

    /// As it is written with the run. Requests that no line answers are neither completed nor failed.
    pub fn ingested(&self) -> Ingested {
        let Tally { succeeded, failed, broken, duplicates, strangers, usage, lines: _ } =
            self.tally;
        // Where there is no file, all that is known is what the provider says.
        let (succeeded, failed) = match &self.run {
            Run {
                provider_output_file_id: None,
                provider_error_file_id: None,
                completed,
                failed,
                ..
            } => (*completed, *failed),
            _ => (succeeded, failed),
        };
        let answered = succeeded + failed;
        let file = |source| {
            let produced = self.produced.iter().find(|file| file.source == source);
            produced.map(|file| file.file.id).or(self.run.file(source))
        };
        Ingested {
            total: self.requests.unwrap_or(self.run.total).max(answered),
            completed: succeeded,
            failed,
            broken,
            duplicates,
            strangers,
            usage,
            output_file_id: file(Source::Output),
            error_file_id: file(Source::Error),
            failure: self.failure.clone(),
        }
    }
}

/// Why results are missing that the provider says there are, if any are.
pub fn shortfall(run: &Run, tally: &Tally) -> Option<Failure> {
    let answered = run.answered?;
    let here = tally.succeeded + tally.failed + tally.broken;
    let message = format!(
        "`{}` says that it answered {answered} requests, and its files have results of {here}",
        run.provider
    );
    (here < answered).then(|| Failure::permanent(INCOMPLETE, message))
}

/// The provider has named results, and did not have them for too long.
pub fn lost(failure: &Failure) -> Failure {
    let message = format!("the results are lost: {}; {RETRY}", failure.message);
    Failure { code: LOST.to_owned(), message, retryable: false, ..failure.clone() }
}

/// The results cannot be had.
pub fn unavailable(failure: &Failure) -> Failure {
    let message = format!("the results could not be had: {}; {RETRY}", failure.message);
    Failure { code: UNAVAILABLE.to_owned(), message, retryable: false, ..failure.clone() }
}

/// The rest of a run's results does not come: it ends with the files that are here, whole and indexed.
///
/// # Errors
///
/// What the database says.
pub async fn give_up(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: RunId,
    failure: &Failure,
) -> Result<(), DbErr> {
    let Some(run) = store::find(tx, id).await? else { return Ok(()) };
    if run.ended_at.is_some() {
        return Ok(());
    }
    let installation_id: Arc<str> = installation::in_database(tx).await?.unwrap_or_default().into();
    let job = run.job_id.unwrap_or_else(JobId::mint);
    let (mut tally, mut produced) = (Tally::default(), Vec::new());
    for output in results::store::outputs(tx, id).await? {
        let is_indexed = |stored: &&Stored| output.indexed_to >= stored.bytes;
        let Some(stored) = output.stored.as_ref().filter(is_indexed) else { continue };
        tally += output.tally;
        if run.file(output.source).is_none() {
            let copy = Copy { provider_file_id: output.provider_file_id.clone(), expires_at: None };
            produced.push(Produced::new(&run, &output, stored, copy, job, &installation_id, now));
        }
    }
    let failure = Some(unavailable(failure));
    let found = Found { run, produced, tally, requests: None, failure, deletes_copies: false };
    finish(tx, now, &found).await
}

/// Goes on with a run of which results are missing, since its job is retried: it is `finalizing` again, and so is its
/// batch. `false` where there is nothing to be fetched.
///
/// # Errors
///
/// What the database says.
pub async fn reopen(tx: &impl ConnectionTrait, now: Timestamp, id: RunId) -> Result<bool, DbErr> {
    let Some(run) = store::find(tx, id).await? else { return Ok(false) };
    batches::store::lock(tx, run.batch_id).await?;
    results::store::missing_no_more(tx, id).await?;
    if !store::reopen(tx, id).await? {
        return Ok(false);
    }
    batches::store::reopen(tx, run.batch_id).await?;
    batches::settle(tx, now, run.batch_id).await?;
    Ok(true)
}

/// Ends a run with what was found of it.
///
/// # Errors
///
/// What the database says.
pub async fn finish(tx: &impl ConnectionTrait, now: Timestamp, found: &Found) -> Result<(), DbErr> {
    let run = &found.run;
    if found.deletes_copies {
        // Before the batch, in the order in which the end of an upload takes them.
        let_input_go(tx, now, run).await?;
    }
    if !complete(tx, now, run, &found.ingested()).await? {
        return Ok(());
    }
    for Produced { file, mapping, copy, .. } in &found.produced {
        files::create::produced(tx, now, file, Some((mapping, copy))).await?;
    }
    if found.deletes_copies {
        let copies: Vec<_> = found.produced.iter().map(doomed).collect();
        files::deletion::let_go(tx, now, &copies, &run.owner).await?;
    }
    Ok(())
}

fn doomed(Produced { mapping, .. }: &Produced) -> Doomed {
    Doomed {
        id: mapping.id,
        file_id: mapping.file_id,
        status: MappingStatus::Ready,
        provider: mapping.provider.clone(),
        model: mapping.model.clone(),
        unknown_since: None,
        job_id: mapping.job_id,
        delete_job_id: None,
    }
}

async fn let_input_go(tx: &impl ConnectionTrait, now: Timestamp, run: &Run) -> Result<(), DbErr> {
    let Some(id) = run.mapping_id else { return Ok(()) };
    let Some(upload) = mappings::store::find_upload(tx, id).await? else { return Ok(()) };
    // Held, so that of two runs that end at once on this copy the second sees that the first has ended.
    mappings::deletion::lock(tx, &[upload.file_id]).await?;
    if upload.deleted_at.is_some() || store::is_in_use_beside(tx, id, run.id).await? {
        return Ok(());
    }
    let mut copies = mappings::deletion::of_files(tx, &[upload.file_id]).await?;
    copies.retain(|copy| copy.id == id);
    files::deletion::let_go(tx, now, &copies, &run.owner).await
}
