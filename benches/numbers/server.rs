//! An installation to measure: the built-in providers here, the server as a process.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use longshore::sandbox::Sandbox;
use longshore::sandbox::Settings;

use crate::load::KEY;
use crate::process::Process;

/// How an installation differs from the usual one: SQLite, workers running, providers that answer at once.
pub struct Setup<'s> {
    /// Each at an account of the same name.
    pub models: &'s [&'s str],
    pub settings: Settings,
    pub command: &'s str,
    pub database: &'s str,
    pub redis: &'s str,
    pub max_concurrency: usize,
    /// Requests that each provider is allowed.
    pub per_minute: usize,
    /// More settings of each provider.
    pub provider: &'s str,
    /// More of the configuration.
    pub extra: &'s str,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Self {
            models: &["a", "b", "c"],
            settings: Settings { keep_bytes: 0, max_file_bytes: 1 << 40, ..Settings::default() },
            command: "up",
            database: "sqlite://longshore.db",
            redis: "",
            max_concurrency: 16,
            per_minute: 1_000_000_000,
            provider: "",
            extra: "",
        }
    }
}

/// A running installation. Gone when dropped.
pub struct Installation {
    pub sandbox: Sandbox,
    pub server: Process,
    pub address: SocketAddr,
}

impl Installation {
    /// Starts one in `folder`, and returns when it listens.
    pub async fn start(folder: &Path, setup: Setup<'_>) -> anyhow::Result<Self> {
        let sandbox = Sandbox::bind(([127, 0, 0, 1], 0).into())?;
        for model in setup.models {
            sandbox.configure(model, setup.settings.clone());
        }
        configure(folder, &setup, |model| sandbox.base_url(model))?;
        let mut server = Process::start(folder, setup.command)?;
        let line = server.logged("listening on http://").await?;
        let (_, address) = line.split_once("http://").context("no address")?;
        let address = address.trim().parse()?;
        Ok(Self { sandbox, server, address })
    }
}

/// Writes `longshore.toml` into `folder`.
pub fn configure(
    folder: &Path,
    setup: &Setup<'_>,
    base_url: impl Fn(&str) -> String,
) -> anyhow::Result<()> {
    let mut text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nmax_file_bytes = \"4GiB\"\n[auth]\nadmin_key = \"{KEY}\"\n\
         [database]\nurl = \"{}\"\n[redis]\nurl = \"{}\"\n[blobs]\nurl = \"file://blobs\"\n{}",
        setup.database, setup.redis, setup.extra
    );
    for model in setup.models {
        text += &format!(
            "[[providers]]\nname = \"{model}\"\nkind = \"openai\"\nbase_url = \"{}\"\nmax_concurrency = {}\n\
             requests_per_minute = {}\nmax_batch_requests = 100000000\nmax_batch_bytes = \"4GiB\"\n{}\
             [[models]]\nname = \"{model}\"\nprovider = \"{model}\"\nmodel = \"{model}-2026-11-23\"\n",
            base_url(model),
            setup.max_concurrency,
            setup.per_minute,
            setup.provider,
        );
    }
    Ok(std::fs::write(folder.join("longshore.toml"), text)?)
}
