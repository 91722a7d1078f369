//! The reconciliations table, and what a reconciliation asks of the mappings.

use std::collections::HashMap;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Report;
use crate::clock::Timestamp;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::ReconciliationId;
use crate::jobs::Failure;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;

/// A reconciliation, as it is stored.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Reconciliation {
    pub id: ReconciliationId,
    pub provider: String,
    pub job_id: JobId,
    pub is_dry_run: bool,
    pub status: String,
    report: Option<String>,
    error: Option<String>,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

impl Reconciliation {
    pub fn report(&self) -> Option<Report> {
        self.report.as_deref().and_then(|report| serde_json::from_str(report).ok())
    }

    pub fn failure(&self) -> Option<Failure> {
        self.error.as_deref().and_then(|error| serde_json::from_str(error).ok())
    }
}

const SELECT: &str = "SELECT id, provider, job_id, is_dry_run, status, report, error, created_at, finished_at \
     FROM reconciliations";

pub async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: ReconciliationId,
    provider: &str,
    job: JobId,
    is_dry_run: bool,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO reconciliations (id, provider, job_id, is_dry_run, status, created_at) \
               VALUES ($1, $2, $3, $4, 'queued', $5)";
    let values: [Value; 5] =
        [id.0.into(), provider.into(), job.0.into(), is_dry_run.into(), now.0.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

pub async fn find(
    db: &impl ConnectionTrait,
    id: ReconciliationId,
) -> Result<Option<Reconciliation>, DbErr> {
    let sql = format!("{SELECT} WHERE id = $1");
    Reconciliation::find_by_statement(statement(db, &sql, [id.0.into()])).one(db).await
}

/// The reconciliations of a provider, the last one first, at most `limit`.
pub async fn list(
    db: &impl ConnectionTrait,
    provider: &str,
    limit: u32,
) -> Result<Vec<Reconciliation>, DbErr> {
    let sql = format!("{SELECT} WHERE provider = $1 ORDER BY id DESC LIMIT $2");
    let values: [Value; 2] = [provider.into(), limit.into()];
    Reconciliation::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// A reconciliation of a provider that is not over yet.
pub async fn running(
    db: &impl ConnectionTrait,
    provider: &str,
    is_dry_run: bool,
) -> Result<Option<Reconciliation>, DbErr> {
    let sql = format!(
        "{SELECT} WHERE provider = $1 AND finished_at IS NULL AND is_dry_run = $2 ORDER BY id DESC LIMIT 1"
    );
    let values: [Value; 2] = [provider.into(), is_dry_run.into()];
    Reconciliation::find_by_statement(statement(db, &sql, values)).one(db).await
}

/// The last time that a provider was reconciled, and whether that is not over.
pub struct Last {
    pub at: Timestamp,
    pub is_running: bool,
    pub has_failed: bool,
}

/// The last one that was to delete something, as if the making of the installation had been the first.
pub async fn last(db: &impl ConnectionTrait, provider: &str) -> Result<Last, DbErr> {
    #[derive(FromQueryResult)]
    struct Made {
        created_at: Timestamp,
    }
    let sql = format!("{SELECT} WHERE provider = $1 AND NOT is_dry_run ORDER BY id DESC LIMIT 1");
    let last = Reconciliation::find_by_statement(statement(db, &sql, [provider.into()]));
    if let Some(last) = last.one(db).await? {
        return Ok(Last {
            at: last.created_at,
            is_running: last.finished_at.is_none(),
            has_failed: last.error.is_some(),
        });
    }
    let sql = "SELECT created_at FROM installation";
    let made = Made::find_by_statement(statement(db, sql, [])).one(db).await?;
    let made = made.ok_or_else(|| DbErr::RecordNotFound("the installation".to_owned()))?;
    Ok(Last { at: made.created_at, is_running: false, has_failed: false })
}

pub async fn finish(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: ReconciliationId,
    outcome: Result<&Report, &Failure>,
) -> Result<(), DbErr> {
    let json = |error: serde_json::Error| DbErr::Json(error.to_string());
    let (status, report, error) = match outcome {
        Ok(report) => ("succeeded", Some(serde_json::to_string(report).map_err(json)?), None),
        Err(failure) => ("failed", None, Some(serde_json::to_string(failure).map_err(json)?)),
    };
    let sql = "UPDATE reconciliations SET status = $2, report = $3, error = $4, finished_at = $5 \
               WHERE id = $1 AND status <> 'succeeded'";
    let values: [Value; 5] =
        [id.0.into(), status.into(), report.into(), error.into(), now.0.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Opens a failed reconciliation again, whose job was queued again.
pub async fn reopen(tx: &impl ConnectionTrait, id: ReconciliationId) -> Result<bool, DbErr> {
    let sql = "UPDATE reconciliations SET status = 'queued', error = NULL, finished_at = NULL \
               WHERE id = $1 AND status = 'failed'";
    Ok(tx.execute_raw(statement(tx, sql, [id.0.into()])).await?.rows_affected() == 1)
}

/// Forgets reconciliations older than `before`, at most `limit` of them.
pub async fn prune(tx: &impl ConnectionTrait, before: Timestamp, limit: u32) -> Result<u64, DbErr> {
    let sql = "DELETE FROM reconciliations WHERE id IN (SELECT id FROM reconciliations \
               WHERE finished_at < $1 ORDER BY id LIMIT $2)";
    let values: [Value; 2] = [before.0.into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected())
}

/// The mapping of a marker.
#[derive(Clone, Debug)]
pub struct Known {
    pub id: MappingId,
    pub marker: String,
    pub status: MappingStatus,
    pub provider: String,
    pub provider_file_id: Option<String>,
}

/// The mappings of these markers, by marker.
pub async fn known(
    db: &impl ConnectionTrait,
    markers: &[Marker],
) -> Result<HashMap<Marker, Known>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: MappingId,
        marker: String,
        status: String,
        provider: String,
        provider_file_id: Option<String>,
    }
    let mut known = HashMap::with_capacity(markers.len());
    for chunk in markers.chunks(500) {
        let sql = format!(
            "SELECT id, marker, status, provider, provider_file_id FROM mappings WHERE marker IN ({})",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|marker| marker.0.clone().into()).collect();
        for row in Row::find_by_statement(statement(db, &sql, values)).all(db).await? {
            let status = row.status.parse().map_err(DbErr::Type)?;
            let Row { id, marker, provider, provider_file_id, .. } = row;
            let found = Known { id, marker, status, provider, provider_file_id };
            known.insert(Marker(found.marker.clone()), found);
        }
    }
    Ok(known)
}

/// A copy that its provider should have.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Expected {
    pub id: MappingId,
    pub provider_file_id: String,
}

/// The copies that a provider should still have at `now` since before `before`, in the order of its ids, behind `after`;
/// at most `limit`.
pub async fn expected(
    db: &impl ConnectionTrait,
    provider: &str,
    now: Timestamp,
    before: Timestamp,
    after: &str,
    limit: u32,
) -> Result<Vec<Expected>, DbErr> {
    let sql = "SELECT id, provider_file_id FROM mappings WHERE provider = $1 AND provider_file_id > $2 \
               AND provider_file_id IS NOT NULL AND status = 'ready' AND ready_at < $3 \
               AND (expires_at IS NULL OR expires_at > $5) ORDER BY provider_file_id LIMIT $4";
    let values: [Value; 5] =
        [provider.into(), after.into(), before.0.into(), limit.into(), now.0.into()];
    Expected::find_by_statement(statement(db, sql, values)).all(db).await
}

/// `ready` → `lost`, for copies that the provider does not have any more.
pub async fn lose(tx: &impl ConnectionTrait, copies: &[Expected]) -> Result<u64, DbErr> {
    let mut lost = 0;
    for copy in copies {
        let sql = "UPDATE mappings SET status = 'lost' WHERE id = $1 AND status = 'ready' AND provider_file_id = $2";
        let values: [Value; 2] = [copy.id.0.into(), copy.provider_file_id.clone().into()];
        lost += tx.execute_raw(statement(tx, sql, values)).await?.rows_affected();
    }
    Ok(lost)
}
