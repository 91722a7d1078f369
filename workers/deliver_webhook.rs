//! Tells one endpoint of one event.
//!
//! It may be told twice: a worker may die, or an answer get lost, behind what the receiver did. The id stays the same.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rand::RngExt as _;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::registry::Nothing;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::events;
use crate::ids::WebhookEndpointId;
use crate::jobs::DeliverWebhook;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::Spend;
use crate::jobs::deliveries::MAX_ATTEMPTS;
use crate::jobs::retry::Verdict;
use crate::webhooks;
use crate::webhooks::sender::Message;
use crate::webhooks::sender::Unsent;
use crate::webhooks::store;
use crate::webhooks::store::Endpoint;

/// How long to rest after each attempt but the last: three days together. The first may have met a receiver that was
/// just being restarted.
const RESTS: [Duration; MAX_ATTEMPTS as usize - 1] = [
    Duration::from_secs(5),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(5),
    Duration::from_hours(10),
    Duration::from_hours(14),
    Duration::from_hours(20),
    Duration::from_hours(24),
];
/// How much longer than that a rest may be, so that what failed together does not come back together.
const JITTER: f64 = 0.1;
/// Whoever answers this wants no more.
const GONE: u16 = 410;

pub async fn run(attempt: &Attempt, payload: &DeliverWebhook) -> Done {
    let nothing = |conclusion| Done { conclusion, effects: Arc::new(Nothing) };
    let endpoint = match store::find(attempt.app.db.read(), payload.endpoint_id).await {
        Ok(Some(endpoint)) if endpoint.is_enabled() => endpoint,
        // Nobody wants to hear it any more.
        Ok(_) => return nothing(Conclusion::Cancelled),
        Err(error) => return nothing(Conclusion::without_database(&error)),
    };
    let answer = tokio::select! {
        answer = deliver(attempt, payload, &endpoint) => answer,
        stop = attempt.lease.stopped() => return nothing(Conclusion::of_stop(stop)),
    };
    let (conclusion, is_gone) = match answer {
        Err(conclusion) => return nothing(conclusion),
        Ok(Ok(200..=299)) => (Conclusion::Succeeded, false),
        Ok(Ok(status)) => (answered(attempt, status), status == GONE),
        Ok(Err(unsent)) => (failed(attempt, unanswered(&unsent)), false),
    };
    let effects = Tried {
        endpoint: endpoint.id,
        was_failing: endpoint.failing_since.is_some(),
        is_gone,
        first_attempt: attempt.job.started_at,
    };
    Done { conclusion, effects: Arc::new(effects) }
}

/// One attempt: what the endpoint said, or how the attempt ends that could not ask it.
async fn deliver(
    attempt: &Attempt,
    payload: &DeliverWebhook,
    endpoint: &Endpoint,
) -> Result<Result<u16, Unsent>, Conclusion> {
    let app = &attempt.app;
    let subject = (payload.event_type.as_str(), payload.subject);
    let names = events::names(app.db.read(), &[subject]).await;
    let names = names.map_err(|error| Conclusion::without_database(&error))?;
    let Some(name) = names.get(&payload.subject) else {
        let message = "what this event is about does not exist";
        return Err(Conclusion::permanent("subject_missing", message));
    };
    let body = events::to_json(payload.event_id, &payload.event_type, payload.created_at, name);
    let body =
        body.map_err(|error| Conclusion::permanent("event_unwritable", error.to_string()))?;
    // By the database's clock: a receiver refuses what this machine's, if it is off, makes old or new.
    let now = attempt.claimed_at();
    let secrets = match &app.vault {
        Some(vault) => webhooks::secrets(vault, endpoint, now).map_err(|error| error.to_string()),
        None => Err("no `auth.encryption_key` is configured, with which its secret could be read"
            .to_owned()),
    };
    let secrets = secrets.map_err(|message| {
        failed(attempt, Failure::transient("webhook_secret_unreadable", message))
    })?;
    let message = Message { id: payload.event_id.to_string(), body };
    Ok(app.webhooks.send(&endpoint.url, message, &secrets, now).await)
}

fn answered(attempt: &Attempt, status: u16) -> Conclusion {
    let failure = Failure {
        http_status: Some(status),
        ..Failure::transient("webhook_refused", format!("the endpoint answered {status}"))
    };
    if status == GONE {
        let code = "webhook_gone".to_owned();
        let failure = Failure { code, retryable: false, ..failure };
        Conclusion::Failed { failure, verdict: Verdict::Permanent }
    } else {
        failed(attempt, failure)
    }
}

fn unanswered(unsent: &Unsent) -> Failure {
    Failure::transient(unsent.code(), format!("no answer from the endpoint: {unsent}"))
}

fn failed(attempt: &Attempt, failure: Failure) -> Conclusion {
    Conclusion::FailedFor { failure, after: rest(attempt.job.attempt, rand::rng().random()) }
}

/// The rest after an attempt; the first is 1. `jitter` is uniform in `0.0..1.0`.
fn rest(attempt: i32, jitter: f64) -> Duration {
    let place = usize::try_from(attempt - 1).unwrap_or(0).min(RESTS.len() - 1);
    RESTS[place].mul_f64(1.0 + JITTER * jitter)
}

/// What an attempt tells of the endpoint.
struct Tried {
    endpoint: WebhookEndpointId,
    was_failing: bool,
    is_gone: bool,
    first_attempt: Timestamp,
}

#[async_trait]
impl Effects for Tried {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        match ending {
            Ending::Succeeded if self.was_failing => store::note_success(tx, self.endpoint).await,
            Ending::Failed(_) if self.is_gone => webhooks::gone(tx, now, self.endpoint).await,
            Ending::Failed(_) => {
                webhooks::give_up(tx, now, self.endpoint, self.first_attempt).await
            }
            Ending::Retry { spend: Spend::Attempt, .. } if !self.was_failing => {
                store::note_failure(tx, self.endpoint).await
            }
            Ending::Succeeded | Ending::Retry { .. } | Ending::Cancelled => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_attempts_take_about_three_days_and_the_second_comes_after_five_seconds() {
        assert_eq!(rest(1, 0.0), Duration::from_secs(5));
        let days = |jitter| {
            let rests =
                (1..i32::try_from(MAX_ATTEMPTS).unwrap()).map(|attempt| rest(attempt, jitter));
            rests.sum::<Duration>().as_secs_f64() / 86_400.0
        };
        assert!(days(0.0) > 2.9 && days(1.0) < 3.5, "{} to {}", days(0.0), days(1.0));
        assert!((1..9).all(|attempt| rest(attempt, 1.0) < rest(attempt + 1, 0.0)));
        assert_eq!(rest(99, 0.0), rest(9, 0.0));
    }
}
