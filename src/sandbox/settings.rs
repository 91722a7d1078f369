//! What can be set about an account while it serves.

use serde::{Deserialize, Serialize};

use super::batches::BatchSettings;
use super::webhook::Webhook;

/// How an account behaves when no fault interferes.
///
/// Over HTTP a missing key means its default, not the value before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Milliseconds between executing a call and answering it.
    pub latency_ms: u64,
    /// Milliseconds until a new file shows in lists and can be retrieved, and until a new batch shows in
    /// lists. Deleting does not wait.
    pub list_lag_ms: u64,
    /// The one bearer token to accept; without it any that is not empty.
    pub expected_key: Option<String>,
    /// A larger file is hashed and counted, but its contents cannot be downloaded.
    pub keep_bytes: u64,
    /// Bytes of contents kept over all live files; what comes on top is hashed and counted only.
    pub keep_total_bytes: u64,
    /// A larger upload is refused.
    pub max_file_bytes: u64,
    pub batches: BatchSettings,
    /// Who is told when a batch has ended.
    pub webhook: Option<Webhook>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            latency_ms: 0,
            list_lag_ms: 0,
            expected_key: None,
            keep_bytes: 1 << 20,
            keep_total_bytes: 256 << 20,
            max_file_bytes: 512 << 20,
            batches: BatchSettings::default(),
            webhook: None,
        }
    }
}
