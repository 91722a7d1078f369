//! The rest of a request's body. Many clients send everything before they read anything: were the
//! connection closed on them in the middle, they would see a reset and not the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt as _;
use http_body::Body as _;

use super::limits;
use super::quota::Quota;

/// How much of the rest is read, and for how long, before the connection is closed on it.
const MAX_BYTES: usize = 64 * 1024 * 1024;
const MAX_TIME: Duration = Duration::from_secs(5);

/// Answers, once what the handler left of the body was read and forgotten, within bounds.
pub async fn read(State(quota): State<Quota>, request: Request, next: Next) -> Response {
    let (request, rest) = share(request);
    let response = limits::check(&quota, request, next).await;
    // Whoever was too slow for the handler is not waited for here either.
    if let Some(rest) = rest
        && response.status() != StatusCode::REQUEST_TIMEOUT
    {
        rest.forget().await;
    }
    response
}

/// The request, and its body once more, if it has one.
fn share(request: Request) -> (Request, Option<Rest>) {
    if request.body().is_end_stream() {
        return (request, None);
    }
    let waits_to_be_asked = request.headers().contains_key(EXPECT);
    let (parts, body) = request.into_parts();
    let rest = Rest { source: Arc::new(Mutex::new(Source::new(body, waits_to_be_asked))) };
    (Request::from_parts(parts, Body::from_stream(rest.clone())), Some(rest))
}

/// A body that is shared between its handler and whoever reads what that leaves.
#[derive(Clone)]
struct Rest {
    source: Arc<Mutex<Source>>,
}

struct Source {
    stream: BodyDataStream,
    /// Such a client sends nothing before it is asked to, and it is asked by reading.
    waits_to_be_asked: bool,
    is_over: bool,
}

impl Source {
    fn new(body: Body, waits_to_be_asked: bool) -> Self {
        Self { stream: body.into_data_stream(), waits_to_be_asked, is_over: false }
    }
}

impl Rest {
    async fn forget(mut self) {
        if self.source().waits_to_be_asked {
            return;
        }
        let rest = async {
            let mut left = MAX_BYTES;
            while let Some(Ok(bytes)) = self.next().await {
                left = left.saturating_sub(bytes.len());
                if left == 0 {
                    break;
                }
            }
        };
        // Whatever is left after that is lost with the connection; the client was given its chance.
        drop(tokio::time::timeout(MAX_TIME, rest).await);
    }

    fn source(&self) -> std::sync::MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Stream for Rest {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut source = self.source();
        if source.is_over {
            return Poll::Ready(None);
        }
        source.waits_to_be_asked = false;
        let next = source.stream.poll_next_unpin(cx);
        source.is_over = matches!(next, Poll::Ready(None | Some(Err(_))));
        next
    }
}
