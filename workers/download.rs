//! Fetches a file that a provider made into the blob store.

use std::time::Duration;

use futures_util::StreamExt as _;
use sha2::Digest as _;
use sha2::Sha256;
use uuid::Uuid;

use super::attempt::Attempt;
use super::attempt::Conclusion;
use super::budget;
use crate::app::Account;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::jobs::Failure;
use crate::jobs::retry;
use crate::providers::Content;
use crate::providers::ErrorKind;
use crate::providers::ProviderFileId;
use crate::results::store::Stored;

/// How many times a provider's lag a file may be missing that the provider itself has named; at least this long.
const LAGS: u32 = 60;
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);

/// What came of it.
pub enum Download {
    Here(Stored),
    /// The provider has named it, and does not have it.
    Lost(Failure),
}

/// How far an attempt is with the bytes that it moves: each is fetched, and read.
#[derive(Debug, Default)]
pub struct Moved {
    done: u64,
    expected: u64,
}

impl Moved {
    pub fn expect(&mut self, bytes: u64) {
        self.expected += bytes;
    }

    pub fn count(&mut self, attempt: &Attempt, bytes: usize) {
        self.done += bytes as u64;
        attempt.lease.progressed(bytes as u64, self.expected.max(self.done));
    }
}

/// Fetches a file under a key that is new. `last` is what the attempt before came to.
pub async fn download(
    attempt: &Attempt,
    account: &Account,
    id: &ProviderFileId,
    last: Option<&Failure>,
    moved: &mut Moved,
) -> Result<Download, Conclusion> {
    budget::spend(&attempt.app, account).await?;
    let content = match account.driver.file_content(id, None).await {
        Ok(content) => content,
        Err(error) if error.kind == ErrorKind::NotFound => {
            let failure = retry::failure(&error);
            if let Some(again) = wait(attempt, account, &failure, last) {
                return Err(again);
            }
            let message = format!("the results are lost: {}", failure.message);
            return Ok(Download::Lost(Failure { message, ..lost(&failure) }));
        }
        Err(error) => return Err(Conclusion::of_error(&error)),
    };
    let is_page = content.content_type.as_deref().is_some_and(|kind| kind.starts_with("text/html"));
    let stored = store(attempt, account, content, moved).await?;
    if is_page || stored.bytes == 0 {
        let what = if is_page { "a page" } else { "nothing" };
        let message = format!("`{}` answered with {what} instead of `{id}`", account.settings.name);
        let failure = Failure::transient("provider_garbled", message);
        if let Some(again) = wait(attempt, account, &failure, last) {
            discard(attempt, &stored).await;
            return Err(again);
        }
    }
    Ok(Download::Here(stored))
}

fn lost(failure: &Failure) -> Failure {
    Failure { code: "output_lost".to_owned(), retryable: false, ..failure.clone() }
}

/// Another attempt, a little later, unless that was tried for long enough. After anything else it is tried anew.
fn wait(
    attempt: &Attempt,
    account: &Account,
    failure: &Failure,
    last: Option<&Failure>,
) -> Option<Conclusion> {
    let lag = account.settings.list_lag;
    // By the database's clock, as the lease is.
    let tried = attempt.job.lease_until.since(attempt.job.started_at);
    let patience = (lag * LAGS).max(SHORTEST_PATIENCE) + attempt.lease_length;
    let failure = Failure { retryable: true, ..failure.clone() };
    let is_new = last.is_none_or(|last| last.code != failure.code);
    (is_new || tried < patience).then_some(Conclusion::Again { after: lag, failure: Some(failure) })
}

async fn store(
    attempt: &Attempt,
    account: &Account,
    mut content: Content,
    moved: &mut Moved,
) -> Result<Stored, Conclusion> {
    let app = &attempt.app;
    let key = BlobKey::Output { at: app.clock.now(), id: Uuid::now_v7() };
    // Dropped before its end, it leaves nothing.
    let mut writer = app.blobs.writer(&key);
    let (mut sha256, mut bytes) = (Sha256::new(), 0u64);
    moved.expect(content.bytes.unwrap_or(0).saturating_mul(2));
    while let Some(chunk) = content.body.next().await {
        let chunk = chunk.map_err(|error| broken_off(account, &error.to_string()))?;
        sha256.update(&chunk);
        bytes += chunk.len() as u64;
        moved.count(attempt, chunk.len());
        writer.write(chunk).await.map_err(|error| not_stored(&error))?;
    }
    if let Some(told) = content.bytes.filter(|told| *told != bytes) {
        let reason = format!("{bytes} bytes came of {told}");
        return Err(broken_off(account, &reason));
    }
    if content.bytes.is_none() {
        moved.expect(bytes.saturating_mul(2));
    }
    writer.finish().await.map_err(|error| not_stored(&error))?;
    Ok(Stored {
        blob_key: key.path(),
        bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        sha256: data_encoding::HEXLOWER.encode(&sha256.finalize()),
    })
}

fn broken_off(account: &Account, reason: &str) -> Conclusion {
    let message = format!("a file of `{}` broke off: {reason}", account.settings.name);
    Conclusion::transient("provider_unavailable", message)
}

fn not_stored(error: &BlobError) -> Conclusion {
    Conclusion::transient("blob_store_failed", error.to_string())
}

/// Takes back what no row names. What stays all the same is an orphan like any other.
pub async fn discard(attempt: &Attempt, stored: &Stored) {
    let key = BlobKey::Stored(stored.blob_key.clone());
    if let Err(error) = attempt.app.blobs.delete(&key).await {
        tracing::warn!(blob.key = %stored.blob_key, error = %error, "could not delete a blob that is of no use");
    }
}
