//! The job table: what clients and the intake ask of it. Claims and leases are in [`super::leases`].

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Failure;
use super::JobStatus;
use super::Lane;
use super::NewJob;
use super::Progress;
use super::Work;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::BatchId;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::owners::Scope;
use crate::page::Page;
use crate::traces;

/// A job, as it is stored.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Job {
    pub id: JobId,
    pub kind: String,
    pub lane: String,
    pub owner: String,
    pub status: String,
    pub payload: String,
    pub attempt: i32,
    pub max_attempts: i32,
    pub run_at: Timestamp,
    pub error: Option<String>,
    pub progress: Option<String>,
    pub file_id: Option<FileId>,
    pub batch_id: Option<BatchId>,
    pub model: Option<String>,
    pub request_id: Option<String>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// The managed id of `file_id`.
    pub managed_file_id: Option<String>,
    /// The managed id of `batch_id`.
    pub managed_batch_id: Option<String>,
    /// Why the lane stands still, and until when, for a job that waits.
    pub pause_reason: Option<String>,
    pub paused_until: Option<Timestamp>,
}

impl Job {
    pub fn status(&self) -> Result<JobStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    pub fn failure(&self) -> Option<Failure> {
        self.error.as_deref().and_then(|error| serde_json::from_str(error).ok())
    }

    pub fn progress(&self) -> Option<Progress> {
        self.progress.as_deref().and_then(|progress| serde_json::from_str(progress).ok())
    }
}

const SELECT: &str = "SELECT jobs.id, jobs.kind, jobs.lane, jobs.owner, jobs.status, jobs.payload, jobs.attempt, \
     jobs.max_attempts, jobs.run_at, jobs.error, jobs.progress, jobs.file_id, jobs.batch_id, jobs.model, \
     jobs.request_id, jobs.created_at, jobs.started_at, jobs.finished_at, \
     files.managed_id AS managed_file_id, batches.managed_id AS managed_batch_id, lanes.pause_reason, \
     lanes.paused_until FROM jobs LEFT JOIN files ON files.id = jobs.file_id \
     LEFT JOIN batches ON batches.id = jobs.batch_id LEFT JOIN lanes ON lanes.name = jobs.lane";

/// Writes jobs, ready to be claimed after their delay.
///
/// # Errors
///
/// What the database says.
pub async fn enqueue(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    jobs: &[NewJob],
) -> Result<(), DbErr> {
    const COLUMNS: usize = 14;
    let traceparent = traces::traceparent();
    for chunk in jobs.chunks(500) {
        let mut values: Vec<Value> = Vec::with_capacity(chunk.len() * COLUMNS);
        for job in chunk {
            let payload = job.work.payload().map_err(|error| DbErr::Json(error.to_string()))?;
            values.extend([
                Value::from(millis(job.delay)),
                job.id.0.into(),
                job.work.kind().into(),
                job.lane.0.clone().into(),
                job.work.rank().into(),
                job.owner.clone().into(),
                payload.into(),
                job.model.clone().into(),
                i32::try_from(job.max_attempts).unwrap_or(i32::MAX).into(),
                job.file_id.map(|id| id.0).into(),
                job.batch_id.map(|id| id.0).into(),
                job.request_id.clone().into(),
                // A watch is of no trace: it is made for one run, and looks for many.
                traceparent.clone().filter(|_| !matches!(job.work, Work::WatchBatch(_))).into(),
                now.0.into(),
            ]);
        }
        let rows: Vec<_> = (0..chunk.len())
            .map(|row| {
                let (first, rest) = (row * COLUMNS + 1, row * COLUMNS + 2);
                format!(
                    "('queued', {} + ${first}, {})",
                    db::now(tx),
                    placeholders(rest, COLUMNS - 1)
                )
            })
            .collect();
        let sql = format!(
            "INSERT INTO jobs (status, run_at, id, kind, lane, rank, owner, payload, model, max_attempts, file_id, \
             batch_id, request_id, traceparent, created_at) VALUES {}",
            rows.join(", ")
        );
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: JobId) -> Result<Option<Job>, DbErr> {
    let sql = format!("{SELECT} WHERE jobs.id = $1");
    Job::find_by_statement(statement(db, &sql, [id.0.into()])).one(db).await
}

/// What a list of jobs is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub status: Option<JobStatus>,
    pub kind: Option<String>,
    pub file_id: Option<FileId>,
    pub batch_id: Option<BatchId>,
}

/// One page of jobs, `page.limit + 1` at most: the one more tells that there is another page.
pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    filter: &Filter,
    page: &Page<JobId>,
) -> Result<Vec<Job>, DbErr> {
    let mut query = crate::page::Query::new(SELECT);
    if let Scope::Owner(owner) = scope {
        query.filter("jobs.owner =", owner.clone());
    }
    if let Some(status) = filter.status {
        query.filter("jobs.status =", status.as_str());
    }
    if let Some(kind) = &filter.kind {
        query.filter("jobs.kind =", kind.clone());
    }
    if let Some(id) = filter.file_id {
        query.filter("jobs.file_id =", id.0);
    }
    if let Some(id) = filter.batch_id {
        query.filter("jobs.batch_id =", id.0);
    }
    let (sql, values) = query.finish("jobs.id", page.after.map(|id| id.0), page);
    Job::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// One ended attempt.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Attempt {
    pub attempt: i32,
    pub worker: String,
    pub outcome: String,
    pub error: Option<String>,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
}

/// The ended attempts of a job, the first one first; at most 1,000.
pub async fn attempts(db: &impl ConnectionTrait, id: JobId) -> Result<Vec<Attempt>, DbErr> {
    let sql = "SELECT attempt, worker, outcome, error, started_at, finished_at FROM job_attempts \
               WHERE job_id = $1 ORDER BY epoch LIMIT 1000";
    Attempt::find_by_statement(statement(db, sql, [id.0.into()])).all(db).await
}

/// Keeps a job from being claimed or ended until the transaction is over (SQLite has one writer anyway).
pub async fn lock(tx: &impl ConnectionTrait, id: JobId) -> Result<(), DbErr> {
    if db::is_postgres(tx) {
        let sql = "SELECT 1 FROM jobs WHERE id = $1 FOR UPDATE";
        tx.execute_raw(statement(tx, sql, [id.0.into()])).await?;
    }
    Ok(())
}

/// Cancels a job that waits. `false` when it does not wait (any more).
pub async fn cancel_waiting(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: JobId,
) -> Result<bool, DbErr> {
    let sql = "UPDATE jobs SET status = 'cancelled', finished_at = $2 \
               WHERE id = $1 AND status IN ('queued', 'retrying')";
    let result = tx.execute_raw(statement(tx, sql, [id.0.into(), now.0.into()])).await?;
    Ok(result.rows_affected() == 1)
}

/// Calls off the uploads of these files. Answers the jobs that waited, and are cancelled, and those
/// that run, and are told to stop.
pub async fn cancel_uploads(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    files: &[FileId],
) -> Result<(Vec<JobId>, Vec<JobId>), DbErr> {
    let of_files =
        format!("kind = 'upload_file' AND file_id IN ({})", placeholders(2, files.len()));
    let waiting = format!(
        "UPDATE jobs SET status = 'cancelled', finished_at = $1 \
         WHERE {of_files} AND status IN ('queued', 'retrying') RETURNING id"
    );
    let running = format!(
        "UPDATE jobs SET cancel_requested_at = COALESCE(cancel_requested_at, $1) \
         WHERE {of_files} AND status = 'running' RETURNING id"
    );
    let mut values: Vec<Value> = vec![now.0.into()];
    values.extend(files.iter().map(|id| Value::from(id.0)));
    let waiting = Id::find_by_statement(statement(tx, &waiting, values.clone())).all(tx).await?;
    let running = Id::find_by_statement(statement(tx, &running, values)).all(tx).await?;
    let ids = |rows: Vec<Id>| rows.into_iter().map(|row| row.id).collect();
    Ok((ids(waiting), ids(running)))
}

/// Whose these jobs are.
pub async fn owners(
    db: &impl ConnectionTrait,
    ids: &[JobId],
) -> Result<Vec<(JobId, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
        owner: String,
    }
    let sql = format!("SELECT id, owner FROM jobs WHERE id IN ({})", placeholders(1, ids.len()));
    let values: Vec<Value> = ids.iter().map(|id| id.0.into()).collect();
    let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|row| (row.id, row.owner)).collect())
}

/// Makes a job that rests due at once. One that runs, or is claimed before this is committed, does not rest afterwards, if
/// it would as planned: what it waited for may have happened after it looked.
pub async fn hasten(tx: &impl ConnectionTrait, id: JobId) -> Result<(), DbErr> {
    // Every live row is taken, so that it is neither claimed nor ended between this and the commit. Whatever was claimed
    // was due: so a job that runs was hastened if it is due later than it was claimed.
    let sql = format!(
        "UPDATE jobs SET run_at = CASE WHEN status = 'running' THEN {now} + 1 WHEN run_at > {now} THEN {now} \
         ELSE run_at END WHERE id = $1 AND finished_at IS NULL",
        now = db::now(tx)
    );
    tx.execute_raw(statement(tx, &sql, [id.0.into()])).await.map(|_| ())
}

/// Whether a worker runs a job.
pub async fn is_running(db: &impl ConnectionTrait, id: JobId) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM jobs WHERE id = $1 AND status = 'running'";
    Ok(db.query_one_raw(statement(db, sql, [id.0.into()])).await?.is_some())
}

/// Whether a job of a batch is still to be done, with this very payload.
pub async fn is_pending(
    db: &impl ConnectionTrait,
    batch: BatchId,
    work: &Work,
) -> Result<bool, DbErr> {
    let payload = work.payload().map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "SELECT 1 FROM jobs WHERE batch_id = $1 AND kind = $2 AND payload = $3 AND finished_at IS NULL LIMIT 1";
    let values: [Value; 3] = [batch.0.into(), work.kind().into(), payload.into()];
    Ok(db.query_one_raw(statement(db, sql, values)).await?.is_some())
}

/// Makes a job that rests due after `rest`, if that is earlier.
pub async fn hasten_to(tx: &impl ConnectionTrait, id: JobId, rest: Duration) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE jobs SET run_at = {now} + $2 \
         WHERE id = $1 AND status IN ('queued', 'retrying') AND run_at > {now} + $2",
        now = db::now(tx)
    );
    let sql = if db::is_postgres(tx) { sql.replace("$2", "$2::bigint") } else { sql };
    let values: [Value; 2] = [id.0.into(), millis(rest).into()];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Puts off what waits in a lane that nobody here serves.
pub async fn put_off_lane(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    rest: Duration,
) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE jobs SET run_at = {now} + $2 WHERE lane = $1 AND status IN ('queued', 'retrying') AND run_at < {now}",
        now = db::now(tx)
    );
    let values: [Value; 2] = [lane.0.clone().into(), millis(rest).into()];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Whether a lane has a live job.
pub async fn is_lane_alive(db: &impl ConnectionTrait, lane: &Lane) -> Result<bool, DbErr> {
    // In two, as the indexes have it.
    let sql = "SELECT 1 WHERE EXISTS (SELECT 1 FROM jobs WHERE lane = $1 AND status IN ('queued', 'retrying')) \
               OR EXISTS (SELECT 1 FROM jobs WHERE lane = $1 AND status = 'running')";
    Ok(db.query_one_raw(statement(db, sql, [lane.0.clone().into()])).await?.is_some())
}

/// Makes what rests in a lane due at once. `false` when there is no live job in it at all.
pub async fn hasten_lane(tx: &impl ConnectionTrait, lane: &Lane) -> Result<bool, DbErr> {
    let sql = format!(
        "UPDATE jobs SET run_at = {now} WHERE lane = $1 AND status IN ('queued', 'retrying') AND run_at > {now}",
        now = db::now(tx)
    );
    let hastened = tx.execute_raw(statement(tx, &sql, [lane.0.clone().into()])).await?;
    Ok(hastened.rows_affected() > 0 || is_lane_alive(tx, lane).await?)
}

/// Ends a job that waits as a dead letter. `false` when it does not wait (any more).
pub async fn fail_waiting(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: JobId,
    failure: &Failure,
) -> Result<bool, DbErr> {
    let error = serde_json::to_string(failure).map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "UPDATE jobs SET status = 'failed', finished_at = $2, error = $3 \
               WHERE id = $1 AND status IN ('queued', 'retrying')";
    let values: [Value; 3] = [id.0.into(), now.0.into(), error.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 1)
}

/// Which of these jobs have ended, for those who wait for one.
pub async fn ended_among(
    db: &impl ConnectionTrait,
    ids: &[uuid::Uuid],
) -> Result<Vec<uuid::Uuid>, DbErr> {
    let sql = format!(
        "SELECT id FROM jobs WHERE finished_at IS NOT NULL AND id IN ({})",
        placeholders(1, ids.len())
    );
    let values: Vec<Value> = ids.iter().map(|id| (*id).into()).collect();
    let rows = db.query_all_raw(statement(db, &sql, values)).await?;
    rows.iter().map(|row| row.try_get("", "id")).collect()
}

/// Asks the worker of a running job to stop. `false` when the job does not run.
pub async fn request_cancel(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: JobId,
) -> Result<bool, DbErr> {
    let sql = "UPDATE jobs SET cancel_requested_at = COALESCE(cancel_requested_at, $2) \
               WHERE id = $1 AND status = 'running'";
    let result = tx.execute_raw(statement(tx, sql, [id.0.into(), now.0.into()])).await?;
    Ok(result.rows_affected() == 1)
}

/// Queues failed or cancelled jobs again, with all their attempts, due at once. Answers those that it
/// queued.
pub async fn requeue(tx: &impl ConnectionTrait, ids: &[JobId]) -> Result<Vec<JobId>, DbErr> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "UPDATE jobs SET status = 'queued', attempt = 0, deaths = 0, error = NULL, progress = NULL, \
         cancel_requested_at = NULL, finished_at = NULL, started_at = NULL, run_at = {} \
         WHERE status IN ('failed', 'cancelled') AND id IN ({}) RETURNING id",
        db::now(tx),
        placeholders(1, ids.len())
    );
    let values: Vec<Value> = ids.iter().map(|id| id.0.into()).collect();
    let rows = Id::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

#[derive(FromQueryResult)]
struct Id {
    id: JobId,
}

/// Finished jobs of one status older than `before`, with their attempts, at most `limit` of them. A
/// failed upload or delete that a mapping still shows is kept, and whatever is of an open batch: it can be retried.
pub async fn prune(
    tx: &impl ConnectionTrait,
    status: JobStatus,
    before: Timestamp,
    limit: u32,
) -> Result<u64, DbErr> {
    // Said twice, for a job that was queued again between the choice and its turn.
    let old = format!("status = '{status}' AND finished_at < $1 AND finished_at IS NOT NULL");
    let sql = format!(
        "DELETE FROM jobs WHERE {old} AND id IN (SELECT id FROM jobs WHERE {old} \
         AND NOT EXISTS (SELECT 1 FROM mappings WHERE mappings.job_id = jobs.id AND mappings.status = 'failed') \
         AND NOT EXISTS (SELECT 1 FROM mappings WHERE mappings.delete_job_id = jobs.id \
         AND mappings.status = 'undeletable') \
         AND NOT EXISTS (SELECT 1 FROM batches WHERE batches.id = jobs.batch_id AND batches.ended_at IS NULL) \
         ORDER BY finished_at LIMIT $2) RETURNING id"
    );
    let values: [Value; 2] = [before.0.into(), limit.into()];
    let pruned = Id::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    // By what was deleted: a second look for what is old may find other jobs.
    for chunk in pruned.chunks(500) {
        let sql =
            format!("DELETE FROM job_attempts WHERE job_id IN ({})", placeholders(1, chunk.len()));
        let values: Vec<Value> = chunk.iter().map(|row| row.id.0.into()).collect();
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(pruned.len() as u64)
}

/// How many jobs there are and since when the oldest waits, by kind and lane, for the metrics.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Depth {
    pub kind: String,
    pub lane: String,
    pub status: String,
    pub count: i64,
    pub oldest: Timestamp,
}

pub async fn depths(db: &impl ConnectionTrait) -> Result<Vec<Depth>, DbErr> {
    let sql = "SELECT kind, lane, 'waiting' AS status, count(*) AS count, min(created_at) AS oldest FROM jobs \
               WHERE status IN ('queued', 'retrying') GROUP BY kind, lane \
               UNION ALL \
               SELECT kind, lane, 'running' AS status, count(*) AS count, min(created_at) AS oldest FROM jobs \
               WHERE status = 'running' GROUP BY kind, lane";
    Depth::find_by_statement(statement(db, sql, [])).all(db).await
}
