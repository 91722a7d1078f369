//! Deletes the copy of a file at one deployment, and whatever its upload may have left there.
//!
//! All of it may be repeated: what is gone already counts as deleted. So a lost answer, or a worker that
//! dies, costs a call and nothing else.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::registry::Nothing;
use super::strays;
use crate::app::Account;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::files::Purpose;
use crate::ids::FileId;
use crate::jobs::DeleteFile;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::retry::Verdict;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::mappings::deletion;
use crate::mappings::receipt::Proof;
use crate::mappings::receipt::Receipt;
use crate::mappings::store;
use crate::mappings::store::Upload;
use crate::providers::ErrorKind;
use crate::providers::ProviderFileId;
use crate::runs;

/// How long a delete is tried before somebody has to look at it.
pub const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long to wait for the end of an upload, and of a batch, if nothing says earlier that it has ended.
const UPLOAD_PAUSE: Duration = Duration::from_secs(10);
const BATCH_PAUSE: Duration = Duration::from_secs(600);

pub async fn run(attempt: &Attempt, payload: &DeleteFile) -> Done {
    let nothing_done = |conclusion| Done { conclusion, effects: Arc::new(Nothing) };
    let app = &attempt.app;
    if !app.installation.is_trusted {
        return nothing_done(strays::untrusted());
    }
    let upload = match store::find_upload(app.db.read(), payload.mapping_id).await {
        Ok(Some(upload)) => upload,
        Ok(None) => {
            let message = "the mapping of this job does not exist";
            return nothing_done(Conclusion::permanent("mapping_missing", message));
        }
        Err(error) => return nothing_done(Conclusion::without_database(&error)),
    };
    // An attempt before this one got as far as the provider's answer.
    if upload.status().is_ok_and(|status| status != MappingStatus::Deleting) {
        return nothing_done(Conclusion::Succeeded);
    }
    match needed_for(attempt, &upload).await {
        Ok(None) => {}
        Ok(Some(after)) => return nothing_done(Conclusion::Again { after, failure: None }),
        Err(error) => return nothing_done(Conclusion::without_database(&error)),
    }
    let outcome = tokio::select! {
        outcome = delete(attempt, &upload) => outcome,
        stop = attempt.lease.stopped() => Outcome::of(Conclusion::of_stop(stop)),
    };
    // By the database's clock, as the lease is.
    let tried = attempt.job.lease_until.since(attempt.job.started_at);
    let conclusion = match outcome.conclusion {
        Conclusion::Failed { failure, verdict } if tried > PATIENCE => given_up(failure, verdict),
        conclusion => conclusion,
    };
    let effects = Deleted { upload, receipt: outcome.receipt, looked: outcome.looked };
    Done { conclusion, effects: Arc::new(effects) }
}

/// How long to wait while it is still being uploaded, or a batch that was cancelled has not stopped reading it. The end
/// of either makes this due.
async fn needed_for(attempt: &Attempt, upload: &Upload) -> Result<Option<Duration>, DbErr> {
    let db = attempt.app.db.read();
    if deletion::is_uploading(db, upload.id).await? {
        return Ok(Some(UPLOAD_PAUSE));
    }
    let may_be_read = upload.purpose == Purpose::Batch.as_str();
    Ok((may_be_read && runs::store::is_in_use(db, upload.id).await?).then_some(BATCH_PAUSE))
}

fn given_up(failure: Failure, verdict: Verdict) -> Conclusion {
    let message = format!("not deleted within 7 days; the last answer was: {}", failure.message);
    Conclusion::GivenUp { failure: Failure { message, retryable: false, ..failure }, verdict }
}

/// What an attempt came to.
struct Outcome {
    conclusion: Conclusion,
    receipt: Option<Receipt>,
    /// The provider's list was read to its end and did not show what is looked for.
    looked: bool,
}

impl Outcome {
    fn of(conclusion: Conclusion) -> Self {
        Self { conclusion, receipt: None, looked: false }
    }
}

async fn delete(attempt: &Attempt, upload: &Upload) -> Outcome {
    let Some(account) = attempt.app.providers.get(&upload.provider) else {
        let message = format!("the provider `{}` is not configured any more", upload.provider);
        return Outcome::of(Conclusion::transient("provider_not_configured", message));
    };
    let mut receipt = Receipt::NEVER_THERE;
    if let Some(id) = upload.provider_file_id.clone().map(ProviderFileId) {
        // One that was made just now may be unknown to the part of the provider that answers.
        let age = upload.ready_at.map(|at| attempt.app.clock.now().since(at));
        let lag = account.settings.list_lag;
        if let Some(wait) = age.map(|age| lag.saturating_sub(age)).filter(|wait| !wait.is_zero()) {
            return Outcome::of(Conclusion::Again { after: wait, failure: None });
        }
        match delete_copy(account, &id).await {
            Ok(deleted) => receipt = deleted,
            Err(conclusion) => return Outcome::of(conclusion),
        }
    }
    if upload.unknown_since.is_some() {
        match delete_lost(attempt, account, upload).await {
            Ok(Looked::Enough) if receipt == Receipt::NEVER_THERE => {
                receipt = Receipt { proof: Proof::NotListed, http_status: None, is_verified: true };
            }
            Ok(Looked::Enough) => {}
            Ok(Looked::Once) => {
                let after = account.settings.list_lag;
                let again = Conclusion::Again { after, failure: None };
                return Outcome { looked: true, ..Outcome::of(again) };
            }
            Ok(Looked::TooEarly(after)) => {
                return Outcome::of(Conclusion::Again { after, failure: None });
            }
            Err(conclusion) => return Outcome::of(conclusion),
        }
    }
    metrics::counter!("longshore_deletes_total", "provider" => account.settings.name.clone())
        .increment(1);
    Outcome { receipt: Some(receipt), ..Outcome::of(Conclusion::Succeeded) }
}

/// Deletes the copy that the mapping holds, and asks for it afterwards: an answer that says that it is
/// deleted, or not known, is believed and checked.
async fn delete_copy(account: &Account, id: &ProviderFileId) -> Result<Receipt, Conclusion> {
    let driver = &account.driver;
    let deleted = driver.delete_file(id).await.map_err(|error| Conclusion::of_error(&error))?;
    let (provider, http_status) = (&account.settings.name, Some(deleted.http_status));
    tracing::info!(provider.name = %provider, provider.file_id = %id, http.status = deleted.http_status, "deleted file");
    let is_verified = match driver.file(id).await {
        Err(error) if error.kind == ErrorKind::NotFound => true,
        // It is deleted, whatever becomes of this question: the next attempt would find it gone.
        Err(error) if !error.is_transient() => false,
        Err(error) => return Err(Conclusion::of_error(&error)),
        Ok(_) => {
            let message =
                format!("`{provider}` has said that `{id}` is deleted, and still shows it");
            return Err(Conclusion::transient("still_there", message));
        }
    };
    let proof = if deleted.was_there { Proof::Deleted } else { Proof::AlreadyGone };
    Ok(Receipt { proof, http_status, is_verified })
}

/// How often the provider's list was read since the outcome of the upload is unknown.
enum Looked {
    Once,
    Enough,
    /// The list may still lag behind; the time until it is asked again.
    TooEarly(Duration),
}

/// Deletes what carries the mapping's marker in the provider's list.
async fn delete_lost(
    attempt: &Attempt,
    account: &Account,
    upload: &Upload,
) -> Result<Looked, Conclusion> {
    if !account.can_find_uploads() {
        return Err(cannot_know(account));
    }
    let now = attempt.app.clock.now();
    let lag = account.settings.list_lag;
    let wait = upload.looked_at.map(|at| lag.saturating_sub(now.since(at)));
    if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
        return Ok(Looked::TooEarly(wait));
    }
    let marker = Marker(upload.marker.clone());
    let files = match attempt.listings.look(&attempt.app, account, &marker).await {
        Ok(files) => files,
        Err(unread) if unread.has_no_list() => return Err(cannot_know(account)),
        Err(unread) => return Err(unread.conclusion()),
    };
    let found = files.into_iter().map(|file| file.id.0).collect();
    let condemned = match strays::condemn(attempt, upload, found).await {
        Ok(condemned) => condemned.unwrap_or_default(),
        Err(error) => return Err(Conclusion::without_database(&error)),
    };
    for stray in condemned {
        strays::delete(attempt, account, &stray).await?;
    }
    Ok(if upload.looked_at.is_some() { Looked::Enough } else { Looked::Once })
}

fn cannot_know(account: &Account) -> Conclusion {
    Conclusion::permanent(
        "outcome_unknown",
        format!(
            "the answer to the upload was lost, and `{}` offers no way to find out whether it left a copy; look there, \
             then retry",
            account.settings.name
        ),
    )
}

/// What an attempt writes with its end.
struct Deleted {
    upload: Upload,
    receipt: Option<Receipt>,
    looked: bool,
}

#[async_trait]
impl Effects for Deleted {
    fn file(&self) -> Option<FileId> {
        Some(self.upload.file_id)
    }

    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        let upload = &self.upload;
        match (ending, &self.receipt) {
            (Ending::Succeeded, Some(receipt)) => {
                deletion::complete(tx, now, upload, receipt).await
            }
            (Ending::Succeeded, None) => Ok(()),
            (Ending::Retry { failure, .. }, _) => {
                if let Some(failure) = failure {
                    deletion::postpone(tx, upload.id, failure).await?;
                }
                if self.looked { store::looked(tx, upload.id, now).await } else { Ok(()) }
            }
            (Ending::Failed(failure), _) => deletion::give_up(tx, now, upload, failure).await,
            (Ending::Cancelled, _) => deletion::give_up(tx, now, upload, &cancelled()).await,
        }
    }
}

/// Nobody can say how the attempt ended. The next one finds out, if there is one.
pub async fn ended_unseen(
    tx: &Transaction,
    now: Timestamp,
    payload: &DeleteFile,
    ending: &Ending,
) -> Result<(), DbErr> {
    let failure = match ending {
        Ending::Failed(failure) => failure.clone(),
        Ending::Cancelled => cancelled(),
        Ending::Succeeded | Ending::Retry { .. } => return Ok(()),
    };
    match store::find_upload(tx, payload.mapping_id).await? {
        Some(upload) => deletion::give_up(tx, now, &upload, &failure).await,
        None => Ok(()),
    }
}

fn cancelled() -> Failure {
    Failure::permanent("cancelled", "the delete was cancelled")
}
