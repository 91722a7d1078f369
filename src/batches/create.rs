//! Making a batch durable: the batch, its runs, and a job for each that can go. The commit is the promise.

use std::sync::Arc;
use std::time::Duration;

use super::NewBatch;
use super::store;
use super::store::BatchView;
use super::view;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::error::Error;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::files;
use crate::ids::FileId;
use crate::ids::RunId;
use crate::jobs;
use crate::mappings;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::mappings::store::Target;
use crate::runs;
use crate::runs::store::NewRun;
use crate::runs::submission;
use crate::runs::submission::Origin;

/// What a batch runs on: a file, and those of its models that are named; all of them if none is.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub file_id: FileId,
    pub models: Option<Vec<String>>,
}

/// What every batch of this installation has in common.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub installation_id: Arc<str>,
    pub max_attempts: u32,
}

/// Writes a batch with a run for each deployment that is wanted.
///
/// # Errors
///
/// When the file is gone, was not sent to a model that is named, or did not get there.
pub async fn create(
    tx: &Transaction,
    now: Timestamp,
    new: &NewBatch,
    wanted: &Wanted,
    dispatch: &Dispatch,
) -> Result<BatchView, Error> {
    // The lock comes first: a copy that becomes ready meanwhile must see the run that waits for it.
    files::store::lock(tx, wanted.file_id).await?;
    let file = files::store::find_by_id(tx, wanted.file_id).await?;
    if file.is_none_or(|view| view.file.deleted_at.is_some()) {
        return Err(Error::no_such("file", "input_file_id", &new.input_file));
    }
    let targets = choose(mappings::store::targets(tx, wanted.file_id).await?, wanted)?;
    for target in &targets {
        check(target)?;
    }
    let deployments: Vec<_> = targets.iter().map(|target| target.deployment_id.as_str()).collect();
    store::insert(tx, now, new, &new.managed_id(&deployments)).await?;
    let mut queued = Vec::new();
    for (position, target) in (0..).zip(&targets) {
        let id = RunId::mint();
        let origin = Origin {
            batch_id: new.id,
            owner: &new.owner,
            provider: &target.provider,
            model: &target.model,
            max_attempts: dispatch.max_attempts,
            request_id: new.request_id.as_deref(),
        };
        let job = (target.status()? == MappingStatus::Ready)
            .then(|| submission::job(id, &origin, Duration::ZERO));
        let run = NewRun {
            id,
            position,
            deployment_id: target.deployment_id.clone(),
            model: target.model.clone(),
            provider: target.provider.clone(),
            provider_model: target.provider_model.clone(),
            mapping_id: Some(target.id),
            marker: Some(Marker::mint(&dispatch.installation_id).0),
            job_id: job.as_ref().map(|job| job.id),
            provider_batch_id: None,
        };
        runs::store::insert(tx, now, new.id, &run).await?;
        queued.extend(job);
    }
    jobs::store::enqueue(tx, now, &queued).await?;
    let event = Event::of_batch(EventKind::BatchCreated, &new.owner, new.id);
    events::append(tx, now, &[event]).await?;
    written(tx, new).await
}

/// The batch, as it was written just now.
pub(super) async fn written(tx: &Transaction, new: &NewBatch) -> Result<BatchView, Error> {
    let batch = store::find_by_id(tx, new.id).await?;
    let batch =
        batch.ok_or_else(|| Error::Internal(anyhow::anyhow!("batch `{}` vanished", new.id)))?;
    Ok(view(tx, batch).await?)
}

/// The copies to run on, in the order in which the models are named.
fn choose(targets: Vec<Target>, wanted: &Wanted) -> Result<Vec<Target>, Error> {
    let Some(models) = &wanted.models else {
        if targets.is_empty() {
            return Err(Error::invalid(
                "input_file_id",
                "the file was sent to no model; send it to one with `POST /v1/files/{id}/mappings`",
            ));
        }
        return Ok(targets);
    };
    let mut chosen: Vec<Target> = Vec::new();
    for model in models {
        let mut of_model = targets.iter().filter(|target| target.model == *model).peekable();
        if of_model.peek().is_none() {
            return Err(not_sent(model, &targets));
        }
        for target in of_model {
            if !chosen.iter().any(|known| known.id == target.id) {
                chosen.push(target.clone());
            }
        }
    }
    Ok(chosen)
}

fn not_sent(model: &str, targets: &[Target]) -> Error {
    let mut names: Vec<_> = targets.iter().map(|target| format!("`{}`", target.model)).collect();
    names.dedup();
    let model: String = model.chars().take(200).collect();
    Error::Invalid {
        param: Some("target_model_names"),
        code: Some("model_not_found"),
        message: format!(
            "the file was not sent to `{model}`, only to {}; send it there first, with `POST /v1/files/{{id}}/mappings`",
            if names.is_empty() { "no model at all".to_owned() } else { names.join(", ") }
        ),
    }
}

/// Whether a batch can run on this copy, now or as soon as it has arrived.
fn check(target: &Target) -> Result<(), Error> {
    let model = &target.model;
    let message = match target.status()? {
        MappingStatus::Pending | MappingStatus::Uploading | MappingStatus::Ready => return Ok(()),
        MappingStatus::Failed => {
            let why = target
                .failure()
                .map_or_else(String::new, |failure| format!(": {}", failure.message));
            format!(
                "the file did not reach `{model}`{why}; try again with `POST /v1/files/{{id}}/retry`"
            )
        }
        MappingStatus::Expired | MappingStatus::Lost => {
            format!("`{model}` no longer has the file; upload it again")
        }
        MappingStatus::Deleting | MappingStatus::Deleted | MappingStatus::Undeletable => {
            format!("the copy of the file at `{model}` was deleted; upload the file again")
        }
    };
    Err(Error::Conflict { code: "file_not_ready", message, retry_after: None })
}
