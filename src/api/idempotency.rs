//! Idempotency at the border: the headers, the hold on a key while its request runs, and the answers
//! that are kept until they were sent to their end.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::Frame;
use http_body::SizeHint;
use sea_orm::DbErr;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::Notify;
use utoipa::IntoParams;

use super::Api;
use crate::app::App;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::error::Error;
use crate::idempotency;
use crate::idempotency::Begun;
use crate::idempotency::HOLD;
use crate::idempotency::RecordId;
use crate::idempotency::Request;

const MAX_KEY: usize = 255;
/// Keys that could not be let go, and are tried again; beyond them, a key lapses by itself.
const MAX_UNRELEASED: usize = 1000;
const RELEASE_AGAIN: Duration = Duration::from_secs(1);
/// How soon after they were sent answers are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(1);

/// The header by which a request that makes something counts once, as a parameter.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it describes what `Repetition::of` reads")]
pub struct IdempotencyKey {
    /// A name for this request, of printable ASCII characters. For 24 hours the same key with the same content gets the
    /// first answer again, and makes nothing new.
    #[param(
        rename = "Idempotency-Key",
        min_length = 1,
        max_length = 255,
        pattern = "^[!-~]([ -~]*[!-~])?$"
    )]
    key: Option<String>,
}

/// What a creating request said about its repetition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repetition {
    /// It has a key.
    Key(String),
    /// It has none, but comes from an official SDK; `is_retry` if the SDK has sent it before.
    Sdk { is_retry: bool },
    /// Nothing: each request is its own.
    None,
}

impl Repetition {
    /// Reads the headers.
    ///
    /// # Errors
    ///
    /// When the key is empty, too long, or not printable ASCII.
    pub fn of(headers: &HeaderMap) -> Result<Self, Error> {
        if let Some(key) = headers.get("idempotency-key") {
            let key = key.to_str().ok().filter(|key| (1..=MAX_KEY).contains(&key.len()));
            let key = key.filter(|key| !key.chars().any(char::is_control));
            return key.map(|key| Self::Key(key.to_owned())).ok_or_else(|| {
                Error::invalid(
                    "Idempotency-Key",
                    format!("`Idempotency-Key` must be 1 to {MAX_KEY} printable characters"),
                )
            });
        }
        Ok(match headers.get("x-stainless-retry-count") {
            None => Self::None,
            Some(count) => Self::Sdk { is_retry: count.to_str().is_ok_and(|count| count != "0") },
        })
    }
}

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
            tracing::warn!(error = %error, "could not release an idempotency key that its request left; it is free in 30 s at the latest");
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
                tracing::warn!(error = %error, "could not keep the records of running requests");
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

/// A request that creates something, by what it said.
pub struct Creation {
    pub owner: String,
    pub path: &'static str,
    pub repetition: Repetition,
    pub fingerprint: Vec<u8>,
}

impl Creation {
    /// `said` is what makes two requests the same: what was asked for, and not how it was written.
    ///
    /// # Errors
    ///
    /// When a header is not what it should be.
    pub fn new(
        owner: &str,
        path: &'static str,
        headers: &HeaderMap,
        said: &impl Serialize,
    ) -> Result<Self, Error> {
        let said = serde_json::to_vec(said).map_err(|error| Error::Internal(error.into()))?;
        Ok(Self {
            owner: owner.to_owned(),
            path,
            repetition: Repetition::of(headers)?,
            fingerprint: Sha256::digest(said).to_vec(),
        })
    }

    /// Runs `create` in a transaction that also keeps its answer, or gives the answer of the first time.
    ///
    /// # Errors
    ///
    /// What `create` says, and when the key is in use, or was used for something else.
    pub async fn once<F>(self, api: &Api, create: F) -> Result<Response, Error>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<String, Error>>
            + Send
            + Sync
            + 'static,
    {
        Ok(self.create(api, create).await?.answer(api))
    }

    /// As [`Creation::once`], where the answer holds what may not be kept as it is: what `create` gives is kept, and
    /// `reveal` makes of it what is sent.
    ///
    /// # Errors
    ///
    /// As [`Creation::once`], and what `reveal` says.
    pub async fn once_sealed<F, R>(self, api: &Api, create: F, reveal: R) -> Result<Response, Error>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<String, Error>>
            + Send
            + Sync
            + 'static,
        R: FnOnce(&str) -> Result<String, Error>,
    {
        let Created { text, kept, is_replay } = self.create(api, create).await?;
        let text = reveal(&text)?;
        Ok(if is_replay { replay(text) } else { api.requests.answer(text, kept) })
    }

    async fn create<F>(self, api: &Api, create: F) -> Result<Created, Error>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<String, Error>>
            + Send
            + Sync
            + 'static,
    {
        match self.begin(api).await? {
            Start::Again(text) => Ok(Created { text, kept: None, is_replay: true }),
            Start::First(started) => started.create(api, create).await,
        }
    }

    /// Takes hold of the key, before anything is done; or finds the first answer.
    ///
    /// # Errors
    ///
    /// When the key is in use, or was used for something else.
    pub async fn begin(self, api: &Api) -> Result<Start, Error> {
        let mut hold = Hold::new(api);
        if self.repetition == (Repetition::Sdk { is_retry: true }) {
            let (db, now) = (api.app.db.read(), api.app.clock.now());
            let of = Request { owner: &self.owner, path: self.path };
            let answer = idempotency::unanswered(db, now, &of, &self.fingerprint).await?;
            if let Some(text) = answer {
                return Ok(Start::Again(text));
            }
        }
        if let Repetition::Key(key) = &self.repetition {
            match api.requests.begin(&api.app, &self.owner, self.path, key).await? {
                Begun::Answered { fingerprint, response } if fingerprint == self.fingerprint => {
                    return Ok(Start::Again(response));
                }
                Begun::Answered { .. } => {
                    return Err(Error::Mismatch(
                        "this `Idempotency-Key` was used with other fields; use a new key"
                            .to_owned(),
                    ));
                }
                Begun::Fresh(record) => hold.record = Some(record),
                Begun::Running => {}
            }
        }
        Ok(Start::First(Box::new(Started { creation: self, hold })))
    }

    async fn write<F>(
        &self,
        tx: &Transaction,
        now: Timestamp,
        holder: &str,
        record: Option<RecordId>,
        create: &F,
    ) -> Result<Created, Error>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<String, Error>> + Send + Sync,
    {
        let of = Request { owner: &self.owner, path: self.path };
        let fingerprint = &self.fingerprint;
        if self.repetition == (Repetition::Sdk { is_retry: true })
            && let Some(text) = idempotency::unanswered(tx, now, &of, fingerprint).await?
        {
            return Ok(Created { text, kept: None, is_replay: true });
        }
        let text = create(tx).await?;
        if let Some(record) = record {
            if !idempotency::complete(tx, record, holder, fingerprint, &text).await? {
                return Err(taken_over());
            }
            return Ok(Created { text, kept: None, is_replay: false });
        }
        let kept = matches!(self.repetition, Repetition::Sdk { .. })
            .then(|| RecordId(uuid::Uuid::now_v7()));
        if let Some(kept) = kept {
            idempotency::keep(tx, now, &of, kept, fingerprint, &text).await?;
        }
        Ok(Created { text, kept, is_replay: false })
    }
}

/// Whether a creating request is the first of its kind.
pub enum Start {
    First(Box<Started>),
    /// What was answered before.
    Again(String),
}

/// A creating request that holds its key.
pub struct Started {
    creation: Creation,
    hold: Hold,
}

impl Started {
    /// Lets the key go: nothing was made.
    pub async fn let_go(mut self) {
        self.hold.let_go().await;
    }

    /// As [`Creation::once`].
    ///
    /// # Errors
    ///
    /// As [`Creation::once`].
    pub async fn once<F>(self, api: &Api, create: F) -> Result<Response, Error>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<String, Error>>
            + Send
            + Sync
            + 'static,
    {
        Ok(self.create(api, create).await?.answer(api))
    }

    async fn create<F>(self, api: &Api, create: F) -> Result<Created, Error>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<String, Error>>
            + Send
            + Sync
            + 'static,
    {
        let Self { creation, mut hold } = self;
        let (this, create, record) = (Arc::new(creation), Arc::new(create), hold.record);
        let (now, holder) = (api.app.clock.now(), Arc::clone(&api.requests.holder));
        let written = api
            .app
            .db
            .intake(move |tx| {
                let (this, create, holder) =
                    (Arc::clone(&this), Arc::clone(&create), Arc::clone(&holder));
                Box::pin(async move { this.write(tx, now, &holder, record, &*create).await })
            })
            .await;
        let created = match written {
            Ok(written) => written,
            Err(error) => {
                // Before the answer: the client may use the key at once.
                hold.let_go().await;
                return Err(error);
            }
        };
        if let Some(record) = hold.record.take() {
            api.requests.ended(record);
        }
        Ok(created)
    }
}

/// What a creating request came to.
struct Created {
    text: String,
    /// The record that keeps the text until it was sent.
    kept: Option<RecordId>,
    is_replay: bool,
}

impl Created {
    fn answer(self, api: &Api) -> Response {
        let Self { text, kept, is_replay } = self;
        if is_replay { replay(text) } else { api.requests.answer(text, kept) }
    }
}

/// What a request is told whose process was silent for so long that a repetition took its key.
pub fn taken_over() -> Error {
    Error::Conflict {
        code: "idempotency_key_in_use",
        message: "another request took over this `Idempotency-Key`".to_owned(),
        retry_after: Some(Duration::from_secs(1)),
    }
}

fn json(body: Body) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// The first answer, once more.
pub fn replay(text: String) -> Response {
    let mut response = json(Body::from(text));
    response
        .headers_mut()
        .insert(HeaderName::from_static("idempotency-replayed"), HeaderValue::from_static("true"));
    response
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
