//! Bytes that nobody needs any more: of which files, and that they are gone.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use crate::db::placeholders;
use crate::db::statement;
use crate::ids::FileId;

/// A file whose bytes nobody needs any more, and their key.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Spent {
    pub id: FileId,
    pub blob_key: String,
}

/// Deleted files that still have bytes which no upload reads, the first deleted first but for those passed
/// over; at most `limit`.
pub async fn of_deleted(
    db: &impl ConnectionTrait,
    passed_over: u32,
    limit: u32,
) -> Result<Vec<Spent>, DbErr> {
    let sql = "SELECT id, blob_key FROM files WHERE deleted_at IS NOT NULL AND blob_key IS NOT NULL \
               AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.file_id = files.id AND jobs.kind = 'upload_file' \
               AND jobs.status = 'running') ORDER BY deleted_at, id LIMIT $1 OFFSET $2";
    let values: [Value; 2] = [limit.into(), passed_over.into()];
    Spent::find_by_statement(statement(db, sql, values)).all(db).await
}

/// Uploads that every model has, and whose blob keys sort below `before` and behind `after`: keys begin
/// with the hour they were made in. At most `limit`. What a batch produced is nowhere else, and the results of an
/// unfinished one are judged by its input.
pub async fn of_carried(
    db: &impl ConnectionTrait,
    after: &str,
    before: &str,
    limit: u32,
) -> Result<Vec<Spent>, DbErr> {
    let sql = "SELECT id, blob_key FROM files WHERE blob_key > $1 AND blob_key < $2 AND blob_key IS NOT NULL \
               AND status = 'processed' AND purpose <> 'batch_output' AND NOT EXISTS (SELECT 1 FROM batches \
               WHERE batches.input_file_id = files.id AND batches.ended_at IS NULL) ORDER BY blob_key LIMIT $3";
    let values: [Value; 3] = [after.into(), before.into(), limit.into()];
    Spent::find_by_statement(statement(db, sql, values)).all(db).await
}

/// Takes the keys from files that every model has. Answers those that it took: their bytes can go. What is
/// sent to one more model meanwhile keeps its own.
pub async fn release(tx: &impl ConnectionTrait, files: &[Spent]) -> Result<Vec<FileId>, DbErr> {
    let sql = format!(
        "UPDATE files SET blob_key = NULL WHERE status = 'processed' AND id IN ({}) AND NOT EXISTS \
         (SELECT 1 FROM batches WHERE batches.input_file_id = files.id AND batches.ended_at IS NULL) RETURNING id",
        placeholders(1, files.len())
    );
    let values: Vec<Value> = files.iter().map(|file| file.id.0.into()).collect();
    let rows = Id::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Forgets the keys of bytes that are deleted.
pub async fn forget(tx: &impl ConnectionTrait, ids: &[FileId]) -> Result<(), DbErr> {
    for chunk in ids.chunks(500) {
        let sql = format!(
            "UPDATE files SET blob_key = NULL WHERE id IN ({})",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| id.0.into()).collect();
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

#[derive(FromQueryResult)]
struct Id {
    id: FileId,
}
