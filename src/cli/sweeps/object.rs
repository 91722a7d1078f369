//! The sweep object of the API, as far as this program shows it.

use comfy_table::Cell;
use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;

use crate::cli::files::LastError;
use crate::cli::list::Listed;
use crate::cli::output::cell;
use crate::cli::output::status;
use crate::cli::output::time;
use crate::cli::watch::Watched;

/// A sweep. Fields that are not known here are ignored, and all but the id may be missing.
#[derive(Clone, Debug, Deserialize)]
pub struct SweepObject {
    pub id: String,
    #[serde(default)]
    pub status: String,
    /// Whether it only counts.
    #[serde(default)]
    pub dry_run: bool,
    #[serde(default)]
    pub filter: Map<String, Value>,
    #[serde(default)]
    pub counts: Counts,
    #[serde(default)]
    pub job_id: Option<String>,
    #[serde(default)]
    pub error: Option<LastError>,
    /// Unix seconds, like all the times here.
    #[serde(default)]
    pub created_at: Option<i64>,
    #[serde(default)]
    pub started_at: Option<i64>,
    #[serde(default)]
    pub finished_at: Option<i64>,
}

/// Files. `matched` is the sum of the others.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub matched: u64,
    pub pending: u64,
    pub deleted: u64,
    pub failed: u64,
    pub skipped: u64,
}

/// How far a sweep has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Also a status that this program does not know.
    Underway,
    Succeeded,
    Failed,
    Cancelled,
}

impl SweepObject {
    pub fn stage(&self) -> Stage {
        match self.status.as_str() {
            "succeeded" => Stage::Succeeded,
            "failed" => Stage::Failed,
            "cancelled" => Stage::Cancelled,
            _ => Stage::Underway,
        }
    }

    /// Whether the files of a dry run are counted.
    pub fn is_counted(&self) -> bool {
        self.dry_run && self.stage() == Stage::Succeeded
    }

    /// Its state in one line, for a log.
    pub fn line(&self) -> String {
        let Self { id, status, counts, .. } = self;
        let Counts { matched, deleted, failed, skipped, .. } = counts;
        if self.dry_run {
            return format!("{id} {status}: {} found", files(*matched));
        }
        let mut line = format!("{id} {status}: {deleted} of {} deleted", files(*matched));
        for (count, what) in [(*failed, "failed"), (*skipped, "skipped")] {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        line
    }

    /// One row for each field that has a value.
    pub fn details(&self) -> Vec<Vec<Cell>> {
        let Counts { matched, pending, deleted, failed, skipped } = self.counts;
        let count = |count: u64| (count > 0).then(|| cell(&count.to_string()));
        let error = self.error.as_ref().and_then(LastError::text);
        let at = |at: Option<i64>| at.map(|at| cell(&time(Some(at))));
        let kind = if self.dry_run { "dry run: it only counts" } else { "deletes" };
        let rows = [
            ("kind", Some(cell(kind))),
            ("files", Some(cell(&self.selection()))),
            ("status", Some(status(&self.status))),
            ("error", error.map(|error| cell(&error))),
            ("matched", Some(cell(&matched.to_string()))),
            ("pending", if self.dry_run { None } else { count(pending) }),
            ("deleted", if self.dry_run { None } else { Some(cell(&deleted.to_string())) }),
            ("failed", count(failed)),
            ("skipped", count(skipped)),
            ("created", at(self.created_at)),
            ("started", at(self.started_at)),
            ("finished", at(self.finished_at)),
            ("job", self.job_id.as_deref().map(cell)),
            ("id", Some(cell(&self.id))),
        ];
        rows.into_iter().filter_map(|(name, value)| Some(vec![cell(name), value?])).collect()
    }

    /// Which files it is about, in words. A field that is not known here stays as it is.
    pub fn selection(&self) -> String {
        let parts = self.filter.iter().flat_map(|(field, value)| match (field.as_str(), value) {
            ("all", _) => vec!["all".to_owned()],
            ("file_ids", count) => vec![format!("{count} named")],
            ("created_before", at) => vec![format!("created before {}", time(at.as_i64()))],
            ("metadata", Value::Object(pairs)) => {
                pairs.iter().map(|(key, value)| format!("metadata {key}={}", text(value))).collect()
            }
            (field, value) => vec![format!("{field} {}", text(value))],
        });
        parts.collect::<Vec<_>>().join(", ")
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A number of files, in words.
pub fn files(count: u64) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

impl Watched for SweepObject {
    fn is_over(&self) -> bool {
        self.stage() != Stage::Underway
    }
}

impl Listed for SweepObject {
    const HEADINGS: &'static [&'static str] =
        &["STATUS", "MATCHED", "DELETED", "FAILED", "CREATED", "FILES", "ID"];

    fn id(&self) -> &str {
        &self.id
    }

    fn row(&self) -> Vec<Cell> {
        let selection = self.selection();
        let deleted = self.counts.deleted.to_string();
        vec![
            status(&self.status),
            cell(&self.counts.matched.to_string()),
            cell(if self.dry_run { "dry run" } else { &deleted }),
            cell(&self.counts.failed.to_string()),
            cell(&time(self.created_at)),
            cell(&selection),
            cell(&self.id),
        ]
    }
}
