//! The creating requests of this process: the hold on a key while its request runs, and the answers that are kept until
//! they were sent to their end.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use http_body::SizeHint;
use sea_orm::DbErr;
use tokio::sync::Notify;

use super::json;
use crate::api::Api;
use crate::app::App;
use crate::db::warn_of;
use crate::error::Error;
use crate::idempotency;
use crate::idempotency::Begun;
use crate::idempotency::HOLD;
use crate::idempotency::RecordId;
use crate::idempotency::Request;

/// Keys that could not be let go, and are tried again; beyond them, a key lapses by itself.
const MAX_UNRELEASED: usize = 1000;
const RELEASE_AGAIN: Duration = Duration::from_secs(1);
/// How soon after they were sent answers are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// The creating requests of this process that are under way, and the answers it has sent.
#[derive(Clone, Debug)]
pub struct Requests {
    holder: Arc<str>,
    /// The records whose requests run here. Only these are kept: one whose request is gone lapses.
    running: Arc<Mutex<HashSet<RecordId>>>,
    sent: Arc<Mutex<Vec<RecordId>>>,
    /// The records of requests that made nothing, which the database could not delete.
    unreleased: Arc<Mutex<Vec<RecordId>>>,
    wake: Arc<Notify>,
}

impl Requests {
    pub fn new() -> Self {
        let holder = uuid::Uuid::new_v4().to_string().into();
        Self {
            holder,
            running: Arc::default(),
            sent: Arc::default(),
            unreleased: Arc::default(),
            wake: Arc::default(),
        }
    }

    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Takes hold of a key before the body is read.
    ///
    /// # Errors
    ///
    /// While the first request with this key is still running.
    pub async fn begin(
        &self,
        app: &App,
        owner: &str,
        path: &'static str,
        key: &str,
    ) -> Result<Begun, Error> {
        let (now, owner, key, holder) =
            (app.clock.now(), owner.to_owned(), key.to_owned(), Arc::clone(&self.holder));
        let begun = app
            .db
            .intake(move |tx| {
                let (owner, key, holder) = (owner.clone(), key.clone(), Arc::clone(&holder));
                Box::pin(async move {
                    idempotency::begin(tx, now, &Request { owner: &owner, path }, &key, &holder)
                        .await
                })
            })
            .await?;
        match begun {
            Begun::Running => Err(Error::Conflict {
                code: "idempotency_key_in_use",
                message: "the first request with this `Idempotency-Key` is still running"
                    .to_owned(),
                retry_after: Some(Duration::from_secs(1)),
            }),
            Begun::Fresh(record) => {
                self.lock_running().insert(record);
                Ok(begun)
            }
            begun @ Begun::Answered { .. } => Ok(begun),
        }
    }

    /// The request of a record has ended with an answer that is kept.
    pub fn ended(&self, record: RecordId) {
        self.lock_running().remove(&record);
    }

    /// Lets a key go whose request made nothing; soon, if the database is away or full now.
    pub async fn release(&self, app: &App, record: RecordId) {
        self.ended(record);
        if let Err(error) = self.delete(app, [record].into()).await {
            warn_of(
                &error,
                "could not release an idempotency key that its request left; it is free in 30 s at the latest",
            );
            self.keep_unreleased([record].into());
        }
    }

    async fn delete(&self, app: &App, records: Arc<[RecordId]>) -> Result<(), DbErr> {
        let holder = Arc::clone(&self.holder);
        app.db
            .intake(move |tx| {
                let (holder, records) = (Arc::clone(&holder), Arc::clone(&records));
                Box::pin(async move {
                    for record in records.iter() {
                        idempotency::release(tx, *record, &holder).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    fn keep_unreleased(&self, records: Arc<[RecordId]>) {
        let mut unreleased = self.lock_unreleased();
        let room = MAX_UNRELEASED.saturating_sub(unreleased.len());
        unreleased.extend(records.iter().take(room));
    }

    async fn release_again(&self, app: &App) {
        let unreleased = std::mem::take(&mut *self.lock_unreleased());
        // One may have lapsed meanwhile, and a repetition of its request have begun here.
        let running = self.lock_running().clone();
        let records: Arc<[RecordId]> =
            unreleased.into_iter().filter(|record| !running.contains(record)).collect();
        // That it failed was logged when it did first.
        if !records.is_empty() && self.delete(app, Arc::clone(&records)).await.is_err() {
            self.keep_unreleased(records);
        }
    }

    /// Keeps the holds of this process, and forgets the answers that were sent, until it ends.
    pub async fn run(&self, app: App) {
        let mut renewals = tokio::time::interval(HOLD / 3);
        let mut releases = tokio::time::interval(RELEASE_AGAIN);
        for ticks in [&mut renewals, &mut releases] {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            let result = tokio::select! {
                _ = renewals.tick() => self.renew(&app).await,
                _ = releases.tick() => {
                    self.release_again(&app).await;
                    Ok(())
                }
                () = self.wake.notified() => {
                    tokio::time::sleep(FORGET_AFTER).await;
                    self.forget_sent(&app).await
                }
            };
            if let Err(error) = result {
                warn_of(&error, "could not keep the records of running requests");
            }
        }
    }

    async fn renew(&self, app: &App) -> Result<(), DbErr> {
        let (now, holder) = (app.clock.now(), Arc::clone(&self.holder));
        let running: Arc<[RecordId]> = self.lock_running().iter().copied().collect();
        if running.is_empty() {
            return Ok(());
        }
        app.db
            .intake(move |tx| {
                let (holder, running) = (Arc::clone(&holder), Arc::clone(&running));
                Box::pin(async move { idempotency::renew(tx, now, &holder, &running).await })
            })
            .await
    }

    async fn forget_sent(&self, app: &App) -> Result<(), DbErr> {
        let sent: Arc<[RecordId]> = std::mem::take(&mut *self.lock_sent()).into();
        app.db
            .work(move |tx| {
                let sent = Arc::clone(&sent);
                Box::pin(async move { idempotency::sent(tx, &sent).await })
            })
            .await
    }

    fn lock_running(&self) -> std::sync::MutexGuard<'_, HashSet<RecordId>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_sent(&self) -> std::sync::MutexGuard<'_, Vec<RecordId>> {
        self.sent.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_unreleased(&self) -> std::sync::MutexGuard<'_, Vec<RecordId>> {
        self.unreleased.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// An answer whose record is forgotten once it was sent to its end.
    pub fn answer(&self, text: String, record: Option<RecordId>) -> Response {
        let body =
            Answer { text: Some(text.into()), record, is_taken: false, requests: self.clone() };
        json(Body::new(body))
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

/// A key that is let go when its request ends, or is dropped, without having made anything.
pub struct Hold {
    pub api: Api,
    pub record: Option<RecordId>,
}

impl Hold {
    pub fn new(api: &Api) -> Self {
        Self { api: api.clone(), record: None }
    }

    pub async fn let_go(&mut self) {
        if let Some(record) = self.record.take() {
            self.api.requests.release(&self.api.app, record).await;
        }
    }
}

impl Drop for Hold {
    /// For a request that is dropped because its client hung up.
    fn drop(&mut self) {
        if let Some(record) = self.record.take() {
            let api = self.api.clone();
            tokio::spawn(async move { api.requests.release(&api.app, record).await });
        }
    }
}

/// The body of an answer. It tells, when it is dropped, whether the connection took it.
struct Answer {
    text: Option<Bytes>,
    record: Option<RecordId>,
    is_taken: bool,
    requests: Requests,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.text.take() {
            Some(text) => {
                self.is_taken = true;
                Poll::Ready(Some(Ok(Frame::data(text))))
            }
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.as_ref().map_or(0, |text| text.len() as u64))
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let (true, Some(record)) = (self.is_taken, self.record) {
            self.requests.lock_sent().push(record);
            self.requests.wake.notify_one();
        }
    }
}
