//! What becomes of an upload: each way in which it can end, for whoever ends it (the worker that ran
//! it, the reaper, a client that cancels). All of it runs inside the transaction that ends the job.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use super::MappingStatus;
use super::deletion;
use super::store;
use super::store::Certainty;
use super::store::Copy;
use super::store::Upload;
use crate::clock::Timestamp;
use crate::files;
use crate::ids::JobId;
use crate::jobs;
use crate::jobs::Failure;
use crate::jobs::Lane;
use crate::jobs::NewJob;
use crate::jobs::VerifyUpload;
use crate::jobs::Work;
use crate::runs::submission;

/// When a provider's list is looked at again after an upload with an unknown outcome: a proxy or a
/// frozen worker may deliver the first request later.
pub const LOOKS: [Duration; 3] =
    [Duration::from_secs(60), Duration::from_secs(5 * 60), Duration::from_secs(14 * 60)];
/// Enough for an outage of the provider between the looks.
const VERIFY_ATTEMPTS: u32 = 1000;

/// The provider has the file. A copy that the mapping cannot take any more is a stray.
pub async fn complete(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    copy: &Copy,
) -> Result<(), DbErr> {
    if store::complete(tx, now, upload.id, copy).await? {
        if upload.unknown_since.is_some() {
            store::adopt_stray(tx, &upload.provider, &copy.provider_file_id).await?;
            verify_later(tx, now, upload).await?;
        }
        files::create::settle(tx, now, upload.file_id, &upload.owner).await?;
        return submission::upload_ready(tx, now, upload).await;
    }
    // Its file was deleted meanwhile: the delete takes the copy.
    if deletion::upload_ended(tx, upload.id, Certainty::Unchanged, Some(copy)).await? {
        return Ok(());
    }
    superfluous(tx, now, upload, &copy.provider_file_id, "its mapping could not take it any more")
        .await
}

/// A copy at the provider that no mapping holds: it is noted, and a job deletes it.
pub async fn superfluous(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    provider_file_id: &str,
    reason: &str,
) -> Result<(), DbErr> {
    if store::add_stray(tx, now, upload.id, &upload.provider, provider_file_id, reason).await? {
        verify_later(tx, now, upload).await?;
    }
    Ok(())
}

/// The upload is to be tried again.
pub async fn postpone(
    tx: &impl ConnectionTrait,
    upload: &Upload,
    certainty: Certainty,
    failure: Option<&Failure>,
) -> Result<(), DbErr> {
    if !store::give_back(tx, upload.id, MappingStatus::Pending, certainty, failure).await? {
        deletion::upload_ended(tx, upload.id, certainty, None).await?;
    }
    Ok(())
}

/// The upload is given up. What it may have left at the provider is looked for, later.
pub async fn abandon(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
    certainty: Certainty,
    failure: &Failure,
) -> Result<(), DbErr> {
    if !store::give_back(tx, upload.id, MappingStatus::Failed, certainty, Some(failure)).await? {
        deletion::upload_ended(tx, upload.id, certainty, None).await?;
        return Ok(());
    }
    let is_unknown = match certainty {
        Certainty::Absent => false,
        Certainty::Unknown(_) => true,
        Certainty::Unchanged => upload.unknown_since.is_some(),
    };
    if is_unknown {
        verify_later(tx, now, upload).await?;
    }
    files::create::settle(tx, now, upload.file_id, &upload.owner).await?;
    submission::upload_failed(tx, now, upload, failure).await
}

/// Looks again at the times of [`LOOKS`], and deletes every copy but the mapping's.
pub async fn verify_later(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    upload: &Upload,
) -> Result<(), DbErr> {
    let job = NewJob {
        id: JobId::mint(),
        work: Work::VerifyUpload(VerifyUpload { mapping_id: upload.id }),
        lane: Lane::of_provider(&upload.provider),
        owner: upload.owner.clone(),
        max_attempts: VERIFY_ATTEMPTS,
        delay: LOOKS[0],
        file_id: Some(upload.file_id),
        batch_id: None,
        model: Some(upload.model.clone()),
        request_id: None,
    };
    jobs::store::enqueue(tx, now, &[job]).await
}
