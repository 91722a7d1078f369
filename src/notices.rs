//! Notices: how those who wait hear of a change without asking the database each.
//!
//! A notice is never the only copy of anything. Inside a process it is a [`Hint`]; between processes
//! it is a message in Redis, where there is one; and a slow poll covers what was lost. One loop reads
//! new events, wakes whoever waits for their subjects, and hands them to who listens to all: ten thousand
//! of them cost the database what one costs.

pub mod redis;
mod streams;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use sea_orm::DbErr;
use tokio::sync::MutexGuard;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;
use tokio::sync::futures::OwnedNotified;
use uuid::Uuid;

use crate::batches;
use crate::db::Db;
use crate::db::warn_of;
use crate::events;
use crate::events::Cursor;
use crate::events::Happened;
use crate::files;
use crate::jobs;
use crate::owners::Scope;
use crate::sweeps;

pub use self::redis::Relay;
pub use self::streams::Listening;
use self::streams::Streams;

/// How often new events are looked for while somebody waits and nobody said that there are any:
/// what another process without Redis did is seen this late.
const POLL: Duration = Duration::from_millis(200);
/// How often the states of everything that is waited for are looked at, in case an event was missed.
const SLOW_POLL: Duration = Duration::from_secs(5);
const EVENTS_AT_ONCE: u64 = 1000;
/// How many of those who were woken read their state at the same time.
const READS_AT_ONCE: usize = 8;

/// What changed, roughly: enough to know which loop to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// There are jobs.
    Work,
    /// There are events.
    Change,
    /// A running job is to be cancelled.
    Cancel,
}

/// The notices of one process.
#[derive(Clone, Debug)]
pub struct Notices {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    work: Notify,
    change: Notify,
    cancel: Notify,
    waiters: Mutex<HashMap<Uuid, Waiters>>,
    streams: Streams,
    /// Of waiters and listeners together.
    count: AtomicUsize,
    is_closing: AtomicBool,
    /// Where the loop stands in the events. `None` while nobody waits.
    cursor: tokio::sync::Mutex<Option<Cursor>>,
    reads: Semaphore,
    relay: Option<Relay>,
}

#[derive(Debug, Default)]
struct Waiters {
    notify: Arc<Notify>,
    count: usize,
}

impl Notices {
    pub fn new(relay: Option<Relay>) -> Self {
        let inner = Inner {
            work: Notify::new(),
            change: Notify::new(),
            cancel: Notify::new(),
            waiters: Mutex::default(),
            streams: Streams::default(),
            count: AtomicUsize::new(0),
            is_closing: AtomicBool::new(false),
            cursor: tokio::sync::Mutex::default(),
            reads: Semaphore::new(READS_AT_ONCE),
            relay,
        };
        let notices = Self { inner: Arc::new(inner) };
        if let Some(relay) = &notices.inner.relay {
            let weak = Arc::downgrade(&notices.inner);
            relay.listen(move |hint| {
                let inner = weak.upgrade();
                if let Some(inner) = &inner {
                    inner.wake(hint);
                }
                inner.is_some()
            });
        }
        notices
    }

    /// Says, after a commit, that something changed: here at once, in other processes if Redis is there.
    pub fn hint(&self, hint: Hint) {
        self.inner.wake(hint);
        if let Some(relay) = &self.inner.relay {
            relay.publish(hint);
        }
    }

    /// Ends at the next hint of work.
    pub async fn work(&self) {
        self.inner.work.notified().await;
    }

    /// Ends at the next request to cancel a running job.
    pub async fn cancel(&self) {
        self.inner.cancel.notified().await;
    }

    /// Whether Redis, if configured, can be reached.
    pub fn is_degraded(&self) -> bool {
        self.inner.relay.as_ref().is_some_and(|relay| !relay.is_connected())
    }

    /// Wakes everybody for good: the process ends, and who waits is answered with what there is.
    pub fn close(&self) {
        self.inner.is_closing.store(true, Ordering::Release);
        for waiters in self.inner.lock_waiters().values() {
            waiters.notify.notify_waiters();
        }
        self.inner.streams.close();
    }

    pub fn is_closing(&self) -> bool {
        self.inner.is_closing.load(Ordering::Acquire)
    }

    /// Those who wait, and those who listen.
    pub fn waiters(&self) -> usize {
        self.inner.count.load(Ordering::Relaxed)
    }

    /// Registers somebody who waits for `subject`. Registered first, it misses nothing that commits
    /// after it next reads the subject's state.
    ///
    /// # Errors
    ///
    /// When the end of the events cannot be read.
    pub async fn wait_for(&self, db: &Db, subject: Uuid) -> Result<Waiting, DbErr> {
        let _place = self.inner.begin(db).await?;
        let notify = {
            let mut waiters = self.inner.lock_waiters();
            let waiters = waiters.entry(subject).or_default();
            waiters.count += 1;
            Arc::clone(&waiters.notify)
        };
        self.inner.count_one();
        Ok(Waiting { inner: Arc::clone(&self.inner), subject, notify })
    }

    /// Registers somebody who listens to all events of `scope`. Registered first, it misses nothing that is not in
    /// the database when it next reads there.
    ///
    /// # Errors
    ///
    /// When the end of the events cannot be read.
    pub async fn listen(&self, db: &Db, scope: &Scope) -> Result<Listening, DbErr> {
        let _place = self.inner.begin(db).await?;
        let listening = Listening::new(&self.inner, scope);
        self.inner.count_one();
        Ok(listening)
    }

    /// Whose turn it is to read what it waits for. Thousands that wait for the same thing are woken at
    /// once: all together they would take every connection to the database from everybody else.
    pub async fn turn(&self) -> SemaphorePermit<'_> {
        self.inner.reads.acquire().await.expect("nobody closes the semaphore")
    }

    /// Reads new events and wakes those who wait for their subjects, until the process ends.
    pub async fn run(&self, db: Db) {
        let mut looked = Instant::now();
        loop {
            let woken = self.inner.change.notified();
            if self.waiters() == 0 {
                woken.await;
            } else {
                drop(tokio::time::timeout(POLL, woken).await);
            }
            let mut read = self.inner.read_events(&db).await;
            if looked.elapsed() >= SLOW_POLL {
                looked = Instant::now();
                read = read.and(self.inner.look_at_all(&db).await);
            }
            if let Err(error) = read {
                warn_of(&error, "could not read new events; those who wait are told later");
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

impl Inner {
    fn wake(&self, hint: Hint) {
        match hint {
            Hint::Work => self.work.notify_one(),
            Hint::Change => self.change.notify_one(),
            Hint::Cancel => self.cancel.notify_one(),
        }
    }

    /// Holds the loop, and gives it a place to read from if it has none: what is registered meanwhile misses nothing.
    async fn begin(&self, db: &Db) -> Result<MutexGuard<'_, Option<Cursor>>, DbErr> {
        let mut cursor = self.cursor.lock().await;
        if cursor.is_none() {
            *cursor = Some(events::tail(db.read()).await?);
        }
        Ok(cursor)
    }

    fn count_one(&self) {
        if self.count.fetch_add(1, Ordering::Relaxed) == 0 {
            self.change.notify_one();
        }
    }

    fn lock_waiters(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Waiters>> {
        self.waiters.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn read_events(&self, db: &Db) -> Result<(), DbErr> {
        let mut cursor = self.cursor.lock().await;
        let Some(mut place) = *cursor else { return Ok(()) };
        if self.count.load(Ordering::Relaxed) == 0 {
            // Nobody waits: the next one who does begins at the end.
            *cursor = None;
            return Ok(());
        }
        loop {
            let events =
                events::behind(db.read(), &Scope::Everything, place, EVENTS_AT_ONCE).await?;
            // Before the place moves on: what could not be handed on is read again.
            self.streams.hand_on(db, &events).await?;
            place = events.last().map_or(place, Happened::cursor);
            *cursor = Some(place);
            let waiters = self.lock_waiters();
            for event in &events {
                if let Some(waiters) = waiters.get(&event.subject) {
                    waiters.notify.notify_waiters();
                }
            }
            if (events.len() as u64) < EVENTS_AT_ONCE {
                return Ok(());
            }
        }
    }
}

impl Inner {
    /// Wakes those who wait for something that is over: one query for hundreds of them.
    async fn look_at_all(&self, db: &Db) -> Result<(), DbErr> {
        let subjects: Vec<Uuid> = self.lock_waiters().keys().copied().collect();
        for chunk in subjects.chunks(500) {
            let files = files::store::final_among(db.scan(), chunk).await?;
            let jobs = jobs::store::ended_among(db.scan(), chunk).await?;
            let sweeps = sweeps::store::ended_among(db.scan(), chunk).await?;
            let batches = batches::store::ended_among(db.scan(), chunk).await?;
            let ended = files.iter().chain(&jobs).chain(&sweeps).chain(&batches);
            let waiters = self.lock_waiters();
            for waiters in ended.filter_map(|subject| waiters.get(subject)) {
                waiters.notify.notify_waiters();
            }
        }
        Ok(())
    }
}

/// Somebody who waits. Dropped, it waits no longer.
#[derive(Debug)]
pub struct Waiting {
    inner: Arc<Inner>,
    subject: Uuid,
    notify: Arc<Notify>,
}

impl Waiting {
    /// Ends at the next change of the subject. Made before the state is read, it misses none.
    pub fn changed(&self) -> OwnedNotified {
        Arc::clone(&self.notify).notified_owned()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiters = self.inner.lock_waiters();
        if let Some(entry) = waiters.get_mut(&self.subject) {
            entry.count -= 1;
            if entry.count == 0 {
                waiters.remove(&self.subject);
            }
        }
        self.inner.count.fetch_sub(1, Ordering::Relaxed);
    }
}
