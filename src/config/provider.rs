//! `[[providers]]`: the accounts at LLM providers, with defaults by their kind.

use std::{fmt, num::NonZeroU32, time::Duration};

use reqwest::Url;
use secrecy::SecretString;
use serde::de::{Deserialize, Deserializer, Error};

use super::{
    deserializer::VALUE,
    duration, name, secret,
    settings::at_least_one,
    size::{self, ByteSize},
    url,
};

/// One account at a provider. Its work is done in a lane of its own.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(try_from = "ProviderEntry")]
pub struct Provider {
    /// Letters, digits, `-` and `_`; no two providers share one.
    pub name: String,
    pub kind: ProviderKind,
    /// `http` or `https`, without credentials. With or without a slash at its end, as it was written.
    pub base_url: Url,
    /// Missing only where `base_url` is on this machine.
    pub api_key: Option<SecretString>,
    /// Calls at the same time, over all workers.
    pub max_concurrency: NonZeroU32,
    pub requests_per_minute: NonZeroU32,
    /// How long the provider may be silent; not a limit on a whole transfer.
    pub timeout: Duration,
    /// How long an upload may be missing from the provider's list. May be zero.
    pub list_lag: Duration,
    /// Checks the provider's own webhooks; without it there is no path for them.
    pub webhook_secret: Option<SecretString>,
    /// Whether filenames carry the marker by which a lost upload is found again.
    pub mark_filenames: bool,
    /// The most lines in one batch.
    pub max_batch_requests: NonZeroU32,
    /// The largest input file of one batch.
    pub max_batch_bytes: ByteSize,
}

/// Whose API a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    OpenAi,
    Azure,
    Anthropic,
    Gemini,
    Vertex,
    Bedrock,
    Mistral,
}

impl ProviderKind {
    /// Every kind there is a name for.
    pub const ALL: [Self; 7] = [
        Self::OpenAi,
        Self::Azure,
        Self::Anthropic,
        Self::Gemini,
        Self::Vertex,
        Self::Bedrock,
        Self::Mistral,
    ];

    /// Its name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Azure => "azure",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Vertex => "vertex",
            Self::Bedrock => "bedrock",
            Self::Mistral => "mistral",
        }
    }

    /// Whether there is a driver for it. A configuration that was read has no other kinds.
    pub const fn is_supported(self) -> bool {
        matches!(self, Self::OpenAi)
    }

    /// Where its public API is; `None` where every account has an address of its own.
    const fn default_base_url(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("https://api.openai.com/v1"),
            Self::Anthropic => Some("https://api.anthropic.com/v1"),
            Self::Gemini => Some("https://generativelanguage.googleapis.com/v1beta"),
            Self::Mistral => Some("https://api.mistral.ai/v1"),
            Self::Azure | Self::Vertex | Self::Bedrock => None,
        }
    }

    /// The most requests and bytes in one batch, as the provider documents it.
    const fn batch_limits(self) -> (u32, ByteSize) {
        match self {
            Self::OpenAi => (50_000, ByteSize::megabytes(200)),
            Self::Azure => (100_000, ByteSize::megabytes(200)),
            Self::Anthropic => (100_000, ByteSize::megabytes(256)),
            Self::Gemini => (50_000, ByteSize::megabytes(2_000)),
            Self::Vertex => (200_000, ByteSize::megabytes(1_000)),
            Self::Bedrock => (50_000, ByteSize::megabytes(1_000)),
            Self::Mistral => (1_000_000, ByteSize::megabytes(512)),
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ProviderKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let names = |kinds: &mut dyn Iterator<Item = Self>| {
            kinds.map(Self::as_str).collect::<Vec<_>>().join(", ")
        };
        let supported = names(&mut Self::ALL.into_iter().filter(|kind| kind.is_supported()));
        match Self::ALL.into_iter().find(|kind| kind.as_str() == text) {
            Some(kind) if kind.is_supported() => Ok(kind),
            Some(kind) => Err(D::Error::custom(format_args!(
                "kind `{kind}` is not supported yet; supported: {supported}"
            ))),
            None => Err(D::Error::custom(format_args!(
                "`{VALUE}` is not a kind of provider; supported: {supported}"
            ))),
        }
    }
}

/// A provider as it is written, before the defaults of its kind are filled in.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderEntry {
    #[serde(deserialize_with = "name::provider")]
    name: String,
    kind: ProviderKind,
    #[serde(default, deserialize_with = "url::http")]
    base_url: Option<Url>,
    #[serde(default, deserialize_with = "secret::optional")]
    api_key: Option<SecretString>,
    #[serde(default = "default_max_concurrency")]
    max_concurrency: NonZeroU32,
    #[serde(default = "default_requests_per_minute")]
    requests_per_minute: NonZeroU32,
    #[serde(default = "default_timeout", deserialize_with = "duration::positive")]
    timeout: Duration,
    #[serde(default = "default_list_lag", deserialize_with = "duration::any")]
    list_lag: Duration,
    #[serde(default, deserialize_with = "secret::optional")]
    webhook_secret: Option<SecretString>,
    #[serde(default = "default_mark_filenames")]
    mark_filenames: bool,
    max_batch_requests: Option<NonZeroU32>,
    #[serde(default, deserialize_with = "optional_size")]
    max_batch_bytes: Option<ByteSize>,
}

fn default_max_concurrency() -> NonZeroU32 {
    at_least_one(8)
}

fn default_requests_per_minute() -> NonZeroU32 {
    at_least_one(600)
}

fn default_timeout() -> Duration {
    Duration::from_secs(120)
}

fn default_list_lag() -> Duration {
    Duration::from_secs(5)
}

fn default_mark_filenames() -> bool {
    true
}

fn optional_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ByteSize>, D::Error> {
    size::positive(deserializer).map(Some)
}

impl TryFrom<ProviderEntry> for Provider {
    type Error = String;

    fn try_from(entry: ProviderEntry) -> Result<Self, String> {
        let kind = entry.kind;
        let public = || kind.default_base_url().and_then(|url| url.parse().ok());
        let base_url = entry.base_url.or_else(public).ok_or_else(|| {
            format!("has no `base_url`, and kind `{kind}` has none for everybody")
        })?;
        let (max_batch_requests, max_batch_bytes) = kind.batch_limits();
        Ok(Self {
            name: entry.name,
            kind,
            base_url,
            api_key: entry.api_key,
            max_concurrency: entry.max_concurrency,
            requests_per_minute: entry.requests_per_minute,
            timeout: entry.timeout,
            list_lag: entry.list_lag,
            webhook_secret: entry.webhook_secret,
            mark_filenames: entry.mark_filenames,
            max_batch_requests: entry
                .max_batch_requests
                .unwrap_or(at_least_one(max_batch_requests)),
            max_batch_bytes: entry.max_batch_bytes.unwrap_or(max_batch_bytes),
        })
    }
}
