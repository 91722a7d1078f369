//! What goes back to the client: whole, cut short, byte by byte, or not at all.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The connection is to be closed without (the rest of) an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed on purpose")]
pub(super) struct Closed;

/// An answer before it is sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Of two with one name the later one is sent.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn new(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Self {
        Self { status, headers: vec![(CONTENT_TYPE, content_type)], body }
    }

    pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body).expect("string keys and plain values serialize");
        Self::new(status, HeaderValue::from_static("application/json"), body.into())
    }

    pub(super) fn empty() -> Self {
        Self { status: StatusCode::NO_CONTENT, headers: Vec::new(), body: Bytes::new() }
    }

    /// An `invalid_request_error` in OpenAI's shape.
    pub(super) fn refusal(
        status: StatusCode,
        message: &str,
        param: Option<&str>,
        code: Option<&str>,
    ) -> Self {
        Self::json(
            status,
            &json!({"error": {
                "message": message, "type": "invalid_request_error", "param": param, "code": code,
            }}),
        )
    }

    /// A 400 about one parameter.
    pub(super) fn invalid(message: &str, param: &str) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, message, Some(param), None)
    }

    /// A 429 that is about what is under way, not about speed, and so names no wait.
    pub(super) fn too_many_batches(code: Option<&str>) -> Self {
        let message = "Too many batches are enqueued. Try again when one of them has ended.";
        Self::json(
            StatusCode::TOO_MANY_REQUESTS,
            &json!({"error": {"message": message, "type": "tokens", "param": null, "code": code}}),
        )
    }

    /// An answer from a script, which was checked when it was queued.
    pub(super) fn scripted(status: u16, headers: &BTreeMap<String, String>, body: &Value) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut answer = match body {
            Value::Null => Self { status, headers: Vec::new(), body: Bytes::new() },
            Value::String(text) => Self::new(
                status,
                HeaderValue::from_static("text/plain; charset=utf-8"),
                Bytes::copy_from_slice(text.as_bytes()),
            ),
            json => Self::json(status, json),
        };
        for (name, value) in headers {
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
            {
                answer.headers.push((name, value));
            }
        }
        answer
    }

    /// The response to send, with an `x-request-id` unless it has one.
    pub(super) fn into_response(self, pace: Pace) -> Response<AnswerBody> {
        let body = AnswerBody { rest: self.body, pace };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response.headers_mut().entry(REQUEST_ID).or_insert_with(|| {
            let id = format!("req_{:032x}", rand::random::<u128>());
            HeaderValue::try_from(id).expect("hex digits are a valid header value")
        });
        response
    }
}

/// How an answer's body is sent.
#[derive(Debug)]
pub(super) enum Pace {
    AtOnce,
    /// At once, without an announced length.
    Unannounced,
    /// This many bytes, and then the connection is closed. Less than the body has.
    Cut {
        left: usize,
        is_handed_over: bool,
    },
    /// One byte per interval.
    Drip {
        interval: Duration,
        until_next: Pin<Box<Sleep>>,
    },
}

impl Pace {
    /// None where nothing can be missing from a body of `len` bytes.
    pub(super) fn cut(after_bytes: u64, len: usize) -> Option<Self> {
        let most = len.checked_sub(1)?;
        let left = usize::try_from(after_bytes).map_or(most, |bytes| bytes.min(most));
        Some(Self::Cut { left, is_handed_over: false })
    }

    pub(super) fn drip(interval: Duration) -> Self {
        Self::Drip { interval, until_next: Box::pin(tokio::time::sleep(interval)) }
    }
}

/// An answer's body on its way out. Its announced length, if there is one, is that of the whole.
#[derive(Debug)]
pub(super) struct AnswerBody {
    rest: Bytes,
    pace: Pace,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Closed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Closed>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        let data = match &mut this.pace {
            Pace::AtOnce | Pace::Unannounced => std::mem::take(&mut this.rest),
            Pace::Cut { left, .. } if *left > 0 => {
                let data = this.rest.split_to(*left);
                *left = 0;
                data
            }
            Pace::Cut { is_handed_over: false, .. } => {
                // An error now would discard what hyper has not yet written, so it gets a turn.
                this.pace = Pace::Cut { left: 0, is_handed_over: true };
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Pace::Cut { .. } => return Poll::Ready(Some(Err(Closed))),
            Pace::Drip { interval, until_next } => {
                ready!(until_next.as_mut().poll(context));
                until_next.as_mut().reset(Instant::now() + *interval);
                this.rest.split_to(1)
            }
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.pace {
            Pace::Unannounced => SizeHint::default(),
            _ => SizeHint::with_exact(self.rest.len() as u64),
        }
    }
}
