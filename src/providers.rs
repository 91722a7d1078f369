//! Provider drivers: they carry files and batches to one LLM provider, and translate and classify what it answers.
//!
//! A driver knows HTTP and nothing of this program: no table, no job, no configuration. It does not
//! retry, wait or remember. Shared plumbing is beside this file; one file per provider holds what differs.

mod batch;
mod error;
mod http;
mod multipart;
pub mod openai;
mod redaction;
mod refusal;
mod retry_after;
mod upload;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

pub use self::batch::{
    BatchPage, NewBatch, ProviderBatchId, RemoteBatch, RemoteBatchError, RemoteBatchState,
    RemoteCounts,
};
pub use self::error::{ErrorKind, ProviderError};
pub use self::http::BuildError;
pub use self::upload::{SentWhole, Upload};

/// Bytes on their way, never whole in memory.
pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// Carries files and batches to one provider.
///
/// The comments here are promises that every driver keeps. Every call ends by itself: waits and answers
/// are bounded. Dropping a call's future ends it, and closes its connection if it was not answered yet.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Stores a new file at the provider, in a request of exactly the declared length.
    ///
    /// Not idempotent: a repeated call makes a second file. An error says in `outcome_unknown` whether
    /// the provider may hold the file all the same; a caller that drops the future asks [`SentWhole`].
    async fn upload_file(&self, upload: Upload) -> Result<RemoteFile, ProviderError>;

    /// One page of everything the credential sees, newest first, after `after`.
    ///
    /// The list is complete when a page has no `next`. A page is whole or an error: an entry is never
    /// left out because it could not be read, since callers conclude from absence.
    async fn list_files(&self, after: Option<&ProviderFileId>) -> Result<Page, ProviderError>;

    /// What the provider says of one file now.
    async fn file(&self, id: &ProviderFileId) -> Result<RemoteFile, ProviderError>;

    /// The bytes of a file, or the part of it that `range` names.
    ///
    /// A provider may ignore the range: [`Content::partial`] tells. A body that breaks off ends with
    /// an error, not as if it were complete.
    async fn file_content(
        &self,
        id: &ProviderFileId,
        range: Option<ByteRange>,
    ) -> Result<Content, ProviderError>;

    /// Succeeds when the file is already gone, so that a repeated delete is harmless.
    async fn delete_file(&self, id: &ProviderFileId) -> Result<Deleted, ProviderError>;

    /// Creates a batch over a file that the provider holds.
    ///
    /// Not idempotent: a repeated call makes, and bills, a second one. An error says in
    /// `outcome_unknown` whether the provider may have it all the same; a caller that drops the future
    /// asks [`SentWhole`]. Ends within 60 s, whatever happens.
    async fn create_batch(&self, batch: NewBatch) -> Result<RemoteBatch, ProviderError>;

    /// What the provider says of one batch now.
    async fn batch(&self, id: &ProviderBatchId) -> Result<RemoteBatch, ProviderError>;

    /// One page of the batches that the credential sees, newest first, after `after`: whole or an error,
    /// as [`Provider::list_files`].
    async fn list_batches(
        &self,
        after: Option<&ProviderBatchId>,
    ) -> Result<BatchPage, ProviderError>;

    /// Asks the provider to stop a batch, and tells what the batch is afterwards.
    ///
    /// It may go on for a while as `Cancelling`. Cancelling one that has ended is no error: the answer is
    /// what it ended as.
    async fn cancel_batch(&self, id: &ProviderBatchId) -> Result<RemoteBatch, ProviderError>;

    /// Asks for something small that every account has: the provider answers, takes the key, and has
    /// what the other calls need. Changes nothing there.
    async fn check(&self) -> Result<Contact, ProviderError>;

    /// What this kind of provider can do.
    fn capabilities(&self) -> &'static Capabilities;
}

/// The name that a provider gave a file. Opaque: compared and handed back, never parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProviderFileId(pub String);

impl fmt::Display for ProviderFileId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A file as its provider describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    pub id: ProviderFileId,
    /// As the provider keeps it; empty where it keeps none.
    pub filename: String,
    /// Empty where the provider knows no purposes.
    pub purpose: String,
    /// 0 while the provider does not know the size yet.
    pub bytes: u64,
    /// Unix seconds.
    pub created_at: Option<i64>,
    /// Unix seconds; none for a file that stays until it is deleted.
    pub expires_at: Option<i64>,
    /// The provider's own word, an open set.
    pub status: Option<String>,
}

/// What a provider answered to a delete that left nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    pub http_status: u16,
    /// Whether there was something to delete; otherwise it was gone already.
    pub was_there: bool,
}

/// One page of a provider's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub files: Vec<RemoteFile>,
    /// Where the next page begins; none on the last.
    pub next: Option<ProviderFileId>,
}

/// An answer to [`Provider::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// By how many seconds this machine's clock is ahead of the provider's, negative where it is behind;
    /// none where the provider told no time.
    pub clock_ahead: Option<i64>,
}

/// The first byte, and the last one (inclusive) unless all that follows is meant.
pub type ByteRange = (u64, Option<u64>);

/// The bytes of a file on their way here.
pub struct Content {
    /// Fails when the provider falls silent or the connection breaks off.
    pub body: ByteStream,
    /// How many bytes `body` will yield, where the provider said so.
    pub bytes: Option<u64>,
    /// Whether this is only the range that was asked for; otherwise it is the whole file.
    pub partial: bool,
    pub content_type: Option<String>,
}

/// What a kind of provider can do, as data: a caller asks before it makes a job, instead of failing in one.
#[derive(Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether a lost upload can be looked for in the provider's list.
    pub can_list_files: bool,
    /// Whether a lost batch can be looked for in the provider's list.
    pub can_list_batches: bool,
    /// Whether the provider tells by itself that a batch has ended.
    pub has_batch_events: bool,
    /// The largest file that one upload may carry.
    pub max_file_bytes: u64,
    /// The purposes whose content the provider gives back.
    pub readable_purposes: &'static [&'static str],
}

impl Capabilities {
    /// Whether the provider gives back the content of a file of this purpose. Unknown purposes: no.
    pub fn content_readable(&self, purpose: &str) -> bool {
        self.readable_purposes.contains(&purpose)
    }
}
