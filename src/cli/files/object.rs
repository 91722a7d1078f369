//! The file object of the API, as far as this program shows it.

use comfy_table::Cell;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::cli::{
    list::Listed,
    output::{bytes, cell, optional, status, time},
};

/// A file. Fields that are not known here are ignored, and all but the id may be missing.
#[derive(Clone, Debug, Deserialize)]
pub struct FileObject {
    pub id: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub status_details: Option<String>,
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Unix seconds.
    #[serde(default)]
    pub created_at: Option<i64>,
    /// Unix seconds.
    #[serde(default)]
    pub expires_at: Option<i64>,
    #[serde(default)]
    pub filename: Option<String>,
    #[serde(default)]
    pub purpose: Option<String>,
    #[serde(default)]
    pub sha256: Option<String>,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    #[serde(default)]
    pub mappings: Vec<Mapping>,
}

/// What became of a file at one deployment.
#[derive(Clone, Debug, Deserialize)]
pub struct Mapping {
    #[serde(default)]
    pub model: String,
    #[serde(default)]
    pub deployment_id: String,
    #[serde(default)]
    pub provider: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub provider_file_id: Option<String>,
    #[serde(default)]
    pub attempts: u32,
    /// What a pending one waits for.
    #[serde(default)]
    pub blocked_by: Option<String>,
    /// Unix seconds.
    #[serde(default)]
    pub retry_at: Option<i64>,
    #[serde(default)]
    pub error: Option<LastError>,
}

/// The last failure, also while it is still being retried.
#[derive(Clone, Debug, Deserialize)]
pub struct LastError {
    #[serde(default)]
    pub code: Option<String>,
    #[serde(default)]
    pub message: Option<String>,
}

/// How far a file has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Some provider does not have it yet. Also a status that this program does not know.
    Underway,
    Processed,
    /// It ended without being everywhere.
    Failed,
}

impl FileObject {
    pub fn stage(&self) -> Stage {
        match self.status.as_str() {
            "processed" => Stage::Processed,
            "error" | "deleted" => Stage::Failed,
            _ => Stage::Underway,
        }
    }

    /// Its size for a person.
    pub fn size(&self) -> String {
        self.bytes.map_or_else(|| "-".to_owned(), bytes)
    }

    /// Its name, or its id where it has none.
    pub fn name(&self) -> &str {
        self.filename.as_deref().unwrap_or(&self.id)
    }
}

impl Listed for FileObject {
    const HEADINGS: &'static [&'static str] =
        &["STATUS", "PURPOSE", "SIZE", "CREATED", "READY", "FILENAME", "ID"];

    fn id(&self) -> &str {
        &self.id
    }

    fn row(&self) -> Vec<Cell> {
        let ready = self.mappings.iter().filter(|mapping| mapping.status == "ready").count();
        vec![
            status(&self.status),
            optional(self.purpose.as_deref()),
            cell(&self.size()),
            cell(&time(self.created_at)),
            cell(&format!("{ready}/{}", self.mappings.len())),
            optional(self.filename.as_deref()),
            cell(&self.id),
        ]
    }
}

impl Mapping {
    /// The columns of [`Mapping::row`].
    pub const HEADINGS: &'static [&'static str] =
        &["MODEL", "PROVIDER", "STATUS", "ATTEMPTS", "NOTE", "PROVIDER FILE ID"];

    pub fn row(&self) -> Vec<Cell> {
        vec![
            cell(&self.model),
            cell(&self.provider),
            status(&self.status),
            cell(&self.attempts.to_string()),
            cell(&self.note().unwrap_or_else(|| "-".to_owned())),
            optional(self.provider_file_id.as_deref()),
        ]
    }

    /// Its state in one line, for a progress display.
    pub fn line(&self) -> String {
        let note = self.note().map(|note| format!(": {note}")).unwrap_or_default();
        format!("{} at {} {}{note}", self.model, self.provider, self.status)
    }

    /// What holds it up or what went wrong; nothing once it is ready.
    fn note(&self) -> Option<String> {
        if self.status == "ready" {
            return None;
        }
        let blocked = self.blocked_by.as_deref().map(|reason| waiting(reason, self.retry_at));
        let error = self.error.as_ref().and_then(LastError::text);
        match (blocked, error) {
            (Some(blocked), Some(error)) => Some(format!("{blocked}; {error}")),
            (blocked, error) => blocked.or(error),
        }
    }
}

impl LastError {
    /// Code and message in one line.
    pub fn text(&self) -> Option<String> {
        match (&self.code, &self.message) {
            (Some(code), Some(message)) => Some(format!("{code}: {message}")),
            (code, message) => message.clone().or_else(|| code.clone()),
        }
    }
}

/// What a mapping or job waits for, in words. A reason that is not known here stays as it is.
pub fn waiting(reason: &str, until: Option<i64>) -> String {
    let reason = match reason {
        "rate_limit" => "for the provider's request limit",
        "outage" => "for the provider to answer again",
        "credential_rejected" => "for a key that the provider takes (its `api_key`)",
        "out_of_money" => "for credit at the provider",
        "capacity" => "for room at the provider",
        "paused" => "for an admin to resume the provider",
        other => &format!("for `{other}`"),
    };
    match until {
        Some(at) => format!("waits {reason}, until {}", time(Some(at))),
        None => format!("waits {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_a_pause_is_said_in_words() {
        for reason in crate::jobs::lanes::PauseReason::ALL {
            let said = waiting(reason.as_str(), None);
            assert!(!said.contains(reason.as_str()) || reason.as_str() == "paused", "{said}");
        }
        assert_eq!(waiting("news", Some(0)), "waits for `news`, until 1970-01-01T00:00:00Z");
    }
}
