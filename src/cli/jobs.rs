//! `longshore jobs`: the durable work of a running server.

use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::{Answer, Client},
    files::{LastError, waiting},
    id::GivenId,
    list::{self, Listed, Paging},
    output::{Output, bytes, cell, optional, status, time, unless_closed},
};
use crate::jobs::JobStatus;

/// What can be done with jobs.
#[derive(Clone, Debug, Subcommand)]
pub enum JobsCommand {
    /// List jobs, the newest first
    Ls(ListArgs),
    /// Show a job
    Show {
        /// The id that `ls` shows
        id: GivenId,
        /// Show its attempts too
        #[arg(long)]
        attempts: bool,
    },
    /// Make a failed job try again, with all its attempts
    Retry {
        /// The id that `ls` shows
        id: GivenId,
    },
    /// Cancel a job that has not ended
    Cancel {
        /// The id that `ls` shows
        id: GivenId,
    },
}

/// Which jobs are listed.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only those in this status
    #[arg(long, value_parser = PossibleValuesParser::new(JobStatus::ALL.map(JobStatus::as_str)))]
    status: Option<String>,
    /// Only those of this kind, such as `upload_file`
    #[arg(long)]
    kind: Option<String>,
    /// Only those about this file
    #[arg(long, value_name = "ID")]
    file: Option<GivenId>,
    #[command(flatten)]
    paging: Paging,
}

/// A job. Fields that are not known here are ignored, and all but the id may be missing.
#[derive(Clone, Debug, Deserialize)]
pub struct JobObject {
    pub id: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub attempt: u32,
    #[serde(default)]
    pub max_attempts: u32,
    /// Unix seconds, like all the times here.
    #[serde(default)]
    pub created_at: Option<i64>,
    #[serde(default)]
    pub run_at: Option<i64>,
    #[serde(default)]
    pub started_at: Option<i64>,
    #[serde(default)]
    pub finished_at: Option<i64>,
    #[serde(default)]
    pub progress: Option<Progress>,
    #[serde(default)]
    pub error: Option<LastError>,
    #[serde(default)]
    pub file_id: Option<String>,
    #[serde(default)]
    pub batch_id: Option<String>,
    #[serde(default)]
    pub model: Option<String>,
    #[serde(default)]
    pub provider: Option<String>,
    #[serde(default)]
    pub request_id: Option<String>,
    /// Why its provider's lane stands still, and until when.
    #[serde(default)]
    pub blocked_by: Option<String>,
    #[serde(default)]
    pub retry_at: Option<i64>,
}

/// How far the work of a job has come.
#[derive(Clone, Debug, Deserialize)]
pub struct Progress {
    #[serde(default)]
    pub done: u64,
    #[serde(default)]
    pub total: Option<u64>,
    #[serde(default)]
    pub unit: Option<String>,
}

/// One execution of a job.
#[derive(Clone, Debug, Deserialize)]
pub struct AttemptObject {
    #[serde(default)]
    pub attempt: u32,
    /// How it ended.
    #[serde(default)]
    pub outcome: Option<String>,
    #[serde(default)]
    pub started_at: Option<i64>,
    #[serde(default)]
    pub finished_at: Option<i64>,
    #[serde(default)]
    pub error: Option<LastError>,
}

#[derive(Deserialize)]
struct Attempts {
    data: Vec<AttemptObject>,
}

impl JobsCommand {
    /// Runs the command: results on standard output, one JSON document of the API's with `json`.
    ///
    /// # Errors
    /// The call failed, and nothing was said about it yet.
    pub async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        let result = self.run_to(client, &mut Output::standard(json)).await;
        unless_closed(result.map(|()| ExitCode::SUCCESS))
    }

    async fn run_to(self, client: &Client, output: &mut Output) -> anyhow::Result<()> {
        match self {
            Self::Ls(args) => ls(client, output, args).await,
            Self::Show { id, attempts: false } => {
                let job = client.get(&["jobs", id.as_str()], &[]).await?;
                changed(output, &job)
            }
            Self::Show { id, attempts: true } => show_attempts(client, output, &id).await,
            Self::Retry { id } => {
                let job = client.act(&["jobs", id.as_str(), "retry"]).await?;
                changed(output, &job)
            }
            Self::Cancel { id } => {
                let job = client.act(&["jobs", id.as_str(), "cancel"]).await?;
                changed(output, &job)
            }
        }
    }
}

async fn ls(client: &Client, output: &mut Output, args: ListArgs) -> anyhow::Result<()> {
    let ListArgs { status, kind, file, paging } = args;
    let filters = [("status", status), ("kind", kind), ("file_id", file.map(|id| id.to_string()))];
    let query = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    list::print::<JobObject>(client, output, &["jobs"], query, paging).await
}

fn changed(output: &mut Output, job: &Answer<JobObject>) -> anyhow::Result<()> {
    if output.json { output.document(&job.json) } else { output.table(&[], job.value.details()) }
}

/// A script gets the job with its attempts under `attempts`, since it gets one document.
async fn show_attempts(client: &Client, output: &mut Output, id: &GivenId) -> anyhow::Result<()> {
    let job = client.get::<JobObject>(&["jobs", id.as_str()], &[]).await?;
    let attempts = client.get::<Attempts>(&["jobs", id.as_str(), "attempts"], &[]).await?;
    if output.json {
        let mut json = job.json;
        if let Value::Object(fields) = &mut json {
            fields.insert("attempts".to_owned(), attempts.json["data"].clone());
        }
        return output.document(&json);
    }
    output.table(&[], job.value.details())?;
    if attempts.value.data.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let headings = ["ATTEMPT", "OUTCOME", "STARTED", "FINISHED", "ERROR"];
    output.table(&headings, attempts.value.data.iter().map(AttemptObject::row).collect())
}

impl JobObject {
    /// One row for each field that has a value.
    fn details(&self) -> Vec<Vec<Cell>> {
        let error = self.error.as_ref().and_then(LastError::text);
        let blocked = self.blocked_by.as_deref().map(|reason| waiting(reason, self.retry_at));
        let rows = [
            ("kind", Some(cell(&self.kind))),
            ("status", Some(status(&self.status))),
            ("attempt", Some(cell(&format!("{} of {}", self.attempt, self.max_attempts)))),
            ("progress", self.progress.as_ref().map(|progress| cell(&progress.text()))),
            ("waits", blocked.map(|blocked| cell(blocked.trim_start_matches("waits ")))),
            ("error", error.map(|error| cell(&error))),
            ("model", self.model.as_deref().map(cell)),
            ("provider", self.provider.as_deref().map(cell)),
            ("created", self.created_at.map(|at| cell(&time(Some(at))))),
            ("runs at", self.run_at.map(|at| cell(&time(Some(at))))),
            ("started", self.started_at.map(|at| cell(&time(Some(at))))),
            ("finished", self.finished_at.map(|at| cell(&time(Some(at))))),
            ("request", self.request_id.as_deref().map(cell)),
            ("batch", self.batch_id.as_deref().map(cell)),
            ("file", self.file_id.as_deref().map(cell)),
            ("id", Some(cell(&self.id))),
        ];
        rows.into_iter().filter_map(|(name, value)| Some(vec![cell(name), value?])).collect()
    }
}

impl Listed for JobObject {
    const HEADINGS: &'static [&'static str] =
        &["STATUS", "KIND", "ATTEMPT", "CREATED", "MODEL", "PROVIDER", "ERROR", "ID"];

    fn id(&self) -> &str {
        &self.id
    }

    fn row(&self) -> Vec<Cell> {
        vec![
            status(&self.status),
            cell(&self.kind),
            cell(&format!("{}/{}", self.attempt, self.max_attempts)),
            cell(&time(self.created_at)),
            optional(self.model.as_deref()),
            optional(self.provider.as_deref()),
            // The whole of it is in `jobs show`.
            optional(self.error.as_ref().and_then(|error| error.code.as_deref())),
            cell(&self.id),
        ]
    }
}

impl Progress {
    fn text(&self) -> String {
        let unit = self.unit.as_deref().unwrap_or_default();
        let amount = |count| if unit == "bytes" { bytes(count) } else { format!("{count} {unit}") };
        match self.total {
            Some(total) => format!("{} of {}", amount(self.done), amount(total)),
            None => amount(self.done),
        }
    }
}

impl AttemptObject {
    fn row(&self) -> Vec<Cell> {
        vec![
            cell(&self.attempt.to_string()),
            self.outcome.as_deref().map_or_else(|| cell("-"), status),
            cell(&time(self.started_at)),
            cell(&time(self.finished_at)),
            optional(self.error.as_ref().and_then(LastError::text).as_deref()),
        ]
    }
}

#[cfg(test)]
mod tests;
