//! Asks one provider to stop a batch. What it answers is what the batch is; its end is seen by the watch.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::registry::Nothing;
use super::submit_batch::rhythm;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::jobs::CancelBatch;
use crate::jobs::Ending;
use crate::jobs::retry;
use crate::providers::ErrorKind;
use crate::providers::ProviderBatchId;
use crate::providers::RemoteBatch;
use crate::runs::observation;
use crate::runs::observation::LOST_AFTER;
use crate::runs::observation::Rhythm;
use crate::runs::store;
use crate::runs::store::Run;

/// How long to rest, at first and at most, before a batch that the provider does not know is asked for again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

pub async fn run(attempt: &Attempt, payload: &CancelBatch) -> Done {
    let nothing_done =
        |conclusion| Done { conclusion, effects: Arc::new(Nothing) as Arc<dyn Effects> };
    let run = match store::find(attempt.app.db.read(), payload.run_id).await {
        Ok(Some(run)) => run,
        Ok(None) => return nothing_done(Conclusion::Succeeded),
        Err(error) => return nothing_done(Conclusion::without_database(&error)),
    };
    let id = match &payload.stray {
        Some(stray) => Some(stray.clone()),
        // It has ended there already, or was taken from the run to be submitted anew.
        None => run.provider_batch_id.clone().filter(|_| matches!(run.outcome(), Ok(None))),
    };
    let Some(id) = id.map(ProviderBatchId) else { return nothing_done(Conclusion::Succeeded) };
    let Some(account) = attempt.app.providers.get(&run.provider) else {
        let message = format!("the provider `{}` is not configured any more", run.provider);
        return nothing_done(Conclusion::transient("provider_not_configured", message));
    };
    let answer = tokio::select! {
        answer = account.driver.cancel_batch(&id) => answer,
        // Asking twice is harmless.
        stop = attempt.lease.stopped() => return nothing_done(Conclusion::of_stop(stop)),
    };
    match answer {
        Ok(batch) => {
            tracing::info!(provider.name = %run.provider, provider.batch_id = %id, "asked to stop a batch");
            let rhythm = rhythm(attempt);
            let is_stray = payload.stray.is_some();
            let effects = Asked { run, batch, rhythm, is_stray };
            Done { conclusion: Conclusion::Succeeded, effects: Arc::new(effects) }
        }
        // One that was created just now may be unknown to the part of the provider that answers; one that is not there
        // for long need not be stopped.
        Err(error) if error.kind == ErrorKind::NotFound => {
            // By the database's clock, as the lease is.
            let tried = attempt.job.lease_until.since(attempt.job.started_at);
            if tried >= LOST_AFTER {
                return nothing_done(Conclusion::Succeeded);
            }
            let (after, failure) =
                (tried.clamp(FIRST_PAUSE, LONGEST_PAUSE), retry::failure(&error));
            nothing_done(Conclusion::Again { after, failure: Some(failure) })
        }
        Err(error) => nothing_done(Conclusion::of_error(&error)),
    }
}

struct Asked {
    run: Run,
    batch: RemoteBatch,
    rhythm: Rhythm,
    is_stray: bool,
}

#[async_trait]
impl Effects for Asked {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        if self.is_stray || *ending != Ending::Succeeded {
            return Ok(());
        }
        observation::observe(tx, now, &self.run, &self.batch, &self.rhythm).await
    }
}
