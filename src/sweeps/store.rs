//! The sweeps table.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Filter;
use super::NewSweep;
use super::SweepStatus;
use crate::clock::Timestamp;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::files::store::Metadata;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::SweepId;
use crate::jobs::Failure;
use crate::owners::Scope;
use crate::page::Page;
use crate::page::Query;

/// A sweep, as it is stored.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Sweep {
    pub id: SweepId,
    pub owner: String,
    filter: String,
    pub is_dry_run: bool,
    pub job_id: JobId,
    status: String,
    pub matched: i64,
    /// Files of it that are gone at every provider.
    pub deleted: i64,
    pub failed: i64,
    pub skipped: i64,
    /// The last file that was looked at.
    pub matched_to: Option<FileId>,
    /// Whether all files were looked at.
    pub is_matched: bool,
    /// The last file whose deletes are queued.
    pub queued_to: Option<FileId>,
    error: Option<String>,
    pub request_id: Option<String>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
}

impl Sweep {
    pub fn status(&self) -> Result<SweepStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    pub fn filter(&self) -> Result<Filter, DbErr> {
        serde_json::from_str(&self.filter).map_err(|error| DbErr::Json(error.to_string()))
    }

    pub fn failure(&self) -> Option<Failure> {
        self.error.as_deref().and_then(|error| serde_json::from_str(error).ok())
    }
}

const SELECT: &str = "SELECT id, owner, filter, is_dry_run, job_id, status, matched, deleted, failed, skipped, \
     matched_to, is_matched, queued_to, error, request_id, created_at, started_at, finished_at FROM sweeps";

pub async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    new: &NewSweep,
    job: JobId,
) -> Result<(), DbErr> {
    let filter = serde_json::to_string(&new.selection.filter())
        .map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "INSERT INTO sweeps (id, owner, filter, is_dry_run, job_id, status, request_id, created_at) \
               VALUES ($1, $2, $3, $4, $5, 'queued', $6, $7)";
    let values: [Value; 7] = [
        new.id.0.into(),
        new.owner.clone().into(),
        filter.into(),
        new.is_dry_run.into(),
        job.0.into(),
        new.request_id.clone().into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Names the files of a sweep.
pub async fn insert_files(
    tx: &impl ConnectionTrait,
    id: SweepId,
    files: &[FileId],
) -> Result<(), DbErr> {
    for chunk in files.chunks(500) {
        let rows: Vec<_> = (0..chunk.len()).map(|row| format!("($1, ${})", row + 2)).collect();
        let sql = format!(
            "INSERT INTO sweep_files (sweep_id, file_id) VALUES {} ON CONFLICT DO NOTHING",
            rows.join(", ")
        );
        let mut values: Vec<Value> = vec![id.0.into()];
        values.extend(chunk.iter().map(|file| Value::from(file.0)));
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

pub async fn find(db: &impl ConnectionTrait, id: SweepId) -> Result<Option<Sweep>, DbErr> {
    let sql = format!("{SELECT} WHERE id = $1");
    Sweep::find_by_statement(statement(db, &sql, [id.0.into()])).one(db).await
}

/// One page of sweeps, `page.limit + 1` at most: the one more tells that there is another page.
pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    page: &Page<SweepId>,
) -> Result<Vec<Sweep>, DbErr> {
    let mut query = Query::new(SELECT);
    if let Scope::Owner(owner) = scope {
        query.filter("owner =", owner.clone());
    }
    let (sql, values) = query.finish("id", page.after.map(|id| id.0), page);
    Sweep::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// What a look for the next files of a sweep brought.
#[derive(Clone, Debug)]
pub struct Found {
    pub files: Vec<FileId>,
    /// The last file that was looked at, whether it is meant or not.
    pub behind: Option<FileId>,
    pub is_last: bool,
}

/// The next files of a sweep: at most `limit` are looked at. Only such as were there when it was made, so
/// that it ends.
pub async fn next_files(
    db: &impl ConnectionTrait,
    sweep: &Sweep,
    limit: u32,
) -> Result<Found, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FileId,
        metadata: String,
    }
    let filter = sweep.filter()?;
    let after = sweep.matched_to.map_or(uuid::Uuid::nil(), |id| id.0);
    let (sql, values) = if filter.file_ids.is_some() {
        let sql = "SELECT f.id, f.metadata FROM sweep_files s JOIN files f ON f.id = s.file_id \
                   WHERE s.sweep_id = $1 AND s.file_id > $2 ORDER BY s.file_id";
        (sql.to_owned(), vec![sweep.id.0.into(), after.into()])
    } else {
        let mut query = Query::new("SELECT files.id, files.metadata FROM files");
        query.filter("files.owner =", sweep.owner.clone());
        query.condition("files.deleted_at IS NULL");
        query.filter("files.id >", after);
        query.filter("files.created_at <=", sweep.created_at.0);
        if let Some(purpose) = &filter.purpose {
            query.filter("files.purpose =", purpose.clone());
        }
        if let Some(before) = filter.created_before {
            query.filter("files.created_at <", Timestamp::from_unix_seconds(before).0);
        }
        if let Some(status) = &filter.status {
            query.filter("files.status =", status.clone());
        }
        if let Some(model) = &filter.model {
            query.filter(
                "EXISTS (SELECT 1 FROM mappings WHERE mappings.file_id = files.id AND mappings.model =",
                model.clone(),
            );
            query.close();
        }
        query.ordered("files.id")
    };
    let sql = format!("{sql} LIMIT {limit}");
    let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
    let behind = rows.last().map(|row| row.id);
    let is_last = rows.len() < limit as usize;
    let files = rows
        .into_iter()
        .filter(|row| {
            let metadata: Metadata = serde_json::from_str(&row.metadata).unwrap_or_default();
            filter.metadata.is_empty() || filter.wants(&metadata)
        })
        .map(|row| row.id)
        .collect();
    Ok(Found { files, behind, is_last })
}

/// Holds a sweep until the transaction ends. `false` when it takes no more files.
pub async fn lock_open(tx: &impl ConnectionTrait, id: SweepId) -> Result<bool, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!("SELECT 1 FROM sweeps WHERE id = $1 AND NOT is_matched {lock}");
    Ok(tx.query_one_raw(statement(tx, &sql, [id.0.into()])).await?.is_some())
}

/// Counts what was taken, and how far that is.
pub async fn took(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: SweepId,
    (matched, done): (usize, usize),
    found: &Found,
) -> Result<(), DbErr> {
    let sql = "UPDATE sweeps SET status = CASE WHEN status = 'queued' THEN 'running' ELSE status END, \
               started_at = COALESCE(started_at, $2), matched = matched + $3, deleted = deleted + $4, \
               matched_to = COALESCE($5, matched_to), is_matched = is_matched OR $6 WHERE id = $1";
    let sql = if is_postgres(tx) {
        sql.replace("$2", "$2::bigint").replace("$5", "$5::uuid").replace("$6", "$6::boolean")
    } else {
        sql.to_owned()
    };
    let values: [Value; 6] = [
        id.0.into(),
        now.0.into(),
        (matched as i64).into(),
        (done as i64).into(),
        found.behind.map(|id| id.0).into(),
        found.is_last.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Notes how far the deletes are queued.
pub async fn queued(tx: &impl ConnectionTrait, id: SweepId, behind: FileId) -> Result<(), DbErr> {
    let sql = "UPDATE sweeps SET queued_to = $2 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into(), behind.0.into()])).await.map(|_| ())
}

/// How many files of a sweep have deletes in the queue, counted up to `most`.
pub async fn in_queue(db: &impl ConnectionTrait, sweep: &Sweep, most: u32) -> Result<u32, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        count: i64,
    }
    let Some(to) = sweep.queued_to else { return Ok(0) };
    let sql = "SELECT count(*) AS count FROM (SELECT 1 FROM files WHERE sweep_id = $1 AND id <= $2 \
               AND deletion = 'pending' AND sweep_id IS NOT NULL LIMIT $3) AS queued";
    let values: [Value; 3] = [sweep.id.0.into(), to.0.into(), most.into()];
    let row = Row::find_by_statement(statement(db, sql, values)).one(db).await?;
    Ok(row.map_or(0, |row| u32::try_from(row.count).unwrap_or(most)))
}

/// Counts files that moved, and derives the status: a sweep ends when its files are all settled, and is
/// open again when one is not any more. Answers the owner if it has ended now.
pub async fn settle(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: SweepId,
    deleted: i64,
    failed: i64,
) -> Result<Option<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        owner: String,
        finished_at: Option<Timestamp>,
    }
    // A dry run deletes nothing that could be waited for.
    let over = "is_matched AND (is_dry_run OR matched <= deleted + $3 + failed + $4 + skipped)";
    // A cancelled sweep stays so, and one whose job failed until all is settled all the same.
    let stays = format!("status = 'cancelled' OR (error IS NOT NULL AND NOT ({over}))");
    let sql = format!(
        "UPDATE sweeps SET deleted = deleted + $3, failed = failed + $4, \
         status = CASE WHEN {stays} THEN status WHEN NOT ({over}) THEN 'running' \
         WHEN failed + $4 > 0 THEN 'failed' ELSE 'succeeded' END, \
         finished_at = CASE WHEN {stays} THEN finished_at WHEN {over} THEN $2 END, \
         error = CASE WHEN {over} THEN NULL ELSE error END \
         WHERE id = $1 RETURNING owner, finished_at"
    );
    let sql = if is_postgres(tx) {
        ["$2", "$3", "$4"]
            .iter()
            .fold(sql, |sql, name| sql.replace(name, &format!("{name}::bigint")))
    } else {
        sql
    };
    let values: [Value; 4] = [id.0.into(), now.0.into(), deleted.into(), failed.into()];
    let row = Row::find_by_statement(statement(tx, &sql, values)).one(tx).await?;
    Ok(row.filter(|row| row.finished_at == Some(now)).map(|row| row.owner))
}

/// Ends a sweep that cannot go on. Answers the owner if it had not ended before.
pub async fn fail(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: SweepId,
    failure: &Failure,
) -> Result<Option<String>, DbErr> {
    let error = serde_json::to_string(failure).map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "UPDATE sweeps SET status = 'failed', finished_at = $2, error = $3 \
               WHERE id = $1 AND finished_at IS NULL RETURNING owner";
    let values: [Value; 3] = [id.0.into(), now.0.into(), error.into()];
    let row = Owner::find_by_statement(statement(tx, sql, values)).one(tx).await?;
    Ok(row.map(|row| row.owner))
}

#[derive(FromQueryResult)]
struct Owner {
    owner: String,
}

/// Opens a failed sweep again, whose job was queued again.
pub async fn reopen(tx: &impl ConnectionTrait, id: SweepId) -> Result<bool, DbErr> {
    let sql = "UPDATE sweeps SET status = CASE WHEN matched > 0 THEN 'running' ELSE 'queued' END, \
               finished_at = NULL, error = NULL WHERE id = $1 AND status = 'failed' AND error IS NOT NULL";
    Ok(tx.execute_raw(statement(tx, sql, [id.0.into()])).await?.rows_affected() == 1)
}

/// `false` when the sweep has ended.
pub async fn cancel(tx: &impl ConnectionTrait, now: Timestamp, id: SweepId) -> Result<bool, DbErr> {
    let sql = "UPDATE sweeps SET status = 'cancelled', finished_at = $2, is_matched = TRUE \
               WHERE id = $1 AND finished_at IS NULL";
    Ok(tx.execute_raw(statement(tx, sql, [id.0.into(), now.0.into()])).await?.rows_affected() == 1)
}

/// Which of these sweeps have ended, for those who wait for one.
pub async fn ended_among(
    db: &impl ConnectionTrait,
    ids: &[uuid::Uuid],
) -> Result<Vec<uuid::Uuid>, DbErr> {
    let sql = format!(
        "SELECT id FROM sweeps WHERE finished_at IS NOT NULL AND id IN ({})",
        placeholders(1, ids.len())
    );
    let values: Vec<Value> = ids.iter().map(|id| (*id).into()).collect();
    let rows = db.query_all_raw(statement(db, &sql, values)).await?;
    rows.iter().map(|row| row.try_get("", "id")).collect()
}
