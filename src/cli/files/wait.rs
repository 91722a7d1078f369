//! Waits until a file is everywhere or has failed.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use super::FileObject;
use super::Mapping;
use super::object::Stage;
use crate::cli::client::Answer;
use crate::cli::client::Client;
use crate::cli::id::GivenId;
use crate::cli::interrupt::Interrupt;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::watch;
use crate::cli::watch::Lines;
use crate::cli::watch::Watch;
use crate::cli::watch::Watched;

/// `longshore files wait`.
pub async fn run(
    client: &Client,
    output: &mut Output,
    id: &GivenId,
    timeout: Duration,
) -> anyhow::Result<ExitCode> {
    let (progress, mut interrupt) = (&output.progress, Interrupt::listen());
    let deadline = watch::deadline(timeout);
    let file = until_final(client, progress, id.as_str(), deadline, &mut interrupt).await?;
    if output.json {
        output.document(&file.json)?;
    } else {
        output.table(Mapping::HEADINGS, file.value.mappings.iter().map(Mapping::row).collect())?;
    }
    Ok(verdict(output, &file.value))
}

impl Watched for FileObject {
    fn is_over(&self) -> bool {
        self.stage() != Stage::Underway
    }
}

/// Waits until the file is in a final state or the deadline has come, and gives its last known state.
pub async fn until_final(
    client: &Client,
    progress: &Progress,
    id: &str,
    deadline: Instant,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<FileObject>> {
    let (path, goes_on) = (&["files", id], &goes_on(id));
    let watch = Watch { client, progress, path, deadline, goes_on };
    let mut lines = Lines::new(progress);
    let show = |file: &FileObject| {
        lines.show(parts(file));
        if !file.is_over() {
            lines.tell(parts(file));
        }
    };
    let file = watch.until_over(interrupt, show).await;
    lines.clear();
    file
}

fn parts(file: &FileObject) -> impl Iterator<Item = (&str, String)> {
    file.mappings.iter().map(|mapping| (mapping.deployment_id.as_str(), mapping.line()))
}

/// The exit code for how a wait ended, said on standard error where it ended badly.
pub fn verdict(output: &Output, file: &FileObject) -> ExitCode {
    let name = file.name();
    match file.stage() {
        Stage::Processed => ExitCode::SUCCESS,
        Stage::Failed => {
            let details = file
                .status_details
                .as_ref()
                .map(|details| format!(": {details}"))
                .unwrap_or_default();
            output.progress.note(&format!("error: `{name}` ended as `{}`{details}", file.status));
            ExitCode::FAILURE
        }
        Stage::Underway => {
            let status = &file.status;
            output.progress.note(&format!(
                "error: `{name}` is still `{status}` and the time is up; {}",
                goes_on(&file.id)
            ));
            ExitCode::FAILURE
        }
    }
}

/// How to go on with a wait that ended before the file did.
fn goes_on(id: &str) -> String {
    format!("the file goes on at the server: `longshore files wait {id}` waits for it again")
}
