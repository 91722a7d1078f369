//! The leases that this process holds: who runs what, until when by our own clock, and how to stop it.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::watch;

use super::conclusion::Effects;
use super::endings;
use super::endings::Decided;
use super::registry;
use crate::app::App;
use crate::clock::millis;
use crate::db::warn_of;
use crate::ids::JobId;
use crate::jobs::Ending;
use crate::jobs::Fence;
use crate::jobs::LeaseTimes;
use crate::jobs::Progress;
use crate::jobs::ProgressUnit;
use crate::jobs::Spend;
use crate::jobs::Work;
use crate::jobs::WorkerId;
use crate::jobs::leases;
use crate::jobs::leases::End;
use crate::jobs::leases::Renewed;
use crate::notices::Hint;
use crate::traces;

/// Progress of less than this is not worth a write.
const REPORTED_FROM: u64 = 4 * 1024 * 1024;

/// How long an attempt without a lease may go on. A process that wakes finds answers that came while it was frozen: what
/// they tell counts, and is recorded. Nothing more is sent meanwhile, since whoever sends asks [`Lease::holds`].
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// Why an attempt is to stop before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The lease ran out, or was taken over: nothing more may be sent.
    LeaseLost,
    /// A client cancelled the job.
    Cancelled,
    /// The process ends.
    Shutdown,
}

/// One held lease, shared between its attempt and whoever renews it.
#[derive(Debug)]
pub struct Lease {
    /// Milliseconds after `origin` until which it certainly holds.
    until: AtomicU64,
    origin: Instant,
    stop: watch::Sender<Option<Stop>>,
    done: AtomicU64,
    total: AtomicU64,
    reported: AtomicU64,
}

impl Lease {
    fn new(claimed_at: Instant, lease: Duration) -> Self {
        let new = Self {
            until: AtomicU64::new(0),
            origin: claimed_at,
            stop: watch::Sender::new(None),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        };
        new.prolong(claimed_at + lease);
        new
    }

    fn prolong(&self, until: Instant) {
        let until = until.saturating_duration_since(self.origin).as_millis();
        self.until.fetch_max(u64::try_from(until).unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    /// Whether it certainly holds now: judged by our own clock, from before it was asked for.
    pub fn holds(&self) -> bool {
        self.holds_for(Duration::ZERO)
    }

    /// Whether it certainly still holds after this long.
    fn holds_for(&self, time: Duration) -> bool {
        let then = (self.origin.elapsed() + time).as_millis();
        then < u128::from(self.until.load(Ordering::Acquire))
    }

    /// Whether this is the first reason to stop.
    pub fn stop(&self, reason: Stop) -> bool {
        self.stop.send_if_modified(|stop| {
            let is_first = stop.is_none();
            stop.get_or_insert(reason);
            is_first
        })
    }

    /// Ends when the attempt is to stop.
    pub async fn stopped(&self) -> Stop {
        let mut stop = self.stop.subscribe();
        // The sender lives as long as `self`.
        match stop.wait_for(Option::is_some).await.map(|stop| *stop) {
            Ok(Some(Stop::LeaseLost)) => {
                tokio::time::sleep(LAST_ANSWERS).await;
                Stop::LeaseLost
            }
            Ok(Some(reason)) => reason,
            _ => std::future::pending().await,
        }
    }

    /// Counts bytes that were handed on; `total` is how many there will be.
    pub fn progressed(&self, bytes: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn unreported_progress(&self) -> Option<Progress> {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        if total < REPORTED_FROM || self.reported.swap(done, Ordering::Relaxed) == done {
            return None;
        }
        Some(Progress { done: done.min(total), total, unit: ProgressUnit::Bytes })
    }
}

/// By job, with the epoch that the lease is for.
type Leases = HashMap<JobId, (i64, Arc<Lease>)>;

/// All leases of this process.
#[derive(Clone, Debug, Default)]
pub struct Held {
    leases: Arc<Mutex<Leases>>,
    /// Attempts that were run here, and whose end could not be written.
    unwritten: Arc<Mutex<HashSet<(JobId, i64)>>>,
    /// Held from before a claim until its jobs are in `leases`, so that a renewal never takes a fresh
    /// claim for one that got lost.
    claiming: Arc<tokio::sync::Mutex<()>>,
}

impl Held {
    /// To be held over a claim and the registration of what it brought.
    pub async fn claiming(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.claiming.lock().await
    }

    pub fn add(&self, job: JobId, epoch: i64, claimed_at: Instant, lease: Duration) -> Arc<Lease> {
        let lease = Arc::new(Lease::new(claimed_at, lease));
        self.lock().insert(job, (epoch, Arc::clone(&lease)));
        lease
    }

    pub fn remove(&self, job: JobId, epoch: i64) {
        let mut leases = self.lock();
        if leases.get(&job).is_some_and(|(held, _)| *held == epoch) {
            leases.remove(&job);
        }
    }

    /// To be told before the lease is removed: nobody knows what the attempt did.
    pub fn unwritten(&self, job: JobId, epoch: i64) {
        self.lock_unwritten().insert((job, epoch));
    }

    fn lock_unwritten(&self) -> std::sync::MutexGuard<'_, HashSet<(JobId, i64)>> {
        self.unwritten.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    pub fn stop_all(&self, reason: Stop) {
        for (_, lease) in self.lock().values() {
            lease.stop(reason);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Renews all leases each heartbeat, and stops what could not be renewed, apart from the work, until it is
    /// dropped.
    pub async fn keep(&self, app: App, worker: WorkerId, times: LeaseTimes) {
        tokio::join!(self.keep_renewing(&app, &worker, times), self.keep_watching(times));
    }

    async fn keep_renewing(&self, app: &App, worker: &WorkerId, times: LeaseTimes) {
        let mut next = tokio::time::Instant::now() + times.heartbeat;
        loop {
            let is_hinted = tokio::select! {
                () = tokio::time::sleep_until(next) => false,
                () = app.notices.cancel() => true,
            };
            if !is_hinted {
                next = tokio::time::Instant::now() + times.heartbeat;
            }
            if self.count() == 0 {
                continue;
            }
            // A connection over which no answer comes is given up for another while the leases last.
            let limit = (times.lease / 3).max(Duration::from_secs(1)).min(times.lease);
            match tokio::time::timeout(limit, self.renew(app, worker, times)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn_of(&error, "could not renew leases; trying again");
                    next = next.min(tokio::time::Instant::now() + times.heartbeat / 4);
                }
                Err(_) => {
                    tracing::warn!(
                        "renewing leases took longer than {} ms; trying again",
                        millis(limit)
                    );
                    next = tokio::time::Instant::now();
                }
            }
        }
    }

    /// Looks at the leases by our own clock. Renewals may be waiting for a database that does not answer.
    async fn keep_watching(&self, times: LeaseTimes) {
        loop {
            tokio::time::sleep(times.heartbeat / 8).await;
            // With time left for the attempt to stop.
            self.stop_lapsing(times.heartbeat / 4);
        }
    }

    async fn renew(
        &self,
        app: &App,
        worker: &WorkerId,
        times: LeaseTimes,
    ) -> Result<(), sea_orm::DbErr> {
        // A claim whose connection gives no answer must not keep the leases of others from being renewed.
        let claiming = tokio::time::timeout(times.heartbeat / 4, self.claiming()).await.ok();
        // What is claimed meanwhile is in neither.
        let held = self.lock().clone();
        let asked_at = Instant::now();
        let name = worker.clone();
        let renewed: Vec<Renewed> = app
            .db
            .intake(move |tx| {
                let name = name.clone();
                Box::pin(async move { leases::renew(tx, &name, times.lease).await })
            })
            .await?;
        for (job, (epoch, lease)) in &held {
            match renewed.iter().find(|renewed| renewed.id == *job && renewed.epoch == *epoch) {
                Some(renewed) => {
                    if renewed.is_prolonged {
                        lease.prolong(asked_at + times.lease);
                    }
                    if renewed.is_cancel_requested {
                        lease.stop(Stop::Cancelled);
                    }
                }
                // Unless it ended just now, somebody has taken it over.
                None => {
                    lease.stop(Stop::LeaseLost);
                }
            }
        }
        self.report_progress(app, worker, &held).await?;
        if claiming.is_none() {
            // What is not held may be what the claim that is under way has brought.
            return Ok(());
        }
        let lost = renewed.iter().filter(|renewed| !held.contains_key(&renewed.id));
        for job in lost {
            self.hand_back(app, worker, *job, times).await?;
        }
        self.lock_unwritten().retain(|(job, epoch)| {
            renewed.iter().any(|renewed| renewed.id == *job && renewed.epoch == *epoch)
        });
        Ok(())
    }

    /// Ends a claim whose answer never reached us: nobody here runs it, so nobody else may be kept waiting. It costs no
    /// attempt, and is no death. Of one that was run and whose end could not be written nobody knows what it sent.
    async fn hand_back(
        &self,
        app: &App,
        worker: &WorkerId,
        job: Renewed,
        times: LeaseTimes,
    ) -> Result<(), sea_orm::DbErr> {
        let was_begun = self.lock_unwritten().contains(&(job.id, job.epoch));
        let fence = Fence { job_id: job.id, epoch: job.epoch, worker: worker.clone() };
        let clock = app.clock.clone();
        app.db
            .work(move |tx| {
                let (fence, now) = (fence.clone(), clock.now());
                Box::pin(async move {
                    let Some(leased) = leases::leased(tx, &fence).await? else { return Ok(()) };
                    let effects: Arc<dyn Effects> = match Work::read(&leased.kind, &leased.payload)
                    {
                        Ok(work) => registry::unrun(work, leased.file_id, was_begun),
                        // It stands for nothing that could have been begun.
                        Err(_) => Arc::new(registry::Nothing),
                    };
                    let ending = if job.is_cancel_requested {
                        Ending::Cancelled
                    } else {
                        let after = Duration::ZERO;
                        Ending::Retry { after, spend: Spend::Nothing, failure: None }
                    };
                    let outcome = if job.is_cancel_requested { "cancelled" } else { "handed_back" };
                    let claimed_at = leased.lease_until.before(times.lease);
                    let end = End { fence, claimed_at, ending, outcome };
                    let (owner, kind) = (leased.owner, leased.kind);
                    let decided = Decided { end, owner, kind, effects, here: traces::here() };
                    endings::write(tx, now, &[decided]).await.map(drop)
                })
            })
            .await?;
        app.notices.hint(Hint::Work);
        app.notices.hint(Hint::Change);
        Ok(())
    }

    async fn report_progress(
        &self,
        app: &App,
        worker: &WorkerId,
        held: &Leases,
    ) -> Result<(), sea_orm::DbErr> {
        for (job, (epoch, lease)) in held {
            let Some(progress) = lease.unreported_progress() else { continue };
            let fence = Fence { job_id: *job, epoch: *epoch, worker: worker.clone() };
            app.db
                .work(move |tx| {
                    let fence = fence.clone();
                    Box::pin(async move { leases::report_progress(tx, &fence, progress).await })
                })
                .await?;
            app.notices.hint(Hint::Change);
        }
        Ok(())
    }

    /// Stops what may be taken over in `margin`, because renewing failed for too long.
    fn stop_lapsing(&self, margin: Duration) {
        for (job, (_, lease)) in self.lock().iter() {
            if !lease.holds_for(margin) && lease.stop(Stop::LeaseLost) {
                tracing::warn!(job.id = %job, "the lease ends and could not be renewed; the attempt is stopped");
            }
        }
    }
}
