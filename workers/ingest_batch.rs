//! Fetches what a batch produced at one provider, and reads it line by line.

use std::sync::Arc;

use super::attempt::Attempt;
use super::attempt::Conclusion;
use super::attempt::Done;
use super::registry::Nothing;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::jobs::Ending;
use crate::jobs::IngestBatch;
use crate::runs;
use sea_orm::DbErr;

pub async fn run(_attempt: &Attempt, _payload: &IngestBatch) -> Done {
    let conclusion = Conclusion::permanent("not_built", "ingestion is not built yet");
    Done { conclusion, effects: Arc::new(Nothing) }
}

/// Nobody can say how the attempt ended; what it wrote is whole. The next one goes on, if there is one.
pub async fn ended_unseen(
    tx: &Transaction,
    _now: Timestamp,
    payload: &IngestBatch,
    ending: &Ending,
) -> Result<(), DbErr> {
    match ending {
        Ending::Failed(failure) => runs::store::set_error(tx, payload.run_id, Some(failure)).await,
        Ending::Cancelled | Ending::Retry { .. } | Ending::Succeeded => Ok(()),
    }
}
