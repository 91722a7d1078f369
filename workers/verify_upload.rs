//! Looks again, later, for copies of a file whose upload had an unknown outcome, and deletes every one
//! but the mapping's: a proxy, or a worker that was frozen, may have delivered the first request late.

use std::sync::Arc;
use std::time::Duration;

use crate::db::Transaction;
use async_trait::async_trait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::attempt::Conclusion;
use super::attempt::Done;
use super::attempt::Effects;
use super::registry::Nothing;
use crate::app::Account;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::ids::JobId;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::Progress;
use crate::jobs::ProgressUnit;
use crate::jobs::VerifyUpload;
use crate::jobs::leases;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::mappings::outcome::LOOKS;
use crate::mappings::store;
use crate::mappings::store::Stray;
use crate::mappings::store::Upload;
use crate::providers::ProviderFileId;

/// How long to wait for an upload that is under way: only then is it clear which copy stays.
const UPLOAD_PAUSE: Duration = Duration::from_secs(30);
const UNTRUSTED_PAUSE: Duration = Duration::from_secs(600);

pub async fn run(attempt: &Attempt, payload: &VerifyUpload) -> Done {
    let conclusion = tokio::select! {
        conclusion = verify(attempt, payload) => conclusion,
        // Whatever was decided is on disk, and deleting twice is harmless.
        stop = attempt.lease.stopped() => Conclusion::of_stop(stop),
    };
    let looks = attempt.job.progress().map_or(0, |progress| progress.done);
    match conclusion {
        Conclusion::Succeeded => {
            let done = usize::try_from(looks + 1).unwrap_or(LOOKS.len());
            let conclusion = match (LOOKS.get(done - 1), LOOKS.get(done)) {
                (Some(last), Some(next)) => {
                    Conclusion::Again { after: *next - *last, failure: None }
                }
                _ => Conclusion::Succeeded,
            };
            let progress = Progress {
                done: done as u64,
                total: LOOKS.len() as u64,
                unit: ProgressUnit::Looks,
            };
            Done { conclusion, effects: Arc::new(Looked { job: attempt.job.id, progress }) }
        }
        conclusion => Done { conclusion, effects: Arc::new(Nothing) },
    }
}

/// One look: what is superfluous is condemned, then deleted. `Succeeded` when nothing is left of it.
async fn verify(attempt: &Attempt, payload: &VerifyUpload) -> Conclusion {
    let app = &attempt.app;
    if !app.installation.is_trusted {
        let failure = Failure::transient(
            "installation_mismatch",
            "nothing is deleted at providers while the database and the blob store belong to different installations; \
             `longshore doctor` says what to do",
        );
        return Conclusion::Again { after: UNTRUSTED_PAUSE, failure: Some(failure) };
    }
    let upload = match store::find_upload(app.db.read(), payload.mapping_id).await {
        Ok(Some(upload)) => upload,
        Ok(None) => {
            return Conclusion::permanent(
                "mapping_missing",
                "the mapping of this job does not exist",
            );
        }
        Err(error) => return Conclusion::without_database(&error),
    };
    let Some(account) = app.providers.get(&upload.provider) else {
        let message = format!("the provider `{}` is not configured any more", upload.provider);
        return Conclusion::transient("provider_not_configured", message);
    };
    if upload.status().is_ok_and(MappingStatus::is_working) {
        return Conclusion::Again { after: UPLOAD_PAUSE, failure: None };
    }
    let mut found = Vec::new();
    if account.can_find_uploads() {
        match attempt.listings.look(account, &Marker(upload.marker.clone())).await {
            Ok(files) => found = files.into_iter().map(|file| file.id.0).collect(),
            Err(error) => return Conclusion::of_error(&error),
        }
    }
    let strays = match condemn(attempt, &upload, found).await {
        Ok(Some(strays)) => strays,
        Ok(None) => return Conclusion::Again { after: UPLOAD_PAUSE, failure: None },
        Err(error) => return Conclusion::without_database(&error),
    };
    for stray in strays {
        if let Err(conclusion) = delete(attempt, account, &stray).await {
            return conclusion;
        }
    }
    Conclusion::Succeeded
}

/// Puts the decision on disk before anything is deleted. Only while the lease holds: another worker
/// may have gone on meanwhile.
async fn condemn(
    attempt: &Attempt,
    upload: &Upload,
    found: Vec<String>,
) -> Result<Option<Vec<Stray>>, Error> {
    let (now, fence) = (attempt.app.clock.now(), attempt.fence.clone());
    let (upload, found): (Arc<Upload>, Arc<[String]>) = (Arc::new(upload.clone()), found.into());
    attempt
        .app
        .db
        .work(move |tx| {
            let (fence, upload, found) = (fence.clone(), Arc::clone(&upload), Arc::clone(&found));
            Box::pin(async move {
                if !leases::check(tx, &fence).await? {
                    return Ok(None);
                }
                Ok(store::condemn(tx, now, &upload, &found).await?)
            })
        })
        .await
}

async fn delete(attempt: &Attempt, account: &Account, stray: &Stray) -> Result<(), Conclusion> {
    let id = ProviderFileId(stray.provider_file_id.clone());
    account.driver.delete_file(&id).await.map_err(|error| Conclusion::of_error(&error))?;
    tracing::info!(provider.name = %account.settings.name, provider.file_id = %id, "deleted a superfluous copy");
    metrics::counter!("longshore_rescues_total", "how" => "stray_deleted").increment(1);
    let (now, id, fence) = (attempt.app.clock.now(), stray.id, attempt.fence.clone());
    let written: Result<(), Error> = attempt
        .app
        .db
        .work(move |tx| {
            let fence = fence.clone();
            Box::pin(async move {
                if leases::check(tx, &fence).await? {
                    store::stray_deleted(tx, now, id).await?;
                }
                Ok(())
            })
        })
        .await;
    written.map_err(|error| Conclusion::without_database(&error))
}

/// Counts a look, with the end of its attempt.
struct Looked {
    job: JobId,
    progress: Progress,
}

#[async_trait]
impl Effects for Looked {
    async fn write(&self, tx: &Transaction, _: Timestamp, _: &Ending) -> Result<(), DbErr> {
        leases::set_progress(tx, self.job, self.progress).await
    }
}
