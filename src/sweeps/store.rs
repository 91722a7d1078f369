//! The sweeps table.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::AT_ONCE;
use super::Filter;
use super::MAX_QUEUED;
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
    pub status: String,
    pub matched: i64,
    /// Files of it that are gone at every provider.
    pub deleted: i64,
    pub failed: i64,
    pub skipped: i64,
    /// The last file that was looked at.
    pub matched_to: Option<FileId>,
    /// Whether all files were looked at.
    pub is_matched: bool,
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
     matched_to, is_matched, error, request_id, created_at, started_at, finished_at FROM sweeps";

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
                   WHERE s.sweep_id = $1 AND s.file_id > $2 AND f.deleted_at IS NULL ORDER BY s.file_id";
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

/// What a sweep has come to with some of its files.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub matched: usize,
    /// Gone at every provider already: no copy of them was there.
    pub done: usize,
    /// In use by an unfinished batch.
    pub skipped: usize,
}

/// Counts what was taken, and how far that is. `false` when the sweep takes no more.
pub async fn took(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: SweepId,
    taken: &Taken,
    found: &Found,
) -> Result<bool, DbErr> {
    let sql = "UPDATE sweeps SET status = CASE WHEN status = 'queued' THEN 'running' ELSE status END, \
               started_at = COALESCE(started_at, $2), matched = matched + $3, deleted = deleted + $4, \
               matched_to = COALESCE($5, matched_to), is_matched = $6, skipped = skipped + $7 WHERE id = $1 AND NOT is_matched";
    let sql = if is_postgres(tx) {
        sql.replace("$2", "$2::bigint").replace("$5", "$5::uuid").replace("$6", "$6::boolean")
    } else {
        sql.to_owned()
    };
    let values: [Value; 7] = [
        id.0.into(),
        now.0.into(),
        (taken.matched as i64).into(),
        (taken.done as i64).into(),
        found.behind.map(|id| id.0).into(),
        found.is_last.into(),
        (taken.skipped as i64).into(),
    ];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

/// The deletes of a sweep at one provider.
#[derive(Clone, Debug, FromQueryResult)]
pub struct SweepLane {
    pub provider: String,
    /// The last file whose delete is queued.
    pub queued_to: Option<FileId>,
    /// Deletes that were queued, and such as have ended.
    pub queued: i64,
    pub ended: i64,
}

impl SweepLane {
    /// Not for a few at a time, each with a transaction of its own.
    pub fn has_room(&self) -> bool {
        MAX_QUEUED - (self.queued - self.ended) >= i64::from(AT_ONCE)
    }
}

const SELECT_LANE: &str = "SELECT provider, queued_to, queued, ended FROM sweep_lanes WHERE sweep_id = $1 AND NOT is_queued";

/// Holds a lane of a sweep until the transaction ends; none where all is queued.
pub async fn lock_lane(
    tx: &impl ConnectionTrait,
    id: SweepId,
    provider: &str,
) -> Result<Option<SweepLane>, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!("{SELECT_LANE} AND provider = $2 {lock}");
    let values: [Value; 2] = [id.0.into(), provider.into()];
    SweepLane::find_by_statement(statement(tx, &sql, values)).one(tx).await
}

/// The lanes of a sweep with deletes that are not queued yet.
pub async fn lanes(db: &impl ConnectionTrait, id: SweepId) -> Result<Vec<SweepLane>, DbErr> {
    let sql = format!("{SELECT_LANE} ORDER BY provider");
    SweepLane::find_by_statement(statement(db, &sql, [id.0.into()])).all(db).await
}

/// Notes at which providers these files have copies that must go.
pub async fn open_lanes(
    tx: &impl ConnectionTrait,
    id: SweepId,
    files: &[FileId],
) -> Result<(), DbErr> {
    for chunk in files.chunks(500) {
        let sql = format!(
            "INSERT INTO sweep_lanes (sweep_id, provider) SELECT DISTINCT {id}, provider FROM mappings \
             WHERE file_id IN ({}) AND status = 'deleting' \
             ON CONFLICT (sweep_id, provider) DO UPDATE SET is_queued = FALSE",
            placeholders(2, chunk.len()),
            id = if is_postgres(tx) { "$1::uuid" } else { "$1" },
        );
        let mut values: Vec<Value> = vec![id.0.into()];
        values.extend(chunk.iter().map(|file| Value::from(file.0)));
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// Notes how far the deletes at a provider are queued.
pub async fn queued(
    tx: &impl ConnectionTrait,
    id: SweepId,
    provider: &str,
    behind: Option<FileId>,
    count: u32,
    is_last: bool,
) -> Result<(), DbErr> {
    let sql = "UPDATE sweep_lanes SET queued_to = COALESCE($3, queued_to), queued = queued + $4, is_queued = $5 \
               WHERE sweep_id = $1 AND provider = $2";
    let sql = if is_postgres(tx) { sql.replace("$3", "$3::uuid") } else { sql.to_owned() };
    let values: [Value; 5] = [
        id.0.into(),
        provider.into(),
        behind.map(|id| id.0).into(),
        i64::from(count).into(),
        is_last.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Counts deletes at a provider that have ended, or that are tried again.
pub async fn count_ended(
    tx: &impl ConnectionTrait,
    id: SweepId,
    provider: &str,
    ended: i64,
) -> Result<(), DbErr> {
    let sql = "UPDATE sweep_lanes SET ended = ended + $3 WHERE sweep_id = $1 AND provider = $2";
    let values: [Value; 3] = [id.0.into(), provider.into(), ended.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Forgets the names of the files of a sweep that has taken them all.
pub async fn forget_files(tx: &impl ConnectionTrait, id: SweepId) -> Result<(), DbErr> {
    let sql = "DELETE FROM sweep_files WHERE sweep_id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// Sweeps that have deletes to be queued, and no job that queues them; at most 20.
pub async fn stranded(db: &impl ConnectionTrait) -> Result<Vec<Sweep>, DbErr> {
    let sql = format!(
        "{SELECT} WHERE id IN (SELECT l.sweep_id FROM sweep_lanes l JOIN sweeps s ON s.id = l.sweep_id \
         LEFT JOIN jobs j ON j.id = s.job_id \
         WHERE NOT l.is_queued AND (j.id IS NULL OR j.finished_at IS NOT NULL) LIMIT 20)"
    );
    Sweep::find_by_statement(statement(db, &sql, [])).all(db).await
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

/// Opens a failed sweep again, whose job was queued again. One that was cancelled goes on with what it took.
pub async fn reopen(tx: &impl ConnectionTrait, id: SweepId) -> Result<bool, DbErr> {
    let sql = "UPDATE sweeps SET status = CASE WHEN status = 'cancelled' THEN status WHEN matched > 0 THEN 'running' \
               ELSE 'queued' END, finished_at = CASE WHEN status = 'cancelled' THEN finished_at END, error = NULL \
               WHERE id = $1 AND (status = 'cancelled' OR (status = 'failed' AND error IS NOT NULL))";
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
