//! The batch object of the API, as far as this program shows it.

use comfy_table::Cell;
use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;

use crate::cli::files::LastError;
use crate::cli::files::waiting;
use crate::cli::list::Listed;
use crate::cli::output::cell;
use crate::cli::output::optional;
use crate::cli::output::status;
use crate::cli::output::time;
use crate::cli::watch::Watched;

/// A batch. Fields that are not known here are ignored, and all but the id may be missing.
#[derive(Clone, Debug, Deserialize)]
pub struct BatchObject {
    pub id: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub endpoint: String,
    #[serde(default)]
    pub input_file_id: String,
    #[serde(default)]
    pub output_file_id: Option<String>,
    #[serde(default)]
    pub error_file_id: Option<String>,
    #[serde(default)]
    pub errors: Option<Errors>,
    #[serde(default)]
    pub request_counts: Counts,
    #[serde(default)]
    pub usage: Option<Usage>,
    #[serde(default)]
    pub metadata: Option<Map<String, Value>>,
    #[serde(default)]
    pub runs: Vec<Run>,
    /// Unix seconds, like all the times here.
    #[serde(default)]
    pub created_at: Option<i64>,
    #[serde(default)]
    pub expires_at: Option<i64>,
    #[serde(default)]
    pub completed_at: Option<i64>,
    #[serde(default)]
    pub failed_at: Option<i64>,
    #[serde(default)]
    pub expired_at: Option<i64>,
    #[serde(default)]
    pub cancelled_at: Option<i64>,
}

/// Why a batch failed as a whole.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Errors {
    pub data: Vec<BatchError>,
}

/// One reason.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct BatchError {
    #[serde(flatten)]
    pub error: Option<LastError>,
    /// Of the input; the first is 1.
    pub line: Option<u64>,
}

/// Requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub total: u64,
    pub completed: u64,
    pub failed: u64,
}

/// Tokens.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub total_tokens: u64,
}

/// A batch at one deployment.
#[derive(Clone, Debug, Deserialize)]
pub struct Run {
    #[serde(default)]
    pub model: String,
    #[serde(default)]
    pub deployment_id: String,
    #[serde(default)]
    pub provider: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub provider_batch_id: Option<String>,
    #[serde(default)]
    pub request_counts: Counts,
    #[serde(default)]
    pub output_file_id: Option<String>,
    #[serde(default)]
    pub error_file_id: Option<String>,
    #[serde(default)]
    pub error: Option<LastError>,
    /// What one waits for that is not at its provider yet.
    #[serde(default)]
    pub blocked_by: Option<String>,
    #[serde(default)]
    pub retry_at: Option<i64>,
}

/// How far a batch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Also a status that this program does not know.
    Underway,
    Completed,
    /// It ended before all was done.
    Ended,
}

impl Counts {
    pub fn done(self) -> u64 {
        self.completed + self.failed
    }

    /// `3 of 10, 1 failed`
    pub fn text(self) -> String {
        let failed = match self.failed {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        format!("{} of {}{failed}", self.done(), self.total)
    }
}

impl Usage {
    /// `12 (10 in, 2 out)`
    pub fn text(self) -> String {
        let Self { input_tokens, output_tokens, total_tokens } = self;
        format!("{total_tokens} ({input_tokens} in, {output_tokens} out)")
    }
}

impl BatchObject {
    pub fn stage(&self) -> Stage {
        match self.status.as_str() {
            "completed" => Stage::Completed,
            "failed" | "expired" | "cancelled" => Stage::Ended,
            _ => Stage::Underway,
        }
    }

    /// Why it failed as a whole.
    pub fn reasons(&self) -> impl Iterator<Item = String> {
        let errors = self.errors.iter().flat_map(|errors| &errors.data);
        errors.filter_map(|BatchError { error, line }| {
            let text = error.as_ref()?.text()?;
            Some(line.map_or(text.clone(), |line| format!("line {line}: {text}")))
        })
    }

    /// One row for each field that has a value.
    pub fn details(&self) -> Vec<Vec<Cell>> {
        let at = |at: Option<i64>| at.map(|at| cell(&time(Some(at))));
        let usage = self.usage.map(Usage::text);
        let ended = self.completed_at.or(self.failed_at).or(self.expired_at).or(self.cancelled_at);
        let mut rows = vec![
            ("status", Some(status(&self.status))),
            // Nobody has counted them yet where there are none.
            (
                "requests",
                Some(self.request_counts)
                    .filter(|counts| counts.total > 0)
                    .map(|counts| cell(&counts.text())),
            ),
            ("tokens", usage.map(|usage| cell(&usage))),
        ];
        rows.extend(self.reasons().map(|reason| ("error", Some(cell(&reason)))));
        rows.extend([
            ("endpoint", (!self.endpoint.is_empty()).then(|| cell(&self.endpoint))),
            ("created", at(self.created_at)),
            ("ends by", at(self.expires_at.filter(|_| ended.is_none()))),
            ("ended", at(ended)),
        ]);
        let mut rows: Vec<_> =
            rows.into_iter().filter_map(|(name, value)| Some(vec![cell(name), value?])).collect();
        for (key, value) in self.metadata.iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            rows.push(vec![cell(&format!("metadata {key}")), cell(&value)]);
        }
        let ids = [
            ("input file", Some(self.input_file_id.as_str()).filter(|id| !id.is_empty())),
            ("output file", self.output_file_id.as_deref()),
            ("error file", self.error_file_id.as_deref()),
            ("id", Some(&self.id)),
        ];
        rows.extend(ids.into_iter().filter_map(|(name, id)| Some(vec![cell(name), cell(id?)])));
        rows
    }

    /// Each run in one line, for a progress display.
    pub fn lines(&self) -> impl Iterator<Item = (&str, String)> {
        self.runs.iter().map(|run| (run.deployment_id.as_str(), run.line()))
    }
}

impl Watched for BatchObject {
    fn is_over(&self) -> bool {
        self.stage() != Stage::Underway
    }
}

impl Listed for BatchObject {
    const HEADINGS: &'static [&'static str] =
        &["STATUS", "REQUESTS", "FAILED", "CREATED", "ENDPOINT", "MODELS", "ID"];
    const PAGE: u32 = 100;

    fn id(&self) -> &str {
        &self.id
    }

    fn row(&self) -> Vec<Cell> {
        let Counts { total, failed, .. } = self.request_counts;
        let models: Vec<_> = self.runs.iter().map(|run| run.model.as_str()).collect();
        vec![
            status(&self.status),
            cell(&format!("{}/{total}", self.request_counts.done())),
            cell(&failed.to_string()),
            cell(&time(self.created_at)),
            optional(Some(self.endpoint.as_str()).filter(|endpoint| !endpoint.is_empty())),
            optional(Some(models.join(",").as_str()).filter(|models| !models.is_empty())),
            cell(&self.id),
        ]
    }
}

impl Run {
    /// The columns of [`Run::row`].
    pub const HEADINGS: &'static [&'static str] =
        &["MODEL", "PROVIDER", "STATUS", "REQUESTS", "FAILED", "NOTE", "PROVIDER BATCH ID"];

    pub fn row(&self) -> Vec<Cell> {
        let counts = self.request_counts;
        vec![
            cell(&self.model),
            cell(&self.provider),
            status(&self.status),
            cell(&format!("{}/{}", counts.done(), counts.total)),
            cell(&counts.failed.to_string()),
            optional(self.note().as_deref()),
            optional(self.provider_batch_id.as_deref()),
        ]
    }

    fn line(&self) -> String {
        format!("{} at {} {}", self.model, self.provider, self.state())
    }

    /// `in_progress, 3 of 10, 1 failed: ` and what holds it up.
    pub fn state(&self) -> String {
        let counts = match self.request_counts.total {
            0 => String::new(),
            _ => format!(", {}", self.request_counts.text()),
        };
        let note = self.note().map(|note| format!(": {note}")).unwrap_or_default();
        format!("{}{counts}{note}", self.status)
    }

    /// What holds it up or what went wrong.
    fn note(&self) -> Option<String> {
        let blocked = self.blocked_by.as_deref().map(|reason| match reason {
            "upload" => "waits for its file to be at the provider".to_owned(),
            // Also while a create is under way.
            "outcome" => "not certain yet whether its provider has it".to_owned(),
            reason => waiting(reason, self.retry_at),
        });
        let error = self.error.as_ref().and_then(LastError::text);
        match (blocked, error) {
            (Some(blocked), Some(error)) => Some(format!("{blocked}; {error}")),
            (blocked, error) => blocked.or(error),
        }
    }
}
