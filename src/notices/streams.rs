//! Who listens to a stream of events, and how the one loop hands them on: it reads an event once, puts it into words
//! once, and gives it to everybody whose scope holds it.
//!
//! Each listener has room for so many. One that is too slow is let go, and reads on from the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use sea_orm::DbErr;
use tokio::sync::mpsc;

use super::Inner;
use crate::db::Db;
use crate::events;
use crate::events::Happened;
use crate::events::Told;
use crate::owners::Scope;

/// Events that a listener may be behind.
const ROOM: usize = 64;

type Sender = mpsc::Sender<Arc<Told>>;

/// Who listens, by what they may see.
#[derive(Debug, Default)]
pub(super) struct Streams {
    listeners: Mutex<Listeners>,
}

#[derive(Debug, Default)]
struct Listeners {
    by_scope: HashMap<Scope, HashMap<u64, Sender>>,
    last: u64,
    is_closed: bool,
}

impl Streams {
    /// Ends all of them for good.
    pub fn close(&self) {
        let mut listeners = self.lock();
        listeners.is_closed = true;
        listeners.by_scope.clear();
    }

    /// Adds a listener. After the end it is one that hears nothing.
    pub fn add(&self, scope: &Scope) -> (u64, mpsc::Receiver<Arc<Told>>) {
        let (sender, receiver) = mpsc::channel(ROOM);
        let mut listeners = self.lock();
        listeners.last += 1;
        let number = listeners.last;
        if !listeners.is_closed {
            listeners.by_scope.entry(scope.clone()).or_default().insert(number, sender);
        }
        (number, receiver)
    }

    fn remove(&self, scope: &Scope, number: u64) {
        let mut listeners = self.lock();
        if let Some(same) = listeners.by_scope.get_mut(scope) {
            same.remove(&number);
            if same.is_empty() {
                listeners.by_scope.remove(scope);
            }
        }
    }

    /// Those of these events that somebody listens to.
    fn wanted(&self, events: &[Happened]) -> Vec<Happened> {
        let listeners = self.lock();
        if listeners.by_scope.is_empty() {
            return Vec::new();
        }
        let hears_all = listeners.by_scope.contains_key(&Scope::Everything);
        let is_heard = |event: &&Happened| {
            hears_all || listeners.by_scope.contains_key(&Scope::Owner(event.owner.clone()))
        };
        events.iter().filter(is_heard).cloned().collect()
    }

    /// Hands events to those who listen.
    ///
    /// # Errors
    ///
    /// When they cannot be put into words: then nobody was handed any.
    pub async fn hand_on(&self, db: &Db, events: &[Happened]) -> Result<(), DbErr> {
        let wanted = self.wanted(events);
        if wanted.is_empty() {
            return Ok(());
        }
        let told = events::tell(db.read(), wanted).await?;
        let mut listeners = self.lock();
        for (owner, told) in told.into_iter().map(|(event, told)| (event.owner, Arc::new(told))) {
            for scope in [Scope::Everything, Scope::Owner(owner)] {
                if let Some(same) = listeners.by_scope.get_mut(&scope) {
                    same.retain(|_, sender| sender.try_send(Arc::clone(&told)).is_ok());
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who listens. Dropped, it listens no longer.
#[derive(Debug)]
pub struct Listening {
    inner: Arc<Inner>,
    scope: Scope,
    number: u64,
    receiver: mpsc::Receiver<Arc<Told>>,
}

impl Listening {
    pub(super) fn new(inner: &Arc<Inner>, scope: &Scope) -> Self {
        let (number, receiver) = inner.streams.add(scope);
        Self { inner: Arc::clone(inner), scope: scope.clone(), number, receiver }
    }

    /// The next event; `None` when there was no room for one, or the process ends.
    pub async fn next(&mut self) -> Option<Arc<Told>> {
        self.receiver.recv().await
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.inner.streams.remove(&self.scope, self.number);
        self.inner.count.fetch_sub(1, Ordering::Relaxed);
    }
}
