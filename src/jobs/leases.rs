//! Leases: keeping claimed jobs, ending attempts, and taking over what nobody keeps.
//!
//! A lease is judged by the database's clock. Whatever ends an attempt is conditional on its
//! [`Fence`]: a worker whose job was taken over changes nothing.

use std::collections::HashSet;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;
use serde::Serialize;
use uuid::Uuid;

use super::Ending;
use super::Failure;
use super::Fence;
use super::Progress;
use super::Spend;
use super::Work;
use super::WorkerId;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::is_postgres;
use crate::db::statement;
use crate::ids::FileId;
use crate::ids::JobId;

/// A job whose workers died this often is a dead letter.
pub const MAX_DEATHS: i32 = 3;
/// A job that is still ours after a renewal.
#[derive(Clone, Copy, Debug)]
pub struct Renewed {
    pub id: JobId,
    pub epoch: i64,
    pub is_cancel_requested: bool,
    /// Whether its lease was prolonged. Otherwise a transaction of its own worker had hold of it.
    pub is_prolonged: bool,
}

/// Prolongs every lease of `worker` that has not been taken over.
///
/// On PostgreSQL it passes over what another transaction holds, which is the end of an attempt, or a step
/// of it: the two hold many jobs each, and would wait for each other.
pub async fn renew(
    tx: &impl ConnectionTrait,
    worker: &WorkerId,
    lease: Duration,
) -> Result<Vec<Renewed>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
        epoch: i64,
        cancel_requested_at: Option<Timestamp>,
        held: i64,
    }
    let ours = "lease_owner = $1 AND status = 'running'";
    let prolong = format!("UPDATE jobs SET lease_until = {} + $2", db::now(tx));
    let sql = if is_postgres(tx) {
        format!(
            "WITH free AS (SELECT id FROM jobs WHERE {ours} FOR UPDATE SKIP LOCKED), \
             prolonged AS ({prolong} FROM free WHERE jobs.id = free.id RETURNING jobs.id) \
             SELECT id, epoch, cancel_requested_at, \
             CASE WHEN id IN (SELECT id FROM prolonged) THEN 0::bigint ELSE 1::bigint END AS held \
             FROM jobs WHERE {ours}"
        )
    } else {
        format!("{prolong} WHERE {ours} RETURNING id, epoch, cancel_requested_at, 0 AS held")
    };
    let values: [Value; 2] = [worker.0.clone().into(), millis(lease).into()];
    let rows = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    let renewed = rows.into_iter().map(|row| Renewed {
        id: row.id,
        epoch: row.epoch,
        is_cancel_requested: row.cancel_requested_at.is_some(),
        is_prolonged: row.held == 0,
    });
    Ok(renewed.collect())
}

/// The job that a worker has a lease for, if it still has.
pub async fn leased(tx: &impl ConnectionTrait, fence: &Fence) -> Result<Option<Leased>, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!(
        "SELECT id, kind, payload, owner, lane, file_id, epoch, lease_until FROM jobs \
         WHERE id = $1 AND epoch = $2 AND lease_owner = $3 {lock}"
    );
    let values: [Value; 3] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into()];
    Leased::find_by_statement(statement(tx, &sql, values)).one(tx).await
}

/// Whether the lease is still this worker's. On PostgreSQL it stays so until the transaction ends.
pub async fn check(tx: &impl ConnectionTrait, fence: &Fence) -> Result<bool, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql =
        format!("SELECT 1 FROM jobs WHERE id = $1 AND epoch = $2 AND lease_owner = $3 {lock}");
    let values: [Value; 3] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into()];
    Ok(tx.query_one_raw(statement(tx, &sql, values)).await?.is_some())
}

/// As [`check`], for a job that goes on where it stopped: it has come further, so none of its deaths
/// before was its own doing.
pub async fn advance(tx: &impl ConnectionTrait, fence: &Fence) -> Result<bool, DbErr> {
    let sql = "UPDATE jobs SET deaths = 0 WHERE id = $1 AND epoch = $2 AND lease_owner = $3";
    let values: [Value; 3] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 1)
}

/// Forgets the deaths of a job whose attempt has ended as it should, in a transaction that has passed its
/// fence.
pub async fn forget_deaths(tx: &impl ConnectionTrait, job: JobId) -> Result<(), DbErr> {
    let sql = "UPDATE jobs SET deaths = 0 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [job.0.into()])).await.map(|_| ())
}

/// Whether a client wants the job to stop. Whoever asks for it later has to wait for this transaction.
pub async fn is_cancel_requested(tx: &impl ConnectionTrait, job: JobId) -> Result<bool, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!("SELECT cancel_requested_at FROM jobs WHERE id = $1 {lock}");
    let row = tx.query_one_raw(statement(tx, &sql, [job.0.into()])).await?;
    let requested = row.map(|row| row.try_get::<Option<i64>>("", "cancel_requested_at"));
    Ok(requested.transpose()?.flatten().is_some())
}

/// Sets how far a job is, in a transaction that has passed its fence.
pub async fn set_progress(
    tx: &impl ConnectionTrait,
    job: JobId,
    progress: Progress,
) -> Result<(), DbErr> {
    let progress = serde_json::to_string(&progress).map_err(no_json)?;
    let sql = "UPDATE jobs SET progress = $2 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [job.0.into(), progress.into()])).await.map(|_| ())
}

/// Shows how far a job is. Nothing happens when the lease is lost: the end of the attempt will find out.
pub async fn report_progress(
    tx: &impl ConnectionTrait,
    fence: &Fence,
    progress: Progress,
) -> Result<(), DbErr> {
    let progress = serde_json::to_string(&progress).map_err(no_json)?;
    let sql = "UPDATE jobs SET progress = $4 WHERE id = $1 AND epoch = $2 AND lease_owner = $3";
    let values: [Value; 4] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into(), progress.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// The end of an attempt, as it is to be written.
#[derive(Clone, Debug)]
pub struct End {
    pub fence: Fence,
    pub claimed_at: Timestamp,
    pub ending: Ending,
    /// What the record of the attempt calls it.
    pub outcome: &'static str,
}

/// What the statements take of an [`End`].
#[derive(Serialize)]
struct EndRow<'e> {
    id: Uuid,
    epoch: i64,
    worker: &'e str,
    status: &'static str,
    unspent: i32,
    rest: Option<i64>,
    error: Option<String>,
    outcome: &'static str,
    claimed_at: i64,
}

impl<'e> EndRow<'e> {
    fn of(end: &'e End) -> Result<Self, DbErr> {
        let (status, rest, unspent, error) = match &end.ending {
            Ending::Succeeded => ("succeeded", None, 0, None),
            Ending::Retry { after, spend, failure } => {
                let unspent = if *spend == Spend::Nothing { 1 } else { 0 };
                ("retrying", Some(millis(*after)), unspent, failure.as_ref())
            }
            Ending::Failed(failure) => ("failed", None, 0, Some(failure)),
            Ending::Cancelled => ("cancelled", None, 0, None),
        };
        Ok(Self {
            id: end.fence.job_id.0,
            epoch: end.fence.epoch,
            worker: &end.fence.worker.0,
            status,
            unspent,
            rest,
            error: error.map(serde_json::to_string).transpose().map_err(no_json)?,
            outcome: end.outcome,
            claimed_at: end.claimed_at.0,
        })
    }
}

/// Ends the attempts that the fences stand for, and answers for each whether it did. `false` when the
/// lease was lost: then nothing was written of it, and the caller writes nothing of it either.
///
/// It comes first in a worker's transaction, so that a lost lease is known before anything is changed.
pub async fn end(tx: &impl ConnectionTrait, ends: &[End]) -> Result<Vec<bool>, DbErr> {
    let rows = ends.iter().map(EndRow::of).collect::<Result<Vec<_>, _>>()?;
    if is_postgres(tx) {
        return end_together(tx, &rows).await;
    }
    let mut ended = Vec::with_capacity(rows.len());
    for row in rows {
        ended.push(end_one(tx, row).await?);
    }
    Ok(ended)
}

/// In one statement, however many there are and with their records, since each statement is a journey to
/// PostgreSQL and back. They go there as JSON: so the text is the same for any number, and planned once.
async fn end_together(tx: &impl ConnectionTrait, rows: &[EndRow<'_>]) -> Result<Vec<bool>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        job_id: Uuid,
        epoch: i64,
    }
    let now = db::now(tx);
    let ended = ending_statement(
        now,
        "FROM json_to_recordset($1::json) AS given(id uuid, epoch bigint, worker text, status text, unspent integer, \
         rest bigint, error text, outcome text, claimed_at bigint)",
        [
            "given.id",
            "given.epoch",
            "given.worker",
            "given.status",
            "given.unspent",
            "given.rest",
            "given.error",
            "given.claimed_at",
        ],
    );
    let sql = format!(
        "WITH ended AS ({ended} RETURNING given.*, jobs.attempt) \
         INSERT INTO job_attempts (job_id, epoch, attempt, worker, outcome, error, started_at, finished_at) \
         SELECT id, epoch, attempt + unspent, worker, outcome, error, claimed_at, {now} FROM ended \
         RETURNING job_id, epoch"
    );
    let values = [Value::from(serde_json::to_string(rows).map_err(no_json)?)];
    let ended = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    let ended: HashSet<_> = ended.into_iter().map(|row| (row.job_id, row.epoch)).collect();
    Ok(rows.iter().map(|row| ended.contains(&(row.id, row.epoch))).collect())
}

#[derive(FromQueryResult)]
struct Ended {
    attempt: i32,
    started_at: Timestamp,
    now: Timestamp,
}

async fn end_one(tx: &impl ConnectionTrait, row: EndRow<'_>) -> Result<bool, DbErr> {
    let now = db::now(tx);
    let ended = ending_statement(now, "", ["$1", "$2", "$3", "$4", "$5", "$6", "$7", "$8"]);
    let sql = format!("{ended} RETURNING attempt, $8 AS started_at, {now} AS now");
    let values: [Value; 8] = [
        row.id.into(),
        row.epoch.into(),
        row.worker.into(),
        row.status.into(),
        row.unspent.into(),
        row.rest.into(),
        row.error.clone().into(),
        row.claimed_at.into(),
    ];
    let ended = Ended::find_by_statement(statement(tx, &sql, values)).one(tx).await?;
    let Some(mut ended) = ended else { return Ok(false) };
    // The number of the attempt that ended, whether it was spent or not.
    ended.attempt += row.unspent;
    let id = JobId(row.id);
    record_attempt(tx, id, row.epoch, row.worker, &ended, row.outcome, row.error).await?;
    Ok(true)
}

/// The statement that ends attempts, with the places of its values. What rests as planned is due at once where
/// [`super::store::hasten`] asked for it meanwhile.
fn ending_statement(now: &str, from: &str, places: [&str; 8]) -> String {
    let [id, epoch, worker, status, unspent, rest, error, claimed_at] = places;
    format!(
        "UPDATE jobs SET status = {status}, attempt = attempt - {unspent}, lease_owner = NULL, lease_until = NULL, \
         run_at = CASE WHEN {error} IS NULL AND run_at > {claimed_at} THEN {now} \
         ELSE COALESCE({now} + {rest}, run_at) END, \
         error = CASE WHEN {status} = 'succeeded' THEN NULL ELSE COALESCE({error}, jobs.error) END, \
         finished_at = CASE WHEN {status} = 'retrying' THEN NULL ELSE {now} END {from} \
         WHERE jobs.id = {id} AND jobs.epoch = {epoch} AND lease_owner = {worker}"
    )
}

async fn record_attempt(
    tx: &impl ConnectionTrait,
    id: JobId,
    epoch: i64,
    worker: &str,
    ended: &Ended,
    outcome: &str,
    error: Option<String>,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO job_attempts (job_id, epoch, attempt, worker, outcome, error, started_at, finished_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let values: [Value; 8] = [
        id.0.into(),
        epoch.into(),
        ended.attempt.into(),
        worker.into(),
        outcome.into(),
        error.into(),
        ended.started_at.0.into(),
        ended.now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Whether this very attempt was ended by its own worker. Waits for a transaction that may be about to.
pub async fn has_ended(tx: &impl ConnectionTrait, fence: &Fence) -> Result<bool, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!("SELECT id FROM jobs WHERE id = $1 {lock}");
    tx.query_one_raw(statement(tx, &sql, [fence.job_id.0.into()])).await?;
    // The reaper's record has the name of the worker that died.
    let sql = "SELECT 1 FROM job_attempts WHERE job_id = $1 AND epoch = $2 AND worker = $3 AND outcome <> 'died'";
    let values: [Value; 3] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into()];
    Ok(tx.query_one_raw(statement(tx, sql, values)).await?.is_some())
}

/// A job that runs, as the reaper finds it whose lease has run out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, FromQueryResult)]
pub struct Leased {
    pub id: JobId,
    pub kind: String,
    pub payload: String,
    pub owner: String,
    pub lane: String,
    pub file_id: Option<FileId>,
    pub epoch: i64,
    pub lease_until: Timestamp,
}

/// Jobs whose lease has run out, at most 1,000. What a newer version would have to see to is left to it.
pub async fn lapsed(db: &impl ConnectionTrait) -> Result<Vec<Leased>, DbErr> {
    let sql = format!(
        "SELECT id, kind, payload, owner, lane, file_id, epoch, lease_until FROM jobs \
         WHERE status = 'running' AND lease_until < {} AND kind IN ({}) LIMIT 1000",
        db::now(db),
        Work::quoted_kinds()
    );
    Leased::find_by_statement(statement(db, &sql, [])).all(db).await
}

/// What became of a job that was taken from its silent worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// It waits for another worker.
    Retrying,
    /// It was to be cancelled, and is.
    Cancelled,
    /// It outlived too many of its workers.
    Failed(Failure),
}

/// Takes a lapsed job from its worker. `None` when it was renewed, ended or reaped meanwhile.
pub async fn reap(tx: &impl ConnectionTrait, lapsed: &Leased) -> Result<Option<Reaped>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        attempt: i32,
        deaths: i32,
        max_attempts: i32,
        lease_owner: String,
        started_at: Timestamp,
        cancel_requested_at: Option<Timestamp>,
        now: Timestamp,
    }
    let now = db::now(tx);
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!(
        "SELECT attempt, deaths, max_attempts, lease_owner, COALESCE(started_at, created_at) AS started_at, \
         cancel_requested_at, {now} AS now FROM jobs \
         WHERE id = $1 AND epoch = $2 AND lease_until = $3 {lock}"
    );
    let values: [Value; 3] = [lapsed.id.0.into(), lapsed.epoch.into(), lapsed.lease_until.0.into()];
    let Some(row) = Row::find_by_statement(statement(tx, &sql, values)).one(tx).await? else {
        return Ok(None);
    };
    let deaths = row.deaths + 1;
    let died =
        Failure::transient("worker_died", "the worker went silent before it had ended the attempt");
    let (status, reaped) = if row.cancel_requested_at.is_some() {
        ("cancelled", Reaped::Cancelled)
    } else if deaths >= MAX_DEATHS || row.attempt >= row.max_attempts {
        let message =
            format!("{deaths} workers went silent while they ran this job; it is not tried again");
        ("failed", Reaped::Failed(Failure::permanent("worker_died", message)))
    } else {
        ("retrying", Reaped::Retrying)
    };
    let shown = if let Reaped::Failed(failure) = &reaped { failure } else { &died };
    let error = serde_json::to_string(shown).map_err(no_json)?;
    let sql = "UPDATE jobs SET status = $2, deaths = $3, lease_owner = NULL, lease_until = NULL, error = $4, \
               run_at = $5, finished_at = $6 WHERE id = $1";
    let finished_at = (status != "retrying").then_some(row.now.0);
    let values: [Value; 6] = [
        lapsed.id.0.into(),
        status.into(),
        deaths.into(),
        error.clone().into(),
        row.now.0.into(),
        finished_at.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await?;
    let ended = Ended { attempt: row.attempt, started_at: row.started_at, now: row.now };
    record_attempt(tx, lapsed.id, lapsed.epoch, &row.lease_owner, &ended, "died", Some(error))
        .await?;
    Ok(Some(reaped))
}

fn no_json(error: serde_json::Error) -> DbErr {
    DbErr::Json(error.to_string())
}
