//! Taking over a batch that was created at its provider by other means: from then on it is watched and ingested
//! like the rest.

use super::NewBatch;
use super::create::written;
use super::store;
use super::store::BatchView;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::error::Error;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::files::create::Destination;
use crate::ids::RunId;
use crate::owners::Caller;
use crate::runs;
use crate::runs::observation;
use crate::runs::store::NewRun;

/// Writes an imported batch, to be looked at at once.
///
/// # Errors
///
/// When a run has that batch already.
pub async fn import(
    tx: &Transaction,
    now: Timestamp,
    caller: &Caller,
    new: &NewBatch,
    deployment: &Destination,
    provider_batch_id: &str,
) -> Result<BatchView, Error> {
    // Held, so that of two imports at once the second sees the first.
    observation::hold_lane(tx, &deployment.provider).await?;
    let ids = [provider_batch_id.to_owned()];
    let known = runs::store::of_provider_batches(tx, &deployment.provider, &ids).await?;
    if let Some(run) = known.first() {
        let batch = store::find_by_id(tx, run.batch_id).await?;
        let id = batch.map_or_else(String::new, |batch| batch.managed_id);
        if !caller.may_touch(&run.owner) {
            return Err(Error::foreign(&caller.owner, "batch", provider_batch_id));
        }
        return Err(Error::Conflict {
            code: "batch_known",
            message: format!("`{provider_batch_id}` is known here already: it is the batch `{id}`"),
            retry_after: None,
        });
    }
    store::insert(tx, now, new, &new.managed_id(&[&deployment.deployment_id])).await?;
    let run = NewRun {
        id: RunId::mint(),
        position: 0,
        deployment_id: deployment.deployment_id.clone(),
        model: deployment.model.clone(),
        provider: deployment.provider.clone(),
        provider_model: deployment.provider_model.clone(),
        mapping_id: None,
        marker: None,
        job_id: None,
        provider_batch_id: Some(provider_batch_id.to_owned()),
    };
    runs::store::insert(tx, now, new.id, &run).await?;
    observation::watch(tx, now, &deployment.provider).await?;
    let event = Event::of_batch(EventKind::BatchCreated, &new.owner, new.id);
    events::append(tx, now, &[event]).await?;
    written(tx, new).await
}
