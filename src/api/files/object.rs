//! The file object: OpenAI's, with what is ours added.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use crate::api::description::described;
use crate::api::description::words;
use crate::error::Error;
use crate::files::FileStatus;
use crate::files::Purpose;
use crate::files::store::FileView;
use crate::files::store::MappingView;
use crate::files::store::Metadata;
use crate::jobs::Failure;
use crate::jobs::lanes::NOT_CONFIGURED;
use crate::jobs::lanes::PauseReason;
use crate::mappings::MappingStatus;

/// A file, and how far its copies are.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = File)]
pub struct FileObject {
    /// Opaque, and longer than OpenAI's.
    pub id: String,
    #[schema(schema_with = is_file)]
    object: &'static str,
    bytes: i64,
    created_at: i64,
    #[schema(required = true)]
    expires_at: Option<i64>,
    filename: String,
    #[schema(schema_with = purposes)]
    purpose: String,
    #[schema(schema_with = file_status)]
    status: String,
    /// Which copies failed, and why.
    #[schema(required = true)]
    status_details: Option<String>,
    /// Of the bytes, in hexadecimal.
    sha256: String,
    #[schema(value_type = BTreeMap<String, String>)]
    metadata: Metadata,
    /// The copies, one for each deployment of the models it was sent to.
    mappings: Vec<MappingObject>,
}

/// The copy of a file at one deployment.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Mapping)]
struct MappingObject {
    /// The model, as clients name it.
    model: String,
    deployment_id: String,
    /// The provider, as it is named in the configuration.
    provider: String,
    #[schema(schema_with = mapping_statuses)]
    status: String,
    /// The provider's own id of the copy, once there is one.
    #[schema(required = true)]
    provider_file_id: Option<String>,
    /// How many tries were started.
    attempts: i32,
    /// The last failure, also while it is still being retried.
    #[schema(required = true)]
    error: Option<Failure>,
    /// The job that carries the copy.
    job_id: String,
    /// When the provider itself lets go of the copy.
    #[schema(required = true)]
    expires_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = pause_reasons, required = false)]
    blocked_by: Option<String>,
    /// Until when it waits, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i64, required = false)]
    retry_at: Option<i64>,
}

fn is_file() -> Object {
    words(["file"])
}

pub fn purposes() -> Object {
    words(Purpose::ALL.map(Purpose::as_str))
}

pub fn uploaded_purposes() -> Object {
    words(Purpose::UPLOADED.map(Purpose::as_str))
}

/// Those that are seen. A deleted file is not.
pub fn file_statuses() -> Object {
    let seen = FileStatus::ALL.into_iter().filter(|status| *status != FileStatus::Deleted);
    words(seen.map(FileStatus::as_str))
}

fn file_status() -> Object {
    let text = "`uploaded` while some copy is still on its way, `processed` when every model has its copy, \
                `error` when no copy is on its way and at least one failed.";
    described(file_statuses(), text)
}

pub fn mapping_statuses() -> Object {
    words(MappingStatus::ALL.map(MappingStatus::as_str))
}

pub fn pause_reasons() -> Object {
    let text = "Why nothing is sent to the provider for now.";
    let reasons = PauseReason::ALL.map(PauseReason::as_str).into_iter();
    described(words(reasons.chain([NOT_CONFIGURED])), text)
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
