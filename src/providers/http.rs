//! HTTP as drivers use it: every wait and every answer is bounded, every failure is a `ProviderError`.

mod answer;
mod client;
mod failure;
mod feed;
mod observation;

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Client, Method, Request, Response, Url};
use secrecy::SecretString;
use tokio::sync::mpsc;
use tokio::time::timeout;

pub(super) use self::answer::Answer;
pub use self::client::BuildError;
use self::feed::{Parcel, Stopped};
use self::observation::Observation;
use super::multipart::Form;
use super::refusal::{self, Refusal};
use super::{ByteStream, ErrorKind, ProviderError, SentWhole, Upload};

/// Enough for one object.
pub(super) const MAX_OBJECT_BYTES: usize = 1 << 20;
/// Enough for the longest page of a list (10,000 files).
pub(super) const MAX_PAGE_BYTES: usize = 64 << 20;

/// How long to wait for a provider.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without a sign of life: no byte taken, no byte given.
    pub silence: Duration,
    /// For a whole JSON answer once it has begun, however lively it is.
    pub answer: Duration,
    /// For a whole call that creates something out of JSON.
    pub create: Duration,
}

impl Limits {
    pub fn of_silence(silence: Duration) -> Self {
        let minute = Duration::from_mins(1);
        Self { silence, answer: silence.saturating_mul(4).max(minute), create: minute }
    }
}

/// What differs in how providers speak of a call.
#[derive(Clone, Copy)]
pub(super) struct Dialect {
    /// Reads an error body, of any shape.
    pub explain: fn(&[u8]) -> Refusal,
    /// The header that names a call.
    pub request_id: &'static str,
}

/// What kind of error an answer is that is no success.
pub(super) type Judge = fn(u16, &Refusal, Option<Duration>) -> ErrorKind;

/// One provider, as its driver calls it.
pub(super) struct Http {
    client: Client,
    provider: String,
    base: Url,
    headers: HeaderMap,
    secret: SecretString,
    limits: Limits,
    dialect: Dialect,
}

impl Http {
    /// `headers` go with every request; `secret` is taken out of every text that comes back.
    pub fn new(
        provider: String,
        base_url: &str,
        mut headers: HeaderMap,
        secret: SecretString,
        limits: Limits,
        dialect: Dialect,
    ) -> Result<Self, BuildError> {
        if limits.silence.is_zero() {
            return Err(BuildError::Timeout { provider });
        }
        let base = client::base_url(&provider, base_url)?;
        let client = client::build(&provider, &base)?;
        // What arrives must be what the provider stored, byte for byte.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Ok(Self { client, provider, base, headers, secret, limits, dialect })
    }

    /// The address of `segments` below the base URL, each of them escaped.
    ///
    /// None where a segment cannot be a name there: empty, `.` or `..` would address something else.
    pub fn url(&self, segments: &[&str]) -> Option<Url> {
        if segments.iter().any(|segment| matches!(*segment, "" | "." | "..")) {
            return None;
        }
        let mut url = self.base.clone();
        url.path_segments_mut().ok()?.pop_if_empty().extend(segments);
        Some(url)
    }

    /// A request without a body, and its whole answer if that is a success.
    pub async fn fetch(
        &self,
        operation: &'static str,
        method: Method,
        url: Url,
        max_bytes: usize,
    ) -> Result<Answer, ProviderError> {
        let observation = self.observe(operation, &method);
        let result = match self.head(Request::new(method, url)).await {
            Ok(response) => self.whole(response, max_bytes, refusal::kind).await,
            Err(error) => Err(error),
        };
        observation.end(result.as_ref().map(|answer| answer.status));
        result
    }

    /// A request for bytes: the answer's head if it is a success. Its body is read with [`Http::body`].
    pub async fn open(
        &self,
        operation: &'static str,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Response, ProviderError> {
        let observation = self.observe(operation, &Method::GET);
        let mut request = Request::new(Method::GET, url);
        request.headers_mut().extend(headers);
        let result = match self.head(request).await {
            Ok(response) if response.status().is_success() => Ok(response),
            Ok(response) => Err(self.refused(response, refusal::kind).await),
            Err(error) => Err(error),
        };
        observation.end(result.as_ref().map(Response::status));
        result
    }

    /// The bytes of an opened answer, with the limit of silence on each chunk.
    pub fn body(&self, response: Response) -> ByteStream {
        let received = observation::received(&self.provider);
        answer::stream(response, self.provider.clone(), self.limits.silence, received)
    }

    /// Sends a file inside a form, with the exact length declared, and reads the answer.
    ///
    /// An error says truly whether the outcome is unknown.
    pub async fn upload(
        &self,
        operation: &'static str,
        url: Url,
        form: Form,
        upload: Upload,
    ) -> Result<Answer, ProviderError> {
        let observation = self.observe(operation, &Method::POST);
        let sent = upload.sent.clone();
        let content_type = HeaderValue::from_str(&form.content_type)
            .expect("a boundary consists of letters and digits");
        let parcel = Parcel::of_form(form, upload);
        let result = self.exchange(url, content_type, parcel, refusal::kind).await;
        let result = result.map_err(|error| error.of_create(sent.is_set()));
        observation.end(result.as_ref().map(|answer| answer.status));
        result
    }

    /// Sends JSON that creates something, and reads the answer; all of it in bounded time.
    ///
    /// An error says truly whether the outcome is unknown.
    pub async fn create(
        &self,
        operation: &'static str,
        url: Url,
        json: Bytes,
        sent: SentWhole,
        judge: Judge,
    ) -> Result<Answer, ProviderError> {
        let observation = self.observe(operation, &Method::POST);
        let content_type = HeaderValue::from_static("application/json");
        let parcel = Parcel::of_bytes(json, sent.clone());
        let limit = self.limits.create;
        let result = timeout(limit, self.exchange(url, content_type, parcel, judge)).await;
        let result = result.unwrap_or_else(|_| {
            let message = format!("{} was not done within {limit:?}", self.provider);
            Err(self.error(ErrorKind::Outage { retry_after: None }, None, &message))
        });
        let result = result.map_err(|error| error.of_create(sent.is_set()));
        observation.end(result.as_ref().map(|answer| answer.status));
        result
    }

    fn observe(&self, operation: &'static str, method: &Method) -> Observation {
        Observation::start(&self.provider, &self.base, operation, method)
    }

    async fn exchange(
        &self,
        url: Url,
        content_type: HeaderValue,
        parcel: Parcel,
        judge: Judge,
    ) -> Result<Answer, ProviderError> {
        let silence = self.limits.silence;
        let length = parcel.length;

        // The feed alone decides what the connection gets. Dropping this future drops the only sender,
        // and a body that ends before its declared length breaks the request off.
        let (sender, receiver) = mpsc::channel(1);
        let mut request = Request::new(Method::POST, url);
        request.headers_mut().extend(self.headers.clone());
        request.headers_mut().insert(CONTENT_TYPE, content_type);
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        *request.body_mut() = Some(Body::wrap_stream(feed::requested(receiver, length)));

        let sent = parcel.sent.clone();
        let sent_bytes = observation::sent(&self.provider);
        let mut answer = pin!(self.client.execute(request));
        let mut feed = pin!(feed::run(&sender, parcel, silence, sent_bytes));

        // A provider may answer before it has read everything (413, 401). The feed then stands still but
        // stays in place, since ending it would close the connection under the answer.
        let early = tokio::select! {
            biased;
            answer = &mut answer => Some(answer),
            fed = &mut feed => match fed {
                Ok(()) => None,
                // `answer` knows why.
                Err(Stopped::Disconnected) => None,
                Err(Stopped::Source(message)) => {
                    return Err(self.error(ErrorKind::Source, None, &message));
                }
                Err(Stopped::Stuck) => return Err(self.silent("took no bytes")),
            },
        };
        let answered = match early {
            Some(answered) => answered,
            None => timeout(silence, answer).await.map_err(|_| self.silent("gave no answer"))?,
        };
        let response = answered.map_err(|error| self.lost(error))?;
        let answer = self.whole(response, MAX_OBJECT_BYTES, judge).await?;
        if !sent.is_set() {
            let reason = "before the request was complete";
            return Err(self.garbled(answer.status, answer.request_id, reason));
        }
        Ok(answer)
    }

    /// Sends a request without a body and waits for the head of its answer.
    async fn head(&self, mut request: Request) -> Result<Response, ProviderError> {
        request.headers_mut().extend(self.headers.clone());
        if request.method() == Method::POST {
            // Without it some proxies answer 411.
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        match timeout(self.limits.silence, self.client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.lost(error)),
            Err(_) => Err(self.silent("gave no answer")),
        }
    }

    /// The whole answer if it is a success.
    async fn whole(
        &self,
        response: Response,
        max_bytes: usize,
        judge: Judge,
    ) -> Result<Answer, ProviderError> {
        let status = response.status();
        if !status.is_success() {
            return Err(self.refused(response, judge).await);
        }
        let request_id = self.request_id(&response);
        let clock_ahead = failure::clock_ahead(response.headers());
        let Limits { silence, answer, create: _ } = self.limits;
        match answer::read(response, max_bytes, silence, answer).await {
            Ok(body) => {
                observation::received(&self.provider).increment(body.len() as u64);
                Ok(Answer { status, request_id, clock_ahead, body })
            }
            Err(unread) => Err(self.unread(status, request_id, unread)),
        }
    }
}
