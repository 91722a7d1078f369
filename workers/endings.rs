//! The ends of attempts, written: those that wait at the same time in one transaction.
//!
//! Only PostgreSQL gains from that, where each statement is a journey to the server and back. On SQLite a
//! statement is a function call, and writes share their commits anyway.

use std::sync::Arc;

use sea_orm::DbErr;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::conclusion::Effects;
use crate::app::App;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::files;
use crate::jobs::leases;
use crate::jobs::leases::End;
use crate::traces::Here;

/// Ends that one transaction writes: what they change beside their jobs stays locked until its commit.
const MAX_TOGETHER: usize = 64;

/// The end of an attempt, decided, with all that follows from it.
#[derive(Clone)]
pub struct Decided {
    pub end: End,
    pub owner: String,
    /// The job's.
    pub kind: String,
    pub effects: Arc<dyn Effects>,
    /// What is written goes on in the attempt's own trace, also beside the ends of others.
    pub here: Here,
}

/// Writes ends, and answers for each whether the lease still held: of the others nothing is written but
/// what must not be forgotten.
pub async fn write(
    tx: &Transaction,
    now: Timestamp,
    decided: &[Decided],
) -> Result<Vec<bool>, DbErr> {
    let ends: Vec<_> = decided.iter().map(|decided| decided.end.clone()).collect();
    let ended = leases::end(tx, &ends).await?;
    let mut held: Vec<_> = decided.iter().filter_map(|decided| decided.effects.file()).collect();
    held.sort_unstable();
    held.dedup();
    files::store::lock_all(tx, &held).await?;
    let mut rest = Vec::new();
    for (Decided { end, owner, kind, effects, here }, has_ended) in decided.iter().zip(&ended) {
        if !has_ended {
            here.hold(effects.write_after_loss(tx, now)).await?;
            continue;
        }
        here.hold(effects.write(tx, now, &end.ending)).await?;
        let Some(said) = EventKind::of_ending(&end.ending, kind) else { continue };
        let event = Event::of_job(said, owner, end.fence.job_id);
        if here.is_somewhere() && said.announced().is_some() {
            // Its deliveries are of this trace alone.
            here.hold(events::append(tx, now, &[event])).await?;
        } else {
            rest.push(event);
        }
    }
    events::append(tx, now, &rest).await?;
    Ok(ended)
}

struct Waiting {
    decided: Decided,
    reply: oneshot::Sender<bool>,
}

/// Where ends are handed in that are to be written together.
#[derive(Clone)]
pub struct Endings {
    queue: mpsc::Sender<Waiting>,
}

/// The other side of [`Endings`].
pub struct Writer {
    waiting: mpsc::Receiver<Waiting>,
}

pub fn channel() -> (Endings, Writer) {
    let (queue, waiting) = mpsc::channel(MAX_TOGETHER);
    (Endings { queue }, Writer { waiting })
}

impl Endings {
    /// Whether the lease still held; `None` when nothing is known, because writing them together failed. That
    /// may be the fault of another: the caller tries it alone.
    pub async fn write(&self, decided: Decided) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(Waiting { decided, reply }).await.ok()?;
        answer.await.ok()
    }
}

impl Writer {
    /// Writes what waits, again and again, until nobody can hand in any more. What comes meanwhile is written next.
    pub async fn run(mut self, app: App) {
        let mut waiting = Vec::new();
        while self.waiting.recv_many(&mut waiting, MAX_TOGETHER).await > 0 {
            let (decided, replies): (Vec<_>, Vec<_>) =
                waiting.drain(..).map(|one| (one.decided, one.reply)).unzip();
            match write_together(&app, decided.into()).await {
                Ok(ended) => {
                    for (reply, has_ended) in replies.into_iter().zip(ended) {
                        // Nobody waiting is no error: the process ends.
                        reply.send(has_ended).ok();
                    }
                }
                Err(error) => {
                    tracing::debug!(error = %error, "could not write ends together; each is tried alone");
                }
            }
        }
    }
}

async fn write_together(app: &App, decided: Arc<[Decided]>) -> Result<Vec<bool>, DbErr> {
    let clock = app.clock.clone();
    app.db
        .work(move |tx| {
            let (decided, now) = (Arc::clone(&decided), clock.now());
            Box::pin(async move { write(tx, now, &decided).await })
        })
        .await
}
