//! Looks again, later, for copies of a file whose upload had an unknown outcome, and deletes every one
//! but the mapping's: a proxy, or a worker that was frozen, may have delivered the first request late.

use std::sync::Arc;
use std::time::Duration;

use crate::db::Transaction;
use async_trait::async_trait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::registry::Nothing;
use super::strays;
use crate::clock::Timestamp;
use crate::ids::JobId;
use crate::jobs::Ending;
use crate::jobs::Progress;
use crate::jobs::ProgressUnit;
use crate::jobs::VerifyUpload;
use crate::jobs::leases;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::mappings::outcome::LOOKS;
use crate::mappings::store;

/// How long to wait for an upload that is under way: only then is it clear which copy stays.
const UPLOAD_PAUSE: Duration = Duration::from_secs(30);

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
        return strays::untrusted();
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
        match attempt.listings.look(app, account, &Marker(upload.marker.clone())).await {
            Ok(files) => found = files.into_iter().map(|file| file.id.0).collect(),
            Err(unread) => return unread.conclusion(),
        }
    }
    let condemned = match strays::condemn(attempt, &upload, found).await {
        Ok(Some(condemned)) => condemned,
        Ok(None) => return Conclusion::Again { after: UPLOAD_PAUSE, failure: None },
        Err(error) => return Conclusion::without_database(&error),
    };
    for stray in condemned {
        if let Err(conclusion) = strays::delete(attempt, account, &stray).await {
            return conclusion;
        }
    }
    Conclusion::Succeeded
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
