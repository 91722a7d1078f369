//! The sections that configure Longshore itself, with their defaults.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::Duration,
};

use reqwest::Url;
use secrecy::SecretString;
use serde::de::{Deserialize, Deserializer, Error};

use super::{
    certificate,
    deserializer::VALUE,
    duration, name,
    secret::{self, EncryptionKey},
    size::{self, ByteSize},
    telemetry::{self, OtlpHeaders, Ratio},
    url::{self, ConnectionUrl, DatabaseUrl},
};

/// `[server]`: the intake.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    /// The largest upload; 413 past it.
    #[serde(deserialize_with = "size::positive")]
    pub max_file_bytes: ByteSize,
    /// A sender that is silent this long in the middle of a body, or that brings less than 1 KiB for each
    /// second of it, is given up: 408.
    #[serde(deserialize_with = "duration::positive")]
    pub body_timeout: Duration,
    /// How long the listener goes on when the process is told to stop, while `/readyz` says 503: so long a proxy takes
    /// to notice. At most an hour.
    #[serde(deserialize_with = "duration::any")]
    pub drain_delay: Duration,
    /// Whether `/metrics` is answered without a key.
    pub open_metrics: bool,
    /// Where a file goes that names no models; when empty, naming them is required. Each is the name of a model.
    pub default_models: Vec<String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4700)),
            max_file_bytes: ByteSize::mebibytes(512),
            body_timeout: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            open_metrics: false,
            default_models: Vec::new(),
        }
    }
}

/// `[auth]`: who may call.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// The key that may do everything.
    #[serde(deserialize_with = "secret::optional")]
    pub admin_key: Option<SecretString>,
    /// Encrypts what must be stored but read again.
    #[serde(deserialize_with = "secret::encryption_key")]
    pub encryption_key: Option<EncryptionKey>,
    /// All different, and different from `admin_key`.
    pub keys: Vec<ApiKey>,
}

/// `[[auth.keys]]`: a key that lives in memory alone; taking it out revokes it.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    #[serde(deserialize_with = "secret::required")]
    pub key: SecretString,
    #[serde(deserialize_with = "name::plain")]
    pub owner: String,
    /// In place of `limits.requests_per_minute`; 0 is no limit.
    #[serde(default)]
    pub requests_per_minute: Option<u64>,
}

/// `[limits]`: what one key or owner may ask for.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Of each key but admins' ones, over all intakes; 429 past it. 0 is no limit. At most a million.
    pub requests_per_minute: u64,
    /// Jobs of one owner that wait; what would queue more is 429. 0 is no limit.
    pub max_pending_jobs_per_owner: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { requests_per_minute: 0, max_pending_jobs_per_owner: 1_000_000 }
    }
}

/// `[database]`: where every fact is.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    pub url: DatabaseUrl,
    /// Connections to PostgreSQL that one process has at the most. At least 2.
    pub max_connections: NonZeroU32,
    /// How long is waited for one of them, or for one to be made.
    #[serde(deserialize_with = "duration::positive")]
    pub acquire_timeout: Duration,
    /// What PostgreSQL may take for one statement. Longer than `lock_timeout`.
    #[serde(deserialize_with = "duration::positive")]
    pub statement_timeout: Duration,
    /// How long a statement may wait for a lock.
    #[serde(deserialize_with = "duration::positive")]
    pub lock_timeout: Duration,
}

impl Default for Database {
    fn default() -> Self {
        let url = DatabaseUrl::parse("sqlite://data/longshore.db");
        Self {
            url: url.expect("the default has a supported scheme"),
            max_connections: at_least_one(16),
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
        }
    }
}

/// `[redis]`: how processes hear of each other's changes at once. Only with PostgreSQL.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    #[serde(deserialize_with = "url::redis")]
    pub url: Option<ConnectionUrl>,
    /// The authority that signed the certificate of a `rediss://` server, where it is none that everybody knows.
    #[serde(deserialize_with = "certificate::authority")]
    pub ca_file: Option<PathBuf>,
}

/// `[workers]`: our own heavy work in one process. Work at providers is bounded per provider.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workers {
    pub concurrency: NonZeroU32,
    /// A job whose worker was silent this long is taken over. At least a second, at most an hour.
    #[serde(deserialize_with = "duration::positive")]
    pub lease: Duration,
    /// How long what runs may take to finish when the process is told to stop. At most an hour.
    #[serde(deserialize_with = "duration::any")]
    pub drain: Duration,
    /// Where a process that only runs jobs answers how it is. Nowhere, if there is none.
    #[serde(deserialize_with = "optional_listen")]
    pub listen: Option<SocketAddr>,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            concurrency: at_least_one(4),
            lease: Duration::from_secs(20),
            drain: Duration::from_secs(25),
            listen: None,
        }
    }
}

/// `[retry]`: exponential, with full jitter.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    pub max_attempts: NonZeroU32,
    /// Not longer than `max_delay`.
    #[serde(deserialize_with = "duration::positive")]
    pub base_delay: Duration,
    #[serde(deserialize_with = "duration::positive")]
    pub max_delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            max_attempts: at_least_one(30),
            base_delay: Duration::from_secs(1),
            max_delay: Duration::from_hours(1),
        }
    }
}

/// `[batches]`: how batches at providers are watched.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batches {
    /// The wait before the first look; it grows to `poll_max` while nothing changes. Not longer than that.
    #[serde(deserialize_with = "duration::positive")]
    pub poll: Duration,
    #[serde(deserialize_with = "duration::positive")]
    pub poll_max: Duration,
    /// Whether inputs and outputs are deleted at the provider once they are ingested, whole and without a broken line.
    pub delete_provider_files: bool,
}

impl Default for Batches {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(30),
            poll_max: Duration::from_mins(5),
            delete_provider_files: false,
        }
    }
}

/// `[sweeps]`: how often what was missed is looked for.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sweeps {
    /// For expired files.
    #[serde(deserialize_with = "duration::positive")]
    pub every: Duration,
    /// For what providers hold.
    #[serde(deserialize_with = "duration::positive")]
    pub reconcile_every: Duration,
}

impl Default for Sweeps {
    fn default() -> Self {
        Self { every: Duration::from_mins(10), reconcile_every: Duration::from_hours(24) }
    }
}

/// `[retention]`: how long the rows of ended jobs are kept.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    #[serde(deserialize_with = "duration::any")]
    pub finished_jobs: Duration,
    #[serde(deserialize_with = "duration::any")]
    pub failed_jobs: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            finished_jobs: Duration::from_hours(7 * 24),
            failed_jobs: Duration::from_hours(30 * 24),
        }
    }
}

/// `[webhooks]`: what is sent to clients' endpoints.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Webhooks {
    /// Whether endpoints may be on private, loopback and link-local addresses, and plain http.
    pub allow_private_addresses: bool,
}

/// `[telemetry]`: where traces go.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Where the collector takes OTLP over HTTP; without it there are no traces.
    #[serde(deserialize_with = "telemetry::endpoint")]
    pub otlp_endpoint: Option<Url>,
    /// What it asks for with every request.
    #[serde(deserialize_with = "telemetry::headers")]
    pub otlp_headers: Option<OtlpHeaders>,
    /// Of the traces that begin here. Those that go on are kept if what they come from is.
    #[serde(deserialize_with = "telemetry::ratio")]
    pub sample_ratio: Ratio,
}

impl Telemetry {
    /// Where traces are sent: below the collector's address, as the protocol has it.
    pub fn traces_endpoint(&self) -> Option<Url> {
        let mut url = self.otlp_endpoint.clone()?;
        url.path_segments_mut().ok()?.pop_if_empty().extend(["v1", "traces"]);
        Some(url)
    }
}

pub(super) fn at_least_one(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
}

fn optional_listen<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() { Ok(None) } else { address(&text).map(Some) }
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    address(&String::deserialize(deserializer)?)
}

fn address<E: Error>(text: &str) -> Result<SocketAddr, E> {
    text.parse().map_err(|_| {
        E::custom(format_args!(
            "`{VALUE}` is not an address to listen on; write it like \"127.0.0.1:4700\" or \"[::1]:4700\""
        ))
    })
}
