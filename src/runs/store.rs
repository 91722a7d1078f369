//! The batch_runs table.

mod creates;
mod looks;

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

pub use self::creates::begin_create;
pub use self::creates::doubt_all;
pub use self::creates::has_others_open;
pub use self::creates::look_anew;
pub use self::creates::looked;
pub use self::creates::next_waiting_for_capacity;
pub use self::creates::set_job;
pub use self::creates::set_unknown;
pub use self::creates::submitted;
pub use self::creates::unsubmit;
pub use self::creates::wait_for_capacity;
pub use self::creates::waiting_for_upload;
pub use self::looks::Seen;
pub use self::looks::due;
pub use self::looks::forget_looks;
pub use self::looks::look_later;
pub use self::looks::look_now;
pub use self::looks::missed;
pub use self::looks::next_look;
pub use self::looks::seen;
pub use self::looks::shows_others;
pub use self::looks::watched_providers;
use super::Outcome;
use super::RunStatus;
use super::usage::Usage;
use crate::clock::Timestamp;
use crate::db;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::BatchId;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::RunId;
use crate::jobs::Failure;
use crate::jobs::lanes::FOR_EVER;
use crate::results::Source;

/// A run to be written with its batch.
#[derive(Clone, Debug)]
pub struct NewRun {
    pub id: RunId,
    /// The place among the batch's runs, as the client named the models.
    pub position: i32,
    pub deployment_id: String,
    pub model: String,
    pub provider: String,
    pub provider_model: String,
    /// The copy of the input that it is to run on; none where the provider's batch was made elsewhere.
    pub mapping_id: Option<MappingId>,
    /// By which a lost create is found again; none where the provider's batch was made elsewhere.
    pub marker: Option<String>,
    /// Its submission; none while the copy is not ready.
    pub job_id: Option<JobId>,
    /// What an imported batch is called there.
    pub provider_batch_id: Option<String>,
}

pub async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    batch_id: BatchId,
    run: &NewRun,
) -> Result<(), DbErr> {
    // What is at its provider already is looked at at once.
    let is_there = run.provider_batch_id.is_some();
    let sql = format!(
        "INSERT INTO batch_runs (id, batch_id, position, deployment_id, model, provider, provider_model, mapping_id, \
         status, marker, job_id, waits_for, provider_batch_id, created_at, next_look_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'validating', $9, $10, $11, $12, $13, {})",
        if is_there { db::now(tx) } else { "NULL" }
    );
    let waits = run.job_id.is_none() && !is_there;
    let values: [Value; 13] = [
        run.id.0.into(),
        batch_id.0.into(),
        run.position.into(),
        run.deployment_id.clone().into(),
        run.model.clone().into(),
        run.provider.clone().into(),
        run.provider_model.clone().into(),
        run.mapping_id.map(|id| id.0).into(),
        run.marker.clone().into(),
        run.job_id.map(|id| id.0).into(),
        waits.then_some("upload").into(),
        run.provider_batch_id.clone().into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// A run, as it is stored, with what is often asked of its batch.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Run {
    pub id: RunId,
    pub batch_id: BatchId,
    pub owner: String,
    pub position: i32,
    pub deployment_id: String,
    pub model: String,
    pub provider: String,
    pub provider_model: String,
    pub mapping_id: Option<MappingId>,
    pub status: String,
    pub marker: Option<String>,
    pub job_id: Option<JobId>,
    /// For how long it has not been known whether a create took effect, in milliseconds. All ages are by the
    /// database's clock: workers' may be off.
    unknown_for: Option<i64>,
    /// When the provider's list was first read to its end without showing that batch.
    pub looked_at: Option<Timestamp>,
    pub waits_for: Option<String>,
    pub provider_batch_id: Option<String>,
    pub provider_status: Option<String>,
    outcome: Option<String>,
    pub provider_output_file_id: Option<String>,
    pub provider_error_file_id: Option<String>,
    /// How many requests its provider says it has answered, well or badly.
    pub answered: Option<i64>,
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
    pub broken: i64,
    pub duplicates: i64,
    pub strangers: i64,
    usage: Option<String>,
    pub errors: Option<String>,
    error: Option<String>,
    pub output_file_id: Option<FileId>,
    pub error_file_id: Option<FileId>,
    pub next_look_at: Option<Timestamp>,
    pub looks_alike: i32,
    /// How often its provider had no room for it.
    pub refusals: i32,
    missed_for: Option<i64>,
    pub created_at: Timestamp,
    pub submitted_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// The managed ids of what it produced.
    pub managed_output_file: Option<String>,
    pub managed_error_file: Option<String>,
    /// Why its submission does not go on, and until when.
    pause_reason: Option<String>,
    paused_until: Option<Timestamp>,
    job_status: Option<String>,
    job_error: Option<String>,
    job_run_at: Option<Timestamp>,
    /// Where in a trace its job was made.
    pub traceparent: Option<String>,
    /// Of its batch.
    pub endpoint: String,
    pub completion_window: String,
    pub output_expires_after: Option<i64>,
    pub cancelling_at: Option<Timestamp>,
    pub request_id: Option<String>,
}

impl Run {
    pub fn status(&self) -> Result<RunStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    /// How it ended at the provider.
    pub fn outcome(&self) -> Result<Option<Outcome>, DbErr> {
        self.outcome.as_deref().map(str::parse).transpose().map_err(DbErr::Type)
    }

    pub fn usage(&self) -> Option<Usage> {
        self.usage.as_deref().and_then(|usage| serde_json::from_str(usage).ok())
    }

    /// The managed file that was made of one of the provider's.
    pub fn file(&self, source: Source) -> Option<FileId> {
        match source {
            Source::Output => self.output_file_id,
            Source::Error => self.error_file_id,
        }
    }

    /// Its last failure, also while it is tried again.
    pub fn failure(&self) -> Option<Failure> {
        let is_on_its_way = self.ended_at.is_none() && !self.is_there();
        let error = self.error.as_deref().or(self.job_error.as_deref().filter(|_| is_on_its_way));
        error.and_then(|error| serde_json::from_str(error).ok())
    }

    /// For how long it has not been known whether a create took effect.
    pub fn unknown_for(&self) -> Option<Duration> {
        self.unknown_for.map(age)
    }

    /// For how long its provider has not shown a batch that it had taken.
    pub fn missed_for(&self) -> Option<Duration> {
        self.missed_for.map(age)
    }

    /// Whether the provider has it.
    pub fn is_there(&self) -> bool {
        self.provider_batch_id.is_some()
    }

    /// What a run that is not at its provider yet waits for, and until when, as far as that is known.
    pub fn blocked(&self) -> (Option<&str>, Option<Timestamp>) {
        let rests = matches!(self.job_status.as_deref(), Some("queued" | "retrying"));
        if self.ended_at.is_some() || self.is_there() {
            return (None, None);
        }
        // What somebody has to see to goes before what only takes time.
        let is_parked = self.paused_until == Some(FOR_EVER);
        let pause = self.pause_reason.as_deref().filter(|_| rests);
        if let Some(reason) = pause.filter(|_| is_parked || self.unknown_for.is_none()) {
            return (Some(reason), self.paused_until.filter(|_| !is_parked));
        }
        let run_at = self.job_run_at.filter(|_| rests);
        match self.waits_for.as_deref() {
            _ if self.unknown_for.is_some() => (Some("outcome"), run_at),
            Some(reason) => (Some(reason), run_at),
            None => (None, None),
        }
    }
}

const SELECT: &str = "SELECT r.id, r.batch_id, b.owner, r.position, r.deployment_id, r.model, r.provider, \
     r.provider_model, r.mapping_id, r.status, r.marker, r.job_id, {now} - r.unknown_since AS unknown_for, r.looked_at, r.waits_for, \
     r.provider_batch_id, r.provider_status, r.outcome, r.provider_output_file_id, r.provider_error_file_id, r.answered, \
     r.total, r.completed, r.failed, r.broken, r.duplicates, r.strangers, r.usage, r.errors, r.error, \
     r.output_file_id, r.error_file_id, r.next_look_at, r.looks_alike, r.refusals, {now} - r.missed_since AS missed_for, r.created_at, \
     r.submitted_at, r.expires_at, r.ended_at, o.managed_id AS managed_output_file, \
     e.managed_id AS managed_error_file, l.pause_reason, l.paused_until, j.status AS job_status, \
     j.error AS job_error, j.run_at AS job_run_at, j.traceparent, b.endpoint, b.completion_window, b.output_expires_after, b.cancelling_at, b.request_id \
     FROM batch_runs r JOIN batches b ON b.id = r.batch_id LEFT JOIN files o ON o.id = r.output_file_id \
     LEFT JOIN files e ON e.id = r.error_file_id LEFT JOIN jobs j ON j.id = r.job_id \
     LEFT JOIN lanes l ON l.name = j.lane";

fn select(db: &impl ConnectionTrait) -> String {
    SELECT.replace("{now}", &clock(db))
}

/// The database's clock, read once for a statement: PostgreSQL takes a volatile function into no condition of an
/// index.
fn clock(db: &impl ConnectionTrait) -> String {
    format!("(SELECT {})", db::now(db))
}

fn age(milliseconds: i64) -> Duration {
    Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

pub async fn find(db: &impl ConnectionTrait, id: RunId) -> Result<Option<Run>, DbErr> {
    let sql = format!("{} WHERE r.id = $1", select(db));
    Run::find_by_statement(statement(db, &sql, [id.0.into()])).one(db).await
}

/// The runs of batches, in the order in which the client named the models.
pub async fn of_batches(db: &impl ConnectionTrait, batches: &[BatchId]) -> Result<Vec<Run>, DbErr> {
    let mut found = Vec::new();
    for chunk in batches.chunks(500) {
        let sql = format!(
            "{} WHERE r.batch_id IN ({}) ORDER BY r.batch_id, r.position",
            select(db),
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| id.0.into()).collect();
        found.extend(Run::find_by_statement(statement(db, &sql, values)).all(db).await?);
    }
    Ok(found)
}

/// Runs that a provider's batches are, by what the provider calls them.
pub async fn of_provider_batches(
    db: &impl ConnectionTrait,
    provider: &str,
    ids: &[String],
) -> Result<Vec<Run>, DbErr> {
    let mut found = Vec::new();
    for chunk in ids.chunks(500) {
        let sql = format!(
            "{} WHERE r.provider = $1 AND r.provider_batch_id IN ({})",
            select(db),
            placeholders(2, chunk.len())
        );
        let mut values: Vec<Value> = vec![provider.into()];
        values.extend(chunk.iter().map(|id| Value::from(id.clone())));
        found.extend(Run::find_by_statement(statement(db, &sql, values)).all(db).await?);
    }
    Ok(found)
}

/// Moves a run if it may go there from where it is. `false` when it may not: it has ended, or is there already.
///
/// The caller holds the batch (see [`crate::batches::store::lock`]).
pub async fn advance(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: RunId,
    to: RunStatus,
) -> Result<bool, DbErr> {
    let from: Vec<_> = RunStatus::ALL
        .iter()
        .filter(|from| from.successors().contains(&to))
        .map(|from| format!("'{from}'"))
        .collect();
    let sql = format!(
        "UPDATE batch_runs SET status = $2, ended_at = $3 WHERE id = $1 AND status IN ({})",
        from.join(", ")
    );
    let values: [Value; 3] =
        [id.0.into(), to.as_str().into(), to.is_final().then_some(now.0).into()];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

/// Writes why a run does not go on, or has ended.
pub async fn set_error(
    tx: &impl ConnectionTrait,
    id: RunId,
    failure: Option<&Failure>,
) -> Result<(), DbErr> {
    let error = failure.map(serde_json::to_string).transpose().map_err(no_json)?;
    let sql = "UPDATE batch_runs SET error = $2 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into(), error.into()])).await.map(|_| ())
}

/// Takes back the end of a run whose results did not all come: they are fetched after all. It is the one way back from
/// an end, and a person's wish. `false` where the run has not ended so.
pub async fn reopen(tx: &impl ConnectionTrait, id: RunId) -> Result<bool, DbErr> {
    let sql = "UPDATE batch_runs SET status = 'finalizing', ended_at = NULL, error = NULL \
               WHERE id = $1 AND ended_at IS NOT NULL AND outcome IS NOT NULL AND error IS NOT NULL";
    Ok(tx.execute_raw(statement(tx, sql, [id.0.into()])).await?.rows_affected() == 1)
}

/// Notes the copy that an imported batch runs on.
pub async fn set_mapping(
    tx: &impl ConnectionTrait,
    id: RunId,
    mapping: MappingId,
) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET mapping_id = $2 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into(), mapping.0.into()])).await.map(|_| ())
}

/// Lets go of a batch that its provider does not know, so that it can be imported should it be there after all.
pub async fn release(tx: &impl ConnectionTrait, id: RunId) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET provider_batch_id = NULL, next_look_at = NULL WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// The run that a marker is of.
pub async fn of_marker(db: &impl ConnectionTrait, marker: &str) -> Result<Option<Run>, DbErr> {
    let sql = format!("{} WHERE r.marker = $1", select(db));
    Run::find_by_statement(statement(db, &sql, [marker.into()])).one(db).await
}

/// The run that a job submits.
pub async fn of_job(
    db: &impl ConnectionTrait,
    batch: BatchId,
    job: JobId,
) -> Result<Option<Run>, DbErr> {
    let sql = format!("{} WHERE r.batch_id = $1 AND r.job_id = $2", select(db));
    let values: [Value; 2] = [batch.0.into(), job.0.into()];
    Run::find_by_statement(statement(db, &sql, values)).one(db).await
}

/// What a batch came to at its provider.
#[derive(Clone, Debug)]
pub struct Ended<'e> {
    pub outcome: Outcome,
    pub provider_status: &'e str,
    pub output_file_id: Option<&'e str>,
    pub error_file_id: Option<&'e str>,
    pub counts: Option<(i64, i64, i64)>,
    /// As OpenAI's `errors.data`, in JSON.
    pub errors: Option<String>,
}

/// `false` when it was known already.
pub async fn ended(tx: &impl ConnectionTrait, id: RunId, ended: &Ended<'_>) -> Result<bool, DbErr> {
    let sql = "UPDATE batch_runs SET outcome = $2, provider_status = $3, provider_output_file_id = $4, \
               provider_error_file_id = $5, total = COALESCE($6, total), completed = COALESCE($7, completed), \
               failed = COALESCE($8, failed), errors = $9, answered = $10, next_look_at = NULL, missed_since = NULL \
               WHERE id = $1 AND outcome IS NULL AND ended_at IS NULL";
    let sql = if is_postgres(tx) {
        ["$6", "$7", "$8"]
            .iter()
            .fold(sql.to_owned(), |sql, name| sql.replace(name, &format!("{name}::bigint")))
    } else {
        sql.to_owned()
    };
    let values: [Value; 10] = [
        id.0.into(),
        ended.outcome.as_str().into(),
        ended.provider_status.into(),
        ended.output_file_id.into(),
        ended.error_file_id.into(),
        ended.counts.map(|counts| counts.0).into(),
        ended.counts.map(|counts| counts.1).into(),
        ended.counts.map(|counts| counts.2).into(),
        ended.errors.clone().into(),
        ended.counts.map(|counts| counts.1.saturating_add(counts.2)).into(),
    ];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

/// What ingestion found, written with the end of a run.
#[derive(Clone, Debug, Default)]
pub struct Ingested {
    /// Requests: all of them, those that were answered with success, and the others.
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
    /// Lines that are no results.
    pub broken: i64,
    /// Lines with a `custom_id` that another has, and with one that the input lacks.
    pub duplicates: i64,
    pub strangers: i64,
    pub usage: Option<Usage>,
    pub output_file_id: Option<FileId>,
    pub error_file_id: Option<FileId>,
    /// Why not all of it is here.
    pub failure: Option<Failure>,
}

pub async fn ingested(tx: &impl ConnectionTrait, id: RunId, found: &Ingested) -> Result<(), DbErr> {
    let usage = found.usage.as_ref().map(serde_json::to_string).transpose().map_err(no_json)?;
    let error = found.failure.as_ref().map(serde_json::to_string).transpose().map_err(no_json)?;
    let sql = "UPDATE batch_runs SET total = $2, completed = $3, failed = $4, broken = $5, duplicates = $6, \
               strangers = $7, usage = $8, output_file_id = $9, error_file_id = $10, error = $11 WHERE id = $1";
    let values: [Value; 11] = [
        id.0.into(),
        found.total.into(),
        found.completed.into(),
        found.failed.into(),
        found.broken.into(),
        found.duplicates.into(),
        found.strangers.into(),
        usage.into(),
        found.output_file_id.map(|id| id.0).into(),
        found.error_file_id.map(|id| id.0).into(),
        error.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Whether a copy of an input is needed by a run that has not ended.
pub async fn is_in_use(db: &impl ConnectionTrait, mapping: MappingId) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM batch_runs WHERE mapping_id = $1 AND ended_at IS NULL LIMIT 1";
    Ok(db.query_one_raw(statement(db, sql, [mapping.0.into()])).await?.is_some())
}

/// As [`is_in_use`], but for one run.
pub async fn is_in_use_beside(
    db: &impl ConnectionTrait,
    mapping: MappingId,
    run: RunId,
) -> Result<bool, DbErr> {
    let sql =
        "SELECT 1 FROM batch_runs WHERE mapping_id = $1 AND ended_at IS NULL AND id <> $2 LIMIT 1";
    let values: [Value; 2] = [mapping.0.into(), run.0.into()];
    Ok(db.query_one_raw(statement(db, sql, values)).await?.is_some())
}

fn no_json(error: serde_json::Error) -> DbErr {
    DbErr::Json(error.to_string())
}
