//! The batches table.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::BatchStatus;
use super::NewBatch;
use crate::clock::Timestamp;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::files::store::Metadata;
use crate::ids::BatchId;
use crate::ids::FileId;
use crate::ids::managed;
use crate::owners::Scope;
use crate::page::Page;
use crate::page::Query;
use crate::runs::Usage;
use crate::runs::store::Run;

pub async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    batch: &NewBatch,
    managed_id: &str,
) -> Result<(), DbErr> {
    let metadata = batch.metadata.as_ref().map(serde_json::to_string).transpose();
    let sql = "INSERT INTO batches (id, managed_id, managed_id_hash, owner, input_file_id, input_file, endpoint, \
               completion_window, metadata, output_expires_after, is_imported, retry_of, status, request_id, created_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 'validating', $13, $14)";
    let values: [Value; 14] = [
        batch.id.0.into(),
        managed_id.into(),
        managed::hash(managed_id).into(),
        batch.owner.clone().into(),
        batch.input_file_id.map(|id| id.0).into(),
        batch.input_file.clone().into(),
        batch.endpoint.clone().into(),
        batch.completion_window.clone().into(),
        metadata.map_err(|error| DbErr::Json(error.to_string()))?.into(),
        batch.output_expires_after.into(),
        batch.is_imported.into(),
        batch.retry_of.map(|id| id.0).into(),
        batch.request_id.clone().into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// A batch, as it is stored.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Batch {
    pub id: BatchId,
    pub managed_id: String,
    pub owner: String,
    pub input_file_id: Option<FileId>,
    /// As clients see it; of an imported batch the provider's own id, if that is no file of ours.
    pub input_file: String,
    pub endpoint: String,
    pub completion_window: String,
    metadata: Option<String>,
    /// Seconds.
    pub output_expires_after: Option<i64>,
    pub is_imported: bool,
    /// The first batch of which it retries requests.
    pub retry_of: Option<BatchId>,
    pub status: String,
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
    usage: Option<String>,
    pub errors: Option<String>,
    pub request_id: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub in_progress_at: Option<Timestamp>,
    pub finalizing_at: Option<Timestamp>,
    pub cancelling_at: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    pub managed_output_file: Option<String>,
    pub managed_error_file: Option<String>,
}

impl Batch {
    pub fn status(&self) -> Result<BatchStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    /// The batch that its requests were first in.
    pub fn first(&self) -> BatchId {
        self.retry_of.unwrap_or(self.id)
    }

    pub fn metadata(&self) -> Option<Metadata> {
        self.metadata.as_deref().and_then(|metadata| serde_json::from_str(metadata).ok())
    }

    pub fn usage(&self) -> Option<Usage> {
        self.usage.as_deref().and_then(|usage| serde_json::from_str(usage).ok())
    }
}

/// A batch with its runs, in the order in which the client named the models.
#[derive(Clone, Debug)]
pub struct BatchView {
    pub batch: Batch,
    pub runs: Vec<Run>,
}

const SELECT: &str = "SELECT b.id, b.managed_id, b.owner, b.input_file_id, b.input_file, b.endpoint, \
     b.completion_window, b.metadata, b.output_expires_after, b.is_imported, b.retry_of, b.status, b.total, b.completed, \
     b.failed, b.usage, b.errors, b.request_id, b.created_at, b.expires_at, b.in_progress_at, b.finalizing_at, \
     b.cancelling_at, b.ended_at, o.managed_id AS managed_output_file, e.managed_id AS managed_error_file \
     FROM batches b LEFT JOIN files o ON o.id = b.output_file_id LEFT JOIN files e ON e.id = b.error_file_id";

pub async fn find(db: &impl ConnectionTrait, managed_id: &str) -> Result<Option<Batch>, DbErr> {
    let sql = format!("{SELECT} WHERE b.managed_id_hash = $1 AND b.managed_id = $2");
    let values: [Value; 2] = [managed::hash(managed_id).into(), managed_id.into()];
    Batch::find_by_statement(statement(db, &sql, values)).one(db).await
}

pub async fn find_by_id(db: &impl ConnectionTrait, id: BatchId) -> Result<Option<Batch>, DbErr> {
    let sql = format!("{SELECT} WHERE b.id = $1");
    Batch::find_by_statement(statement(db, &sql, [id.0.into()])).one(db).await
}

/// A batch with all retries of it, the first one first.
pub async fn with_retries(db: &impl ConnectionTrait, id: BatchId) -> Result<Vec<Batch>, DbErr> {
    let sql = format!("{SELECT} WHERE b.id = $1 OR b.retry_of = $1 ORDER BY b.id");
    Batch::find_by_statement(statement(db, &sql, [id.0.into()])).all(db).await
}

/// One page of batches, `page.limit + 1` at most: the one more tells that there is another page.
pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    status: Option<BatchStatus>,
    page: &Page<BatchId>,
) -> Result<Vec<Batch>, DbErr> {
    let mut query = Query::new(SELECT);
    if let Scope::Owner(owner) = scope {
        query.filter("b.owner =", owner.clone());
    }
    if let Some(status) = status {
        query.filter("b.status =", status.as_str());
    }
    let (sql, values) = query.finish("b.id", page.after.map(|id| id.0), page);
    Batch::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// Holds a batch until the transaction ends: its runs change one after another, and each sees what the others
/// came to. (SQLite has one writer anyway.)
pub async fn lock(tx: &impl ConnectionTrait, id: BatchId) -> Result<(), DbErr> {
    if is_postgres(tx) {
        // Beside the key-share locks that the runs' foreign key takes, or two could wait for each other.
        let sql = "SELECT 1 FROM batches WHERE id = $1 FOR NO KEY UPDATE";
        tx.execute_raw(statement(tx, sql, [id.0.into()])).await?;
    }
    Ok(())
}

/// What a batch is, from its runs.
#[derive(Clone, Debug)]
pub struct Standing {
    pub status: BatchStatus,
    pub total: i64,
    pub completed: i64,
    pub failed: i64,
    pub usage: Option<Usage>,
    /// As OpenAI's `errors.data`, in JSON.
    pub errors: Option<String>,
    pub expires_at: Option<Timestamp>,
}

/// Writes what follows from the runs. `true` when the status is another one now.
pub async fn stand(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: BatchId,
    standing: &Standing,
) -> Result<bool, DbErr> {
    let usage = standing.usage.as_ref().map(serde_json::to_string).transpose();
    let sql = "UPDATE batches SET total = $2, completed = $3, failed = $4, usage = $5, errors = $6, expires_at = $7 \
               WHERE id = $1 AND ended_at IS NULL";
    let values: [Value; 7] = [
        id.0.into(),
        standing.total.into(),
        standing.completed.into(),
        standing.failed.into(),
        usage.map_err(|error| DbErr::Json(error.to_string()))?.into(),
        standing.errors.clone().into(),
        standing.expires_at.map(|at| at.0).into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await?;
    let since = match standing.status {
        BatchStatus::InProgress => "in_progress_at = COALESCE(in_progress_at, $3),",
        BatchStatus::Finalizing => "finalizing_at = COALESCE(finalizing_at, $3),",
        BatchStatus::Cancelling => "cancelling_at = COALESCE(cancelling_at, $3),",
        BatchStatus::Completed
        | BatchStatus::Failed
        | BatchStatus::Expired
        | BatchStatus::Cancelled => "ended_at = $3,",
        BatchStatus::Validating => "",
    };
    let since = if is_postgres(tx) { since.replace("$3", "$3::bigint") } else { since.to_owned() };
    let sql = format!(
        "UPDATE batches SET {since} status = $2 WHERE id = $1 AND ended_at IS NULL AND status <> $2"
    );
    let mut values: Vec<Value> = vec![id.0.into(), standing.status.as_str().into()];
    if !since.is_empty() {
        values.push(now.0.into());
    }
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

/// Takes back the end of a batch of which a run goes on.
pub async fn reopen(tx: &impl ConnectionTrait, id: BatchId) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET status = 'in_progress', ended_at = NULL, usage = NULL, errors = NULL \
               WHERE id = $1 AND ended_at IS NOT NULL";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// Notes that a batch is to be cancelled, if it has not ended.
pub async fn request_cancel(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: BatchId,
) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET cancelling_at = $2 \
               WHERE id = $1 AND ended_at IS NULL AND cancelling_at IS NULL";
    tx.execute_raw(statement(tx, sql, [id.0.into(), now.0.into()])).await.map(|_| ())
}

/// Names the files that a batch produced.
pub async fn set_files(
    tx: &impl ConnectionTrait,
    id: BatchId,
    output: Option<FileId>,
    error: Option<FileId>,
) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET output_file_id = $2, error_file_id = $3 WHERE id = $1";
    let values: [Value; 3] =
        [id.0.into(), output.map(|id| id.0).into(), error.map(|id| id.0).into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// What is known of an imported batch once its provider has shown it.
pub async fn describe(
    tx: &impl ConnectionTrait,
    id: BatchId,
    endpoint: &str,
    completion_window: &str,
    input: (Option<FileId>, &str),
) -> Result<(), DbErr> {
    let sql = "UPDATE batches SET endpoint = $2, completion_window = $3, input_file_id = $4, input_file = $5 \
               WHERE id = $1 AND is_imported";
    let values: [Value; 5] = [
        id.0.into(),
        endpoint.into(),
        completion_window.into(),
        input.0.map(|id| id.0).into(),
        input.1.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// The unfinished batches that run on one of these files, with the file of each.
pub async fn open_on(
    db: &impl ConnectionTrait,
    files: &[FileId],
) -> Result<Vec<(FileId, BatchId, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        input_file_id: FileId,
        id: BatchId,
        managed_id: String,
    }
    let mut open = Vec::new();
    for chunk in files.chunks(500) {
        let sql = format!(
            "SELECT input_file_id, id, managed_id FROM batches WHERE ended_at IS NULL \
             AND input_file_id IS NOT NULL AND input_file_id IN ({}) ORDER BY id",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| id.0.into()).collect();
        let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
        open.extend(rows.into_iter().map(|row| (row.input_file_id, row.id, row.managed_id)));
    }
    Ok(open)
}

/// Which of these batches have ended, for those who wait for one.
pub async fn ended_among(
    db: &impl ConnectionTrait,
    ids: &[uuid::Uuid],
) -> Result<Vec<uuid::Uuid>, DbErr> {
    let sql = format!(
        "SELECT id FROM batches WHERE ended_at IS NOT NULL AND id IN ({})",
        placeholders(1, ids.len())
    );
    let values: Vec<Value> = ids.iter().map(|id| (*id).into()).collect();
    let rows = db.query_all_raw(statement(db, &sql, values)).await?;
    rows.iter().map(|row| row.try_get("", "id")).collect()
}

/// What clients call these batches, also deleted ones.
pub async fn managed_ids(
    db: &impl ConnectionTrait,
    ids: &[uuid::Uuid],
) -> Result<Vec<(uuid::Uuid, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: uuid::Uuid,
        managed_id: String,
    }
    let mut found = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(500) {
        let sql = format!(
            "SELECT id, managed_id FROM batches WHERE id IN ({})",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| (*id).into()).collect();
        let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
        found.extend(rows.into_iter().map(|row| (row.id, row.managed_id)));
    }
    Ok(found)
}
