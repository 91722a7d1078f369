//! `longshore up`, `serve`, `work` and `migrate`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use clap::Subcommand;
use secrecy::ExposeSecret as _;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio_util::sync::CancellationToken;

use super::Failed;
use super::Start;
use super::doctor;
use crate::api::Api;
use crate::api::server;
use crate::app::App;
use crate::config::Config;
use crate::config::Loaded;
use crate::config::Source;
use crate::db::Db;
use crate::db::Schema;
use crate::keys;
use crate::keys::Identity;
use crate::owners;
use crate::processes::Process;
use crate::processes::Role;
use crate::telemetry;
use crate::traces;
use crate::workers;

/// What the last traces get to be sent in, at the least and at the most.
const FLUSH: RangeInclusive<Duration> = Duration::from_millis(300)..=Duration::from_secs(5);
/// How long after the time to drain they are given up: the process is to be gone half a second later.
const FLUSHED_WITHIN: Duration = Duration::from_millis(1500);

/// What runs in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    Both,
    Intake,
    Workers,
}

impl Parts {
    const fn has_intake(self) -> bool {
        matches!(self, Self::Both | Self::Intake)
    }

    const fn has_workers(self) -> bool {
        matches!(self, Self::Both | Self::Workers)
    }

    /// How long it may take until all that runs has ended.
    fn drain(self, config: &Config) -> Duration {
        let delay = if self.has_intake() { config.server.drain_delay } else { Duration::ZERO };
        delay + config.workers.drain
    }

    const fn role(self) -> Role {
        match self {
            Self::Both => Role::Up,
            Self::Intake => Role::Serve,
            Self::Workers => Role::Work,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// Show which migrations the schema still lacks; exit code 1 if there are any
    Status,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(start: &Start, parts: Parts) -> Result<ExitCode, Failed> {
    // First of all: the first process of a container is not ended by a signal that it does not handle.
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    start.start_logging("")?;
    let loaded = start.load()?;
    say_what_was_found(&loaded);
    let config = Arc::new(loaded.config);
    let opened = shutdown.run_until_cancelled(open(&config, parts)).await;
    let Some(app) = opened.transpose()? else {
        tracing::info!("stopped before anything was started");
        return Ok(ExitCode::SUCCESS);
    };
    let (traces, outbox) = traces::start(&config.telemetry, &start.environment)
        .map_err(|error| Failed::Misconfigured(error.to_string()))?;
    let app = app.with_traces(traces);
    let stopping = tokio::spawn({
        let shutdown = shutdown.clone();
        async move {
            shutdown.cancelled().await;
            Instant::now()
        }
    });
    let running = Running::start(app, parts, shutdown.clone()).await?;
    if let Some(key) = &running.new_admin_key {
        println!(
            "No key is configured, so an admin key was made. It is shown this once:\n\n    {}\n",
            key.expose_secret()
        );
    }
    let stopped = running.until_stopped().await;
    if let Some(outbox) = outbox {
        shutdown.cancel();
        let end = stopping.await? + parts.drain(&config) + FLUSHED_WITHIN;
        let left = end.saturating_duration_since(Instant::now());
        outbox.flush(left.clamp(*FLUSH.start(), *FLUSH.end())).await;
    }
    stopped?;
    Ok(ExitCode::SUCCESS)
}

/// The database, its schema brought up to date, and what is opened over it.
async fn open(config: &Arc<Config>, parts: Parts) -> Result<App, Failed> {
    let db = connect(config).await?;
    prepare_schema(&db, parts).await?;
    Ok(App::open(Arc::clone(config), db).await?)
}

fn say_what_was_found(loaded: &Loaded) {
    if let Source::File(path) = &loaded.source {
        tracing::info!("configuration: {}", path.display());
    }
    for sentence in &loaded.found {
        tracing::info!("{sentence}");
    }
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
}

pub async fn connect(config: &Config) -> Result<Db, Failed> {
    let url = &config.database.url;
    Db::open(&config.database).await.map_err(|error| {
        let remedy = doctor::database_remedy(&error);
        Failed::Otherwise(anyhow::anyhow!("cannot open the database `{url}`: {error}; {remedy}"))
    })
}

async fn prepare_schema(db: &Db, parts: Parts) -> Result<(), Failed> {
    if parts.has_intake() || !db.is_postgres() {
        db.migrate().await.context("cannot bring the schema up to date")?;
    }
    let Schema { missing, unknown } = db.schema().await?;
    if !missing.is_empty() {
        return Err(Failed::Otherwise(anyhow::anyhow!(
            "the database's schema is not up to date ({} migrations are missing); run `longshore migrate` first",
            missing.len()
        )));
    }
    if let Some(newest) = unknown.last() {
        tracing::info!(
            "a newer version has been here (`{newest}`); this one gets on with what it has added"
        );
    }
    Ok(())
}

/// `longshore migrate [status]`.
pub async fn migrate(start: &Start, what: Option<Migrate>) -> Result<ExitCode, Failed> {
    start.start_logging("warn")?;
    let config = start.load()?.config;
    let db = connect(&config).await?;
    let Schema { missing, unknown } = db.schema().await?;
    match what {
        None => {
            db.migrate().await.context("cannot bring the schema up to date")?;
            println!("applied {} migrations; the schema is up to date", missing.len());
            Ok(ExitCode::SUCCESS)
        }
        Some(Migrate::Status) if missing.is_empty() && unknown.is_empty() => {
            println!("the schema is up to date");
            Ok(ExitCode::SUCCESS)
        }
        Some(Migrate::Status) if missing.is_empty() => {
            println!("the schema is up to date; a newer version has added to it:");
            for name in unknown {
                println!("  {name}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Migrate::Status) => {
            println!("{} migrations are missing; `longshore migrate` applies them:", missing.len());
            for name in missing {
                println!("  {name}");
            }
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A running server.
pub struct Running {
    /// Where the intake listens.
    pub address: Option<SocketAddr>,
    /// The key that was made because there was none.
    pub new_admin_key: Option<secrecy::SecretString>,
    intake: Option<tokio::task::JoinHandle<()>>,
    workers: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    beside: Vec<tokio::task::JoinHandle<()>>,
    app: App,
    process: Process,
    shutdown: CancellationToken,
}

impl Running {
    /// Starts what `parts` says. It runs until `shutdown`.
    pub async fn start(
        app: App,
        parts: Parts,
        shutdown: CancellationToken,
    ) -> Result<Self, Failed> {
        let mut running = Self {
            address: None,
            new_admin_key: None,
            intake: None,
            workers: None,
            beside: vec![
                tokio::spawn(telemetry::upkeep()),
                tokio::spawn(app.clock.clone().follow(app.db.clone())),
            ],
            app: app.clone(),
            process: Process::new(parts.role()),
            shutdown: shutdown.clone(),
        };
        if parts.has_intake() {
            server::take_descriptors();
            running.new_admin_key = make_admin_key(&app).await?;
            let listen = app.config.server.listen;
            let listener = bind(listen, "server.listen").await?;
            let address = listener.local_addr()?;
            running.address = Some(address);
            let api = Api::new(app.clone());
            let (router, stop) = (api.router()?, shutdown.clone());
            let ending = server::Ending {
                delay: app.config.server.drain_delay,
                drain: app.config.workers.drain,
            };
            running.beside.push(tokio::spawn(async move { api.run().await }));
            running.intake = Some(tokio::spawn(async move {
                server::serve(listener, router, stop.cancelled_owned(), ending).await;
            }));
            tracing::info!("listening on http://{address}");
        } else if let Some(listen) = app.config.workers.listen {
            running.beside.push(listen_for_health(&app, listen).await?);
        }
        let (notices, closing) = (app.notices.clone(), shutdown.clone());
        running.beside.push(tokio::spawn(async move {
            closing.cancelled().await;
            notices.close();
        }));
        let (process, beside, closing) = (running.process.clone(), app.clone(), shutdown.clone());
        running.beside.push(tokio::spawn(async move { process.announce(&beside, closing).await }));
        if parts.has_workers() {
            let worker = running.process.worker();
            running.workers =
                Some(tokio::spawn(
                    async move { workers::daemon::run(app, worker, shutdown).await },
                ));
        }
        Ok(running)
    }

    /// Waits for the end: the signal, or a part that failed.
    pub async fn until_stopped(mut self) -> Result<(), Failed> {
        let mut result = Ok(());
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {}
            ended = end_of(&mut self.workers) => {
                self.workers = None;
                result = ended.map_err(anyhow::Error::from).and_then(|ended| ended);
                self.shutdown.cancel();
            }
            ended = end_of(&mut self.intake) => {
                self.intake = None;
                let cause = ended.err().map(|error| format!(": {error}")).unwrap_or_default();
                tracing::error!("the intake has ended{cause}; the process ends");
                result = Err(anyhow::anyhow!("the intake has ended{cause}"));
                self.shutdown.cancel();
            }
        }
        // Both drain at the same time.
        if let Some(intake) = self.intake.take() {
            intake.await?;
        }
        if let Some(workers) = self.workers.take() {
            let ended = workers.await.map_err(anyhow::Error::from).and_then(|ended| ended);
            result = result.and(ended);
        }
        for task in self.beside {
            task.abort();
        }
        self.process.has_stopped(&self.app).await;
        result.map_err(Failed::Otherwise)
    }
}

/// Ends when the task does; never if there is none.
async fn end_of<T>(
    task: &mut Option<tokio::task::JoinHandle<T>>,
) -> Result<T, tokio::task::JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn bind(listen: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on `{listen}` (`{setting}`): is another server running there?")
    })
}

/// Answers how a process is that takes no requests, until the task is aborted: also while it drains.
async fn listen_for_health(
    app: &App,
    listen: SocketAddr,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let listener = bind(listen, "workers.listen").await?;
    let address = listener.local_addr()?;
    let router = Api::new(app.clone()).health_router();
    tracing::info!("health and metrics on http://{address}");
    Ok(tokio::spawn(async move {
        let ending = server::Ending { delay: Duration::ZERO, drain: Duration::ZERO };
        server::serve(listener, router, std::future::pending(), ending).await;
    }))
}

/// With no key at all: a new admin key where only this machine can reach the server, else a refusal.
async fn make_admin_key(app: &App) -> Result<Option<secrecy::SecretString>, Failed> {
    if app.keys.has_configured() || keys::any(app.db.read()).await? {
        return Ok(None);
    }
    let listen = app.config.server.listen;
    if !listen.ip().is_loopback() {
        return Err(Failed::Misconfigured(format!(
            "`server.listen` is `{listen}`, which others can reach, but there is no key: set `auth.admin_key` \
             (LONGSHORE_ADMIN_KEY), or make one with `longshore keys create --owner NAME --admin`"
        )));
    }
    let now = app.clock.now();
    let (_, key) = app
        .db
        .intake(move |tx| {
            Box::pin(async move {
                let identity = Identity { owner: owners::ADMIN.to_owned(), is_admin: true };
                keys::create(tx, now, &identity).await
            })
        })
        .await?;
    Ok(Some(key))
}

/// SIGTERM and SIGINT end the process in order; a second one ends it at once.
pub fn stop_on_signals(shutdown: CancellationToken) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        for is_first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_first {
                tracing::info!("stopping; once more stops at once");
                shutdown.cancel();
            } else {
                std::process::exit(1);
            }
        }
    });
    Ok(())
}
