//! The mappings table, and the strays beside it.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::MappingStatus;
use crate::clock::Timestamp;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::files;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::StrayId;
use crate::jobs::Failure;

/// A mapping to be written with its file.
#[derive(Clone, Debug)]
pub struct NewMapping {
    pub id: MappingId,
    pub file_id: FileId,
    /// The place among the file's mappings, as the client named the models.
    pub position: i32,
    pub deployment_id: String,
    /// What clients call the model.
    pub model: String,
    pub provider: String,
    /// What the provider calls it.
    pub provider_model: String,
    pub marker: String,
    pub job_id: JobId,
}

pub async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    mappings: &[NewMapping],
) -> Result<(), DbErr> {
    const COLUMNS: usize = 10;
    for chunk in mappings.chunks(500) {
        let mut values: Vec<Value> = Vec::with_capacity(chunk.len() * COLUMNS);
        for mapping in chunk {
            values.extend([
                Value::from(mapping.id.0),
                mapping.file_id.0.into(),
                mapping.position.into(),
                mapping.deployment_id.clone().into(),
                mapping.model.clone().into(),
                mapping.provider.clone().into(),
                mapping.provider_model.clone().into(),
                mapping.marker.clone().into(),
                mapping.job_id.0.into(),
                now.0.into(),
            ]);
        }
        let rows: Vec<_> = (0..chunk.len())
            .map(|row| format!("('pending', {})", placeholders(row * COLUMNS + 1, COLUMNS)))
            .collect();
        let sql = format!(
            "INSERT INTO mappings (status, id, file_id, position, deployment_id, model, provider, provider_model, \
             marker, job_id, created_at) VALUES {}",
            rows.join(", ")
        );
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// A mapping as a worker needs it, with what it needs of the file.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Upload {
    pub id: MappingId,
    pub file_id: FileId,
    pub status: String,
    pub model: String,
    pub provider: String,
    pub provider_model: String,
    pub marker: String,
    pub provider_file_id: Option<String>,
    /// Since when it is not known whether an upload took effect.
    pub unknown_since: Option<Timestamp>,
    /// When the provider's list was first read to the end without showing that upload.
    pub looked_at: Option<Timestamp>,
    pub ready_at: Option<Timestamp>,
    pub managed_id: String,
    pub owner: String,
    pub filename: String,
    pub content_type: String,
    pub purpose: String,
    pub bytes: i64,
    pub blob_key: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub deleted_at: Option<Timestamp>,
}

impl Upload {
    pub fn status(&self) -> Result<MappingStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }
}

pub async fn find_upload(
    db: &impl ConnectionTrait,
    id: MappingId,
) -> Result<Option<Upload>, DbErr> {
    let sql = "SELECT mappings.id, mappings.file_id, mappings.status, mappings.model, mappings.provider, \
               mappings.provider_model, mappings.marker, mappings.provider_file_id, mappings.unknown_since, \
               mappings.looked_at, mappings.ready_at, files.managed_id, files.owner, files.filename, files.content_type, files.purpose, \
               files.bytes, files.blob_key, files.expires_at, files.deleted_at \
               FROM mappings JOIN files ON files.id = mappings.file_id WHERE mappings.id = $1";
    Upload::find_by_statement(statement(db, sql, [id.0.into()])).one(db).await
}

/// A copy that a batch can run on, or not (yet).
#[derive(Clone, Debug, FromQueryResult)]
pub struct Target {
    pub id: MappingId,
    pub deployment_id: String,
    pub model: String,
    pub provider: String,
    pub provider_model: String,
    status: String,
    error: Option<String>,
}

impl Target {
    pub fn status(&self) -> Result<MappingStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    pub fn failure(&self) -> Option<Failure> {
        self.error.as_deref().and_then(|error| serde_json::from_str(error).ok())
    }
}

/// The copies of a file, in the order in which the client named the models.
pub async fn targets(db: &impl ConnectionTrait, file: FileId) -> Result<Vec<Target>, DbErr> {
    let sql = "SELECT id, deployment_id, model, provider, provider_model, status, error FROM mappings \
               WHERE file_id = $1 ORDER BY position";
    Target::find_by_statement(statement(db, sql, [file.0.into()])).all(db).await
}

/// The intent: written by the claim, so that it is on disk before the first byte leaves.
pub async fn begin_uploads(tx: &impl ConnectionTrait, ids: &[MappingId]) -> Result<(), DbErr> {
    if ids.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE mappings SET status = 'uploading', attempts = attempts + 1 \
         WHERE status IN ('pending', 'uploading') AND id IN ({})",
        placeholders(1, ids.len())
    );
    let values: Vec<Value> = ids.iter().map(|id| id.0.into()).collect();
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// What the provider has, once it said so.
#[derive(Clone, Debug)]
pub struct Copy {
    pub provider_file_id: String,
    pub expires_at: Option<Timestamp>,
}

/// `uploading` → `ready`. `false` when the mapping is in no state to take a copy: then it is a stray.
pub async fn complete(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: MappingId,
    copy: &Copy,
) -> Result<bool, DbErr> {
    let sql = "UPDATE mappings SET status = 'ready', provider_file_id = $2, expires_at = $3, ready_at = $4, \
               error = NULL, unknown_since = NULL, looked_at = NULL WHERE id = $1 AND status = 'uploading'";
    let values: [Value; 4] = [
        id.0.into(),
        copy.provider_file_id.clone().into(),
        copy.expires_at.map(|at| at.0).into(),
        now.0.into(),
    ];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 1)
}

/// `pending` → `ready`, for a copy that nobody uploaded: its provider made it.
pub async fn found(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: MappingId,
    copy: &Copy,
) -> Result<(), DbErr> {
    let sql = "UPDATE mappings SET status = 'ready', provider_file_id = $2, expires_at = $3, ready_at = $4 \
               WHERE id = $1 AND status = 'pending'";
    let values: [Value; 4] = [
        id.0.into(),
        copy.provider_file_id.clone().into(),
        copy.expires_at.map(|at| at.0).into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Whether it is known that the provider has nothing of an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// No byte of it counts, and an earlier unknown outcome (if any) was settled as absent.
    Absent,
    /// It may have taken effect, at this time at the latest.
    Unknown(Timestamp),
    /// As it was before: this attempt sent nothing.
    Unchanged,
}

/// `uploading` → `pending` or `failed`, with the reason.
pub async fn give_back(
    tx: &impl ConnectionTrait,
    id: MappingId,
    to: MappingStatus,
    certainty: Certainty,
    failure: Option<&Failure>,
) -> Result<bool, DbErr> {
    let error = failure
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| DbErr::Json(error.to_string()))?;
    let settle = match certainty {
        Certainty::Absent => "unknown_since = NULL, looked_at = NULL",
        // A newer unknown outcome begins its looks anew.
        Certainty::Unknown(_) => "unknown_since = $4, looked_at = NULL",
        Certainty::Unchanged => "unknown_since = unknown_since",
    };
    let mut values: Vec<Value> = vec![id.0.into(), to.as_str().into(), error.into()];
    if let Certainty::Unknown(at) = certainty {
        values.push(at.0.into());
    }
    let sql = format!(
        "UPDATE mappings SET status = $2, error = COALESCE($3, error), {settle} \
         WHERE id = $1 AND status IN ('pending', 'uploading')"
    );
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

/// Doubts of every upload that has not ended whether it was sent already: by another copy of this database.
pub async fn doubt_all(tx: &impl ConnectionTrait, now: Timestamp) -> Result<(), DbErr> {
    let sql = "UPDATE mappings SET unknown_since = COALESCE(unknown_since, $1), looked_at = NULL \
               WHERE status IN ('pending', 'uploading')";
    tx.execute_raw(statement(tx, sql, [now.0.into()])).await.map(|_| ())
}

/// The provider's list was read to its end and did not show the upload.
pub async fn looked(tx: &impl ConnectionTrait, id: MappingId, at: Timestamp) -> Result<(), DbErr> {
    let sql = "UPDATE mappings SET looked_at = $2 WHERE id = $1 AND unknown_since IS NOT NULL";
    tx.execute_raw(statement(tx, sql, [id.0.into(), at.0.into()])).await.map(|_| ())
}

/// A mapping whose unknown outcome nothing here could find out. Whoever retries it has looked at the provider.
pub const OUTCOME_DECIDED: &str = "error LIKE '{\"code\":\"outcome_unknown\"%'";

/// `failed` → `pending`, for those whose job was queued again.
pub async fn revive(tx: &impl ConnectionTrait, jobs: &[JobId]) -> Result<u64, DbErr> {
    if jobs.is_empty() {
        return Ok(0);
    }
    let sql = format!(
        "UPDATE mappings SET status = 'pending', \
         unknown_since = CASE WHEN {OUTCOME_DECIDED} THEN NULL ELSE unknown_since END, \
         looked_at = CASE WHEN {OUTCOME_DECIDED} THEN NULL ELSE looked_at END \
         WHERE status = 'failed' AND job_id IN ({})",
        placeholders(1, jobs.len()),
    );
    let values: Vec<Value> = jobs.iter().map(|id| id.0.into()).collect();
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected())
}

/// The jobs of a file's failed mappings.
pub async fn failed_jobs(tx: &impl ConnectionTrait, file_id: FileId) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        job_id: JobId,
    }
    let sql =
        "SELECT job_id FROM mappings WHERE file_id = $1 AND status = 'failed' ORDER BY position";
    let rows = Row::find_by_statement(statement(tx, sql, [file_id.0.into()])).all(tx).await?;
    Ok(rows.into_iter().map(|row| row.job_id).collect())
}

/// The mapping that a job carries or deletes, if it still does.
pub async fn of_job(
    tx: &impl ConnectionTrait,
    file_id: FileId,
    job_id: JobId,
) -> Result<Option<MappingId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: MappingId,
    }
    let sql = "SELECT id FROM mappings WHERE file_id = $1 AND (job_id = $2 OR delete_job_id = $2)";
    let row = Row::find_by_statement(statement(tx, sql, [file_id.0.into(), job_id.0.into()]))
        .one(tx)
        .await?;
    Ok(row.map(|row| row.id))
}

/// What the status of a file follows from.
pub struct Standing {
    pub model: String,
    pub status: MappingStatus,
    pub failure: Option<Failure>,
}

/// How a file's mappings stand, with the file locked on PostgreSQL: two mappings that end at
/// once must see each other, or neither would find the file complete.
pub async fn statuses(tx: &impl ConnectionTrait, file_id: FileId) -> Result<Vec<Standing>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        model: String,
        status: String,
        error: Option<String>,
    }
    files::store::lock(tx, file_id).await?;
    let sql = "SELECT model, status, error FROM mappings WHERE file_id = $1 ORDER BY position";
    let rows = Row::find_by_statement(statement(tx, sql, [file_id.0.into()])).all(tx).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Standing {
                status: row.status.parse().map_err(DbErr::Type)?,
                failure: row.error.as_deref().and_then(|error| serde_json::from_str(error).ok()),
                model: row.model,
            })
        })
        .collect()
}

/// A provider object that is ours and must go.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Stray {
    pub id: StrayId,
    pub provider_file_id: String,
}

/// Notes a copy that must go, unless it is the very one that the mapping holds. `false` when it was
/// noted already.
pub async fn add_stray(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    mapping_id: MappingId,
    provider: &str,
    provider_file_id: &str,
    reason: &str,
) -> Result<bool, DbErr> {
    let sql = "INSERT INTO strays (id, mapping_id, provider, provider_file_id, reason, found_at) \
               SELECT $1, mappings.id, $3, $4, $5, $6 FROM mappings WHERE mappings.id = $2 \
               AND (mappings.provider_file_id IS NULL OR mappings.provider_file_id <> $4 OR mappings.status = 'deleted') \
               ON CONFLICT (provider, provider_file_id) DO NOTHING";
    let sql = if is_postgres(tx) {
        sql.replace(
            "SELECT $1, mappings.id, $3, $4, $5, $6",
            "SELECT $1::uuid, mappings.id, $3::text, $4::text, $5::text, $6::bigint",
        )
    } else {
        sql.to_owned()
    };
    let values: [Value; 6] = [
        StrayId::mint().0.into(),
        mapping_id.0.into(),
        provider.into(),
        provider_file_id.into(),
        reason.into(),
        now.0.into(),
    ];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

/// Takes a stray back: its mapping holds it now.
pub async fn adopt_stray(
    tx: &impl ConnectionTrait,
    provider: &str,
    provider_file_id: &str,
) -> Result<(), DbErr> {
    let sql =
        "DELETE FROM strays WHERE provider = $1 AND provider_file_id = $2 AND condemned_at IS NULL";
    tx.execute_raw(statement(tx, sql, [provider.into(), provider_file_id.into()])).await.map(|_| ())
}

/// Decides which copies of a mapping go: those noted as strays, and those `found` in the provider's
/// list, but never the one that the mapping holds. `None` while an upload is under way: one of the
/// copies may become the mapping's yet.
///
/// The mapping stays locked until the transaction ends, so an upload that begins afterwards sees what
/// was condemned here and does not adopt it.
pub async fn condemn(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    found: &[String],
) -> Result<Option<Vec<Stray>>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        status: String,
        provider_file_id: Option<String>,
    }
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!("SELECT status, provider_file_id FROM mappings WHERE id = $1 {lock}");
    let row = Row::find_by_statement(statement(tx, &sql, [upload.id.0.into()])).one(tx).await?;
    let Some(row) = row else { return Ok(Some(Vec::new())) };
    let status: MappingStatus = row.status.parse().map_err(DbErr::Type)?;
    if status.is_working() {
        return Ok(None);
    }
    for id in found {
        add_stray(tx, now, upload.id, &upload.provider, id, "found in the provider's list").await?;
        // Said to be deleted, and there again.
        let sql =
            "UPDATE strays SET deleted_at = NULL WHERE mapping_id = $1 AND provider_file_id = $2";
        tx.execute_raw(statement(tx, sql, [upload.id.0.into(), id.clone().into()])).await?;
    }
    let sql = "UPDATE strays SET condemned_at = COALESCE(condemned_at, $2) \
               WHERE mapping_id = $1 AND deleted_at IS NULL AND provider_file_id <> $3 \
               RETURNING id, provider_file_id";
    // What a mapping held that is deleted is held by nobody.
    let is_held = status != MappingStatus::Deleted;
    let held = row.provider_file_id.filter(|_| is_held).unwrap_or_default();
    let values: [Value; 3] = [upload.id.0.into(), now.0.into(), held.into()];
    Stray::find_by_statement(statement(tx, sql, values)).all(tx).await.map(Some)
}

/// Copies of a mapping that are to go, so that nobody adopts them.
pub async fn condemned(db: &impl ConnectionTrait, id: MappingId) -> Result<Vec<String>, DbErr> {
    let sql = "SELECT id, provider_file_id FROM strays WHERE mapping_id = $1 AND condemned_at IS NOT NULL";
    let rows = Stray::find_by_statement(statement(db, sql, [id.0.into()])).all(db).await?;
    Ok(rows.into_iter().map(|stray| stray.provider_file_id).collect())
}

pub async fn stray_deleted(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: StrayId,
) -> Result<(), DbErr> {
    let sql = "UPDATE strays SET deleted_at = $2 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into(), now.0.into()])).await.map(|_| ())
}

/// Mappings with strays at a provider that were found before `before` and are there still; at most `limit`.
pub async fn mappings_with_strays(
    db: &impl ConnectionTrait,
    provider: &str,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<MappingId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        mapping_id: MappingId,
    }
    let sql = "SELECT DISTINCT mapping_id FROM strays WHERE provider = $1 AND deleted_at IS NULL AND found_at < $2 \
               LIMIT $3";
    let values: [Value; 3] = [provider.into(), before.0.into(), limit.into()];
    let rows = Row::find_by_statement(statement(db, sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|row| row.mapping_id).collect())
}

/// How many copies each provider has that are not deleted, in words: counted up to a thousand.
pub async fn copies_by_provider(db: &impl ConnectionTrait) -> Result<Vec<(String, String)>, DbErr> {
    const MOST: i64 = 1000;

    #[derive(FromQueryResult)]
    struct Name {
        name: Option<String>,
    }
    #[derive(FromQueryResult)]
    struct Copies {
        copies: i64,
    }
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        // A step over the index for each provider, however many copies it has.
        let sql = "SELECT min(provider) AS name FROM mappings WHERE provider > $1 AND provider_file_id IS NOT NULL";
        let next = Name::find_by_statement(statement(db, sql, [after.into()])).one(db).await?;
        let Some(name) = next.and_then(|row| row.name) else { return Ok(found) };
        let sql = "SELECT count(*) AS copies FROM (SELECT 1 FROM mappings WHERE provider = $1 \
                   AND provider_file_id IS NOT NULL AND status <> 'deleted' LIMIT $2) AS some";
        let values: [Value; 2] = [name.clone().into(), (MOST + 1).into()];
        let counted = Copies::find_by_statement(statement(db, sql, values)).one(db).await?;
        let text = match counted.map_or(0, |row| row.copies) {
            0 => None,
            1 => Some("1 copy".to_owned()),
            count if count > MOST => Some(format!("more than {MOST} copies")),
            count => Some(format!("{count} copies")),
        };
        found.extend(text.map(|text| (name.clone(), text)));
        after = name;
    }
}
