//! A run on its way to its provider.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Run;
use super::clock;
use super::select;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::statement;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::RunId;

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

/// Doubts of every create that has not ended whether it was sent already: by another copy of this database.
pub async fn doubt_all(tx: &impl ConnectionTrait) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET unknown_since = COALESCE(unknown_since, {}), looked_at = NULL \
         WHERE provider_batch_id IS NULL AND ended_at IS NULL AND marker IS NOT NULL",
        db::now(tx)
    );
    tx.execute_unprepared(&sql).await.map(|_| ())
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
