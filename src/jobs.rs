//! Jobs: durable units of work. What they carry, how an attempt ends, and the table that is the queue.

pub mod backlog;
pub mod claims;
pub mod control;
pub mod deliveries;
pub mod inspect;
pub mod lanes;
pub mod leases;
pub mod retry;
pub mod status;
pub mod store;

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use crate::clock::Timestamp;
use crate::ids::BatchId;
use crate::ids::EventId;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::ids::ReconciliationId;
use crate::ids::RunId;
use crate::ids::SweepId;
use crate::ids::WebhookEndpointId;
pub use status::JobStatus;

/// What a job is to do. The payload carries ids only; the attempt reads the world afresh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    UploadFile(UploadFile),
    VerifyUpload(VerifyUpload),
    DeleteFile(DeleteFile),
    SubmitBatch(SubmitBatch),
    WatchBatch(WatchBatch),
    CancelBatch(CancelBatch),
    IngestBatch(IngestBatch),
    MergeBatch(MergeBatch),
    Sweep(Sweep),
    Reconcile(Reconcile),
    DeliverWebhook(DeliverWebhook),
}

/// The kind of watches: there is one for all batches at a provider.
pub const WATCH_BATCH: &str = "watch_batch";

/// The kind of deliveries: what becomes of one is never told by another.
pub const DELIVER_WEBHOOK: &str = "deliver_webhook";

/// Carries one file to one deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadFile {
    pub mapping_id: MappingId,
}

/// Looks again, later, for copies of a file whose upload had an unknown outcome, and deletes all
/// but the mapping's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyUpload {
    pub mapping_id: MappingId,
}

/// Deletes the copy of a file at one deployment, and whatever an upload may have left there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteFile {
    pub mapping_id: MappingId,
    /// One of many that nobody waits for: it lets others go first.
    #[serde(default)]
    pub is_background: bool,
}

/// Creates a batch at one provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubmitBatch {
    pub run_id: RunId,
}

/// Looks how the batches at one provider stand, each when it is due. There is one such job for a provider,
/// for as long as a batch is open there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchBatch {
    pub provider: String,
}

/// Asks one provider to stop a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelBatch {
    pub run_id: RunId,
    /// A batch at the provider that no run has: one that was created although nobody waited for it any more.
    #[serde(default)]
    pub stray: Option<String>,
}

/// Fetches what a batch produced at one provider, and reads it line by line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestBatch {
    pub run_id: RunId,
}

/// Writes the outputs of a batch's runs into one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeBatch {
    pub batch_id: BatchId,
}

/// Deletes many files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    pub sweep_id: SweepId,
}

/// Compares a provider's list with the mappings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    pub reconciliation_id: ReconciliationId,
}

/// Tells one endpoint of one event. What the event says never changes, so that it goes with the job: the event's row
/// may be gone before the last attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliverWebhook {
    pub event_id: EventId,
    pub endpoint_id: WebhookEndpointId,
    /// As it is sent.
    pub event_type: String,
    /// The file, job or sweep that it is about.
    pub subject: uuid::Uuid,
    pub created_at: Timestamp,
}

impl Work {
    /// The kinds that this version knows. Others, of a newer version, are left to it.
    pub const KINDS: [&str; 11] = [
        "upload_file",
        "verify_upload",
        "delete_file",
        "submit_batch",
        WATCH_BATCH,
        "cancel_batch",
        "ingest_batch",
        "merge_batch",
        "sweep",
        "reconcile",
        DELIVER_WEBHOOK,
    ];

    /// Whether this version knows the kind. What it does not know it leaves alone, whatever becomes of it.
    pub fn is_known(kind: &str) -> bool {
        Self::KINDS.contains(&kind)
    }

    /// The kinds, for a list in SQL.
    fn quoted_kinds() -> String {
        Self::KINDS.map(|kind| format!("'{kind}'")).join(", ")
    }

    pub const fn kind(&self) -> &'static str {
        match self {
            Self::UploadFile(_) => "upload_file",
            Self::VerifyUpload(_) => "verify_upload",
            Self::DeleteFile(_) => "delete_file",
            Self::SubmitBatch(_) => "submit_batch",
            Self::WatchBatch(_) => WATCH_BATCH,
            Self::CancelBatch(_) => "cancel_batch",
            Self::IngestBatch(_) => "ingest_batch",
            Self::MergeBatch(_) => "merge_batch",
            Self::Sweep(_) => "sweep",
            Self::Reconcile(_) => "reconcile",
            Self::DeliverWebhook(_) => DELIVER_WEBHOOK,
        }
    }

    /// How many calls to its provider an attempt at a job of this kind makes, as a rule.
    pub fn calls(kind: &str) -> usize {
        // A copy is deleted, and then asked for.
        if kind == "delete_file" { 2 } else { 1 }
    }

    /// The order within a lane: uploads and deletes before looks, and before what comes in masses.
    pub const fn rank(&self) -> i32 {
        match self {
            Self::DeleteFile(payload) if payload.is_background => 1,
            Self::UploadFile(_)
            | Self::DeleteFile(_)
            | Self::SubmitBatch(_)
            | Self::WatchBatch(_)
            | Self::CancelBatch(_)
            | Self::IngestBatch(_)
            | Self::MergeBatch(_)
            | Self::Sweep(_)
            | Self::DeliverWebhook(_) => 0,
            Self::VerifyUpload(_) | Self::Reconcile(_) => 1,
        }
    }

    /// The payload as it is stored.
    ///
    /// # Errors
    ///
    /// Never for the payloads above: they are plain structs of ids.
    pub fn payload(&self) -> serde_json::Result<String> {
        match self {
            Self::UploadFile(payload) => serde_json::to_string(payload),
            Self::VerifyUpload(payload) => serde_json::to_string(payload),
            Self::DeleteFile(payload) => serde_json::to_string(payload),
            Self::SubmitBatch(payload) => serde_json::to_string(payload),
            Self::WatchBatch(payload) => serde_json::to_string(payload),
            Self::CancelBatch(payload) => serde_json::to_string(payload),
            Self::IngestBatch(payload) => serde_json::to_string(payload),
            Self::MergeBatch(payload) => serde_json::to_string(payload),
            Self::Sweep(payload) => serde_json::to_string(payload),
            Self::Reconcile(payload) => serde_json::to_string(payload),
            Self::DeliverWebhook(payload) => serde_json::to_string(payload),
        }
    }

    /// Reads a stored job.
    ///
    /// # Errors
    ///
    /// When the kind is unknown (then it is left to a newer version), or the payload is not of its shape (then it is a
    /// dead letter).
    pub fn read(kind: &str, payload: &str) -> serde_json::Result<Self> {
        match kind {
            "upload_file" => serde_json::from_str(payload).map(Self::UploadFile),
            "verify_upload" => serde_json::from_str(payload).map(Self::VerifyUpload),
            "delete_file" => serde_json::from_str(payload).map(Self::DeleteFile),
            "submit_batch" => serde_json::from_str(payload).map(Self::SubmitBatch),
            WATCH_BATCH => serde_json::from_str(payload).map(Self::WatchBatch),
            "cancel_batch" => serde_json::from_str(payload).map(Self::CancelBatch),
            "ingest_batch" => serde_json::from_str(payload).map(Self::IngestBatch),
            "merge_batch" => serde_json::from_str(payload).map(Self::MergeBatch),
            "sweep" => serde_json::from_str(payload).map(Self::Sweep),
            "reconcile" => serde_json::from_str(payload).map(Self::Reconcile),
            DELIVER_WEBHOOK => serde_json::from_str(payload).map(Self::DeliverWebhook),
            _ => Err(serde::de::Error::custom(format!(
                "the kind `{kind}` is not known to this version"
            ))),
        }
    }
}

/// A lane: the jobs that share one limit. There is one for each provider, and others for our own work, so that
/// neither waits for the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub String);

impl Lane {
    pub fn of_provider(name: &str) -> Self {
        Self(format!("provider:{name}"))
    }

    /// The lane of sweeps. Nothing limits it but what a process takes on.
    pub fn sweeps() -> Self {
        Self("sweeps".to_owned())
    }

    /// The lane of looking how the batches at a provider stand.
    pub fn watching(provider: &str) -> Self {
        Self(format!("watch:{provider}"))
    }

    /// The lane of fetching and reading what batches at a provider produced.
    pub fn ingestion(provider: &str) -> Self {
        Self(format!("ingest:{provider}"))
    }

    /// The lane of merging outputs, which needs no provider.
    pub fn merges() -> Self {
        Self("merges".to_owned())
    }

    /// The lane of deliveries. What limits it is what one endpoint may have at once (see [`deliveries`]).
    pub fn webhooks() -> Self {
        Self("webhooks".to_owned())
    }

    /// The lane whose jobs count with those of this one: what is fetched from a provider takes of the same limit as what
    /// is sent there. Of other lanes it is the lane itself.
    pub fn counted_with(&self) -> Self {
        if let Some(name) = self.0.strip_prefix("provider:") {
            Self::ingestion(name)
        } else if let Some(name) = self.0.strip_prefix("ingest:") {
            Self::of_provider(name)
        } else {
            self.clone()
        }
    }

    /// The lane that stands still when the provider of this one is at fault.
    pub fn at_fault(&self) -> Self {
        self.provider().map_or_else(|| self.clone(), Self::of_provider)
    }

    /// The provider that the jobs of this lane call.
    pub fn provider(&self) -> Option<&str> {
        ["provider:", "watch:", "ingest:"].iter().find_map(|prefix| self.0.strip_prefix(prefix))
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A job to be written with the change that needs it.
#[derive(Clone, Debug)]
pub struct NewJob {
    pub id: JobId,
    pub work: Work,
    pub lane: Lane,
    pub owner: String,
    pub max_attempts: u32,
    /// How long it rests before its first attempt, by the database's clock.
    pub delay: Duration,
    pub file_id: Option<FileId>,
    pub batch_id: Option<BatchId>,
    pub model: Option<String>,
    pub request_id: Option<String>,
}

/// A worker process, by a name that is new at each start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkerId(pub String);

impl WorkerId {
    pub fn new() -> Self {
        Self(format!("{}-{}", std::process::id(), uuid::Uuid::new_v4().simple()))
    }
}

impl Default for WorkerId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The right to end an attempt: every write of a worker is conditional on it.
#[derive(Clone, Debug)]
pub struct Fence {
    pub job_id: JobId,
    /// Rises at every claim and never falls.
    pub epoch: i64,
    pub worker: WorkerId,
}

/// Why something failed, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    pub code: String,
    pub message: String,
    /// The provider's, if it answered.
    #[serde(default)]
    #[schema(required = true)]
    pub http_status: Option<u16>,
    /// Whether it is, or was, worth trying again.
    pub retryable: bool,
}

impl Failure {
    pub fn permanent(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), http_status: None, retryable: false }
    }

    pub fn transient(code: &str, message: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::permanent(code, message) }
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Succeeded,
    /// To be attempted again.
    Retry {
        after: Duration,
        spend: Spend,
        failure: Option<Failure>,
    },
    /// A dead letter: it stays, and can be searched and retried by hand.
    Failed(Failure),
    Cancelled,
}

/// Whether an attempt counts against `max_attempts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spend {
    Attempt,
    /// Nothing was wrong with the job: a limit, an outage seen by others, a shutdown, a planned look.
    Nothing,
}

/// How far a running job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
    pub unit: ProgressUnit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProgressUnit {
    Bytes,
    /// Looks into a provider's list.
    Looks,
}

/// How leases are kept: renewed every `heartbeat`, taken over after `lease`.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    pub lease: Duration,
    pub heartbeat: Duration,
}

impl LeaseTimes {
    pub fn new(lease: Duration) -> Self {
        Self { lease, heartbeat: lease / 4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_job_reads_back() {
        let jobs = [
            Work::UploadFile(UploadFile { mapping_id: MappingId::mint() }),
            Work::VerifyUpload(VerifyUpload { mapping_id: MappingId::mint() }),
            Work::DeleteFile(DeleteFile { mapping_id: MappingId::mint(), is_background: true }),
            Work::SubmitBatch(SubmitBatch { run_id: RunId::mint() }),
            Work::WatchBatch(WatchBatch { provider: "openai".to_owned() }),
            Work::CancelBatch(CancelBatch { run_id: RunId::mint(), stray: None }),
            Work::IngestBatch(IngestBatch { run_id: RunId::mint() }),
            Work::MergeBatch(MergeBatch { batch_id: BatchId::mint() }),
            Work::Sweep(Sweep { sweep_id: SweepId::mint() }),
            Work::Reconcile(Reconcile { reconciliation_id: ReconciliationId::mint() }),
            Work::DeliverWebhook(DeliverWebhook {
                event_id: EventId::mint(),
                endpoint_id: WebhookEndpointId::mint(),
                event_type: "file.processed".to_owned(),
                subject: uuid::Uuid::now_v7(),
                created_at: Timestamp(1),
            }),
        ];
        for (work, kind) in jobs.into_iter().zip(Work::KINDS) {
            assert_eq!(work.kind(), kind);
            assert_eq!(Work::read(work.kind(), &work.payload().unwrap()).unwrap(), work);
        }
    }

    #[test]
    fn a_payload_of_another_shape_is_refused() {
        assert!(Work::read("upload_file", "{}").is_err());
        assert!(Work::read("paint_house", "{}").is_err());
    }

    #[test]
    fn a_payload_of_a_newer_version_is_read() {
        let payload = format!(r#"{{"mapping_id":"{}","colour":"red"}}"#, MappingId::mint());
        assert!(Work::read("upload_file", &payload).is_ok());
    }
}
