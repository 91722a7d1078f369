//! `longshore sandbox`: the built-in providers alone, for trying things out.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::Failed;
use super::Start;
use super::serve;
use crate::sandbox;
use crate::sandbox::Fault;
use crate::sandbox::FaultRule;
use crate::sandbox::Operation;
use crate::sandbox::Settings;
use crate::sandbox::Webhook;

/// Any account exists as soon as it is used: its base URL is `http://ADDRESS/ACCOUNT/v1`, and
/// `http://ADDRESS/_control/ACCOUNT/` sets its latency and faults and shows its ledger.
#[derive(Debug, Args)]
pub struct Sandbox {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:4701")]
    listen: SocketAddr,
    /// Accounts that the options below are for
    #[arg(long = "account", value_name = "NAME", default_value = "openai")]
    accounts: Vec<String>,
    /// How long every answer takes, in milliseconds
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// How long a new file is missing from the list, in milliseconds
    #[arg(long, default_value_t = 0)]
    list_lag_ms: u64,
    /// How many bytes of each file are kept to be given back
    #[arg(long)]
    keep_bytes: Option<u64>,
    /// How many uploads are answered with 503 first
    #[arg(long, default_value_t = 0)]
    fail_uploads: u64,
    /// How long a batch takes to its end, in seconds
    #[arg(long, value_name = "SECONDS")]
    batch_seconds: Option<f64>,
    /// How many of a hundred lines of a batch fail
    #[arg(long, default_value_t = 0, value_name = "PERCENT")]
    failing_percent: u8,
    /// How many batches may be under way at a time; more are refused
    #[arg(long, value_name = "N")]
    max_open_batches: Option<u64>,
    /// Where the end of a batch is told
    #[arg(long, value_name = "URL", requires = "webhook_secret")]
    webhook_url: Option<String>,
    /// What such an event is signed with: `whsec_…`
    #[arg(long, value_name = "SECRET", requires = "webhook_url")]
    webhook_secret: Option<String>,
}

/// Of a batch that nothing holds up: validating, in progress, finalizing.
const PHASES: f64 = 3.0;

impl Sandbox {
    pub async fn run(self, start: &Start) -> Result<ExitCode, Failed> {
        start.start_logging("")?;
        let sandbox = sandbox::Sandbox::bind(self.listen)
            .map_err(|error| anyhow::anyhow!("cannot listen on `{}`: {error}", self.listen))?;
        for account in &self.accounts {
            sandbox.configure(account, self.settings());
            if self.fail_uploads > 0 {
                let body = serde_json::json!({"error": {"message": "The server is overloaded.",
                    "type": "service_unavailable_error", "param": null, "code": "server_is_overloaded"}});
                let rule = FaultRule::new(Operation::Upload, Fault::status(503, body));
                sandbox.add_fault(account, FaultRule { times: self.fail_uploads, ..rule })?;
            }
            println!("{account}: base_url = \"{}\"", sandbox.base_url(account));
        }
        println!("control: {}", sandbox.control_url("ACCOUNT"));
        let shutdown = CancellationToken::new();
        serve::stop_on_signals(shutdown.clone())?;
        shutdown.cancelled().await;
        sandbox.shutdown().await;
        Ok(ExitCode::SUCCESS)
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings {
            latency_ms: self.latency_ms,
            list_lag_ms: self.list_lag_ms,
            ..Settings::default()
        };
        settings.keep_bytes = self.keep_bytes.unwrap_or(settings.keep_bytes);
        settings.batches.failing_percent = self.failing_percent;
        settings.batches.max_open_batches = self.max_open_batches;
        if let Some(seconds) = self.batch_seconds {
            settings.batches.phase_ms = (seconds * 1000.0 / PHASES) as u64;
        }
        if let (Some(url), Some(secret)) = (&self.webhook_url, &self.webhook_secret) {
            settings.webhook = Some(Webhook { url: url.clone(), secret: secret.clone() });
        }
        settings
    }
}
