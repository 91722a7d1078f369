//! What a driver is given to create a batch, and a batch as its provider describes it.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::ProviderFileId;
use super::SentWhole;

/// The name that a provider gave a batch. Opaque: compared and handed back, never parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProviderBatchId(pub String);

impl fmt::Display for ProviderBatchId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A batch to create.
#[derive(Clone, Debug)]
pub struct NewBatch {
    /// A file that the provider holds.
    pub input_file_id: ProviderFileId,
    /// Where each line goes: `/v1/chat/completions`.
    pub endpoint: String,
    /// In the provider's words: `24h`.
    pub completion_window: String,
    /// The batch's only metadata there: by it a lost create is found again.
    pub marker: String,
    /// How long the provider shall keep what it writes; brought into the provider's limits. None: its default.
    pub output_expires_after: Option<Duration>,
    /// A fresh one for each create.
    pub sent: SentWhole,
}

/// A batch as its provider describes it. Times are Unix seconds; texts may be stored and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteBatch {
    pub id: ProviderBatchId,
    pub state: RemoteBatchState,
    /// The provider's own word for it, an open set.
    pub status: String,
    /// Empty where the provider does not say, as `completion_window`.
    pub endpoint: String,
    pub completion_window: String,
    pub input_file_id: Option<ProviderFileId>,
    /// None also where no line succeeded.
    pub output_file_id: Option<ProviderFileId>,
    pub error_file_id: Option<ProviderFileId>,
    /// None for a batch that somebody else made.
    pub marker: Option<String>,
    pub created_at: Option<i64>,
    pub in_progress_at: Option<i64>,
    /// When its window closes.
    pub expires_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    /// None where the provider does not count, or has not begun to.
    pub counts: Option<RemoteCounts>,
    /// Why it failed as a whole; what went wrong with single lines is in its files.
    pub errors: Vec<RemoteBatchError>,
    pub model: Option<String>,
}

/// How many lines of a batch there are, succeeded and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoteCounts {
    pub total: u64,
    pub completed: u64,
    pub failed: u64,
}

/// One reason why a batch failed as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoteBatchError {
    /// The provider's own code, an open set.
    pub code: Option<String>,
    pub message: Option<String>,
    pub param: Option<String>,
    /// Of the input file; the first is 1.
    pub line: Option<u64>,
}

/// How far a provider is with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RemoteBatchState {
    Validating,
    InProgress,
    Finalizing,
    Completed,
    Failed,
    Expired,
    Cancelling,
    Cancelled,
    /// A word that we do not know: what was known before still holds.
    Unknown,
}

impl RemoteBatchState {
    /// Whether the provider is done with the batch, for better or worse.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Expired | Self::Cancelled => true,
            Self::Validating
            | Self::InProgress
            | Self::Finalizing
            | Self::Cancelling
            | Self::Unknown => false,
        }
    }
}

/// One page of a provider's batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPage {
    pub batches: Vec<RemoteBatch>,
    /// Where the next page begins; none on the last.
    pub next: Option<ProviderBatchId>,
}
