//! `longshore files`: files of a running server.

mod deletion;
mod get;
mod object;
mod put;
mod rm;
mod wait;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde_json::Value;

pub use deletion::{DeletedCopy, DeletionObject};
pub use object::{FileObject, LastError, Mapping, waiting};
pub use put::PutArgs;
pub use put::source::Source;
pub use put::{Fields, upload};
pub use rm::RmArgs;

use super::{
    client::Client,
    id::GivenId,
    list::{self, Paging},
    output::{Output, cell, optional, status, time, unless_closed},
};
use crate::files::Purpose;

/// What can be done with files.
#[derive(Clone, Debug, Subcommand)]
pub enum FilesCommand {
    /// Upload files and print their ids
    Put(PutArgs),
    /// List files, the newest first
    Ls(ListArgs),
    /// Show a file and where it is
    Show {
        /// The id that `put` printed
        id: GivenId,
    },
    /// Wait until a file is at every provider: exit code 0, or 1 when it failed or time was up
    Wait {
        /// The id that `put` printed
        id: GivenId,
        /// How long to wait
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration, value_name = "DURATION")]
        timeout: Duration,
    },
    /// Download a file's content
    Get(GetArgs),
    /// Send a file again to the providers where it failed
    Retry {
        /// The id that `put` printed
        id: GivenId,
    },
    /// Delete files here and at every provider
    ///
    /// A file is gone here at once; its copies go by durable jobs, for as long as that takes. One that was
    /// deleted before counts as done, so the command can be repeated.
    Rm(RmArgs),
}

/// Which files are listed.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only those for this purpose
    #[arg(long, value_parser = PossibleValuesParser::new(Purpose::ALL.map(Purpose::as_str)))]
    purpose: Option<String>,
    /// Only those in this status
    #[arg(long, value_parser = ["uploaded", "processed", "error"])]
    status: Option<String>,
    /// Only those sent to this model
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    paging: Paging,
}

/// Which content is downloaded, and to where.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// The id that `put` printed
    id: GivenId,
    /// Where to write the content; `-` is standard output, whatever that is [default: standard output,
    /// but nothing binary on a terminal]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file when it exists
    #[arg(long, requires = "output")]
    force: bool,
}

impl FilesCommand {
    /// Runs the command: results on standard output, one JSON document of the API's with `json`, and for
    /// `rm` one in each line.
    ///
    /// # Errors
    /// The call failed, and nothing was said about it yet. A file that ended as `error` is no error
    /// but exit code 1.
    pub async fn run(self, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
        unless_closed(self.run_to(client, &mut Output::standard(json)).await)
    }

    async fn run_to(self, client: &Client, output: &mut Output) -> anyhow::Result<ExitCode> {
        match self {
            Self::Put(args) => return put::run(client, output, args).await,
            Self::Ls(args) => ls(client, output, args).await?,
            Self::Show { id } => {
                let file = client.get::<FileObject>(&["files", id.as_str()], &[]).await?;
                if output.json {
                    output.document(&file.json)?;
                } else {
                    show(output, &file.value)?;
                }
            }
            Self::Wait { id, timeout } => return wait::run(client, output, &id, timeout).await,
            Self::Get(GetArgs { id, output: target, force }) => {
                get::run(client, output, &id, target.as_deref(), force).await?;
            }
            Self::Retry { id } => retry(client, output, &id).await?,
            Self::Rm(args) => return rm::run(client, output, args).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn ls(client: &Client, output: &mut Output, args: ListArgs) -> anyhow::Result<()> {
    let ListArgs { purpose, status, model, paging } = args;
    let filters = [("purpose", purpose), ("status", status), ("model", model)];
    let query = filters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    list::print::<FileObject>(client, output, &["files"], query, paging).await
}

fn show(output: &mut Output, file: &FileObject) -> anyhow::Result<()> {
    let mut rows = vec![
        vec![cell("name"), optional(file.filename.as_deref())],
        vec![cell("purpose"), optional(file.purpose.as_deref())],
        vec![cell("status"), status(&file.status)],
        vec![cell("size"), cell(&file.size())],
        vec![cell("created"), cell(&time(file.created_at))],
        vec![cell("expires"), cell(&time(file.expires_at))],
        vec![cell("sha256"), optional(file.sha256.as_deref())],
    ];
    if let Some(details) = &file.status_details {
        rows.insert(3, vec![cell("details"), cell(details)]);
    }
    for (key, value) in &file.metadata {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        rows.push(vec![cell(&format!("metadata {key}")), cell(&value)]);
    }
    rows.push(vec![cell("id"), cell(&file.id)]);
    output.table(&[], rows)?;
    if file.mappings.is_empty() {
        return Ok(());
    }
    output.line("")?;
    output.table(Mapping::HEADINGS, file.mappings.iter().map(Mapping::row).collect())
}

async fn retry(client: &Client, output: &mut Output, id: &GivenId) -> anyhow::Result<()> {
    let file = client.act::<FileObject>(&["files", id.as_str(), "retry"]).await?;
    if output.json {
        return output.document(&file.json);
    }
    output.table(Mapping::HEADINGS, file.value.mappings.iter().map(Mapping::row).collect())
}

/// What a script gets: the API's object where it asked for one thing, else the API's list of them.
fn one_or_list(mut objects: Vec<Value>, asked: usize) -> Value {
    if asked == 1 && objects.len() == 1 {
        return objects.remove(0);
    }
    let id = |object: Option<&Value>| object.map_or(Value::Null, |object| object["id"].clone());
    let (first_id, last_id) = (id(objects.first()), id(objects.last()));
    serde_json::json!({
        "object": "list", "data": objects, "first_id": first_id, "last_id": last_id, "has_more": false,
    })
}

#[cfg(test)]
mod tests;
