//! Runs: a batch at one deployment, from the wish to submit it to the last of its results.
//!
//! Whoever changes a run holds its batch (see [`crate::batches::store::lock`]), and ends with
//! [`batches::settle`], by which the batch follows its runs.

pub mod ingestion;
pub mod observation;
pub mod status;
pub mod store;
pub mod submission;
pub mod usage;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

pub use self::status::Outcome;
pub use self::status::RunStatus;
use self::store::Ingested;
use self::store::Run;
pub use self::usage::Usage;
use crate::batches;
use crate::clock::Timestamp;
use crate::jobs;
use crate::jobs::Failure;
use crate::mappings;

/// The results of a run are here, counted and indexed: it is what the provider said it is. `false` when it had
/// ended before.
///
/// # Errors
///
/// What the database says.
pub async fn complete(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    found: &Ingested,
) -> Result<bool, DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    let outcome = run.outcome()?.unwrap_or(Outcome::Failed);
    if !store::advance(tx, now, run.id, outcome.status()).await? {
        return Ok(false);
    }
    store::ingested(tx, run.id, found).await?;
    let_delete(tx, run).await?;
    batches::settle(tx, now, run.batch_id).await?;
    Ok(true)
}

/// The run came to nothing.
///
/// # Errors
///
/// What the database says.
pub async fn fail(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    failure: &Failure,
) -> Result<(), DbErr> {
    batches::store::lock(tx, run.batch_id).await?;
    end(tx, now, run, RunStatus::Failed, Some(failure)).await
}

/// Ends a run that its provider does not have, or not any more. The caller holds the batch.
async fn end(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    run: &Run,
    status: RunStatus,
    failure: Option<&Failure>,
) -> Result<(), DbErr> {
    if !store::advance(tx, now, run.id, status).await? {
        return Ok(());
    }
    store::forget_looks(tx, run.id).await?;
    // What it waited for before is no reason of this end.
    store::set_error(tx, run.id, failure).await?;
    make_room(tx, &run.provider).await?;
    let_delete(tx, run).await?;
    batches::settle(tx, now, run.batch_id).await
}

/// The delete of the input's copy may have waited for this run.
async fn let_delete(tx: &impl ConnectionTrait, run: &Run) -> Result<(), DbErr> {
    match run.mapping_id {
        Some(mapping) => mappings::deletion::hasten(tx, mapping).await,
        None => Ok(()),
    }
}

/// A batch has ended at a provider: the one that has waited longest for room there goes again.
async fn make_room(tx: &impl ConnectionTrait, provider: &str) -> Result<(), DbErr> {
    match store::next_waiting_for_capacity(tx, provider).await? {
        Some(job) => jobs::store::hasten(tx, job).await,
        None => Ok(()),
    }
}
