//! Uploads files from disk, once each, however often the connection breaks.

pub(super) mod source;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use reqwest::multipart::Form;
use serde_json::Value;
use uuid::Uuid;

use super::{FileObject, Mapping, object::Stage, one_or_list, wait, wrong_usage};
use crate::cli::{
    client::{Answer, Client, Failure, Repeats},
    output::{Closed, Output, cell},
};
use source::Source;

const REPEATS: Repeats = Repeats(3);

/// What is uploaded, and for what.
#[derive(Args, Clone, Debug)]
pub struct PutArgs {
    /// The files to upload
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What they are for: assistants, batch, fine-tune, vision, user_data or evals
    #[arg(long)]
    purpose: String,
    /// The models to send them to, comma-separated or repeated; without it, the server's default models
    #[arg(long = "model", value_delimiter = ',', value_name = "MODEL")]
    models: Vec<String>,
    /// When the files go by themselves, as in `30d`; without it, never
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    expires_after: Option<Duration>,
    /// Pairs to keep with the files; repeat for each
    #[arg(long, value_parser = pair, value_name = "KEY=VALUE")]
    metadata: Vec<(String, String)>,
    /// Wait until the files are at every provider, at most so many seconds [default: 600]
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "600",
        value_parser = seconds,
        value_name = "SECONDS"
    )]
    wait: Option<Duration>,
    /// What makes a repeated upload count once; without it, a fresh one for each file
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
}

/// `longshore files put`.
///
/// Every file is opened before the first is sent, so that a wrong name costs nothing. A file that
/// fails later does not keep the others.
pub async fn run(client: &Client, output: &mut Output, args: PutArgs) -> anyhow::Result<ExitCode> {
    if args.files.len() > 1 && args.idempotency_key.is_some() {
        return Ok(wrong_usage(
            "`--idempotency-key` stands for one upload: give it with a single FILE",
        ));
    }
    let metadata = match metadata(&args.metadata) {
        Ok(metadata) => metadata,
        Err(key) => return Ok(wrong_usage(&format!("`--metadata {key}=…` is given twice"))),
    };
    let mut sources = Vec::with_capacity(args.files.len());
    for path in &args.files {
        sources.push(Source::check(path).await?);
    }

    let mut stored = Vec::new();
    for source in &sources {
        match put(client, output, source, &args, metadata.as_deref()).await {
            Ok(file) => stored.push(file),
            Err(error) if sources.len() == 1 => return Err(error),
            // The id was lost with its reader. What is left is uploaded all the same.
            Err(error) if error.is::<Closed>() => {}
            Err(error) => {
                output.progress.note(&format!("error: `{}`: {error:#}", source.path.display()))
            }
        }
    }
    let mut is_good = stored.len() == sources.len();
    if let Some(timeout) = args.wait {
        is_good &= wait_for_all(client, output, &mut stored, timeout).await?;
    }
    if output.json {
        let objects = stored.into_iter().map(|file| file.json).collect();
        output.document(&one_or_list(objects, sources.len()))?;
    }
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn put(
    client: &Client,
    output: &mut Output,
    source: &Source,
    args: &PutArgs,
    metadata: Option<&str>,
) -> anyhow::Result<Answer<FileObject>> {
    // One key over all tries: what an earlier try stored is found again and not stored twice.
    let key = args.idempotency_key.clone().unwrap_or_else(|| Uuid::new_v4().to_string());
    let bar = output.progress.transfer(&source.name, Some(source.bytes));
    let attempt = async || -> Result<Answer<FileObject>, Failure> {
        bar.set_position(0);
        let sending = source.open(&bar).await?;
        // The fields stand before the file, so that the server can check its lines as they come.
        let mut form = Form::new().text("purpose", args.purpose.clone());
        for model in &args.models {
            form = form.text("target_model_names", model.clone());
        }
        if let Some(expiry) = args.expires_after {
            form = form
                .text("expires_after[anchor]", "created_at")
                .text("expires_after[seconds]", expiry.as_secs().to_string());
        }
        if let Some(metadata) = metadata {
            form = form.text("metadata", metadata.to_owned());
        }
        let form = form.part("file", sending.part);
        let request = client.upload(&["files"]).header("idempotency-key", &key).multipart(form);
        let answer = client.transfer(request, || sending.state.moved()).await;
        // A fault of this side looks like a lost connection from the other end of the body.
        match sending.state.fault() {
            Some(fault) if answer.is_err() => Err(Failure::Here(fault)),
            _ => answer,
        }
    };
    let file = client.repeating(REPEATS, &output.progress, attempt).await;
    bar.finish_and_clear();
    let file = file?;
    if !output.json {
        output.line(&file.value.id)?;
    }
    Ok(file)
}

/// Brings every file up to its final state, and says whether all of them got to every provider.
async fn wait_for_all(
    client: &Client,
    output: &mut Output,
    stored: &mut [Answer<FileObject>],
    timeout: Duration,
) -> anyhow::Result<bool> {
    let deadline = wait::deadline(timeout);
    let mut is_good = true;
    for file in stored.iter_mut() {
        match wait::until_final(client, &output.progress, &file.value.id, deadline).await {
            Ok(last) => *file = last,
            // The ids of the files are still to be told.
            Err(error) => {
                output.progress.note(&format!("error: `{}`: {error:#}", file.value.name()));
                is_good = false;
                continue;
            }
        }
        is_good &= file.value.stage() == Stage::Processed;
        wait::verdict(output, &file.value);
    }
    if !output.json {
        let headings: Vec<_> =
            std::iter::once("FILENAME").chain(Mapping::HEADINGS.iter().copied()).collect();
        let mut rows = Vec::new();
        for file in stored.iter() {
            rows.extend(file.value.mappings.iter().map(|mapping| {
                let mut row = mapping.row();
                row.insert(0, cell(file.value.name()));
                row
            }));
        }
        output.table(&headings, rows)?;
    }
    Ok(is_good)
}

/// The pairs as JSON text, or the key that stands twice.
fn metadata(pairs: &[(String, String)]) -> Result<Option<String>, &str> {
    let mut object = serde_json::Map::new();
    for (key, value) in pairs {
        if object.insert(key.clone(), Value::from(value.as_str())).is_some() {
            return Err(key);
        }
    }
    Ok((!object.is_empty()).then(|| Value::Object(object).to_string()))
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it should look like `key=value`".to_owned()),
    }
}

/// Seconds, or a duration with a unit.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|_| {
            "it should be a number of seconds, or a duration such as `10m`".to_owned()
        }),
    }
}
