//! `longshore demo`: a real file goes to three models, one of which fails twice first, and is deleted at
//! all of them, one of which does not answer.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Failed;
use super::Start;
use super::files::DeletedCopy;
use super::files::DeletionObject;
use super::serve;
use super::serve::Parts;
use super::serve::Running;
use crate::app::App;
use crate::clock::Clock;
use crate::config::Config;
use crate::sandbox::Fault;
use crate::sandbox::FaultRule;
use crate::sandbox::Operation;
use crate::sandbox::Sandbox;
use crate::sandbox::Settings;

/// 3,376 requests in the batch format, one for each airport of the public list of the FAA.
const SAMPLE: &[u8] = include_bytes!("demo/airports.batch.jsonl");
const KEY: &str = "demo";
const MODELS: [(&str, &str, &str); 3] = [
    ("swift", "north", "swift-2026-06"),
    ("steady", "east", "steady-1"),
    ("stormy", "south", "stormy-xl-preview"),
];
const PREFERRED: &str = "127.0.0.1:4700";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// From the order to its end.
const STEPS: u64 = 3;

#[derive(Debug, Args)]
pub struct Demo {
    /// End when the file is deleted, instead of running on for `curl`
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Deserialize)]
struct File {
    id: String,
    status: String,
    mappings: Vec<Mapping>,
}

#[derive(Debug, Deserialize)]
struct Mapping {
    model: String,
    provider: String,
    status: String,
    provider_file_id: Option<String>,
    attempts: u32,
    error: Option<MappingError>,
}

#[derive(Debug, Deserialize)]
struct MappingError {
    code: String,
}

impl Demo {
    pub async fn run(self, start: &Start) -> Result<ExitCode, Failed> {
        start.start_logging("error")?;
        let folder = tempfile::tempdir()?;
        let sandbox = sandbox()?;
        let listen = free_address().await?;
        let config = configuration(folder.path(), &sandbox, &listen)?;
        let db = serve::connect(&config).await?;
        db.migrate().await?;
        let app = App::open(Arc::new(config), db, Clock::default()).await?;
        let shutdown = CancellationToken::new();
        serve::stop_on_signals(shutdown.clone())?;
        let running = Running::start(app, Parts::Both, shutdown.clone()).await?;
        let base = format!("http://{listen}/v1");
        println!(
            "Longshore runs on http://{listen}, its providers are built in, its data is in {}.\n",
            folder.path().display()
        );

        let shown = show(&base, &sandbox).await;
        if let (Ok(shown), false) = (&shown, self.once) {
            println!("\nIt runs on until Ctrl-C. In another terminal, try:\n");
            println!("  export LONGSHORE_URL=http://{listen} LONGSHORE_API_KEY={KEY}");
            println!("  longshore files ls");
            println!("  longshore files put FILE --purpose user_data --model swift,stormy --wait");
            println!("  longshore jobs ls");
            println!("  longshore sweeps run --all --wait\n");
            println!("or the API, as any client of OpenAI's does:\n");
            println!(
                "  curl -s -H 'Authorization: Bearer {KEY}' {base}/files/{}/deletion",
                shown.id
            );
            println!("  curl -s -H 'Authorization: Bearer {KEY}' '{base}/jobs?limit=3'");
            println!(
                "  curl -s -H 'Authorization: Bearer {KEY}' -F purpose=user_data -F target_model_names=swift,stormy -F file=@FILE {base}/files"
            );
        } else {
            shutdown.cancel();
        }
        running.until_stopped().await?;
        Ok(if shown?.is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Three accounts. One is slow, and one fails twice before it takes a file, and hangs up when it has deleted
/// it.
fn sandbox() -> anyhow::Result<Sandbox> {
    let sandbox = Sandbox::bind(([127, 0, 0, 1], 0).into())?;
    for (account, latency_ms) in [("north", 150), ("east", 900), ("south", 250)] {
        sandbox.configure(account, Settings { latency_ms, ..Settings::default() });
    }
    let body = serde_json::json!({"error": {"message": "The server is overloaded.",
        "type": "service_unavailable_error", "param": null, "code": "server_is_overloaded"}});
    let rule = FaultRule::new(Operation::Upload, Fault::status(503, body));
    sandbox.add_fault("south", FaultRule { times: 2, ..rule })?;
    sandbox.add_fault("south", FaultRule::new(Operation::Delete, Fault::LostAnswer))?;
    Ok(sandbox)
}

/// The usual address, or any other if that is taken.
async fn free_address() -> anyhow::Result<String> {
    let listener = match TcpListener::bind(PREFERRED).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind("127.0.0.1:0").await?,
    };
    Ok(listener.local_addr()?.to_string())
}

fn configuration(
    folder: &std::path::Path,
    sandbox: &Sandbox,
    listen: &str,
) -> Result<Config, Failed> {
    let data = folder.display();
    let mut text = format!(
        "[server]\nlisten = \"{listen}\"\n[auth]\nadmin_key = \"{KEY}\"\n[database]\nurl = \"sqlite://{data}/longshore.db\"\n\
         [blobs]\nurl = \"file://{data}/blobs\"\n[retry]\nbase_delay = \"500ms\"\n[workers]\ndrain = \"2s\"\n"
    );
    for (name, account, model) in MODELS {
        text.push_str(&format!(
            "[[providers]]\nname = \"{account}\"\nkind = \"openai\"\nbase_url = \"{}\"\nlist_lag = \"200ms\"\n\
             [[models]]\nname = \"{name}\"\nprovider = \"{account}\"\nmodel = \"{model}\"\n",
            sandbox.base_url(account)
        ));
    }
    let file = folder.join("longshore.toml");
    std::fs::write(&file, text)?;
    let loaded = Config::load(Some(&file), &std::collections::BTreeMap::new());
    Ok(loaded.map_err(|error| anyhow::anyhow!("{error}"))?.config)
}

/// What was shown.
struct Shown {
    /// Of the file.
    id: String,
    /// Whether the file arrived everywhere, and is gone everywhere.
    is_good: bool,
}

async fn show(base: &str, sandbox: &Sandbox) -> anyhow::Result<Shown> {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let file = upload(&client, base).await?;
    let deletion = delete(&client, base, &file).await?;
    let left: usize = MODELS.iter().map(|(_, account, _)| sandbox.live_files(account).len()).sum();
    println!("The providers hold {left} files.");
    let is_good = file.status == "processed" && deletion.status == "done" && left == 0;
    Ok(Shown { id: file.id, is_good })
}

/// Uploads the sample, watches it arrive, and prints the table.
async fn upload(client: &reqwest::Client, base: &str) -> anyhow::Result<File> {
    let begun = tokio::time::Instant::now();
    let mut form = reqwest::multipart::Form::new().text("purpose", "batch");
    for (name, _, _) in MODELS {
        form = form.text("target_model_names", name);
    }
    let part = reqwest::multipart::Part::bytes(SAMPLE)
        .file_name("airports.batch.jsonl")
        .mime_str("application/jsonl")?;
    let request =
        client.post(format!("{base}/files")).bearer_auth(KEY).multipart(form.part("file", part));
    let mut file: File = request.send().await?.error_for_status()?.json().await?;
    println!(
        "Uploaded airports.batch.jsonl ({} requests, {} KB) once; its id came back after {} ms:\n{}\n",
        SAMPLE.iter().filter(|byte| **byte == b'\n').count(),
        SAMPLE.len() / 1024,
        begun.elapsed().as_millis(),
        file.id
    );
    let bars = Bars::new(file.mappings.iter().map(|mapping| mapping.model.as_str()));
    while file.status == "uploaded" && begun.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK_EVERY).await;
        let request = client.get(format!("{base}/files/{}", file.id)).bearer_auth(KEY);
        file = request.send().await?.error_for_status()?.json().await?;
        bars.show(file.mappings.iter().map(Mapping::step));
    }
    bars.finish();
    println!("{}", arrivals(&file));
    println!("The file is `{}` after {:.1} s.\n", file.status, begun.elapsed().as_secs_f64());
    Ok(file)
}

/// Deletes the file, watches its copies go, and prints the receipts.
async fn delete(
    client: &reqwest::Client,
    base: &str,
    file: &File,
) -> anyhow::Result<DeletionObject> {
    let begun = tokio::time::Instant::now();
    let url = format!("{base}/files/{}", file.id);
    client.delete(&url).bearer_auth(KEY).send().await?.error_for_status()?;
    println!(
        "Deleted it: gone here after {} ms, and on its way out at every provider:\n",
        begun.elapsed().as_millis()
    );
    let bars = Bars::new(file.mappings.iter().map(|mapping| mapping.model.as_str()));
    let deletion = loop {
        let request = client.get(format!("{url}/deletion")).bearer_auth(KEY);
        let deletion: DeletionObject = request.send().await?.error_for_status()?.json().await?;
        bars.show(deletion.mappings.iter().map(departure));
        if deletion.status != "pending" || begun.elapsed() >= PATIENCE {
            break deletion;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    bars.finish();
    println!("{}", receipts(&deletion));
    println!("The deletion is `{}` after {:.1} s.", deletion.status, begun.elapsed().as_secs_f64());
    Ok(deletion)
}

impl Mapping {
    /// How far its bar is, of [`STEPS`], and what stands beside it.
    fn step(&self) -> (u64, String) {
        let position = match self.status.as_str() {
            "pending" => 1,
            "uploading" => 2,
            _ => STEPS,
        };
        let reason = self.error.as_ref().map(|error| format!(" (last: {})", error.code));
        let reason = reason.unwrap_or_default();
        (position, format!("{}, attempt {}{reason}", self.status, self.attempts))
    }
}

/// As [`Mapping::step`], on the way out: a failed try is a step too.
fn departure(copy: &DeletedCopy) -> (u64, String) {
    let position = match (copy.status.as_str(), &copy.error) {
        ("deleting", None) => 1,
        ("deleting", Some(_)) => 2,
        _ => STEPS,
    };
    let code = copy.error.as_ref().and_then(|error| error.code.as_deref());
    let reason = match (&copy.receipt, code) {
        (None, Some(code)) => format!(" (last: {code})"),
        (Some(_), _) | (None, None) => String::new(),
    };
    (position, format!("{}{reason}", copy.status))
}

/// A bar for each model.
struct Bars(Vec<ProgressBar>);

impl Bars {
    fn new<'a>(models: impl Iterator<Item = &'a str>) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix:>8} {bar:24} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = models.map(|model| {
            let bar = all.add(ProgressBar::new(STEPS).with_style(style.clone()));
            bar.set_prefix(model.to_owned());
            bar
        });
        Self(bars.collect())
    }

    fn show(&self, steps: impl Iterator<Item = (u64, String)>) {
        for (bar, (position, message)) in self.0.iter().zip(steps) {
            bar.set_position(position);
            bar.set_message(message);
        }
    }

    fn finish(&self) {
        for bar in &self.0 {
            bar.finish();
        }
    }
}

fn arrivals(file: &File) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "model",
        "provider",
        "status",
        "attempts",
        "the provider's id",
    ]);
    for mapping in &file.mappings {
        table.add_row([
            mapping.model.clone(),
            mapping.provider.clone(),
            mapping.status.clone(),
            mapping.attempts.to_string(),
            mapping.provider_file_id.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn receipts(deletion: &DeletionObject) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["model", "provider", "status", "receipt"]);
    for copy in &deletion.mappings {
        table.add_row([
            copy.model.clone(),
            copy.provider.clone(),
            copy.status.clone(),
            copy.note().unwrap_or_default(),
        ]);
    }
    table
}
