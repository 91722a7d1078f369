//! Waits until a batch has ended.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use super::object::BatchObject;
use super::object::Stage;
use super::print;
use crate::cli::client::Answer;
use crate::cli::client::Client;
use crate::cli::id::GivenId;
use crate::cli::interrupt::Interrupt;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::progress::counted;
use crate::cli::watch;
use crate::cli::watch::Lines;
use crate::cli::watch::Watch;
use crate::cli::watch::Watched as _;

/// `longshore batches wait`.
pub async fn run(
    client: &Client,
    output: &mut Output,
    id: &GivenId,
    timeout: Duration,
) -> anyhow::Result<ExitCode> {
    let (deadline, mut interrupt) = (watch::deadline(timeout), Interrupt::listen());
    until_over(client, output, id.as_str(), deadline, &mut interrupt).await
}

/// Waits until the batch has ended or the deadline has come, prints it, and says how it ended.
pub async fn until_over(
    client: &Client,
    output: &mut Output,
    id: &str,
    deadline: Instant,
    interrupt: &mut Interrupt,
) -> anyhow::Result<ExitCode> {
    let batch = watched(client, &output.progress, id, deadline, interrupt).await?;
    print(output, &batch)?;
    Ok(verdict(output, &batch.value))
}

async fn watched(
    client: &Client,
    progress: &Progress,
    id: &str,
    deadline: Instant,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<BatchObject>> {
    let watch = Watch { client, progress, path: &["batches", id], deadline, goes_on: &goes_on(id) };
    let (bar, mut lines) = (progress.count("requests"), Lines::new(progress));
    let show = |batch: &BatchObject| {
        let counts = batch.request_counts;
        let failed = match counts.failed {
            0 => String::new(),
            failed => format!(" ({failed} failed)"),
        };
        bar.set_message(format!("requests done{failed}"));
        counted(&bar, counts.done(), counts.total);
        lines.show(batch.lines());
        if !batch.is_over() {
            lines.tell(batch.lines());
        }
    };
    let batch = watch.until_over(interrupt, show).await;
    bar.finish_and_clear();
    lines.clear();
    batch
}

/// The exit code for how a batch ended, said on standard error where not all went well.
fn verdict(output: &Output, batch: &BatchObject) -> ExitCode {
    let (id, failed) = (&batch.id, batch.request_counts.failed);
    match batch.stage() {
        Stage::Completed => {
            if failed > 0 {
                let total = batch.request_counts.total;
                output.progress.note(&format!(
                    "warning: {failed} of {total} requests failed: `longshore batches results {id} --failed` \
                     shows them, and `longshore batches retry {id}` runs them once more"
                ));
            }
            return ExitCode::SUCCESS;
        }
        Stage::Ended => {
            let why: Vec<_> = batch.reasons().collect();
            let why = if why.is_empty() { String::new() } else { format!(": {}", why.join("; ")) };
            output.progress.note(&format!("error: the batch ended as `{}`{why}", batch.status));
        }
        Stage::Underway => {
            let status = &batch.status;
            output.progress.note(&format!(
                "error: the batch is still `{status}` and the time is up; {}",
                goes_on(id)
            ));
        }
    }
    ExitCode::FAILURE
}

/// How to go on with a wait that ended before the batch did.
fn goes_on(id: &str) -> String {
    format!("the batch goes on at the server: `longshore batches wait {id}` waits for it again")
}
