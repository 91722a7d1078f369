//! The batch_runs table.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Outcome;
use super::RunStatus;
use super::usage::Usage;
use crate::clock::Timestamp;
use crate::clock::millis;
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
    status: String,
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
     j.error AS job_error, j.run_at AS job_run_at, b.endpoint, b.completion_window, b.output_expires_after, b.cancelling_at, b.request_id \
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

/// A run that has ended is not looked at any more.
pub async fn forget_looks(tx: &impl ConnectionTrait, id: RunId) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET next_look_at = NULL, waits_for = NULL WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// What a run is waiting for whose copy of the input has become ready, or has failed: those of one mapping.
pub async fn waiting_for_upload(
    tx: &impl ConnectionTrait,
    mapping: MappingId,
) -> Result<Vec<Run>, DbErr> {
    let sql = format!(
        "{} WHERE r.mapping_id = $1 AND r.ended_at IS NULL AND r.waits_for = 'upload'",
        select(tx)
    );
    Run::find_by_statement(statement(tx, &sql, [mapping.0.into()])).all(tx).await
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

/// Notes the job that submits a run. It waits for no upload any more.
pub async fn set_job(tx: &impl ConnectionTrait, id: RunId, job: JobId) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET job_id = $2, \
               waits_for = CASE WHEN waits_for = 'upload' THEN NULL ELSE waits_for END WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into(), job.0.into()])).await.map(|_| ())
}

/// The intent: written before a create is sent, so that a worker that dies leaves an unknown outcome. `false` when
/// nothing is to be created any more: the run has ended, has a batch, or is to be cancelled.
pub async fn begin_create(tx: &impl ConnectionTrait, id: RunId) -> Result<bool, DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET unknown_since = {}, looked_at = NULL, waits_for = NULL \
         WHERE id = $1 AND provider_batch_id IS NULL AND ended_at IS NULL AND NOT EXISTS \
         (SELECT 1 FROM batches WHERE batches.id = batch_runs.batch_id AND cancelling_at IS NOT NULL)",
        db::now(tx)
    );
    Ok(tx.execute_raw(statement(tx, &sql, [id.0.into()])).await?.rows_affected() == 1)
}

/// Notes whether it is unknown, as of now, whether a create took effect. That begins the looks anew.
pub async fn set_unknown(
    tx: &impl ConnectionTrait,
    id: RunId,
    is_unknown: bool,
) -> Result<(), DbErr> {
    let since = if is_unknown { db::now(tx) } else { "NULL" };
    let sql =
        format!("UPDATE batch_runs SET unknown_since = {since}, looked_at = NULL WHERE id = $1");
    tx.execute_raw(statement(tx, &sql, [id.0.into()])).await.map(|_| ())
}

/// Begins the looks for a create of unknown outcome anew.
pub async fn look_anew(tx: &impl ConnectionTrait, id: RunId) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET looked_at = NULL WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// The provider's list was read to its end and did not show the batch.
pub async fn looked(tx: &impl ConnectionTrait, id: RunId) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET looked_at = COALESCE(looked_at, {}) \
         WHERE id = $1 AND unknown_since IS NOT NULL",
        db::now(tx)
    );
    tx.execute_raw(statement(tx, &sql, [id.0.into()])).await.map(|_| ())
}

/// Notes that the provider has no room for it.
pub async fn wait_for_capacity(tx: &impl ConnectionTrait, id: RunId) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET waits_for = 'capacity', refusals = refusals + 1, unknown_since = NULL, \
               looked_at = NULL WHERE id = $1 AND provider_batch_id IS NULL AND ended_at IS NULL";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// The submission of the run that has waited longest for room at a provider, of those that rest.
pub async fn next_waiting_for_capacity(
    tx: &impl ConnectionTrait,
    provider: &str,
) -> Result<Option<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        job_id: JobId,
    }
    let sql = format!(
        "SELECT r.job_id FROM batch_runs r JOIN jobs j ON j.id = r.job_id \
         WHERE r.provider = $1 AND r.waits_for = 'capacity' AND r.ended_at IS NULL \
         AND j.status IN ('queued', 'retrying') AND j.run_at > {} ORDER BY r.id LIMIT 1",
        clock(tx)
    );
    let row = Row::find_by_statement(statement(tx, &sql, [provider.into()])).one(tx).await?;
    Ok(row.map(|row| row.job_id))
}

/// Whether another batch of ours has not ended at a provider.
pub async fn has_others_open(
    db: &impl ConnectionTrait,
    provider: &str,
    but: RunId,
) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM batch_runs WHERE provider = $1 AND next_look_at IS NOT NULL AND id <> $2 LIMIT 1";
    let values: [Value; 2] = [provider.into(), but.0.into()];
    Ok(db.query_one_raw(statement(db, sql, values)).await?.is_some())
}

/// Whether a provider shows another batch of ours: then the account is the right one.
pub async fn shows_others(
    db: &impl ConnectionTrait,
    provider: &str,
    but: RunId,
) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM batch_runs WHERE provider = $1 AND next_look_at IS NOT NULL \
               AND missed_since IS NULL AND provider_status IS NOT NULL AND id <> $2 LIMIT 1";
    let values: [Value; 2] = [provider.into(), but.0.into()];
    Ok(db.query_one_raw(statement(db, sql, values)).await?.is_some())
}

/// The provider has the batch. `false` when the run has ended, or has a batch already.
pub async fn submitted(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: RunId,
    provider_batch_id: &str,
    next_look_in: Duration,
) -> Result<bool, DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET provider_batch_id = $2, submitted_at = $3, next_look_at = {} + $4, looks_alike = 0, \
         waits_for = NULL, unknown_since = NULL, looked_at = NULL, error = NULL \
         WHERE id = $1 AND provider_batch_id IS NULL AND ended_at IS NULL",
        db::now(tx)
    );
    let values: [Value; 4] =
        [id.0.into(), provider_batch_id.into(), now.0.into(), millis(next_look_in).into()];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

/// Takes the provider's batch from a run, which is to be submitted anew under another marker.
pub async fn unsubmit(tx: &impl ConnectionTrait, id: RunId, marker: &str) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET provider_batch_id = NULL, provider_status = NULL, submitted_at = NULL, \
               next_look_at = NULL, expires_at = NULL, missed_since = NULL, marker = $2, waits_for = 'capacity', \
               refusals = refusals + 1, total = 0, completed = 0, failed = 0 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into(), marker.into()])).await.map(|_| ())
}

/// What a provider shows of a batch that has not ended.
#[derive(Clone, Debug)]
pub struct Seen<'s> {
    pub provider_status: &'s str,
    /// Total, completed, failed.
    pub counts: Option<(i64, i64, i64)>,
    pub expires_at: Option<Timestamp>,
    pub next_look_in: Duration,
    pub looks_alike: i32,
}

pub async fn seen(tx: &impl ConnectionTrait, id: RunId, seen: &Seen<'_>) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET provider_status = $2, total = COALESCE($3, total), \
         completed = COALESCE($4, completed), failed = COALESCE($5, failed), \
         expires_at = COALESCE($6, expires_at), next_look_at = {} + $7, looks_alike = $8, missed_since = NULL \
         WHERE id = $1 AND outcome IS NULL AND ended_at IS NULL",
        db::now(tx)
    );
    let sql = if is_postgres(tx) {
        ["$3", "$4", "$5", "$6"]
            .iter()
            .fold(sql, |sql, name| sql.replace(name, &format!("{name}::bigint")))
    } else {
        sql
    };
    let (total, completed, failed) = match seen.counts {
        Some((total, completed, failed)) => (Some(total), Some(completed), Some(failed)),
        None => (None, None, None),
    };
    let values: [Value; 8] = [
        id.0.into(),
        seen.provider_status.into(),
        total.into(),
        completed.into(),
        failed.into(),
        seen.expires_at.map(|at| at.0).into(),
        millis(seen.next_look_in).into(),
        seen.looks_alike.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Runs that look as before: only when to look next is written, of many at once.
pub async fn look_later(
    tx: &impl ConnectionTrait,
    runs: &[(RunId, Duration)],
) -> Result<(), DbErr> {
    for chunk in runs.chunks(200) {
        let mut values: Vec<Value> = Vec::with_capacity(chunk.len() * 2);
        let mut cases = String::new();
        for (place, (id, rest)) in chunk.iter().enumerate() {
            values.extend([Value::from(id.0), millis(*rest).into()]);
            let (id, rest) = (place * 2 + 1, place * 2 + 2);
            cases.push_str(&format!(" WHEN ${id} THEN {}", bigint(tx, rest)));
        }
        let ids: Vec<_> = (0..chunk.len()).map(|place| format!("${}", place * 2 + 1)).collect();
        let sql = format!(
            "UPDATE batch_runs SET next_look_at = {} + CASE id{cases} ELSE 0 END, \
             looks_alike = looks_alike + 1, missed_since = NULL \
             WHERE id IN ({}) AND next_look_at IS NOT NULL",
            db::now(tx),
            ids.join(", ")
        );
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

fn bigint(db: &impl ConnectionTrait, place: usize) -> String {
    if is_postgres(db) { format!("${place}::bigint") } else { format!("${place}") }
}

/// A batch that its provider did not show: since now, if it was there before, and when to look again.
pub async fn missed(
    tx: &impl ConnectionTrait,
    id: RunId,
    next_look_in: Duration,
) -> Result<(), DbErr> {
    let now = db::now(tx);
    let sql = format!(
        "UPDATE batch_runs SET missed_since = COALESCE(missed_since, {now}), next_look_at = {now} + $2 \
         WHERE id = $1 AND next_look_at IS NOT NULL"
    );
    let values: [Value; 2] = [id.0.into(), millis(next_look_in).into()];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
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

/// The runs at a provider whose next look is due, the longest overdue first; at most `limit`.
pub async fn due(db: &impl ConnectionTrait, provider: &str, limit: u32) -> Result<Vec<Run>, DbErr> {
    let sql = format!(
        "{} WHERE r.provider = $1 AND r.next_look_at <= {} ORDER BY r.next_look_at LIMIT $2",
        select(db),
        clock(db)
    );
    let values: [Value; 2] = [provider.into(), i64::from(limit).into()];
    Run::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// How long it is to the next look at a provider, zero where it is due; none where nothing is to be looked at.
pub async fn next_look(
    db: &impl ConnectionTrait,
    provider: &str,
) -> Result<Option<Duration>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        rest: Option<i64>,
    }
    let sql = format!(
        "SELECT min(next_look_at) - {} AS rest FROM batch_runs WHERE provider = $1 AND next_look_at IS NOT NULL",
        db::now(db)
    );
    let row = Row::find_by_statement(statement(db, &sql, [provider.into()])).one(db).await?;
    let rest = row.and_then(|row| row.rest);
    Ok(rest.map(|rest| Duration::from_millis(u64::try_from(rest).unwrap_or(0))))
}

/// Makes the next look at a provider's batch due. `false` where no run that is looked at is that batch.
pub async fn look_now(
    tx: &impl ConnectionTrait,
    provider: &str,
    provider_batch_id: &str,
) -> Result<bool, DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET next_look_at = {}, looks_alike = 0 \
         WHERE provider = $1 AND provider_batch_id = $2 AND next_look_at IS NOT NULL",
        db::now(tx)
    );
    let values: [Value; 2] = [provider.into(), provider_batch_id.into()];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() > 0)
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

/// The providers with batches that are to be looked at.
pub async fn watched_providers(db: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
    let sql = "SELECT DISTINCT provider FROM batch_runs WHERE next_look_at IS NOT NULL";
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    rows.iter().map(|row| row.try_get("", "provider")).collect()
}

fn no_json(error: serde_json::Error) -> DbErr {
    DbErr::Json(error.to_string())
}
