//! What a request can end with other than success. `api::error` gives each its HTTP form.

use std::time::Duration;

use sea_orm::DbErr;

use crate::blobs::BlobError;
use crate::db::WriteError;
use crate::db::is_away;
use crate::db::is_disk_full;
use crate::db::is_overload;

/// A domain error. A variant exists because the client, or the API, reacts to it differently.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{message}")]
    Invalid { param: Option<&'static str>, code: Option<&'static str>, message: String },
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Forbidden(String),
    /// No such thing: `the file`, `x`.
    #[error("{message}")]
    NotFound { param: Option<&'static str>, code: &'static str, message: String },
    /// Not possible in this state. With `retry_after` it will be, soon.
    #[error("{message}")]
    Conflict { code: &'static str, message: String, retry_after: Option<Duration> },
    /// An idempotency key that was used with another request.
    #[error("{0}")]
    Mismatch(String),
    /// A file that is larger than it may be.
    #[error("{0}")]
    TooLarge(String),
    /// A body other than a file's.
    #[error("{0}")]
    BodyTooLarge(String),
    #[error("{0}")]
    HeadTooLarge(String),
    #[error("{0}")]
    UnsupportedMediaType(String),
    #[error("{0}")]
    SenderTooSlow(String),
    /// Too many at once. There will be room again soon.
    #[error("{message}")]
    Limited { code: &'static str, message: String, retry_after: Duration },
    /// None of the providers that could have answered did.
    #[error("{0}")]
    ProvidersFailed(String),
    /// The database or the blob store cannot be reached. The source is logged, never sent.
    #[error("{what} cannot be reached; try again")]
    Unavailable {
        what: &'static str,
        #[source]
        source: anyhow::Error,
    },
    /// Too much is under way here, or before the database or the blob store.
    #[error("the server has more to do than it can; try again")]
    Overloaded,
    #[error("the disk of {what} is full; free some room, or delete files")]
    DiskFull {
        what: &'static str,
        #[source]
        source: anyhow::Error,
    },
    /// Not the client's fault. The source is logged, never sent.
    #[error("internal error; the server's log says more under the `x-request-id` of this answer")]
    Internal(#[source] anyhow::Error),
}

impl Error {
    pub fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param), code: Some("invalid_value"), message: message.into() }
    }

    pub fn missing(param: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid {
            param: Some(param),
            code: Some("missing_required_parameter"),
            message: message.into(),
        }
    }

    /// A thing that does not exist. `param` is the name of the parameter that named it.
    pub fn no_such(thing: &str, param: &'static str, id: &str) -> Self {
        let id: String = id.chars().take(200).collect();
        // As OpenAI names its files; ours are longer.
        let hint = if thing == "file" && id.starts_with("file-") {
            "; this looks like a provider's id: use the one that the upload here has answered"
        } else {
            ""
        };
        Self::NotFound {
            param: Some(param),
            code: "not_found",
            message: format!("no such {thing}: `{id}`{hint}"),
        }
    }

    /// A thing that belongs to another owner.
    pub fn foreign(owner: &str, thing: &str, id: &str) -> Self {
        Self::Forbidden(format!("User {owner} does not have access to the {thing} {id}"))
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let what = "the database";
        if is_disk_full(&error) {
            return Self::DiskFull { what, source: error.into() };
        }
        if is_overload(&error) {
            return Self::Overloaded;
        }
        if is_away(&error) {
            Self::Unavailable { what, source: error.into() }
        } else {
            Self::Internal(error.into())
        }
    }
}

impl WriteError for Error {
    fn as_db_err(&self) -> Option<&DbErr> {
        match self {
            Self::Unavailable { source, .. }
            | Self::DiskFull { source, .. }
            | Self::Internal(source) => source.downcast_ref(),
            _ => None,
        }
    }
}

impl From<BlobError> for Error {
    fn from(error: BlobError) -> Self {
        let what = "the blob store";
        match &error {
            BlobError::Full(_) => Self::DiskFull { what, source: error.into() },
            BlobError::Missing(_) => Self::Internal(error.into()),
            BlobError::NoBuffer => Self::Overloaded,
            BlobError::NoBucket(_) | BlobError::Refused(_) | BlobError::Store(_) => {
                Self::Unavailable { what, source: error.into() }
            }
        }
    }
}
