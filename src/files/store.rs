//! The files table.

use std::collections::BTreeMap;
use std::collections::HashMap;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::FileStatus;
use crate::clock::Timestamp;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::managed;
use crate::jobs::Failure;
use crate::jobs::JobStatus;
use crate::jobs::lanes::FOR_EVER;
use crate::jobs::lanes::Pause;
use crate::mappings::MappingStatus;
use crate::mappings::store::NewMapping;
use crate::owners::Scope;
use crate::page::Page;
use crate::page::Query;

/// Pairs that a client attached to its file.
pub type Metadata = BTreeMap<String, String>;

/// A file to be written.
#[derive(Clone, Debug)]
pub struct NewFile {
    pub id: FileId,
    pub managed_id: String,
    pub owner: String,
    pub filename: String,
    pub content_type: String,
    pub purpose: String,
    pub bytes: u64,
    pub sha256: String,
    pub metadata: Metadata,
    pub blob_key: String,
    pub expires_at: Option<Timestamp>,
    /// The requests of a batch file.
    pub lines: Option<u64>,
}

pub async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    file: &NewFile,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO files (id, managed_id, managed_id_hash, owner, filename, content_type, purpose, bytes, \
               sha256, metadata, blob_key, status, expires_at, created_at, lines) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'uploaded', $12, $13, $14)";
    let values: [Value; 14] = [
        file.id.0.into(),
        file.managed_id.clone().into(),
        managed::hash(&file.managed_id).into(),
        file.owner.clone().into(),
        file.filename.clone().into(),
        file.content_type.clone().into(),
        file.purpose.clone().into(),
        signed(file.bytes).into(),
        file.sha256.clone().into(),
        metadata_text(&file.metadata)?.into(),
        file.blob_key.clone().into(),
        file.expires_at.map(|at| at.0).into(),
        now.0.into(),
        file.lines.map(signed).into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

fn metadata_text(metadata: &Metadata) -> Result<String, DbErr> {
    serde_json::to_string(metadata).map_err(|error| DbErr::Json(error.to_string()))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A file, as it is stored.
#[derive(Clone, Debug, FromQueryResult)]
pub struct File {
    pub id: FileId,
    pub managed_id: String,
    pub owner: String,
    pub filename: String,
    pub content_type: String,
    pub purpose: String,
    pub bytes: i64,
    pub lines: Option<i64>,
    pub sha256: String,
    pub metadata: String,
    pub blob_key: Option<String>,
    pub status: String,
    pub status_details: Option<String>,
    pub expires_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub deleted_at: Option<Timestamp>,
}

impl File {
    /// As it is stored now that it was inserted.
    ///
    /// # Errors
    ///
    /// As [`insert`], for metadata that cannot be written as JSON.
    pub fn written(file: &NewFile, now: Timestamp) -> Result<Self, DbErr> {
        Ok(Self {
            id: file.id,
            managed_id: file.managed_id.clone(),
            owner: file.owner.clone(),
            filename: file.filename.clone(),
            content_type: file.content_type.clone(),
            purpose: file.purpose.clone(),
            bytes: signed(file.bytes),
            lines: file.lines.map(signed),
            sha256: file.sha256.clone(),
            metadata: metadata_text(&file.metadata)?,
            blob_key: Some(file.blob_key.clone()),
            status: FileStatus::Uploaded.as_str().to_owned(),
            status_details: None,
            expires_at: file.expires_at,
            created_at: now,
            deleted_at: None,
        })
    }

    pub fn status(&self) -> Result<FileStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    pub fn metadata(&self) -> Metadata {
        serde_json::from_str(&self.metadata).unwrap_or_default()
    }
}

/// One of a file's mappings, as a client sees it.
#[derive(Clone, Debug, FromQueryResult)]
pub struct MappingView {
    pub deployment_id: String,
    pub model: String,
    pub provider: String,
    pub status: String,
    pub provider_file_id: Option<String>,
    pub attempts: i32,
    pub error: Option<String>,
    pub job_id: JobId,
    pub expires_at: Option<Timestamp>,
    job_status: Option<String>,
    run_at: Option<Timestamp>,
    pause_reason: Option<String>,
    paused_until: Option<Timestamp>,
}

impl MappingView {
    /// As it is seen now that it and its job were inserted, in a lane that stands still or not.
    pub fn written(mapping: NewMapping, pause: Option<&Pause>) -> Self {
        Self {
            deployment_id: mapping.deployment_id,
            model: mapping.model,
            provider: mapping.provider,
            status: MappingStatus::Pending.as_str().to_owned(),
            provider_file_id: None,
            attempts: 0,
            error: None,
            job_id: mapping.job_id,
            expires_at: None,
            job_status: Some(JobStatus::Queued.as_str().to_owned()),
            // It is due at once.
            run_at: None,
            pause_reason: pause.map(|pause| pause.reason.as_str().to_owned()),
            paused_until: pause.map(|pause| pause.until),
        }
    }

    pub fn status(&self) -> Result<MappingStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    pub fn failure(&self) -> Option<Failure> {
        self.error.as_deref().and_then(|error| serde_json::from_str(error).ok())
    }

    /// What a mapping that is not ready yet waits for, and until when, where that is known.
    pub fn blocked(&self) -> (Option<&str>, Option<Timestamp>) {
        let waits = matches!(self.job_status.as_deref(), Some("queued" | "retrying"))
            && matches!(self.status(), Ok(status) if status.is_working());
        if !waits {
            return (None, None);
        }
        let retry_at = match self.paused_until {
            // Nobody knows when somebody will act.
            Some(FOR_EVER) => None,
            paused_until => paused_until.max(self.run_at),
        };
        (
            self.pause_reason.as_deref(),
            retry_at.filter(|_| self.attempts > 0 || self.pause_reason.is_some()),
        )
    }
}

/// A file with its mappings, in the order in which the client named the models.
#[derive(Clone, Debug)]
pub struct FileView {
    pub file: File,
    pub mappings: Vec<MappingView>,
}

const FILE_COLUMNS: &str = "files.id, files.managed_id, files.owner, files.filename, files.content_type, \
     files.purpose, files.bytes, files.lines, files.sha256, files.metadata, files.blob_key, files.status, files.status_details, \
     files.expires_at, files.created_at, files.deleted_at";

const MAPPING_COLUMNS: &str = "m.file_id AS m_file_id, m.deployment_id AS m_deployment_id, m.model AS m_model, \
     m.provider AS m_provider, m.status AS m_status, m.provider_file_id AS m_provider_file_id, \
     m.attempts AS m_attempts, m.error AS m_error, m.job_id AS m_job_id, m.expires_at AS m_expires_at, \
     jobs.status AS m_job_status, jobs.run_at AS m_run_at, lanes.pause_reason AS m_pause_reason, \
     lanes.paused_until AS m_paused_until";

const MAPPING_JOINS: &str =
    "LEFT JOIN jobs ON jobs.id = m.job_id LEFT JOIN lanes ON lanes.name = jobs.lane";

/// A file by its managed id, tombstones included, in one statement. The id is compared as text:
/// what it decodes to does not matter.
pub async fn find(db: &impl ConnectionTrait, managed_id: &str) -> Result<Option<FileView>, DbErr> {
    let sql = format!(
        "SELECT {FILE_COLUMNS}, {MAPPING_COLUMNS} FROM files LEFT JOIN mappings m ON m.file_id = files.id \
         {MAPPING_JOINS} WHERE files.managed_id_hash = $1 AND files.managed_id = $2 ORDER BY m.position"
    );
    let values: [Value; 2] = [managed::hash(managed_id).into(), managed_id.into()];
    view(db.query_all_raw(statement(db, &sql, values)).await?)
}

/// A file by its own id, tombstones included, in one statement.
pub async fn find_by_id(db: &impl ConnectionTrait, id: FileId) -> Result<Option<FileView>, DbErr> {
    let sql = format!(
        "SELECT {FILE_COLUMNS}, {MAPPING_COLUMNS} FROM files LEFT JOIN mappings m ON m.file_id = files.id \
         {MAPPING_JOINS} WHERE files.id = $1 ORDER BY m.position"
    );
    view(db.query_all_raw(statement(db, &sql, [id.0.into()])).await?)
}

fn view(rows: Vec<sea_orm::QueryResult>) -> Result<Option<FileView>, DbErr> {
    let Some(first) = rows.first() else { return Ok(None) };
    let file = File::from_query_result(first, "")?;
    let mut mappings = Vec::with_capacity(rows.len());
    for row in &rows {
        if row.try_get::<Option<FileId>>("", "m_file_id")?.is_some() {
            mappings.push(MappingView::from_query_result(row, "m_")?);
        }
    }
    Ok(Some(FileView { file, mappings }))
}

/// The id of a file by its managed id, tombstones included: what `after` may name in a list.
pub async fn position(
    db: &impl ConnectionTrait,
    managed_id: &str,
) -> Result<Option<(FileId, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FileId,
        owner: String,
    }
    let sql = "SELECT id, owner FROM files WHERE managed_id_hash = $1 AND managed_id = $2";
    let values: [Value; 2] = [managed::hash(managed_id).into(), managed_id.into()];
    let row = Row::find_by_statement(statement(db, sql, values)).one(db).await?;
    Ok(row.map(|row| (row.id, row.owner)))
}

/// Whether there is any file, tombstones included.
pub async fn is_any(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM files LIMIT 1";
    Ok(db.query_one_raw(statement(db, sql, [])).await?.is_some())
}

/// The ids and owners of files by their managed ids, tombstones included.
pub async fn positions(
    db: &impl ConnectionTrait,
    managed_ids: &[String],
) -> Result<HashMap<String, (FileId, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: FileId,
        managed_id: String,
        owner: String,
    }
    let mut found = HashMap::with_capacity(managed_ids.len());
    for chunk in managed_ids.chunks(500) {
        let sql = format!(
            "SELECT id, managed_id, owner FROM files WHERE managed_id_hash IN ({})",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| managed::hash(id).into()).collect();
        for row in Row::find_by_statement(statement(db, &sql, values)).all(db).await? {
            found.insert(row.managed_id, (row.id, row.owner));
        }
    }
    Ok(found)
}

/// What a list of files is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub purpose: Option<String>,
    pub status: Option<FileStatus>,
    /// A model that the file was sent to.
    pub model: Option<String>,
}

/// One page of files, `page.limit + 1` at most: the one more tells that there is another page.
pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    filter: &Filter,
    page: &Page<FileId>,
) -> Result<Vec<FileView>, DbErr> {
    let mut query = Query::new(&format!("SELECT {FILE_COLUMNS} FROM files"));
    match scope {
        Scope::Owner(owner) => query.filter("files.owner =", owner.clone()),
        Scope::Everything => query.filter("files.owner >=", ""),
    }
    query.condition("files.deleted_at IS NULL");
    if let Some(purpose) = &filter.purpose {
        query.filter("files.purpose =", purpose.clone());
    }
    if let Some(status) = filter.status {
        query.filter("files.status =", status.as_str());
    }
    if let Some(model) = &filter.model {
        query.filter(
            "EXISTS (SELECT 1 FROM mappings WHERE mappings.file_id = files.id AND mappings.model =",
            model.clone(),
        );
        query.close();
    }
    let (sql, values) = query.finish("files.id", page.after.map(|id| id.0), page);
    let files = File::find_by_statement(statement(db, &sql, values)).all(db).await?;
    let ids: Vec<FileId> = files.iter().map(|file| file.id).collect();
    let mut mappings = mappings_of(db, &ids).await?;
    let views = files.into_iter().map(|file| {
        let mappings = mappings.remove(&file.id).unwrap_or_default();
        FileView { file, mappings }
    });
    Ok(views.collect())
}

async fn mappings_of(
    db: &impl ConnectionTrait,
    files: &[FileId],
) -> Result<HashMap<FileId, Vec<MappingView>>, DbErr> {
    let mut found: HashMap<FileId, Vec<MappingView>> = HashMap::new();
    for chunk in files.chunks(500) {
        let sql = format!(
            "SELECT {MAPPING_COLUMNS} FROM mappings m {MAPPING_JOINS} WHERE m.file_id IN ({}) \
             ORDER BY m.file_id, m.position",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| id.0.into()).collect();
        for row in db.query_all_raw(statement(db, &sql, values)).await? {
            let file = row.try_get::<FileId>("", "m_file_id")?;
            found.entry(file).or_default().push(MappingView::from_query_result(&row, "m_")?);
        }
    }
    Ok(found)
}

/// Holds a file until the transaction ends, so that whoever changes its mappings sees what others
/// changed. (SQLite has one writer anyway.)
pub async fn lock(tx: &impl ConnectionTrait, id: FileId) -> Result<(), DbErr> {
    if is_postgres(tx) {
        // Beside the key-share locks that the mappings' foreign key takes, or two could wait for each other.
        let sql = "SELECT 1 FROM files WHERE id = $1 FOR NO KEY UPDATE";
        tx.execute_raw(statement(tx, sql, [id.0.into()])).await?;
    }
    Ok(())
}

/// Sets the status that follows from the mappings. `true` when that changed something.
pub async fn set_status(
    tx: &impl ConnectionTrait,
    id: FileId,
    status: FileStatus,
    details: Option<&str>,
) -> Result<bool, DbErr> {
    let sql = "UPDATE files SET status = $2, status_details = $3 \
               WHERE id = $1 AND deleted_at IS NULL AND status <> $2";
    let values: [Value; 3] = [id.0.into(), status.as_str().into(), details.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 1)
}

/// The blobs of the newest files, at most `limit`.
pub async fn newest_blobs(db: &impl ConnectionTrait, limit: u32) -> Result<Vec<String>, DbErr> {
    let sql = "SELECT blob_key FROM files WHERE blob_key IS NOT NULL AND deleted_at IS NULL \
               ORDER BY id DESC LIMIT $1";
    let rows = db.query_all_raw(statement(db, sql, [i64::from(limit).into()])).await?;
    rows.iter().map(|row| row.try_get("", "blob_key")).collect()
}

/// A file by what a provider calls its copy.
#[derive(Clone, Debug, FromQueryResult)]
pub struct OfCopy {
    pub file_id: FileId,
    pub managed_id: String,
    pub mapping_id: MappingId,
}

/// The file of an owner whose copy at a provider is this, if it is not deleted.
pub async fn of_copy(
    db: &impl ConnectionTrait,
    provider: &str,
    provider_file_id: &str,
    owner: &str,
) -> Result<Option<OfCopy>, DbErr> {
    let sql = "SELECT files.id AS file_id, files.managed_id, mappings.id AS mapping_id \
               FROM mappings JOIN files ON files.id = mappings.file_id \
               WHERE mappings.provider = $1 AND mappings.provider_file_id = $2 AND files.owner = $3 \
               AND files.deleted_at IS NULL LIMIT 1";
    let values: [Value; 3] = [provider.into(), provider_file_id.into(), owner.into()];
    OfCopy::find_by_statement(statement(db, sql, values)).one(db).await
}

/// Whether there is a file that is not deleted.
pub async fn is_live(db: &impl ConnectionTrait, id: FileId) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM files WHERE id = $1 AND deleted_at IS NULL";
    Ok(db.query_one_raw(statement(db, sql, [id.0.into()])).await?.is_some())
}

/// Which of these blobs a file needs, to tell orphans from the rest.
pub async fn known_blobs(db: &impl ConnectionTrait, keys: &[String]) -> Result<Vec<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        blob_key: String,
    }
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let sql =
        format!("SELECT blob_key FROM files WHERE blob_key IN ({})", placeholders(1, keys.len()));
    let values: Vec<Value> = keys.iter().map(|key| key.clone().into()).collect();
    let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|row| row.blob_key).collect())
}

/// Which of these files are in a final state, for those who wait for one.
pub async fn final_among(
    db: &impl ConnectionTrait,
    ids: &[uuid::Uuid],
) -> Result<Vec<uuid::Uuid>, DbErr> {
    let sql = format!(
        "SELECT id FROM files WHERE status <> 'uploaded' AND (deletion IS NULL OR deletion <> 'pending') \
         AND id IN ({})",
        placeholders(1, ids.len())
    );
    let values: Vec<Value> = ids.iter().map(|id| (*id).into()).collect();
    let rows = db.query_all_raw(statement(db, &sql, values)).await?;
    rows.iter().map(|row| row.try_get("", "id")).collect()
}

/// What clients call these files, also deleted ones.
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
            "SELECT id, managed_id FROM files WHERE id IN ({})",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| (*id).into()).collect();
        let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
        found.extend(rows.into_iter().map(|row| (row.id, row.managed_id)));
    }
    Ok(found)
}

/// Holds files until the transaction ends, in an order that is the same for all.
pub async fn lock_all(tx: &impl ConnectionTrait, ids: &[FileId]) -> Result<(), DbErr> {
    if is_postgres(tx) && !ids.is_empty() {
        let sql = format!(
            "SELECT 1 FROM files WHERE id IN ({}) ORDER BY id FOR NO KEY UPDATE",
            placeholders(1, ids.len())
        );
        let values: Vec<Value> = ids.iter().map(|id| id.0.into()).collect();
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}
