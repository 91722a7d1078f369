//! Reads what a provider answers, within limits of size and time.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use metrics::Counter;
use reqwest::{Response, StatusCode};
use tokio::time::timeout;

use crate::providers::ByteStream;

/// A success, with its body read whole.
pub(in crate::providers) struct Answer {
    pub status: StatusCode,
    pub request_id: Option<String>,
    /// By how many seconds our clock is ahead of the `Date` in it.
    pub clock_ahead: Option<i64>,
    pub body: Bytes,
}

/// Why a body could not be read whole.
#[derive(Debug)]
pub(super) enum Unread {
    Oversized,
    Broken(String),
    /// Silent, or dripping on past the overall limit.
    Slow,
}

/// The whole body, of at most `max_bytes`, each chunk within `silence` and all of it within `overall`.
pub(super) async fn read(
    mut response: Response,
    max_bytes: usize,
    silence: Duration,
    overall: Duration,
) -> Result<Bytes, Unread> {
    let declared = response.content_length().unwrap_or(0);
    if declared > max_bytes as u64 {
        return Err(Unread::Oversized);
    }
    let reading = async {
        let mut body = BytesMut::new();
        loop {
            let chunk = timeout(silence, response.chunk()).await.map_err(|_| Unread::Slow)?;
            let Some(chunk) = chunk.map_err(|error| Unread::Broken(root_cause(error)))? else {
                return Ok(body.freeze());
            };
            if body.len() + chunk.len() > max_bytes {
                return Err(Unread::Oversized);
            }
            body.extend_from_slice(&chunk);
        }
    };
    timeout(overall, reading).await.unwrap_or(Err(Unread::Slow))
}

/// The body as it comes. Time that the reader takes between chunks does not count as silence.
pub(super) fn stream(
    response: Response,
    provider: String,
    silence: Duration,
    received: Counter,
) -> ByteStream {
    stream::unfold(Some((response, provider, received)), move |state| async move {
        let (mut response, provider, received) = state?;
        match timeout(silence, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                received.increment(chunk.len() as u64);
                Some((Ok(chunk), Some((response, provider, received))))
            }
            Ok(Ok(None)) => None,
            Ok(Err(error)) => {
                let message = format!("the content broke off at {provider}: {}", root_cause(error));
                Some((Err(io::Error::new(io::ErrorKind::ConnectionAborted, message)), None))
            }
            Err(_) => {
                let message = format!("{provider} sent nothing of the content for {silence:?}");
                Some((Err(io::Error::new(io::ErrorKind::TimedOut, message)), None))
            }
        }
    })
    .boxed()
}

/// The innermost cause, which says what happened; the outer ones only say where, and name the URL.
pub(super) fn root_cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
