//! Carries one file to one deployment.
//!
//! The claim has marked the mapping `uploading`: the intent is on disk. What is known of the
//! provider's side afterwards is written with the end of the attempt. Where nobody can know it (the
//! answer was lost, the worker died), the next attempt looks for the marker in the provider's list,
//! twice, before a byte is sent again.

use std::sync::Arc;
use std::time::Duration;

use crate::db::Transaction;
use async_trait::async_trait;
use futures_util::StreamExt as _;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::content::Content;
use super::held::Lease;
use super::registry::Nothing;
use super::strays;
use crate::app::Account;
use crate::blobs::ByteStream;
use crate::clock::Timestamp;
use crate::ids::FileId;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::UploadFile;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::mappings::outcome;
use crate::mappings::store;
use crate::mappings::store::Certainty;
use crate::mappings::store::Copy;
use crate::mappings::store::Upload;
use crate::providers;
use crate::providers::ErrorKind;
use crate::providers::RemoteFile;
use crate::providers::SentWhole;

const OUTCOME_UNKNOWN: &str = "outcome_unknown";
/// How much longer than here a file lives at its provider.
const EXPIRY_MARGIN: Duration = Duration::from_secs(3600);

pub async fn run(attempt: &Attempt, payload: &UploadFile) -> Done {
    let found = match store::find_upload(attempt.app.db.read(), payload.mapping_id).await {
        Ok(found) => found,
        Err(error) => {
            return nothing_done(Conclusion::without_database(&error));
        }
    };
    let Some(upload) = found else {
        return nothing_done(Conclusion::permanent(
            "mapping_missing",
            "the mapping of this job does not exist",
        ));
    };
    // Its file was deleted before a byte was sent: that delete waits for this end.
    if upload.status().is_ok_and(|status| status == MappingStatus::Deleting) {
        let Carried { conclusion, certainty, copy, strays, looked } =
            Carried::of(Conclusion::Cancelled);
        let effects = Arc::new(Carry { upload, certainty, copy, strays, looked });
        return Done { conclusion, effects };
    }
    // An attempt before this one got as far as the provider's answer.
    if !upload.status().is_ok_and(MappingStatus::is_working) {
        return nothing_done(Conclusion::Succeeded);
    }
    let sent = SentWhole::default();
    // Dropped when it has to stop: nothing more is sent then, and `sent` tells how far it got.
    let result = tokio::select! {
        biased;
        result = carry(attempt, &upload, sent.clone()) => result,
        stop = attempt.lease.stopped() => {
            let certainty = if sent.is_set() { Certainty::Unknown(attempt.app.clock.now()) } else { Certainty::Unchanged };
            Carried { conclusion: Conclusion::of_stop(stop), certainty, copy: None, strays: Vec::new(), looked: false }
        }
    };
    let Carried { conclusion, certainty, copy, strays, looked } = result;
    Done { conclusion, effects: Arc::new(Carry { upload, certainty, copy, strays, looked }) }
}

fn nothing_done(conclusion: Conclusion) -> Done {
    Done { conclusion, effects: Arc::new(Nothing) }
}

/// What an attempt came to.
struct Carried {
    conclusion: Conclusion,
    certainty: Certainty,
    copy: Option<Copy>,
    /// Copies under our marker that cannot be the mapping's.
    strays: Vec<String>,
    /// The provider's list was read to its end and did not show the upload.
    looked: bool,
}

impl Carried {
    fn of(conclusion: Conclusion) -> Self {
        Self {
            conclusion,
            certainty: Certainty::Unchanged,
            copy: None,
            strays: Vec::new(),
            looked: false,
        }
    }

    fn ready(copy: Copy, strays: Vec<String>) -> Self {
        Self { copy: Some(copy), strays, ..Self::of(Conclusion::Succeeded) }
    }
}

async fn carry(attempt: &Attempt, upload: &Upload, sent: SentWhole) -> Carried {
    let Some(account) = attempt.app.providers.get(&upload.provider) else {
        let message = format!("the provider `{}` is not configured any more", upload.provider);
        return Carried::of(Conclusion::transient("provider_not_configured", message));
    };
    if !attempt.app.installation.is_trusted {
        return Carried::of(strays::untrusted());
    }
    if upload.deleted_at.is_some() {
        return Carried::of(Conclusion::permanent("file_deleted", "the file was deleted"));
    }
    let content = match Content::prepare(attempt, upload).await {
        Ok(content) => content,
        Err(conclusion) => return Carried::of(conclusion),
    };
    let mut strays = Vec::new();
    if upload.unknown_since.is_some() {
        match settle(attempt, account, upload, content.bytes).await {
            Settled::Absent(others) => strays = others,
            Settled::Otherwise(carried) => return carried,
        }
    }
    send(attempt, account, upload, content, sent, strays).await
}

/// How an unknown outcome was settled.
enum Settled {
    /// The provider does not have it; what carries its marker all the same is in the list.
    Absent(Vec<String>),
    Otherwise(Carried),
}

/// Looks whether the provider has what an earlier attempt may have left there.
async fn settle(attempt: &Attempt, account: &Account, upload: &Upload, bytes: u64) -> Settled {
    if !account.can_find_uploads() {
        return Settled::Otherwise(Carried::of(cannot_know(account)));
    }
    let now = attempt.app.clock.now();
    let lag = account.settings.list_lag;
    let wait =
        upload.looked_at.map(|at| lag.saturating_sub(now.since(at))).filter(|wait| !wait.is_zero());
    if let Some(after) = wait {
        return Settled::Otherwise(Carried::of(Conclusion::Again { after, failure: None }));
    }
    let marker = Marker(upload.marker.clone());
    let files = match attempt.listings.look(&attempt.app, account, &marker).await {
        Ok(files) => files,
        Err(unread) if unread.has_no_list() => {
            return Settled::Otherwise(Carried::of(cannot_know(account)));
        }
        Err(unread) => return Settled::Otherwise(Carried::of(unread.conclusion())),
    };
    let condemned = match store::condemned(attempt.app.db.read(), upload.id).await {
        Ok(condemned) => condemned,
        Err(error) => {
            let conclusion = Conclusion::without_database(&error);
            return Settled::Otherwise(Carried::of(conclusion));
        }
    };
    let (mut fits, mut others): (Vec<RemoteFile>, Vec<RemoteFile>) = files
        .into_iter()
        .filter(|file| !condemned.contains(&file.id.0))
        .partition(|file| is_this(file, upload, bytes));
    // The oldest is adopted: it is the one whose answer was lost.
    fits.sort_by_key(|file| file.created_at);
    if !fits.is_empty() {
        others.extend(fits.drain(1..));
    }
    let strays: Vec<String> = others.into_iter().map(|file| file.id.0).collect();
    if let Some(file) = fits.pop() {
        tracing::info!(provider.file_id = %file.id, "found the copy whose answer was lost; it is adopted");
        metrics::counter!("longshore_rescues_total", "how" => "adopted").increment(1);
        return Settled::Otherwise(Carried::ready(copy(&file), strays));
    }
    if upload.looked_at.is_none() {
        let again = Conclusion::Again { after: lag, failure: None };
        return Settled::Otherwise(Carried { looked: true, strays, ..Carried::of(again) });
    }
    Settled::Absent(strays)
}

/// Whether a file under our marker is the very one: purpose and size agree, where the provider tells them.
fn is_this(file: &RemoteFile, upload: &Upload, bytes: u64) -> bool {
    (file.purpose.is_empty() || file.purpose == upload.purpose)
        && (file.bytes == 0 || file.bytes == bytes)
}

fn copy(file: &RemoteFile) -> Copy {
    Copy {
        provider_file_id: file.id.0.clone(),
        expires_at: file.expires_at.map(Timestamp::from_unix_seconds),
    }
}

fn cannot_know(account: &Account) -> Conclusion {
    Conclusion::permanent(
        OUTCOME_UNKNOWN,
        format!(
            "the answer to an upload was lost, and `{}` offers no way to find out whether it took effect; look there, \
             then retry",
            account.settings.name
        ),
    )
}

async fn send(
    attempt: &Attempt,
    account: &Account,
    upload: &Upload,
    content: Content,
    sent: SentWhole,
    strays: Vec<String>,
) -> Carried {
    let filename = if account.settings.mark_filenames {
        Marker(upload.marker.clone()).mark(&upload.filename)
    } else {
        upload.filename.clone()
    };
    let bytes = content.bytes;
    let request = providers::Upload {
        filename,
        content_type: upload.content_type.clone(),
        purpose: upload.purpose.clone(),
        bytes,
        expires_after: expires_after(upload, attempt.app.clock.now()),
        body: watched(content.body, Arc::clone(&attempt.lease), bytes),
        sent,
    };
    match account.driver.upload_file(request).await {
        Ok(file) => {
            metrics::counter!("longshore_uploads_total", "provider" => account.settings.name.clone()).increment(1);
            tracing::info!(provider.name = %account.settings.name, provider.file_id = %file.id, bytes, "uploaded file");
            Carried::ready(copy(&file), strays)
        }
        Err(error) if error.outcome_unknown => {
            metrics::counter!("longshore_unknown_outcomes_total", "provider" => account.settings.name.clone())
                .increment(1);
            let conclusion = if account.can_find_uploads() {
                Conclusion::of_error(&error)
            } else {
                cannot_know(account)
            };
            let certainty = Certainty::Unknown(attempt.app.clock.now());
            Carried { certainty, strays, ..Carried::of(conclusion) }
        }
        Err(error) if error.kind == ErrorKind::Source && !attempt.lease.holds() => {
            Carried { strays, ..Carried::of(Conclusion::HandedBack) }
        }
        Err(error) => Carried { strays, ..Carried::of(Conclusion::of_error(&error)) },
    }
}

/// A provider that can let a file expire is told to, as a safety net: an hour after it is deleted from here.
fn expires_after(upload: &Upload, now: Timestamp) -> Option<Duration> {
    upload.expires_at.map(|at| at.after(EXPIRY_MARGIN).since(now))
}

/// Counts what goes out, and lets it end only while the lease holds: the driver sends the last bytes
/// of the request after this stream has ended without an error.
fn watched(body: ByteStream, lease: Arc<Lease>, total: u64) -> ByteStream {
    let counted = {
        let lease = Arc::clone(&lease);
        body.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                lease.progressed(chunk.len() as u64, total);
            }
        })
    };
    let end = futures_util::stream::once(async move {
        if lease.holds() {
            Ok(bytes::Bytes::new())
        } else {
            Err(std::io::Error::other("the lease of the upload was lost"))
        }
    });
    counted.chain(end).boxed()
}

/// What an attempt writes with its end.
struct Carry {
    upload: Upload,
    certainty: Certainty,
    copy: Option<Copy>,
    strays: Vec<String>,
    looked: bool,
}

#[async_trait]
impl Effects for Carry {
    fn file(&self) -> Option<FileId> {
        Some(self.upload.file_id)
    }

    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        let upload = &self.upload;
        for stray in &self.strays {
            outcome::superfluous(tx, now, upload, stray, "another copy under the same marker")
                .await?;
        }
        match (ending, &self.copy) {
            (Ending::Succeeded, Some(copy)) => outcome::complete(tx, now, upload, copy).await,
            (Ending::Succeeded, None) => Ok(()),
            (Ending::Retry { failure, .. }, _) => {
                // A definite refusal says that this attempt left nothing, and nothing of an earlier one.
                let certainty = match (self.certainty, upload.unknown_since, failure) {
                    (Certainty::Unchanged, None, Some(_)) => Certainty::Absent,
                    (certainty, _, _) => certainty,
                };
                outcome::postpone(tx, upload, certainty, failure.as_ref()).await?;
                if self.looked { store::looked(tx, upload.id, now).await } else { Ok(()) }
            }
            (Ending::Failed(failure), _) => {
                outcome::abandon(tx, now, upload, self.certainty, failure).await
            }
            (Ending::Cancelled, _) => {
                let failure = Failure::permanent("cancelled", "the upload was cancelled");
                outcome::abandon(tx, now, upload, self.certainty, &failure).await
            }
        }
    }

    async fn write_after_loss(&self, tx: &Transaction, now: Timestamp) -> Result<(), DbErr> {
        // The provider has a copy that nobody else knows of.
        match &self.copy {
            Some(copy) => {
                metrics::counter!("longshore_rescues_total", "how" => "stray").increment(1);
                let reason = "its upload ended after the job was taken over";
                outcome::superfluous(tx, now, &self.upload, &copy.provider_file_id, reason).await
            }
            None => Ok(()),
        }
    }
}

/// Nobody can say how the attempt ended: the provider may have the file.
pub async fn ended_unseen(
    tx: &Transaction,
    now: Timestamp,
    payload: &UploadFile,
    ending: &Ending,
) -> Result<(), DbErr> {
    let Some(upload) = store::find_upload(tx, payload.mapping_id).await? else { return Ok(()) };
    let certainty = match upload.status()? {
        // Deleted meanwhile, it may have been on its way all the same.
        MappingStatus::Uploading | MappingStatus::Deleting | MappingStatus::Undeletable => {
            Certainty::Unknown(now)
        }
        _ => Certainty::Unchanged,
    };
    metrics::counter!("longshore_unknown_outcomes_total", "provider" => upload.provider.clone())
        .increment(1);
    match ending {
        Ending::Retry { failure, .. } => {
            outcome::postpone(tx, &upload, certainty, failure.as_ref()).await
        }
        Ending::Failed(failure) => outcome::abandon(tx, now, &upload, certainty, failure).await,
        Ending::Cancelled => {
            let failure = Failure::permanent("cancelled", "the upload was cancelled");
            outcome::abandon(tx, now, &upload, certainty, &failure).await
        }
        Ending::Succeeded => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::MappingId;
    use crate::providers::ProviderFileId;

    fn upload() -> Upload {
        Upload {
            id: MappingId::mint(),
            file_id: FileId::mint(),
            status: "uploading".to_owned(),
            model: "m".to_owned(),
            provider: "p".to_owned(),
            provider_model: "m".to_owned(),
            marker: "abc".to_owned(),
            provider_file_id: None,
            unknown_since: None,
            looked_at: None,
            ready_at: None,
            managed_id: "x".to_owned(),
            owner: "alice".to_owned(),
            filename: "in.jsonl".to_owned(),
            content_type: "application/jsonl".to_owned(),
            purpose: "batch".to_owned(),
            bytes: 10,
            blob_key: None,
            expires_at: None,
            deleted_at: None,
        }
    }

    fn remote(purpose: &str, bytes: u64) -> RemoteFile {
        RemoteFile {
            id: ProviderFileId("file-1".to_owned()),
            filename: "in.abc.jsonl".to_owned(),
            purpose: purpose.to_owned(),
            bytes,
            created_at: None,
            expires_at: None,
            status: None,
        }
    }

    #[test]
    fn a_copy_is_adopted_only_when_purpose_and_size_agree() {
        assert!(is_this(&remote("batch", 12), &upload(), 12));
        assert!(!is_this(&remote("batch", 11), &upload(), 12));
        assert!(!is_this(&remote("vision", 12), &upload(), 12));
    }

    #[test]
    fn what_a_provider_does_not_tell_does_not_speak_against_a_copy() {
        assert!(is_this(&remote("", 0), &upload(), 12));
    }

    #[tokio::test]
    async fn a_body_does_not_end_well_without_its_lease() {
        let held = super::super::held::Held::default();
        let job = crate::ids::JobId::mint();
        for (lease, expected) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
            let lease = held.add(job, 1, std::time::Instant::now(), lease);
            let body = futures_util::stream::iter([Ok(bytes::Bytes::from_static(b"abc"))]).boxed();
            let chunks: Vec<_> = watched(body, lease, 3).collect().await;
            assert_eq!(chunks.iter().all(Result::is_ok), expected);
        }
    }
}
