//! Idempotency at the border: what a creating request says of its repetition, and that it creates once.

mod requests;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Response;
use futures_util::future::BoxFuture;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use utoipa::IntoParams;

pub use self::requests::Hold;
pub use self::requests::Requests;

use super::Api;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::error::Error;
use crate::idempotency;
use crate::idempotency::Begun;
use crate::idempotency::RecordId;
use crate::idempotency::Request;

const MAX_KEY: usize = 255;

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
        let (now, holder) = (api.app.clock.now(), Arc::<str>::from(api.requests.holder()));
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
