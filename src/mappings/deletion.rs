//! Copies on their way out: from the tombstone of their file to the receipt.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::MappingStatus;
use super::outcome;
use super::receipt::Receipt;
use super::store::Certainty;
use super::store::Copy;
use super::store::OUTCOME_DECIDED;
use super::store::Upload;
use crate::clock::Timestamp;
use crate::db;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::files;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::SweepId;
use crate::jobs;
use crate::jobs::Failure;
use crate::sweeps;

/// A mapping whose file is deleted.
#[derive(Clone, Debug)]
pub struct Doomed {
    pub id: MappingId,
    pub file_id: FileId,
    pub status: MappingStatus,
    pub provider: String,
    pub model: String,
    pub unknown_since: Option<Timestamp>,
    /// Of its upload.
    pub job_id: JobId,
    pub delete_job_id: Option<JobId>,
}

/// Holds the jobs of these files' uploads, the files and their mappings until the transaction ends, in the
/// order in which the ends of attempts take them. (SQLite has one writer anyway.)
pub async fn lock(tx: &impl ConnectionTrait, files: &[FileId]) -> Result<(), DbErr> {
    if !is_postgres(tx) {
        return Ok(());
    }
    let values: Vec<Value> = files.iter().map(|id| id.0.into()).collect();
    let these = placeholders(1, files.len());
    let jobs = format!(
        "SELECT 1 FROM jobs WHERE id IN (SELECT job_id FROM mappings WHERE file_id IN ({these})) ORDER BY id FOR UPDATE"
    );
    tx.execute_raw(statement(tx, &jobs, values.clone())).await?;
    files::store::lock_all(tx, files).await?;
    let mappings =
        format!("SELECT 1 FROM mappings WHERE file_id IN ({these}) ORDER BY id FOR UPDATE");
    tx.execute_raw(statement(tx, &mappings, values)).await.map(|_| ())
}

/// The mappings of deleted files.
pub async fn of_files(tx: &impl ConnectionTrait, files: &[FileId]) -> Result<Vec<Doomed>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: MappingId,
        file_id: FileId,
        status: String,
        provider: String,
        model: String,
        unknown_since: Option<Timestamp>,
        job_id: JobId,
        delete_job_id: Option<JobId>,
    }
    let sql = format!(
        "SELECT id, file_id, status, provider, model, unknown_since, job_id, delete_job_id FROM mappings \
         WHERE file_id IN ({})",
        placeholders(1, files.len())
    );
    let values: Vec<Value> = files.iter().map(|id| id.0.into()).collect();
    let rows = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Doomed {
                id: row.id,
                file_id: row.file_id,
                status: row.status.parse().map_err(DbErr::Type)?,
                provider: row.provider,
                model: row.model,
                unknown_since: row.unknown_since,
                job_id: row.job_id,
                delete_job_id: row.delete_job_id,
            })
        })
        .collect()
}

/// How the copies of a file stand.
pub async fn statuses(
    tx: &impl ConnectionTrait,
    file: FileId,
) -> Result<Vec<MappingStatus>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        status: String,
    }
    let sql = "SELECT status FROM mappings WHERE file_id = $1";
    let rows = Row::find_by_statement(statement(tx, sql, [file.0.into()])).all(tx).await?;
    rows.into_iter().map(|row| row.status.parse().map_err(DbErr::Type)).collect()
}

/// Mappings of swept files at one provider whose deletes are not queued yet, from the file `from` on, in the
/// order of the files, and whose they are; at most `limit`.
pub async fn unqueued(
    tx: &impl ConnectionTrait,
    sweep: SweepId,
    provider: &str,
    from: Option<FileId>,
    limit: u32,
) -> Result<Vec<(Doomed, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: MappingId,
        file_id: FileId,
        model: String,
        owner: String,
        unknown_since: Option<Timestamp>,
        job_id: JobId,
    }
    let sql = "SELECT m.id, m.file_id, m.model, f.owner, m.unknown_since, m.job_id \
               FROM files f JOIN mappings m ON m.file_id = f.id \
               WHERE f.sweep_id = $1 AND f.id >= $2 AND m.provider = $3 AND m.status = 'deleting' \
               AND m.delete_job_id IS NULL ORDER BY f.id LIMIT $4";
    let from = from.map_or(uuid::Uuid::nil(), |id| id.0);
    let values: [Value; 4] = [sweep.0.into(), from.into(), provider.into(), limit.into()];
    let rows = Row::find_by_statement(statement(tx, sql, values)).all(tx).await?;
    let waiting = rows.into_iter().map(|row| {
        let mapping = Doomed {
            id: row.id,
            file_id: row.file_id,
            status: MappingStatus::Deleting,
            provider: provider.to_owned(),
            model: row.model,
            unknown_since: row.unknown_since,
            job_id: row.job_id,
            delete_job_id: None,
        };
        (mapping, row.owner)
    });
    Ok(waiting.collect())
}

/// → `deleting`. What was being sent, by a worker that is not known to run, may be there.
pub async fn begin(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    mappings: &[Doomed],
    is_uploading: bool,
) -> Result<(), DbErr> {
    for chunk in mappings.chunks(500) {
        let sql = format!(
            "UPDATE mappings SET status = 'deleting', error = NULL, delete_job_id = NULL, \
             unknown_since = CASE WHEN status = 'uploading' AND $2 THEN COALESCE(unknown_since, $1) \
             ELSE unknown_since END WHERE id IN ({})",
            placeholders(3, chunk.len())
        );
        let sql = if is_postgres(tx) { sql.replace("$1)", "$1::bigint)") } else { sql };
        let mut values: Vec<Value> = vec![now.0.into(), (!is_uploading).into()];
        values.extend(chunk.iter().map(|mapping| Value::from(mapping.id.0)));
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// → `deleted`, for what no provider has ever had.
pub async fn never_there(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    mappings: &[MappingId],
) -> Result<(), DbErr> {
    for chunk in mappings.chunks(500) {
        let sql = format!(
            "UPDATE mappings SET status = 'deleted', deleted_at = $1, receipt = $2 WHERE id IN ({})",
            placeholders(3, chunk.len())
        );
        let mut values: Vec<Value> = vec![now.0.into(), text(&Receipt::NEVER_THERE)?.into()];
        values.extend(chunk.iter().map(|id| Value::from(id.0)));
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// Notes which job deletes the copy.
pub async fn set_job(tx: &impl ConnectionTrait, id: MappingId, job: JobId) -> Result<(), DbErr> {
    let sql = "UPDATE mappings SET delete_job_id = $2 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into(), job.0.into()])).await.map(|_| ())
}

/// Makes the delete of a copy due that waited until nobody needs the copy any more.
pub async fn hasten(tx: &impl ConnectionTrait, id: MappingId) -> Result<(), DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        delete_job_id: JobId,
    }
    let sql = "SELECT delete_job_id FROM mappings \
               WHERE id = $1 AND status = 'deleting' AND delete_job_id IS NOT NULL";
    match Row::find_by_statement(statement(tx, sql, [id.0.into()])).one(tx).await? {
        Some(row) => jobs::store::hasten(tx, row.delete_job_id).await,
        None => Ok(()),
    }
}

/// Whether the upload of a mapping is still under way: what it leaves is not known before it has ended.
pub async fn is_uploading(db: &impl ConnectionTrait, id: MappingId) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM mappings JOIN jobs ON jobs.id = mappings.job_id \
               WHERE mappings.id = $1 AND jobs.status = 'running'";
    Ok(db.query_one_raw(statement(db, sql, [id.0.into()])).await?.is_some())
}

/// The upload of a mapping that is to be deleted has ended, with or without a copy: its delete can go.
/// `false` when the mapping is in another state.
pub async fn upload_ended(
    tx: &impl ConnectionTrait,
    id: MappingId,
    certainty: Certainty,
    copy: Option<&Copy>,
) -> Result<bool, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        delete_job_id: Option<JobId>,
    }
    let mut values: Vec<Value> =
        vec![id.0.into(), copy.map(|copy| copy.provider_file_id.clone()).into()];
    let unknown = if let Certainty::Unknown(at) = certainty {
        values.push(at.0.into());
        "unknown_since = $3, looked_at = NULL"
    } else {
        "unknown_since = unknown_since"
    };
    let sql = format!(
        "UPDATE mappings SET provider_file_id = COALESCE(provider_file_id, $2), {unknown} \
         WHERE id = $1 AND status IN ('deleting', 'undeletable') AND ($2 IS NULL OR provider_file_id IS NULL) \
         RETURNING delete_job_id"
    );
    let sql = if is_postgres(tx) { sql.replace("$2", "$2::text") } else { sql };
    let row = Row::find_by_statement(statement(tx, &sql, values)).one(tx).await?;
    let Some(row) = row else { return Ok(false) };
    if let Some(job) = row.delete_job_id {
        jobs::store::hasten(tx, job).await?;
    }
    Ok(true)
}

/// `deleting` → `deleted`.
pub async fn complete(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    receipt: &Receipt,
) -> Result<(), DbErr> {
    let sql = "UPDATE mappings SET status = 'deleted', deleted_at = $2, receipt = $3, error = NULL \
               WHERE id = $1 AND status = 'deleting'";
    let values: [Value; 3] = [upload.id.0.into(), now.0.into(), text(receipt)?.into()];
    if tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 0 {
        return Ok(());
    }
    if upload.unknown_since.is_some() {
        // A proxy may still deliver the request whose outcome nobody knows.
        outcome::verify_later(tx, now, upload).await?;
    }
    settle(tx, now, upload, 1).await
}

/// The deletes that have ended of a sweep are counted for each provider, so that it knows how many are queued.
async fn settle(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    ended: i64,
) -> Result<(), DbErr> {
    match files::deletion::settle(tx, now, upload.file_id, &upload.owner).await? {
        Some(sweep) => sweeps::store::count_ended(tx, sweep, &upload.provider, ended).await,
        None => Ok(()),
    }
}

/// The delete is to be tried again.
pub async fn postpone(
    tx: &impl ConnectionTrait,
    id: MappingId,
    failure: &Failure,
) -> Result<(), DbErr> {
    let sql = "UPDATE mappings SET error = $2 WHERE id = $1 AND status = 'deleting'";
    tx.execute_raw(statement(tx, sql, [id.0.into(), error(failure)?.into()])).await.map(|_| ())
}

/// `deleting` → `undeletable`, with the reason.
pub async fn give_up(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    failure: &Failure,
) -> Result<(), DbErr> {
    let sql = "UPDATE mappings SET status = 'undeletable', error = $2 WHERE id = $1 AND status = 'deleting'";
    let values: [Value; 2] = [upload.id.0.into(), error(failure)?.into()];
    if tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 0 {
        return Ok(());
    }
    settle(tx, now, upload, 1).await
}

/// `undeletable` → `deleting`, for a delete that was queued again. `false` when its mapping is in
/// another state.
pub async fn revive(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    job: JobId,
) -> Result<bool, DbErr> {
    let sql = format!(
        "UPDATE mappings SET status = 'deleting', \
         unknown_since = CASE WHEN {OUTCOME_DECIDED} THEN NULL ELSE unknown_since END, \
         looked_at = CASE WHEN {OUTCOME_DECIDED} THEN NULL ELSE looked_at END \
         WHERE id = $1 AND delete_job_id = $2 AND status = 'undeletable'"
    );
    let values: [Value; 2] = [upload.id.0.into(), job.0.into()];
    if tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 0 {
        return Ok(false);
    }
    settle(tx, now, upload, -1).await?;
    Ok(true)
}

/// Copies that their providers have let go of by now: `ready` → `expired`, at most `limit` of them.
pub async fn expire(tx: &impl ConnectionTrait, now: Timestamp, limit: u32) -> Result<u64, DbErr> {
    let sql = format!(
        "UPDATE mappings SET status = 'expired' WHERE id IN (SELECT id FROM mappings \
         WHERE status = 'ready' AND expires_at <= $1 AND expires_at <= (SELECT {}) ORDER BY expires_at LIMIT $2) \
         AND status = 'ready'",
        db::now(tx)
    );
    let values: [Value; 2] = [now.0.into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected())
}

fn text(receipt: &Receipt) -> Result<String, DbErr> {
    serde_json::to_string(receipt).map_err(|error| DbErr::Json(error.to_string()))
}

fn error(failure: &Failure) -> Result<String, DbErr> {
    serde_json::to_string(failure).map_err(|error| DbErr::Json(error.to_string()))
}
