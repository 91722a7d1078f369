//! Fetches a file that a provider made into the blob store.

use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt as _;
use sha2::Digest as _;
use sha2::Sha256;
use uuid::Uuid;

use super::attempt::Attempt;
use super::budget;
use super::conclusion::Conclusion;
use crate::app::Account;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::jobs::Failure;
use crate::jobs::retry;
use crate::jobs::retry::Verdict;
use crate::providers::Content;
use crate::providers::ErrorKind;
use crate::providers::ProviderError;
use crate::providers::ProviderFileId;
use crate::results::store::Stored;

/// What a provider has to bring for each second that is spent waiting for it, judged over this much waiting.
const LEAST_PER_SECOND: u64 = 1024;
const JUDGED_OVER: Duration = Duration::from_secs(60);

/// What came of it.
pub enum Download {
    Here(Stored),
    /// The provider has named it, and does not have it, or answers with something else: it may lag.
    Missing(Failure),
    /// The provider does not give it.
    Refused(Failure),
}

/// A file that is to be fetched.
pub struct Wanted {
    pub id: ProviderFileId,
    /// Nothing is to be expected in it, by what its provider says.
    pub is_empty: bool,
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

/// Fetches a file under a key that is new.
pub async fn download(
    attempt: &Attempt,
    account: &Account,
    wanted: &Wanted,
    moved: &mut Moved,
) -> Result<Download, Conclusion> {
    let Wanted { id, is_empty } = wanted;
    budget::spend(&attempt.app, account).await?;
    let told = match account.driver.file(id).await {
        // 0 while it is not known.
        Ok(file) => Some(file.bytes).filter(|bytes| *bytes > 0),
        // Its content may be given all the same.
        Err(error) if error.kind == ErrorKind::Garbled => None,
        Err(error) => match answered(&error)? {
            missing @ Download::Missing(_) => return Ok(missing),
            Download::Refused(_) | Download::Here(_) => None,
        },
    };
    budget::spend(&attempt.app, account).await?;
    let content = match account.driver.file_content(id, None).await {
        Ok(content) => content,
        Err(error) => return answered(&error),
    };
    let is_page = content.content_type.as_deref().is_some_and(|kind| kind.starts_with("text/html"));
    let stored = store(attempt, account, content, moved).await?;
    let bytes = stored.bytes.unsigned_abs();
    let what = if is_page {
        "a page".to_owned()
    } else if bytes == 0 && !is_empty {
        "nothing".to_owned()
    } else if let Some(told) = told.filter(|told| *told != bytes) {
        format!("{bytes} bytes instead of {told}")
    } else {
        return Ok(Download::Here(stored));
    };
    discard(attempt, &stored).await;
    let message = format!("`{}` answered with {what} when asked for `{id}`", account.settings.name);
    Ok(Download::Missing(Failure::transient("provider_garbled", message)))
}

/// What an error says of the file; it is returned where it says nothing.
fn answered(error: &ProviderError) -> Result<Download, Conclusion> {
    match (&error.kind, retry::judge(error)) {
        (ErrorKind::NotFound, _) => Ok(Download::Missing(retry::failure(error))),
        (_, Verdict::Permanent) => Ok(Download::Refused(retry::failure(error))),
        _ => Err(Conclusion::of_error(error)),
    }
}

/// How fast a provider sends.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Counts what came after a wait. `false` when it was too slow for too long.
    fn is_kept_with(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < JUDGED_OVER {
            return true;
        }
        let is_kept = self.bytes >= LEAST_PER_SECOND.saturating_mul(self.waited.as_secs());
        *self = Self::default();
        is_kept
    }
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
    let (mut pace, mut asked_at) = (Pace::default(), Instant::now());
    while let Some(chunk) = content.body.next().await {
        let chunk = chunk.map_err(|error| broken_off(account, &error.to_string()))?;
        sha256.update(&chunk);
        bytes += chunk.len() as u64;
        moved.count(attempt, chunk.len());
        if !pace.is_kept_with(asked_at.elapsed(), chunk.len() as u64) {
            return Err(broken_off(account, "it came too slowly"));
        }
        writer.write(chunk).await.map_err(|error| not_stored(&error))?;
        asked_at = Instant::now();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drips_is_judged_once_a_minute_was_waited() {
        let mut pace = Pace::default();
        assert!((0..59).all(|_| pace.is_kept_with(Duration::from_secs(1), 1)));
        assert!(!pace.is_kept_with(Duration::from_secs(1), 1));
        let mut pace = Pace::default();
        assert!((0..600).all(|_| pace.is_kept_with(Duration::from_secs(1), LEAST_PER_SECOND)));
    }
}
