//! The deletion of a file as the API answers it, as far as this program shows it.

use comfy_table::Cell;
use serde::Deserialize;

use super::LastError;
use super::waiting;
use crate::cli::output::cell;
use crate::cli::output::optional;
use crate::cli::output::status;
use crate::cli::watch::Watched;

/// What became of a deleted file. Fields that are not known here are ignored.
#[derive(Clone, Debug, Deserialize)]
pub struct DeletionObject {
    #[serde(default)]
    pub status: String,
    /// Unix seconds.
    #[serde(default)]
    pub deleted_at: Option<i64>,
    #[serde(default)]
    pub mappings: Vec<DeletedCopy>,
}

/// What became of one copy.
#[derive(Clone, Debug, Deserialize)]
pub struct DeletedCopy {
    #[serde(default)]
    pub model: String,
    #[serde(default)]
    pub deployment_id: String,
    #[serde(default)]
    pub provider: String,
    #[serde(default)]
    pub provider_file_id: Option<String>,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub job_id: Option<String>,
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// What a pending delete waits for.
    #[serde(default)]
    pub blocked_by: Option<String>,
    #[serde(default)]
    pub error: Option<LastError>,
}

/// How it is known that a copy is gone.
#[derive(Clone, Debug, Deserialize)]
pub struct Receipt {
    #[serde(default)]
    pub proof: String,
    /// Of the provider's answer to the delete, if there was one.
    #[serde(default)]
    pub http_status: Option<u16>,
    #[serde(default)]
    pub is_verified: bool,
}

/// How far a deletion has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Some provider still has a copy. Also a status that this program does not know.
    Underway,
    Done,
    /// Nothing is tried any more, and some copy may be left.
    Failed,
}

impl DeletionObject {
    pub fn stage(&self) -> Stage {
        match self.status.as_str() {
            "done" => Stage::Done,
            "failed" => Stage::Failed,
            _ => Stage::Underway,
        }
    }

    /// How many copies are known to be gone.
    pub fn gone(&self) -> usize {
        self.mappings.iter().filter(|copy| copy.is_gone()).count()
    }
}

impl Watched for DeletionObject {
    fn is_over(&self) -> bool {
        self.stage() != Stage::Underway
    }
}

impl DeletedCopy {
    /// The columns of [`DeletedCopy::row`].
    pub const HEADINGS: &'static [&'static str] =
        &["MODEL", "PROVIDER", "STATUS", "RECEIPT", "PROVIDER FILE ID"];

    pub fn row(&self) -> Vec<Cell> {
        vec![
            cell(&self.model),
            cell(&self.provider),
            status(&self.status),
            optional(self.note().as_deref()),
            optional(self.provider_file_id.as_deref()),
        ]
    }

    /// Its state in one line, for a progress display. The receipt comes with the result.
    pub fn line(&self) -> String {
        let note = self.note().filter(|_| !self.is_gone());
        let note = note.map(|note| format!(": {note}")).unwrap_or_default();
        format!("{} at {} {}{note}", self.model, self.provider, self.status)
    }

    pub fn is_gone(&self) -> bool {
        self.status == "deleted"
    }

    /// The receipt, or what holds it up, or why there will be none.
    pub fn note(&self) -> Option<String> {
        if let Some(receipt) = &self.receipt {
            return Some(receipt.text());
        }
        let blocked = self.blocked_by.as_deref().map(|reason| waiting(reason, None));
        let error = self.error.as_ref().filter(|_| !self.is_gone()).and_then(LastError::text);
        match (blocked, error) {
            (Some(blocked), Some(error)) => Some(format!("{blocked}; {error}")),
            (blocked, error) => blocked.or(error),
        }
    }
}

impl Receipt {
    /// In words. A proof that is not known here stays as it is.
    pub fn text(&self) -> String {
        let proof = match self.proof.as_str() {
            // Nothing was there to be asked for.
            "never_sent" => return "never sent".to_owned(),
            "deleted" => "deleted",
            "already_gone" => "was gone already",
            "not_listed" => "not in the provider's list",
            other => other,
        };
        let answered =
            self.http_status.map(|status| format!(", answered {status}")).unwrap_or_default();
        let checked = if self.is_verified { ", checked" } else { "" };
        format!("{proof}{answered}{checked}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(receipt: serde_json::Value) -> String {
        serde_json::from_value::<Receipt>(receipt).unwrap().text()
    }

    #[test]
    fn a_receipt_says_what_the_provider_answered_and_whether_it_was_asked_again() {
        for (receipt, says) in [
            (
                json!({"proof": "deleted", "http_status": 200, "is_verified": true}),
                "deleted, answered 200, checked",
            ),
            (
                json!({"proof": "already_gone", "http_status": 404, "is_verified": false}),
                "was gone already, answered 404",
            ),
            (
                json!({"proof": "not_listed", "http_status": null, "is_verified": true}),
                "not in the provider's list, checked",
            ),
            (json!({"proof": "never_sent", "is_verified": true}), "never sent"),
            (json!({"proof": "news"}), "news"),
        ] {
            assert_eq!(text(receipt), says);
        }
    }
}
