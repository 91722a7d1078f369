//! Fetches what a batch produced at one provider, and reads it line by line.
//!
//! First the bytes of a file come here, whole; then its lines are indexed, a chunk in a transaction that also says
//! how far that is. So a worker that dies costs a file that was not whole yet, or one chunk.

mod indexing;
mod ingesting;

use std::sync::Arc;

use async_trait::async_trait;
use sea_orm::DbErr;

use self::ingesting::Ingesting;
use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::ids::RunId;
use crate::jobs::Ending;
use crate::jobs::IngestBatch;
use crate::jobs::retry::Verdict;
use crate::runs;
use crate::runs::ingestion;
use crate::runs::ingestion::Found;

pub async fn run(attempt: &Attempt, payload: &IngestBatch) -> Done {
    let result = tokio::select! {
        result = ingest(attempt, payload.run_id) => result,
        // Every chunk is whole, or it is not there.
        stop = attempt.lease.stopped() => Err(Conclusion::of_stop(stop)),
    };
    let (conclusion, found) = match result {
        Ok(found) => (conclusion(found.as_ref()), found),
        Err(conclusion) => (conclusion, None),
    };
    Done { conclusion, effects: Arc::new(Ingestion { run_id: payload.run_id, found }) }
}

/// A file that did not come leaves a dead letter: retried, it is fetched after all.
fn conclusion(found: Option<&Found>) -> Conclusion {
    match found.and_then(Found::missing) {
        Some(failure) => {
            Conclusion::Failed { failure: failure.clone(), verdict: Verdict::Permanent }
        }
        None => Conclusion::Succeeded,
    }
}

/// `None` where the run has ended before.
async fn ingest(attempt: &Attempt, id: RunId) -> Result<Option<Found>, Conclusion> {
    let app = &attempt.app;
    let found = runs::store::find(app.db.read(), id).await.map_err(unreachable)?;
    let Some(run) = found else {
        let message = "the run of this job does not exist";
        return Err(Conclusion::permanent("run_missing", message));
    };
    if run.ended_at.is_some() {
        return Ok(None);
    }
    let Some(account) = app.providers.get(&run.provider) else {
        let message = format!("the provider `{}` is not configured any more", run.provider);
        return Err(Conclusion::transient("provider_not_configured", message));
    };
    let mut ingesting = Ingesting::begin(attempt, account, run).await?;
    ingesting.fetch().await?;
    ingesting.index().await?;
    ingesting.found().await.map(Some)
}

fn unreachable(error: DbErr) -> Conclusion {
    Conclusion::without_database(&error)
}

/// What an attempt writes with its end.
struct Ingestion {
    run_id: RunId,
    found: Option<Found>,
}

#[async_trait]
impl Effects for Ingestion {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        match (ending, &self.found) {
            (Ending::Succeeded | Ending::Failed(_), Some(found)) => {
                ingestion::finish(tx, now, found).await
            }
            (Ending::Failed(failure), None) => {
                ingestion::give_up(tx, now, self.run_id, failure).await
            }
            (Ending::Retry { failure: Some(failure), .. }, _) => {
                runs::store::set_error(tx, self.run_id, Some(failure)).await
            }
            (Ending::Succeeded | Ending::Retry { .. } | Ending::Cancelled, _) => Ok(()),
        }
    }
}

/// Nobody can say how the attempt ended; what it wrote is whole. The next one goes on, if there is one.
pub async fn ended_unseen(
    tx: &Transaction,
    now: Timestamp,
    payload: &IngestBatch,
    ending: &Ending,
) -> Result<(), DbErr> {
    match ending {
        Ending::Failed(failure) => ingestion::give_up(tx, now, payload.run_id, failure).await,
        Ending::Cancelled | Ending::Retry { .. } | Ending::Succeeded => Ok(()),
    }
}
