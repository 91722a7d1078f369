//! Deletes many files with one sweep. A person is told how many they are, and asked, before it begins.

use std::io;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::ArgGroup;
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::goes_on;
use super::moment::moment;
use super::object::SweepObject;
use super::object::files;
use super::print;
use super::until_over;
use super::verdict;
use crate::cli::client::Answer;
use crate::cli::client::Client;
use crate::cli::client::Repeats;
use crate::cli::id::GivenId;
use crate::cli::input::Input;
use crate::cli::interrupt::Interrupt;
use crate::cli::interrupt::Interrupted;
use crate::cli::output::Output;
use crate::cli::output::wrong_usage;
use crate::cli::pairs;
use crate::cli::watch;
use crate::files::Purpose;

const REPEATS: Repeats = Repeats(3);
/// How long a count may take where no time limit is given.
const COUNTING: Duration = Duration::from_hours(1);
const FILTERS: [&str; 5] = ["purpose", "created_before", "model", "metadata", "status"];
const NOTHING_DELETED: &str = "nothing was deleted";
const MAY_BE_BEGUN: &str = "the server may have begun it: `longshore sweeps ls` shows it";

/// Which files are deleted, and how.
#[derive(Args, Clone, Debug)]
#[command(group(
    ArgGroup::new("which").required(true).multiple(true).args(FILTERS).args(["all", "files", "files_from"])
))]
pub struct RunArgs {
    /// Files for this purpose
    #[arg(long, value_parser = PossibleValuesParser::new(Purpose::ALL.map(Purpose::as_str)))]
    purpose: Option<String>,
    /// Files uploaded before: a date such as `2026-01-31`, a time such as `2026-01-31T12:00:00Z`, Unix
    /// seconds, or an age such as `30d`
    #[arg(long, value_parser = moment, value_name = "MOMENT")]
    created_before: Option<i64>,
    /// Files sent to this model
    #[arg(long)]
    model: Option<String>,
    /// Files kept with this pair, among others; repeat for each
    #[arg(long, value_parser = pairs::pair, value_name = "KEY=VALUE")]
    metadata: Vec<(String, String)>,
    /// Files in this status
    #[arg(long, value_parser = ["uploaded", "processed", "error"])]
    status: Option<String>,
    /// Every file
    #[arg(long, conflicts_with_all = FILTERS)]
    all: bool,
    /// This file; repeat for each
    #[arg(long = "file", value_name = "ID", conflicts_with_all = FILTERS, conflicts_with = "all")]
    files: Vec<GivenId>,
    /// The files that this one lists, an id in each line; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = FILTERS, conflicts_with = "all")]
    files_from: Option<PathBuf>,
    /// Only count the files
    #[arg(long)]
    dry_run: bool,
    /// Wait until the files are gone everywhere, at most so many seconds [default: 3600]
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "3600",
        value_parser = watch::seconds,
        value_name = "SECONDS"
    )]
    wait: Option<Duration>,
    /// Delete without asking; needed where standard input is no terminal
    #[arg(short, long)]
    yes: bool,
}

/// The request. What it leaves out narrows nothing.
#[derive(Clone, Debug, Serialize)]
struct NewSweep {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    file_ids: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    purpose: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_before: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

/// `longshore sweeps run`.
pub async fn run(
    client: &Client,
    output: &mut Output,
    input: &mut Input,
    mut args: RunArgs,
) -> anyhow::Result<ExitCode> {
    let is_asked = !args.yes && !args.dry_run;
    if is_asked && !input.is_terminal {
        return Ok(wrong_usage(
            "standard input is no terminal, so nobody can be asked: `--yes` deletes without asking, \
             and `--dry-run` only counts",
        ));
    }
    let metadata = match pairs::object(&args.metadata) {
        Ok(metadata) => metadata,
        Err(key) => return Ok(wrong_usage(&format!("`--metadata {key}=…` is given twice"))),
    };
    let mut interrupt = Interrupt::listen();
    let mut file_ids: Vec<_> = args.files.iter().map(GivenId::to_string).collect();
    if let Some(list) = args.files_from.take() {
        file_ids.extend(tokio::select! {
            listed = listed(&list, input) => listed?,
            () = interrupt.happened() => return Err(nothing_deleted()),
        });
    }
    let new = NewSweep {
        file_ids,
        purpose: args.purpose,
        created_before: args.created_before,
        model: args.model,
        metadata,
        status: args.status,
        all: args.all,
        dry_run: false,
    };
    if is_asked || args.dry_run {
        let deadline = watch::deadline(args.wait.unwrap_or(COUNTING));
        let counted = count(client, output, &new, deadline, &mut interrupt).await?;
        if args.dry_run || !counted.value.is_counted() {
            return shown(output, &counted);
        }
        if counted.value.counts.matched == 0 {
            output.progress.note("no file matches: there is nothing to delete");
            return shown(output, &counted);
        }
        let is_confirmed = tokio::select! {
            is_confirmed = ask(input, &counted.value) => is_confirmed?,
            () = interrupt.happened() => return Err(nothing_deleted()),
        };
        if !is_confirmed {
            output.progress.note("not confirmed: nothing was deleted");
            return Ok(ExitCode::FAILURE);
        }
    }

    let sweep = create(client, output, &new, &mut interrupt).await?;
    let Some(timeout) = args.wait else {
        if output.json {
            output.document(&sweep.json)?;
        } else {
            output.line(&sweep.value.id)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let (id, deadline) = (sweep.value.id, watch::deadline(timeout));
    let (progress, goes_on) = (&output.progress, goes_on(&id));
    let sweep = until_over(client, progress, &id, deadline, &goes_on, &mut interrupt).await?;
    shown(output, &sweep)
}

/// Prints a sweep, and says how it ended.
fn shown(output: &mut Output, sweep: &Answer<SweepObject>) -> anyhow::Result<ExitCode> {
    print(output, sweep)?;
    Ok(verdict(output, &sweep.value))
}

/// Makes the sweep, once however often its answer is lost.
async fn create(
    client: &Client,
    output: &Output,
    new: &NewSweep,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<SweepObject>> {
    let key = Uuid::new_v4().to_string();
    let create = async || client.create::<SweepObject>(&["sweeps"], &key, new).await;
    let created = tokio::select! {
        created = client.repeating(REPEATS, &output.progress, create) => created,
        () = interrupt.happened() => {
            let text = if new.dry_run { NOTHING_DELETED } else { MAY_BE_BEGUN };
            return Err(Interrupted(text.to_owned()).into());
        }
    };
    created.map_err(|failure| {
        if failure.leaves_it_open() && !new.dry_run {
            anyhow::anyhow!("{failure}; {MAY_BE_BEGUN}")
        } else {
            failure.into()
        }
    })
}

/// Counts the files with a sweep that deletes none.
async fn count(
    client: &Client,
    output: &Output,
    new: &NewSweep,
    deadline: Instant,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<SweepObject>> {
    let dry = NewSweep { dry_run: true, ..new.clone() };
    let sweep = create(client, output, &dry, interrupt).await?;
    if sweep.value.is_counted() {
        return Ok(sweep);
    }
    let id = &sweep.value.id;
    until_over(client, &output.progress, id, deadline, NOTHING_DELETED, interrupt).await
}

async fn ask(input: &mut Input, counted: &SweepObject) -> anyhow::Result<bool> {
    let (count, selection) = (files(counted.counts.matched), counted.selection());
    let question = format!("{count} ({selection}): delete here and at every provider? [y/N] ");
    // Where standard error is closed, nobody sees the question, and nobody answers it.
    let mut error = io::stderr();
    let _ = error.write_all(crate::cli::output::plain(&question).as_bytes());
    let _ = error.flush();
    Ok(input.says_yes().await?)
}

fn nothing_deleted() -> anyhow::Error {
    Interrupted(NOTHING_DELETED.to_owned()).into()
}

/// The ids that a file lists, or standard input.
async fn listed(list: &Path, input: &mut Input) -> anyhow::Result<Vec<String>> {
    let shown = list.display();
    let text = if list == Path::new("-") {
        input.text().await
    } else {
        tokio::fs::read_to_string(list).await
    };
    let text = text.with_context(|| format!("cannot read `{shown}`"))?;
    let mut ids = Vec::new();
    for (place, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let id: Result<GivenId, _> = line.parse();
        let id = id.map_err(|error| anyhow::anyhow!("`{shown}`, line {}: {error}", place + 1))?;
        ids.push(id.to_string());
    }
    anyhow::ensure!(!ids.is_empty(), "`{shown}` lists no id: there is nothing to delete");
    Ok(ids)
}
