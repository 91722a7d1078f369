//! Deletes files, and shows how every provider's copy goes.

use std::cell::Cell;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::deletion::DeletedCopy;
use super::deletion::DeletionObject;
use super::deletion::Stage;
use crate::cli::client::Answer;
use crate::cli::client::Client;
use crate::cli::client::Failure;
use crate::cli::client::Repeats;
use crate::cli::id::GivenId;
use crate::cli::interrupt::Interrupt;
use crate::cli::interrupt::Interrupted;
use crate::cli::output::Closed;
use crate::cli::output::Output;
use crate::cli::output::time;
use crate::cli::progress::Progress;
use crate::cli::progress::counted;
use crate::cli::watch;
use crate::cli::watch::Lines;
use crate::cli::watch::Watch;
use crate::cli::watch::Watched as _;

const REPEATS: Repeats = Repeats(3);
const GOES_ON: &str = "the deletion goes on at the server, and the same command waits for it again";

/// What is deleted, and whether somebody waits until it is gone everywhere.
#[derive(Args, Clone, Debug)]
pub struct RmArgs {
    /// The ids that `put` printed
    #[arg(required = true, value_name = "ID")]
    ids: Vec<GivenId>,
    /// Wait until every provider's copy is gone, at most so many seconds, and show what became of each
    /// [default: 600]
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "600",
        value_parser = watch::seconds,
        value_name = "SECONDS"
    )]
    wait: Option<Duration>,
    /// Cancel the unfinished batches that use a file; without it, such a file is not deleted
    #[arg(long)]
    force: bool,
}

/// `longshore files rm`.
///
/// A file that cannot be deleted does not keep the others. One that was deleted before is no failure, so
/// that the command can be repeated until all is gone.
pub async fn run(client: &Client, output: &mut Output, args: RmArgs) -> anyhow::Result<ExitCode> {
    let RmArgs { mut ids, wait, force } = args;
    let mut known = std::collections::HashSet::new();
    ids.retain(|id| known.insert(id.to_string()));
    let query = if force { vec![("force", "true".to_owned())] } else { Vec::new() };

    let mut interrupt = Interrupt::listen();
    let mut deleted = Vec::with_capacity(ids.len());
    for (place, id) in ids.iter().enumerate() {
        let left = ids.len() - place - 1;
        let removed = tokio::select! {
            removed = remove(client, &output.progress, id, &query) => removed,
            () = interrupt.happened() => {
                let text = format!("`{id}` may be deleted{}", not_tried(left));
                return Err(Interrupted(text).into());
            }
        };
        match removed {
            Ok(removed) => {
                deleted.push(id);
                match tell(output, id, &removed, wait.is_none()) {
                    // What is left is deleted all the same.
                    Err(error) if error.is::<Closed>() => {}
                    told => told?,
                }
            }
            Err(failure) => {
                let ends_all = failure.is_about_the_server();
                let error = explained(id, &failure, if ends_all { left } else { 0 });
                if ids.len() == 1 || ends_all {
                    return Err(error);
                }
                output.progress.note(&format!("error: {error:#}"));
            }
        }
    }
    let mut is_good = deleted.len() == ids.len();
    if let Some(timeout) = wait {
        is_good &= wait_for_all(client, output, &deleted, timeout, &mut interrupt).await?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How a file came to be deleted.
enum Removed {
    /// By this command.
    Now(Value),
    /// By a try of this command whose answer was lost.
    Unheard(Answer<DeletionObject>),
    /// Before this command.
    Before(Answer<DeletionObject>),
}

async fn remove(
    client: &Client,
    progress: &Progress,
    id: &GivenId,
    query: &[(&str, String)],
) -> Result<Removed, Failure> {
    let may_be_done = Cell::new(false);
    let delete = async || {
        let answer = client.delete::<Value>(&["files", id.as_str()], query).await;
        if answer.as_ref().is_err_and(Failure::leaves_it_open) {
            may_be_done.set(true);
        }
        answer
    };
    let failure = match client.repeating(REPEATS, progress, delete).await {
        Ok(answer) => return Ok(Removed::Now(answer.json)),
        Err(failure) => failure,
    };
    if !failure.is_unknown_thing() {
        return Err(failure);
    }
    // A file that was deleted has a deletion, and one that never was has none.
    let look =
        async || client.get::<DeletionObject>(&["files", id.as_str(), "deletion"], &[]).await;
    match client.repeating(REPEATS, progress, look).await {
        Ok(deletion) if may_be_done.get() => Ok(Removed::Unheard(deletion)),
        Ok(deletion) => Ok(Removed::Before(deletion)),
        Err(unknown) if unknown.is_unknown_thing() => Err(failure),
        Err(other) => Err(other),
    }
}

/// Says that a file is deleted. With a wait, its result is still to come.
fn tell(
    output: &mut Output,
    id: &GivenId,
    removed: &Removed,
    is_result: bool,
) -> anyhow::Result<()> {
    if let Removed::Before(deletion) = removed {
        let at = time(deletion.value.deleted_at);
        output.progress.note(&format!("`{id}` was deleted already, at {at}"));
    }
    match removed {
        _ if !is_result => Ok(()),
        Removed::Now(json) if output.json => output.json_line(json),
        Removed::Unheard(deletion) | Removed::Before(deletion) if output.json => {
            output.json_line(&deletion.json)
        }
        Removed::Now(_) | Removed::Unheard(_) => output.line(id.as_str()),
        Removed::Before(_) => Ok(()),
    }
}

fn explained(id: &GivenId, failure: &Failure, left: usize) -> anyhow::Error {
    let rest = not_tried(left);
    if failure.is_unknown_thing() {
        // The server names it.
        anyhow::anyhow!("{failure}{rest}")
    } else if failure.leaves_it_open() {
        anyhow::anyhow!("`{id}`: {failure}; it may be deleted: the same command tells{rest}")
    } else {
        anyhow::anyhow!("`{id}`: {failure}{rest}")
    }
}

fn not_tried(left: usize) -> String {
    if left == 0 { String::new() } else { format!("; {left} more were not deleted") }
}

/// Waits for each deletion, shows what became of its copies, and says whether all of them are gone.
async fn wait_for_all(
    client: &Client,
    output: &mut Output,
    ids: &[&GivenId],
    timeout: Duration,
    interrupt: &mut Interrupt,
) -> anyhow::Result<bool> {
    let deadline = watch::deadline(timeout);
    let mut is_good = true;
    for (place, id) in ids.iter().enumerate() {
        let title = match ids.len() {
            1 => "copies deleted".to_owned(),
            count => format!("{} of {count}: copies deleted", place + 1),
        };
        let deletion =
            match until_over(client, &output.progress, id, &title, deadline, interrupt).await {
                Ok(deletion) => deletion,
                Err(error) if ids.len() == 1 || error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    output.progress.note(&format!("error: `{id}`: {error:#}"));
                    is_good = false;
                    continue;
                }
            };
        if output.json {
            output.json_line(&deletion.json)?;
        } else {
            if place > 0 {
                output.line("")?;
            }
            output.line(id.as_str())?;
            let copies = &deletion.value.mappings;
            output.table(DeletedCopy::HEADINGS, copies.iter().map(DeletedCopy::row).collect())?;
        }
        is_good &= verdict(output, id, &deletion.value);
    }
    Ok(is_good)
}

async fn until_over(
    client: &Client,
    progress: &Progress,
    id: &GivenId,
    title: &str,
    deadline: Instant,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<DeletionObject>> {
    let path = &["files", id.as_str(), "deletion"];
    let watch = Watch { client, progress, path, deadline, goes_on: GOES_ON };
    let (bar, mut lines) = (progress.count(title), Lines::new(progress));
    let show = |deletion: &DeletionObject| {
        counted(&bar, deletion.gone() as u64, deletion.mappings.len() as u64);
        lines.show(parts(deletion));
        if !deletion.is_over() {
            lines.tell(parts(deletion));
        }
    };
    let deletion = watch.until_over(interrupt, show).await;
    bar.finish_and_clear();
    lines.clear();
    deletion
}

fn parts(deletion: &DeletionObject) -> impl Iterator<Item = (&str, String)> {
    deletion.mappings.iter().map(|copy| (copy.deployment_id.as_str(), copy.line()))
}

/// Whether all copies are gone, said on standard error where some are not.
fn verdict(output: &Output, id: &GivenId, deletion: &DeletionObject) -> bool {
    match deletion.stage() {
        Stage::Done => return true,
        Stage::Underway => output.progress.note(&format!(
            "error: `{id}` is not gone everywhere yet and the time is up; {GOES_ON}"
        )),
        Stage::Failed => {
            for copy in deletion.mappings.iter().filter(|copy| !copy.is_gone()) {
                let DeletedCopy { model, provider, provider_file_id, job_id, .. } = copy;
                let copied = provider_file_id.as_deref().unwrap_or("of an unknown id");
                let reason = copy.note().unwrap_or_else(|| copy.status.clone());
                let again = job_id
                    .as_ref()
                    .map(|job| format!("; `longshore jobs retry {job}` tries again"))
                    .unwrap_or_default();
                output.progress.note(&format!(
                    "error: the copy `{copied}` of `{model}` at `{provider}` could not be deleted: {reason}{again}"
                ));
            }
        }
    }
    false
}
