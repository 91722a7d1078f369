//! Takes jobs from workers that went silent.
//!
//! A lease is reaped when it was seen lapsed and unrenewed twice, one heartbeat apart: after a minute
//! without a database every lease has lapsed, and its worker may be about to renew it.

use std::collections::HashMap;
use std::time::Instant;

use sea_orm::DbErr;

use super::registry;
use crate::app::App;
use crate::db::warn_of;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::jobs::Ending;
use crate::jobs::LeaseTimes;
use crate::jobs::Spend;
use crate::jobs::Work;
use crate::jobs::leases;
use crate::jobs::leases::Leased;
use crate::jobs::leases::Reaped;
use crate::notices::Hint;

/// Looks each heartbeat, until it is dropped.
pub async fn run(app: App, times: LeaseTimes) {
    let mut seen: HashMap<Leased, Instant> = HashMap::new();
    let mut looks = tokio::time::interval(times.heartbeat);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        if let Err(error) = look(&app, times, &mut seen).await {
            warn_of(&error, "could not look for lapsed leases; trying again");
            // What was seen before a gap says nothing about whether it was renewed in it.
            seen.clear();
        }
    }
}

async fn look(
    app: &App,
    times: LeaseTimes,
    seen: &mut HashMap<Leased, Instant>,
) -> Result<(), DbErr> {
    let lapsed = leases::lapsed(app.db.scan()).await?;
    let mut still = HashMap::with_capacity(lapsed.len());
    for job in lapsed {
        let since = seen.get(&job).copied().unwrap_or_else(Instant::now);
        // A tick may come a little early.
        if since.elapsed() + times.heartbeat / 8 < times.heartbeat {
            still.insert(job, since);
        } else {
            reap(app, job).await?;
        }
    }
    *seen = still;
    Ok(())
}

async fn reap(app: &App, job: Leased) -> Result<(), DbErr> {
    let (at, lapsed) = (app.clone(), job.clone());
    let reaped = app
        .db
        .work_alone(move |tx| {
            let (app, job) = (at.clone(), lapsed.clone());
            Box::pin(async move {
                let Some(reaped) = leases::reap(tx, &job).await? else { return Ok(None) };
                let now = app.clock.now();
                let ending = match &reaped {
                    Reaped::Retrying => {
                        let after = std::time::Duration::ZERO;
                        Ending::Retry { after, spend: Spend::Attempt, failure: None }
                    }
                    Reaped::Cancelled => Ending::Cancelled,
                    Reaped::Failed(failure) => Ending::Failed(failure.clone()),
                };
                // A payload that cannot be read stands for nothing that could have been begun.
                if let Ok(work) = Work::read(&job.kind, &job.payload) {
                    registry::ended_unseen(tx, now, &work, &ending).await?;
                }
                if let Some(kind) = EventKind::of_ending(&ending, &job.kind) {
                    events::append(tx, now, &[Event::of_job(kind, &job.owner, job.id)]).await?;
                }
                Ok::<_, DbErr>(Some(reaped))
            })
        })
        .await?;
    if let Some(reaped) = reaped {
        metrics::counter!("longshore_attempts_total", "kind" => job.kind.clone(), "outcome" => "died").increment(1);
        match reaped {
            Reaped::Failed(failure) => {
                tracing::error!(job.id = %job.id, "job failed for good: {}", failure.message)
            }
            Reaped::Retrying | Reaped::Cancelled => {
                tracing::warn!(job.id = %job.id, job.name = %job.kind, "took a job from a worker that went silent");
            }
        }
        app.notices.hint(Hint::Work);
        app.notices.hint(Hint::Change);
    }
    Ok(())
}
