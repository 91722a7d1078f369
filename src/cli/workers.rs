//! `longshore workers`: the processes of an installation.

use std::process::ExitCode;

use clap::Subcommand;
use comfy_table::Cell;
use serde::Deserialize;

use super::client::Client;
use super::list::Listed;
use super::output::Output;
use super::output::cell;
use super::output::status;
use super::output::time;
use super::output::unless_closed;

/// What can be done with processes.
#[derive(Clone, Debug, Subcommand)]
pub enum WorkersCommand {
    /// List the processes that take requests or run jobs, and for a day those that have ended
    Ls,
}

/// A process. Fields that are not known here are ignored, and all but the id may be missing.
#[derive(Clone, Debug, Deserialize)]
struct WorkerObject {
    id: String,
    #[serde(default)]
    role: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    pid: i64,
    #[serde(default)]
    version: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    running: i64,
    #[serde(default)]
    clock_ahead_ms: i64,
    /// Unix seconds, like all the times here.
    #[serde(default)]
    started_at: Option<i64>,
    #[serde(default)]
    seen_at: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Workers {
    data: Vec<WorkerObject>,
}

impl WorkersCommand {
    /// Runs the command, with an admin key: results on standard output, one JSON document of the API's with `json`.
    ///
    /// # Errors
    /// The call failed, and nothing was said about it yet.
    pub async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        let Self::Ls = self;
        let result = list(client, &mut Output::standard(json)).await;
        unless_closed(result.map(|()| ExitCode::SUCCESS))
    }
}

async fn list(client: &Client, output: &mut Output) -> anyhow::Result<()> {
    let workers = client.get::<Workers>(&["admin", "workers"], &[]).await?;
    if output.json {
        return output.document(&workers.json);
    }
    output.table(WorkerObject::HEADINGS, workers.value.data.iter().map(Listed::row).collect())
}

impl Listed for WorkerObject {
    const HEADINGS: &'static [&'static str] =
        &["STATUS", "ROLE", "JOBS", "VERSION", "HOST", "PID", "STARTED", "SEEN", "CLOCK", "ID"];

    fn id(&self) -> &str {
        &self.id
    }

    fn row(&self) -> Vec<Cell> {
        vec![
            status(&self.status),
            cell(&self.role),
            cell(&self.running.to_string()),
            cell(&self.version),
            cell(&self.host),
            cell(&self.pid.to_string()),
            cell(&time(self.started_at)),
            cell(&time(self.seen_at)),
            // To the second: a heartbeat takes some milliseconds, and nobody minds less.
            cell(&format!("{:+} s", self.clock_ahead_ms / 1000)),
            cell(&self.id),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::scripted::Kept;
    use crate::cli::scripted::Server;
    use crate::cli::scripted::Step;

    #[tokio::test]
    async fn processes_are_listed_with_their_state_and_how_far_their_clock_is_off() {
        let answer = json!({"object": "list", "data": [
            {"id": "worker_1", "object": "worker", "role": "work", "host": "one", "pid": 7, "version": "0.1.0",
             "status": "silent", "running": 3, "clock_ahead_ms": -61_900, "started_at": 1_795_392_000},
            {"id": "worker_2"},
        ]});
        let server = Server::start([Step::json(200, &answer), Step::json(200, &answer)]).await;
        let kept = Kept::default();
        list(&server.client(), &mut Output::kept(false, kept.clone())).await.unwrap();
        let text = kept.text();
        let row = text.lines().nth(1).unwrap();
        assert!(row.starts_with("silent  work  3     0.1.0    one   7    "), "{text}");
        assert!(row.ends_with("-61 s  worker_1"), "{text}");
        let kept = Kept::default();
        list(&server.client(), &mut Output::kept(true, kept.clone())).await.unwrap();
        assert_eq!(kept.json(), answer);
        assert_eq!(server.lines(), ["GET /v1/admin/workers"; 2]);
    }
}
