//! The file object: OpenAI's, with what is ours added.

use serde::Serialize;

use crate::error::Error;
use crate::files::store::FileView;
use crate::files::store::MappingView;
use crate::files::store::Metadata;
use crate::jobs::Failure;

/// A file, as it is sent.
#[derive(Debug, Serialize)]
pub struct FileObject {
    pub id: String,
    object: &'static str,
    bytes: i64,
    created_at: i64,
    expires_at: Option<i64>,
    filename: String,
    purpose: String,
    status: String,
    status_details: Option<String>,
    sha256: String,
    metadata: Metadata,
    mappings: Vec<MappingObject>,
}

#[derive(Debug, Serialize)]
struct MappingObject {
    model: String,
    deployment_id: String,
    provider: String,
    status: String,
    provider_file_id: Option<String>,
    attempts: i32,
    error: Option<Failure>,
    job_id: String,
    expires_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<i64>,
}

impl From<FileView> for FileObject {
    fn from(view: FileView) -> Self {
        let FileView { file, mappings } = view;
        Self {
            metadata: file.metadata(),
            id: file.managed_id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at.unix_seconds(),
            expires_at: file.expires_at.map(|at| at.unix_seconds()),
            filename: file.filename,
            purpose: file.purpose,
            status: file.status,
            status_details: file.status_details,
            sha256: file.sha256,
            mappings: mappings.into_iter().map(MappingObject::from).collect(),
        }
    }
}

impl From<MappingView> for MappingObject {
    fn from(mapping: MappingView) -> Self {
        let (blocked_by, retry_at) = mapping.blocked();
        let (blocked_by, retry_at) =
            (blocked_by.map(str::to_owned), retry_at.map(|at| at.unix_seconds()));
        Self {
            blocked_by,
            retry_at,
            error: mapping.failure(),
            model: mapping.model,
            deployment_id: mapping.deployment_id,
            provider: mapping.provider,
            status: mapping.status,
            provider_file_id: mapping.provider_file_id,
            attempts: mapping.attempts,
            job_id: mapping.job_id.to_string(),
            expires_at: mapping.expires_at.map(|at| at.unix_seconds()),
        }
    }
}

/// The text of a file object, for an answer that is kept.
pub fn to_text(view: FileView) -> Result<String, Error> {
    serde_json::to_string(&FileObject::from(view)).map_err(|error| Error::Internal(error.into()))
}
