//! What is written of a deleted file, and which files are to be deleted by their age.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Buried;
use super::Deletion;
use crate::clock::Timestamp;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::FileId;
use crate::ids::SweepId;

/// Makes tombstones of these files, and answers those that were none before.
pub async fn bury(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    ids: &[FileId],
    sweep: Option<SweepId>,
) -> Result<Vec<Buried>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FileId,
        owner: String,
    }
    let sql = format!(
        "UPDATE files SET status = 'deleted', status_details = NULL, deleted_at = $1, deletion = 'pending', \
         sweep_id = $2 WHERE id IN ({}) AND deleted_at IS NULL RETURNING id, owner",
        placeholders(3, ids.len())
    );
    let mut values: Vec<Value> = vec![now.0.into(), sweep.map(|id| id.0).into()];
    values.extend(ids.iter().map(|id| Value::from(id.0)));
    let rows = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    let buried = rows.into_iter();
    Ok(buried.map(|Row { id, owner }| Buried { id, owner, deletion: Deletion::Pending }).collect())
}

pub async fn set_deletion(
    tx: &impl ConnectionTrait,
    ids: &[FileId],
    deletion: Deletion,
) -> Result<(), DbErr> {
    for chunk in ids.chunks(500) {
        let sql = format!(
            "UPDATE files SET deletion = $1 WHERE deleted_at IS NOT NULL AND id IN ({})",
            placeholders(2, chunk.len())
        );
        let mut values: Vec<Value> = vec![deletion.as_str().into()];
        values.extend(chunk.iter().map(|id| Value::from(id.0)));
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// Holds a deleted file until the transaction ends, and answers how far its deletion is and the sweep that
/// it is part of; none for a file that is not deleted.
pub async fn lock_deletion(
    tx: &impl ConnectionTrait,
    id: FileId,
) -> Result<Option<(Deletion, Option<SweepId>)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        deletion: String,
        sweep_id: Option<SweepId>,
    }
    let lock = if is_postgres(tx) { "FOR NO KEY UPDATE" } else { "" };
    let sql = format!(
        "SELECT deletion, sweep_id FROM files WHERE id = $1 AND deletion IS NOT NULL {lock}"
    );
    let row = Row::find_by_statement(statement(tx, &sql, [id.0.into()])).one(tx).await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some((row.deletion.parse().map_err(DbErr::Type)?, row.sweep_id)))
}

/// Files that live no longer than until `now`, at most `limit`. One that an unfinished batch runs on lives longer.
pub async fn expired(
    db: &impl ConnectionTrait,
    now: Timestamp,
    limit: u32,
) -> Result<Vec<FileId>, DbErr> {
    // By the database's clock too: one worker's may be an hour ahead.
    let sql = format!(
        "SELECT id FROM files WHERE deleted_at IS NULL AND expires_at IS NOT NULL AND expires_at <= $1 \
         AND expires_at <= (SELECT {}) AND NOT EXISTS (SELECT 1 FROM batches \
         WHERE batches.input_file_id = files.id AND batches.ended_at IS NULL) ORDER BY expires_at LIMIT $2",
        crate::db::now(db)
    );
    let rows =
        Id::find_by_statement(statement(db, &sql, [now.0.into(), limit.into()])).all(db).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

#[derive(FromQueryResult)]
struct Id {
    id: FileId,
}
