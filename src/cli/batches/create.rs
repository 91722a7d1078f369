//! Creates batches, once each however often an answer is lost.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use uuid::Uuid;

use super::Waiting;
use super::object::BatchObject;
use super::wait;
use crate::cli::client::Answer;
use crate::cli::client::Client;
use crate::cli::client::Repeats;
use crate::cli::files;
use crate::cli::files::Fields;
use crate::cli::files::Source;
use crate::cli::id::GivenId;
use crate::cli::interrupt::Interrupt;
use crate::cli::interrupt::Interrupted;
use crate::cli::output::Output;
use crate::cli::output::wrong_usage;
use crate::cli::pairs;
use crate::cli::watch;
use crate::files::Purpose;

const REPEATS: Repeats = Repeats(3);
const MAY_BE_MADE: &str = "the server may have made it: `longshore batches ls` shows it";

/// What the batch is made of.
#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    /// The file with the requests: the id that `longshore files put` printed, or a file on disk, which is
    /// uploaded first
    #[arg(value_name = "FILE_ID|PATH")]
    input: String,
    /// Where the requests go, such as `/v1/chat/completions`; as each line's `url`
    #[arg(long)]
    endpoint: String,
    /// The models to run on, comma-separated or repeated; without it, all that the file was sent to
    #[arg(long = "model", value_delimiter = ',', value_name = "MODEL")]
    models: Vec<String>,
    /// Pairs to keep with the batch; repeat for each
    #[arg(long, value_parser = pairs::pair, value_name = "KEY=VALUE")]
    metadata: Vec<(String, String)>,
    /// After how long the provider's output goes by itself, from `1h` to `30d`
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    output_expires_after: Option<Duration>,
    #[command(flatten)]
    waiting: Waiting,
}

/// Which batch is taken over.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// The provider's own id of the batch
    provider_batch_id: String,
    /// The model whose provider has it
    #[arg(long)]
    model: String,
    #[command(flatten)]
    waiting: Waiting,
}

/// The request for a batch.
#[derive(Debug, Serialize)]
struct NewBatch {
    input_file_id: String,
    endpoint: String,
    completion_window: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    target_model_names: Vec<String>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    metadata: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_expires_after: Option<OutputExpiry>,
}

#[derive(Debug, Serialize)]
struct OutputExpiry {
    anchor: &'static str,
    seconds: u64,
}

#[derive(Debug, Serialize)]
struct Import {
    model: String,
    provider_batch_id: String,
}

/// `longshore batches create`.
pub async fn run(
    client: &Client,
    output: &mut Output,
    args: CreateArgs,
) -> anyhow::Result<ExitCode> {
    let metadata = match pairs::object(&args.metadata) {
        Ok(metadata) => metadata,
        Err(key) => return Ok(wrong_usage(&format!("`--metadata {key}=…` is given twice"))),
    };
    let input_file_id = match Input::of(&args.input).await? {
        Input::Stored(id) => id.to_string(),
        Input::OnDisk(source) => {
            let fields = Fields {
                purpose: Purpose::Batch.as_str(),
                models: &args.models,
                expires_after: None,
                metadata: None,
            };
            let mut interrupt = Interrupt::listen();
            let file = files::upload(client, output, &source, fields, &mut interrupt).await?;
            output.progress.note(&format!("uploaded as {}", file.value.id));
            file.value.id
        }
    };
    let new = NewBatch {
        input_file_id,
        endpoint: args.endpoint,
        completion_window: super::WINDOW,
        target_model_names: args.models,
        metadata,
        output_expires_after: args
            .output_expires_after
            .map(|life| OutputExpiry { anchor: "created_at", seconds: life.as_secs() }),
    };
    make(client, output, &["batches"], &new, args.waiting.wait).await
}

/// `longshore batches import`.
pub async fn import(
    client: &Client,
    output: &mut Output,
    args: ImportArgs,
) -> anyhow::Result<ExitCode> {
    let ImportArgs { provider_batch_id, model, waiting } = args;
    let import = Import { model, provider_batch_id };
    make(client, output, &["batches", "import"], &import, waiting.wait).await
}

/// Has the server make a batch, prints its id, and waits for its end where that is wanted.
pub async fn make(
    client: &Client,
    output: &mut Output,
    path: &[&str],
    new: &impl Serialize,
    timeout: Option<Duration>,
) -> anyhow::Result<ExitCode> {
    let mut interrupt = Interrupt::listen();
    let batch = create(client, output, path, new, &mut interrupt).await?;
    let Some(timeout) = timeout else {
        if output.json {
            output.document(&batch.json)?;
        } else {
            output.line(&batch.value.id)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let id = &batch.value.id;
    output.progress.note(&format!("created {id}"));
    wait::until_over(client, output, id, watch::deadline(timeout), &mut interrupt).await
}

async fn create(
    client: &Client,
    output: &Output,
    path: &[&str],
    new: &impl Serialize,
    interrupt: &mut Interrupt,
) -> anyhow::Result<Answer<BatchObject>> {
    // One key over all tries: what an earlier try made is found again and not made twice.
    let key = Uuid::new_v4().to_string();
    let create = async || client.create(path, &key, new).await;
    let created = tokio::select! {
        created = client.repeating(REPEATS, &output.progress, create) => created,
        () = interrupt.happened() => return Err(Interrupted(MAY_BE_MADE.to_owned()).into()),
    };
    created.map_err(|failure| {
        if failure.leaves_it_open() {
            anyhow::anyhow!("{failure}; {MAY_BE_MADE}")
        } else {
            failure.into()
        }
    })
}

/// What a batch is created over.
enum Input {
    Stored(GivenId),
    OnDisk(Source),
}

impl Input {
    /// What lies on disk under this name is a file to upload; anything else that can be one is an id.
    async fn of(given: &str) -> anyhow::Result<Self> {
        let path = PathBuf::from(given);
        if tokio::fs::try_exists(&path).await.unwrap_or(false) {
            return Ok(Self::OnDisk(Source::check(&path).await?));
        }
        match given.parse() {
            Ok(id) if !looks_like_a_path(given) => Ok(Self::Stored(id)),
            // It says that it cannot be opened, and why.
            _ => Ok(Self::OnDisk(Source::check(Path::new(given)).await?)),
        }
    }
}

/// No id has these.
fn looks_like_a_path(given: &str) -> bool {
    given.contains(['/', '.'])
}
