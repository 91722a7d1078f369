//! Waits until a file is everywhere or has failed.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use anyhow::anyhow;
use indicatif::ProgressBar;
use tokio::time::Instant;

use super::{FileObject, Mapping, object::Stage};
use crate::cli::{
    client::{Answer, Client, Failure, MAX_WAIT, Repeats},
    id::GivenId,
    interrupt::{Interrupt, Interrupted},
    output::{Output, plain},
    progress::Progress,
};

/// How long the server holds its answer back when a person watches: states in between are worth seeing.
const WATCHED_WAIT: Duration = Duration::from_secs(2);
/// About a minute of pauses: a server that restarts meanwhile does not end the wait.
const REPEATS: Repeats = Repeats(6);
/// What an answer may take past the time limit before it is given up.
const GRACE: Duration = Duration::from_secs(5);
/// Longer than anybody waits, and short enough for every clock.
const LONGEST_WAIT: Duration = Duration::from_hours(24 * 365);
/// More lines than that push each other off the screen.
const MAX_LINES: usize = 20;

/// `longshore files wait`.
pub async fn run(
    client: &Client,
    output: &mut Output,
    id: &GivenId,
    timeout: Duration,
) -> anyhow::Result<ExitCode> {
    let (progress, mut interrupt) = (&output.progress, Interrupt::listen());
    let file =
        until_final(client, progress, id.as_str(), deadline(timeout), &mut interrupt).await?;
    if output.json {
        output.document(&file.json)?;
    } else {
        output.table(Mapping::HEADINGS, file.value.mappings.iter().map(Mapping::row).collect())?;
    }
    Ok(verdict(output, &file.value))
}

/// The moment when a wait that starts now is over.
pub fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST_WAIT)
}

/// Waits until the file is in a final state or the deadline has come, and gives its last known state.
pub async fn until_final(
    client: &Client,
    progress: &Progress,
    id: &str,
    deadline: Instant,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<FileObject>> {
    let mut lines = Lines::new(progress);
    let slice = if progress.is_watched() { WATCHED_WAIT } else { MAX_WAIT };
    let mut last = None;
    let watching = async {
        loop {
            let started = Instant::now();
            let look = async || {
                // Up to the full second, or the last look would come too early.
                let left =
                    deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(999);
                client.look::<FileObject>(&["files", id], left.min(slice)).await
            };
            let file = client.repeating(REPEATS, progress, look).await?;
            lines.show(&file.value.mappings);
            let is_over = file.value.stage() != Stage::Underway || Instant::now() >= deadline;
            if !is_over {
                lines.tell(&file.value.mappings);
            }
            last = Some(file);
            if is_over {
                return Ok::<(), Failure>(());
            }
            // A server that does not hold its answers back is not asked without a pause.
            tokio::time::sleep_until(deadline.min(started + client.unit())).await;
        }
    };
    let ended = tokio::select! {
        ended = tokio::time::timeout_at(deadline + GRACE, watching) => ended,
        () = interrupt.happened() => {
            lines.clear();
            return Err(Interrupted(goes_on(id)).into());
        }
    };
    lines.clear();
    match ended {
        Ok(Err(
            failure
            @ (Failure::Refused(_) | Failure::NoServer { .. } | Failure::Unreachable { .. }),
        )) if last.is_none() => return Err(failure.into()),
        Ok(Err(failure)) => return Err(anyhow!("{failure}; {}", goes_on(id))),
        Ok(Ok(())) | Err(_) => {}
    }
    last.ok_or_else(|| anyhow!("the server did not say in time how far `{id}` is"))
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

/// One line for each mapping.
struct Lines<'a> {
    progress: &'a Progress,
    bars: HashMap<String, ProgressBar>,
    /// What was said of each where no bars are drawn.
    told: HashMap<String, String>,
}

impl<'a> Lines<'a> {
    fn new(progress: &'a Progress) -> Self {
        Self { progress, bars: HashMap::new(), told: HashMap::new() }
    }

    fn show(&mut self, mappings: &[Mapping]) {
        for mapping in mappings.iter().take(MAX_LINES) {
            let text = mapping.line();
            match self.bars.get(&mapping.deployment_id) {
                Some(bar) => bar.set_message(plain(&text).into_owned()),
                None => {
                    self.bars.insert(mapping.deployment_id.clone(), self.progress.state(&text));
                }
            }
        }
    }

    /// Says what has changed, where no bars can be drawn.
    fn tell(&mut self, mappings: &[Mapping]) {
        if !self.progress.is_told() {
            return;
        }
        for mapping in mappings.iter().take(MAX_LINES) {
            let text = mapping.line();
            if self.told.get(&mapping.deployment_id) != Some(&text) {
                self.progress.note(&text);
                self.told.insert(mapping.deployment_id.clone(), text);
            }
        }
    }

    fn clear(&self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
    }
}
