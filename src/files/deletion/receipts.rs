//! What is known of a deleted file: how far its deletion is, and the receipt of each copy.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Deletion;
use crate::clock::Timestamp;
use crate::db::statement;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::managed;
use crate::jobs::Failure;
use crate::jobs::lanes::NOT_CONFIGURED;
use crate::mappings::MappingStatus;
use crate::mappings::receipt::Receipt;

/// The deletion of a file.
#[derive(Clone, Debug)]
pub struct FileReceipt {
    pub id: FileId,
    pub managed_id: String,
    pub owner: String,
    pub deletion: Deletion,
    pub deleted_at: Timestamp,
    pub copies: Vec<CopyReceipt>,
}

/// The deletion of one copy.
#[derive(Clone, Debug, FromQueryResult)]
pub struct CopyReceipt {
    pub model: String,
    pub deployment_id: String,
    pub provider: String,
    pub provider_file_id: Option<String>,
    pub status: String,
    pub deleted_at: Option<Timestamp>,
    pub delete_job_id: Option<JobId>,
    receipt: Option<String>,
    error: Option<String>,
    pause_reason: Option<String>,
}

impl CopyReceipt {
    pub fn receipt(&self) -> Option<Receipt> {
        self.receipt.as_deref().and_then(|receipt| serde_json::from_str(receipt).ok())
    }

    pub fn failure(&self) -> Option<Failure> {
        self.error.as_deref().and_then(|error| serde_json::from_str(error).ok())
    }

    /// What the delete waits for; `is_served` tells whether its provider is configured.
    pub fn blocked_by(&self, is_served: bool) -> Option<&str> {
        if self.status != MappingStatus::Deleting.as_str() {
            return None;
        }
        if is_served { self.pause_reason.as_deref() } else { Some(NOT_CONFIGURED) }
    }
}

/// The deletion of a file by its managed id; none for one that is not deleted.
///
/// # Errors
///
/// What the database says.
pub async fn find(
    db: &impl ConnectionTrait,
    managed_id: &str,
) -> Result<Option<FileReceipt>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FileId,
        owner: String,
        deletion: String,
        deleted_at: Timestamp,
    }
    let sql = "SELECT id, owner, deletion, deleted_at FROM files WHERE managed_id_hash = $1 AND managed_id = $2 \
               AND deletion IS NOT NULL";
    let values: [Value; 2] = [managed::hash(managed_id).into(), managed_id.into()];
    let Some(row) = Row::find_by_statement(statement(db, sql, values)).one(db).await? else {
        return Ok(None);
    };
    let sql = "SELECT m.model, m.deployment_id, m.provider, m.provider_file_id, m.status, m.deleted_at, \
               m.delete_job_id, m.receipt, m.error, lanes.pause_reason FROM mappings m \
               LEFT JOIN jobs ON jobs.id = m.delete_job_id LEFT JOIN lanes ON lanes.name = jobs.lane \
               WHERE m.file_id = $1 ORDER BY m.position";
    let copies = CopyReceipt::find_by_statement(statement(db, sql, [row.id.0.into()]));
    Ok(Some(FileReceipt {
        id: row.id,
        managed_id: managed_id.to_owned(),
        owner: row.owner,
        deletion: row.deletion.parse().map_err(DbErr::Type)?,
        deleted_at: row.deleted_at,
        copies: copies.all(db).await?,
    }))
}
