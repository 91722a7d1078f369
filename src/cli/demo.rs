//! `longshore demo`: a real file goes to three models, one of which fails twice first; a batch runs on two of them; and
//! all of it is deleted again, at a provider that does not answer, too.

mod bars;
mod batch;
mod deletion;
mod upload;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Failed;
use super::Start;
use super::client::Client;
use super::serve;
use super::serve::Parts;
use super::serve::Running;
use crate::app::App;
use crate::config::Config;
use crate::sandbox::BatchSettings;
use crate::sandbox::Fault;
use crate::sandbox::FaultRule;
use crate::sandbox::Operation;
use crate::sandbox::Sandbox;
use crate::sandbox::Settings;
use crate::sandbox::Webhook;

/// 3,376 requests in the batch format, one for each airport of the public list of the FAA.
const SAMPLE: &[u8] = include_bytes!("demo/airports.batch.jsonl");
const KEY: &str = "demo";
/// What the providers sign their events with, on this machine alone.
const WEBHOOK_SECRET: &str = "whsec_dGhlIGRlbW8gb2YgbG9uZ3Nob3Jl";
const MODELS: [Model; 3] = [
    Model { name: "swift", account: "north", its_name: "swift-2026-06" },
    Model { name: "steady", account: "east", its_name: "steady-1" },
    Model { name: "stormy", account: "south", its_name: "stormy-xl-preview" },
];
/// Of the requests to `steady`.
const FAILING_PERCENT: u8 = 1;
/// How long a batch takes to validate, to run, and to finalize; and of what the latencies of the providers are
/// multiples. To be watched, or to be over soon.
const WATCHED: Pace = Pace { phase_ms: 1500, latency_ms: 150 };
const QUICK: Pace = Pace { phase_ms: 100, latency_ms: 50 };
const PREFERRED: &str = "127.0.0.1:4700";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub struct Demo {
    /// End when everything is deleted, instead of running on for `curl`
    #[arg(long)]
    once: bool,
}

/// A model, and the account that it is at.
struct Model {
    name: &'static str,
    account: &'static str,
    /// As the provider calls it.
    its_name: &'static str,
}

/// How fast the providers are.
struct Pace {
    phase_ms: u64,
    latency_ms: u64,
}

impl Demo {
    pub async fn run(self, start: &Start) -> Result<ExitCode, Failed> {
        start.start_logging("error")?;
        let folder = tempfile::tempdir()?;
        let listen = free_address().await?;
        let sandbox = sandbox(&listen, if self.once { &QUICK } else { &WATCHED })?;
        let config = configuration(folder.path(), &sandbox, &listen)?;
        let db = serve::connect(&config).await?;
        db.migrate().await?;
        let app = App::open(Arc::new(config), db).await?;
        let shutdown = CancellationToken::new();
        serve::stop_on_signals(shutdown.clone())?;
        let running = Running::start(app, Parts::Both, shutdown.clone()).await?;
        let url = format!("http://{listen}");
        println!(
            "Longshore runs on {url}, its providers are built in, its data is in {}.\n",
            folder.path().display()
        );

        let client = Client::from_env(Some(url.clone()), Some(KEY.into()))?;
        let shown = show(&client, &sandbox).await;
        match &shown {
            Ok(shown) if !self.once => say_what_to_try(&url, &shown.file_id),
            _ => shutdown.cancel(),
        }
        running.until_stopped().await?;
        Ok(if shown?.is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn say_what_to_try(url: &str, file_id: &str) {
    println!("\nIt runs on until Ctrl-C. In another terminal, try:\n");
    println!("  export LONGSHORE_URL={url} LONGSHORE_API_KEY={KEY}");
    println!("  longshore files put FILE --purpose user_data --model swift,stormy --wait");
    println!(
        "  longshore batches create REQUESTS.jsonl --model swift,steady --endpoint /v1/chat/completions --wait"
    );
    println!("  longshore files ls");
    println!("  longshore jobs ls");
    println!("  longshore sweeps run --all --wait\n");
    println!("or the API, as any client of OpenAI's does:\n");
    let curl = format!("  curl -s -H 'Authorization: Bearer {KEY}'");
    println!("{curl} {url}/v1/files/{file_id}/deletion");
    println!("{curl} '{url}/v1/jobs?limit=3'");
    println!(
        "{curl} -F purpose=user_data -F target_model_names=swift,stormy -F file=@FILE {url}/v1/files"
    );
}

/// Three accounts. One is slow and does not answer all requests of a batch; one fails twice before it takes a file, and
/// hangs up when it has deleted it. All tell Longshore of the ends of batches.
fn sandbox(listen: &str, pace: &Pace) -> anyhow::Result<Sandbox> {
    let sandbox = Sandbox::bind(([127, 0, 0, 1], 0).into())?;
    for (account, slowness, failing_percent) in
        [("north", 1, 0), ("east", 6, FAILING_PERCENT), ("south", 2, 0)]
    {
        let batches = BatchSettings {
            phase_ms: pace.phase_ms,
            failing_percent,
            failing_status: 429,
            ..BatchSettings::default()
        };
        let webhook = Webhook {
            url: format!("http://{listen}/v1/provider_events/{account}"),
            secret: WEBHOOK_SECRET.to_owned(),
        };
        let settings = Settings {
            latency_ms: pace.latency_ms * slowness,
            keep_bytes: 64 << 20,
            batches,
            webhook: Some(webhook),
            ..Settings::default()
        };
        sandbox.configure(account, settings);
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

fn configuration(folder: &Path, sandbox: &Sandbox, listen: &str) -> Result<Config, Failed> {
    let data = folder.display();
    // The providers tell of an end by their webhooks; how far they are until then, it has to look for.
    let mut text = format!(
        "[server]\nlisten = \"{listen}\"\n[auth]\nadmin_key = \"{KEY}\"\n[database]\nurl = \"sqlite://{data}/longshore.db\"\n\
         [blobs]\nurl = \"file://{data}/blobs\"\n[retry]\nbase_delay = \"500ms\"\n[workers]\ndrain = \"2s\"\n\
         [batches]\npoll = \"300ms\"\npoll_max = \"300ms\"\n"
    );
    for Model { name, account, its_name } in MODELS {
        text.push_str(&format!(
            "[[providers]]\nname = \"{account}\"\nkind = \"openai\"\nbase_url = \"{}\"\nlist_lag = \"200ms\"\n\
             webhook_secret = \"{WEBHOOK_SECRET}\"\n\
             [[models]]\nname = \"{name}\"\nprovider = \"{account}\"\nmodel = \"{its_name}\"\n",
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
    file_id: String,
    /// Whether all of it went as it should.
    is_good: bool,
}

async fn show(client: &Client, sandbox: &Sandbox) -> anyhow::Result<Shown> {
    let file = upload::show(client).await?;
    let batch = batch::show(client, &file.id).await?;
    let told: u64 = MODELS.iter().map(|model| sandbox.stats(model.account).events_taken).sum();
    println!("{told} of its {} providers told of its end by their webhooks.\n", batch.runs.len());
    let are_gone = deletion::show(client, &batch).await?;
    let left: usize = MODELS.iter().map(|model| sandbox.live_files(model.account).len()).sum();
    println!("The providers hold {left} files.");
    let is_good = file.status == "processed"
        && batch::is_good(&batch)
        && told == batch.runs.len() as u64
        && are_gone
        && left == 0;
    Ok(Shown { file_id: file.id, is_good })
}

/// How many requests the sample has.
fn requests() -> u64 {
    SAMPLE.iter().filter(|byte| **byte == b'\n').count() as u64
}
