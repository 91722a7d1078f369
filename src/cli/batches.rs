//! `longshore batches`: batches of requests that a running server has providers work off.

mod create;
mod object;
pub mod results;
mod wait;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use serde::Serialize;

pub use self::object::BatchObject;
pub use self::object::Counts;
pub use self::object::Run;

use self::create::CreateArgs;
use self::create::ImportArgs;
use self::results::ResultsArgs;
use super::client::Answer;
use super::client::Client;
use super::id::GivenId;
use super::list;
use super::list::Paging;
use super::output::Output;
use super::output::unless_closed;
use super::watch;

/// How long a batch may take at its provider.
const WINDOW: &str = "24h";
const STATUSES: [&str; 8] = [
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
];

/// What can be done with batches.
#[derive(Clone, Debug, Subcommand)]
pub enum BatchesCommand {
    /// Create a batch over a file and print its id
    ///
    /// It is durable when the id is printed. The server creates it at every provider that it is for, once,
    /// watches it there and fetches what it produces.
    Create(Box<CreateArgs>),
    /// Take over a batch that was created at its provider by other means, and print its id
    Import(ImportArgs),
    /// List batches, the newest first
    Ls(ListArgs),
    /// Show a batch and how far it is at each provider
    Show {
        /// The id that `create` printed
        id: GivenId,
    },
    /// Wait until a batch has ended: exit code 0 when it completed, or 1
    Wait {
        /// The id that `create` printed
        id: GivenId,
        /// How long to wait
        #[arg(long, default_value = WINDOW, value_parser = humantime::parse_duration, value_name = "DURATION")]
        timeout: Duration,
    },
    /// Print what was answered to each request, or look a few of them up
    ///
    /// The whole output is a file too: `longshore batches show` has its id, and `longshore files get`
    /// downloads it.
    Results(ResultsArgs),
    /// Stop a batch; what was answered until then is fetched
    Cancel {
        /// The id that `create` printed
        id: GivenId,
    },
    /// Run the requests of a batch that failed once more, as a new batch, and print its id
    Retry {
        /// The id that `create` printed
        id: GivenId,
        /// Only those of this model
        #[arg(long)]
        model: Option<String>,
    },
}

/// Which batches are listed.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only those in this status
    #[arg(long, value_parser = PossibleValuesParser::new(STATUSES))]
    status: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// How long to wait for the end of what a command has made.
#[derive(Args, Clone, Copy, Debug)]
struct Waiting {
    /// Wait until the batch has ended, at most so many seconds [default: 86400]: exit code 0 when it
    /// completed, or 1
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = WINDOW,
        value_parser = watch::seconds,
        value_name = "SECONDS"
    )]
    wait: Option<Duration>,
}

/// The request for a retry.
#[derive(Debug, Serialize)]
struct Retry {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

impl BatchesCommand {
    /// Runs the command: results on standard output, one JSON document of the API's with `json`, and for
    /// `results` one in each line.
    ///
    /// # Errors
    /// The call failed, and nothing was said about it yet. A batch that did not complete is no error but
    /// exit code 1.
    pub async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        unless_closed(self.run_to(client, &mut Output::standard(json)).await)
    }

    async fn run_to(self, client: &Client, output: &mut Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create(args) => return create::run(client, output, *args).await,
            Self::Import(args) => return create::import(client, output, args).await,
            Self::Ls(ListArgs { status, paging }) => {
                let query = status.map(|status| ("status", status)).into_iter().collect();
                list::print::<BatchObject>(client, output, &["batches"], query, paging).await?;
            }
            Self::Show { id } => {
                let batch = client.get(&["batches", id.as_str()], &[]).await?;
                print(output, &batch)?;
            }
            Self::Wait { id, timeout } => return wait::run(client, output, &id, timeout).await,
            Self::Results(args) => results::run(client, output, args).await?,
            Self::Cancel { id } => {
                let batch = client.act(&["batches", id.as_str(), "cancel"]).await?;
                print(output, &batch)?;
            }
            Self::Retry { id, model } => {
                let path = ["batches", id.as_str(), "retry"];
                return create::make(client, output, &path, &Retry { model }, None).await;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(output: &mut Output, batch: &Answer<BatchObject>) -> anyhow::Result<()> {
    if output.json {
        return output.document(&batch.json);
    }
    let batch = &batch.value;
    output.table(&[], batch.details())?;
    if batch.runs.is_empty() {
        return Ok(());
    }
    output.line("")?;
    output.table(Run::HEADINGS, batch.runs.iter().map(Run::row).collect())
}

#[cfg(test)]
mod tests;
