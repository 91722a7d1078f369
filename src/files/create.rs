//! Making a file durable, and sending it to models: rows and jobs in one transaction. The commit is
//! the promise.

use std::sync::Arc;
use std::time::Duration;

use crate::db::Transaction;
use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use super::FileStatus;
use super::store;
use super::store::FileView;
use super::store::MappingView;
use super::store::NewFile;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::events;
use crate::events::EventKind;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::MappingId;
use crate::jobs;
use crate::jobs::Lane;
use crate::jobs::NewJob;
use crate::jobs::UploadFile;
use crate::jobs::Work;
use crate::mappings;
use crate::mappings::Marker;
use crate::mappings::store::Copy;
use crate::mappings::store::NewMapping;

/// A model that a file is to be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub deployment_id: String,
    pub model: String,
    pub provider: String,
    pub provider_model: String,
}

/// What every upload job of this installation has in common.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub installation_id: Arc<str>,
    pub max_attempts: u32,
    pub request_id: Option<String>,
}

/// Writes a file, its mappings and one upload job for each, and answers it as stored.
pub async fn create(
    tx: &Transaction,
    now: Timestamp,
    file: &NewFile,
    destinations: &[Destination],
    dispatch: &Dispatch,
) -> Result<FileView, Error> {
    store::insert(tx, now, file).await?;
    let mappings = send(tx, now, file.id, &file.owner, destinations, 0, dispatch).await?;
    events::append(
        tx,
        now,
        &[events::Event::of_file(EventKind::FileCreated, &file.owner, file.id)],
    )
    .await?;
    Ok(FileView { file: store::File::written(file, now)?, mappings })
}

/// Writes a file that was made at a provider, and the copy that it holds there; or one that was made here, without.
///
/// # Errors
///
/// What the database says.
pub async fn produced(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    file: &NewFile,
    copy: Option<(&NewMapping, &Copy)>,
) -> Result<(), DbErr> {
    store::insert(tx, now, file).await?;
    if let Some((mapping, copy)) = copy {
        mappings::store::insert(tx, now, std::slice::from_ref(mapping)).await?;
        mappings::store::found(tx, now, mapping.id, copy).await?;
    }
    store::set_status(tx, file.id, FileStatus::Processed, None).await?;
    let event = events::Event::of_file(EventKind::FileProcessed, &file.owner, file.id);
    events::append(tx, now, &[event]).await
}

/// Sends a file that exists to more models; those that it was sent to already are passed over.
pub async fn send_to_more(
    tx: &Transaction,
    now: Timestamp,
    view: &FileView,
    destinations: &[Destination],
    dispatch: &Dispatch,
) -> Result<FileView, Error> {
    let file = &view.file;
    // The lock comes first: two requests at once must not both find a deployment missing.
    store::lock(tx, file.id).await?;
    let current =
        store::find_by_id(tx, file.id).await?.filter(|view| view.file.deleted_at.is_none());
    let current = current.ok_or_else(|| Error::no_such("file", "file_id", &file.managed_id))?;
    let known = |destination: &&Destination| {
        !current.mappings.iter().any(|mapping| mapping.deployment_id == destination.deployment_id)
    };
    let new: Vec<_> = destinations.iter().filter(known).cloned().collect();
    let position = i32::try_from(current.mappings.len()).unwrap_or(i32::MAX);
    send(tx, now, file.id, &file.owner, &new, position, dispatch).await?;
    if !new.is_empty() {
        store::set_status(tx, file.id, FileStatus::Uploaded, None).await?;
    }
    let view = store::find_by_id(tx, file.id).await?;
    view.ok_or_else(|| Error::Internal(anyhow::anyhow!("file `{}` vanished", file.id)))
}

async fn send(
    tx: &Transaction,
    now: Timestamp,
    file_id: FileId,
    owner: &str,
    destinations: &[Destination],
    first_position: i32,
    dispatch: &Dispatch,
) -> Result<Vec<MappingView>, Error> {
    let mut mappings = Vec::with_capacity(destinations.len());
    let mut jobs = Vec::with_capacity(destinations.len());
    for (position, destination) in (first_position..).zip(destinations) {
        let (mapping_id, job_id) = (MappingId::mint(), JobId::mint());
        mappings.push(NewMapping {
            id: mapping_id,
            file_id,
            position,
            deployment_id: destination.deployment_id.clone(),
            model: destination.model.clone(),
            provider: destination.provider.clone(),
            provider_model: destination.provider_model.clone(),
            marker: Marker::mint(&dispatch.installation_id).0,
            job_id,
        });
        jobs.push(NewJob {
            id: job_id,
            work: Work::UploadFile(UploadFile { mapping_id }),
            lane: Lane::of_provider(&destination.provider),
            owner: owner.to_owned(),
            max_attempts: dispatch.max_attempts,
            delay: Duration::ZERO,
            file_id: Some(file_id),
            batch_id: None,
            model: Some(destination.model.clone()),
            request_id: dispatch.request_id.clone(),
        });
    }
    mappings::store::insert(tx, now, &mappings).await?;
    jobs::store::enqueue(tx, now, &jobs).await?;
    // What was written is not read back: an upload would pay for a join of four tables.
    let lanes: Vec<_> = jobs.into_iter().map(|job| job.lane).collect();
    let pauses = jobs::lanes::pauses(tx, &lanes).await?;
    let written = mappings.into_iter().zip(&lanes);
    Ok(written.map(|(mapping, lane)| MappingView::written(mapping, pauses.get(lane))).collect())
}

/// Queues the failed mappings of a file again, with all their attempts.
pub async fn retry(tx: &Transaction, view: &FileView) -> Result<FileView, Error> {
    let file = &view.file;
    // Another mapping that ends meanwhile must see these at work again.
    store::lock(tx, file.id).await?;
    let failed = mappings::store::failed_jobs(tx, file.id).await?;
    let queued = jobs::store::requeue(tx, &failed).await?;
    if mappings::store::revive(tx, &queued).await? > 0 {
        store::set_status(tx, file.id, FileStatus::Uploaded, None).await?;
    }
    let view = store::find_by_id(tx, file.id).await?;
    view.ok_or_else(|| Error::no_such("file", "file_id", &file.managed_id))
}

/// Derives the file's status from its mappings, and announces it when it is final.
pub async fn settle(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    file_id: FileId,
    owner: &str,
) -> Result<(), DbErr> {
    let mappings = mappings::store::statuses(tx, file_id).await?;
    let status = FileStatus::of_mappings(mappings.iter().map(|mapping| mapping.status));
    let failed: Vec<_> = mappings
        .iter()
        .filter(|mapping| mapping.status == mappings::MappingStatus::Failed)
        .map(|mapping| {
            let why = mapping.failure.as_ref().map_or("failed", |failure| &failure.message);
            format!("`{}`: {why}", mapping.model)
        })
        .collect();
    let details = (status == FileStatus::Error).then(|| failed.join("; "));
    if store::set_status(tx, file_id, status, details.as_deref()).await? && status.is_final() {
        let kind = if status == FileStatus::Error {
            EventKind::FileFailed
        } else {
            EventKind::FileProcessed
        };
        events::append(tx, now, &[events::Event::of_file(kind, owner, file_id)]).await?;
    }
    Ok(())
}
