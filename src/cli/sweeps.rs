//! `longshore sweeps`: many files of a running server deleted by one durable job.

mod moment;
mod object;
mod run;

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use tokio::time::Instant;

use self::object::Counts;
use self::object::Stage;
use self::object::SweepObject;
use self::object::files;
use self::run::RunArgs;
use super::client::Answer;
use super::client::Client;
use super::files::LastError;
use super::id::GivenId;
use super::input::Input;
use super::interrupt::Interrupt;
use super::list;
use super::list::Paging;
use super::output::Output;
use super::output::unless_closed;
use super::progress::Progress;
use super::progress::counted;
use super::watch;
use super::watch::Lines;
use super::watch::Watch;
use super::watch::Watched as _;

/// What can be done with sweeps.
#[derive(Clone, Debug, Subcommand)]
pub enum SweepsCommand {
    /// Delete many files here and at every provider
    ///
    /// Say which: files that are named, or a filter of which all has to hold. A person at a terminal is
    /// shown how many they are, and asked, before anything is deleted.
    Run(Box<RunArgs>),
    /// Show a sweep and how far it is
    Show {
        /// The id that `run` printed
        id: GivenId,
        /// Wait until it has ended, at most so many seconds [default: 3600]: exit code 0, or 1 when it
        /// failed, was cancelled or time was up
        #[arg(
            long,
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "3600",
            value_parser = watch::seconds,
            value_name = "SECONDS"
        )]
        wait: Option<Duration>,
    },
    /// List sweeps, the newest first
    Ls(Paging),
    /// Make a sweep take no more files; those that it took are deleted all the same
    Cancel {
        /// The id that `run` printed
        id: GivenId,
    },
}

impl SweepsCommand {
    /// Runs the command: results on standard output, one JSON document of the API's with `json`.
    ///
    /// # Errors
    /// The call failed, and nothing was said about it yet. A sweep that failed is no error but exit code 1.
    pub async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        let (mut output, mut input) = (Output::standard(json), Input::standard());
        unless_closed(self.run_to(client, &mut output, &mut input).await)
    }

    async fn run_to(
        self,
        client: &Client,
        output: &mut Output,
        input: &mut Input,
    ) -> anyhow::Result<ExitCode> {
        match self {
            Self::Run(args) => run::run(client, output, input, *args).await,
            Self::Show { id, wait: None } => {
                let sweep = client.get(&["sweeps", id.as_str()], &[]).await?;
                print(output, &sweep)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Show { id, wait: Some(timeout) } => {
                let (deadline, mut interrupt) = (watch::deadline(timeout), Interrupt::listen());
                let (progress, id) = (&output.progress, id.as_str());
                let sweep =
                    until_over(client, progress, id, deadline, &goes_on(id), &mut interrupt)
                        .await?;
                print(output, &sweep)?;
                Ok(verdict(output, &sweep.value))
            }
            Self::Ls(paging) => {
                list::print::<SweepObject>(client, output, &["sweeps"], Vec::new(), paging).await?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Cancel { id } => {
                let sweep = client.act(&["sweeps", id.as_str(), "cancel"]).await?;
                print(output, &sweep)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn print(output: &mut Output, sweep: &Answer<SweepObject>) -> anyhow::Result<()> {
    if output.json {
        output.document(&sweep.json)
    } else {
        output.table(&[], sweep.value.details())
    }
}

/// Waits until the sweep has ended or the deadline has come, and gives its last known state.
async fn until_over(
    client: &Client,
    progress: &Progress,
    id: &str,
    deadline: Instant,
    goes_on: &str,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<SweepObject>> {
    let watch = Watch { client, progress, path: &["sweeps", id], deadline, goes_on };
    let (bar, mut lines) = (progress.count("files"), Lines::new(progress));
    let show = |sweep: &SweepObject| {
        let Counts { matched, pending, failed, .. } = sweep.counts;
        // A dry run leaves all of them pending.
        let done = if sweep.dry_run { matched } else { matched.saturating_sub(pending) };
        let failed = if failed > 0 { format!(" ({failed} failed)") } else { String::new() };
        let what = if sweep.dry_run { "files found" } else { "files done" };
        bar.set_message(format!("{what}{failed}"));
        counted(&bar, done, matched);
        if !sweep.is_over() {
            lines.tell([(id, sweep.line())]);
        }
    };
    let sweep = watch.until_over(interrupt, show).await;
    bar.finish_and_clear();
    sweep
}

/// The exit code for how a sweep ended, said on standard error where it did not end well.
fn verdict(output: &Output, sweep: &SweepObject) -> ExitCode {
    let Counts { failed, .. } = sweep.counts;
    let said = match sweep.stage() {
        Stage::Succeeded => return ExitCode::SUCCESS,
        Stage::Failed => match sweep.error.as_ref().and_then(LastError::text) {
            Some(error) => format!("the sweep could not go on: {error}"),
            None => format!(
                "{} could not be deleted everywhere: `longshore jobs ls --kind delete_file --status failed` \
                 says why, and `longshore jobs retry` tries again",
                files(failed)
            ),
        },
        Stage::Cancelled if sweep.dry_run => "the count was cancelled".to_owned(),
        Stage::Cancelled => {
            "the sweep was cancelled: the files that it took are deleted, and no others".to_owned()
        }
        Stage::Underway if sweep.dry_run => {
            "the files are not counted yet and the time is up: nothing was deleted".to_owned()
        }
        Stage::Underway => {
            format!("the sweep has not ended and the time is up; {}", goes_on(&sweep.id))
        }
    };
    output.progress.note(&format!("error: {said}"));
    ExitCode::FAILURE
}

/// How to go on with a wait that ended before the sweep did.
fn goes_on(id: &str) -> String {
    format!("the sweep goes on at the server: `longshore sweeps show --wait {id}` waits for it")
}

#[cfg(test)]
mod tests;
