//! A request's body as it arrives: never longer than allowed, and never silent for too long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::body::BodyDataStream;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::StreamExt as _;
use tokio::time::Instant;
use tokio::time::Sleep;

/// A sender that is silent for this long is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// What may arrive without a field or a piece of one coming out of it: headers, boundaries, preamble.
const MAX_WITHOUT_PROGRESS: u64 = 256 * 1024;

/// Why a body stopped in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    #[error("the body is longer than it may be")]
    TooLong,
    #[error("the sender was silent for too long")]
    Silent,
    #[error("a boundary or a header of the form is missing or too long")]
    NoProgress,
    #[error("the connection was lost")]
    Lost,
}

/// A body that is shared between whoever parses it and whoever asks why it stopped.
#[derive(Clone)]
pub struct Incoming {
    shared: Arc<Shared>,
}

struct Shared {
    source: Mutex<Source>,
    without_progress: AtomicU64,
}

struct Source {
    stream: BodyDataStream,
    silence: Pin<Box<Sleep>>,
    left: u64,
    stopped: Option<Stopped>,
    is_over: bool,
}

impl Incoming {
    /// At most `limit` bytes of `body`.
    pub fn new(body: Body, limit: u64) -> Self {
        let source = Source {
            stream: body.into_data_stream(),
            silence: Box::pin(tokio::time::sleep(SILENCE)),
            left: limit,
            stopped: None,
            is_over: false,
        };
        Self {
            shared: Arc::new(Shared {
                source: Mutex::new(source),
                without_progress: AtomicU64::new(0),
            }),
        }
    }

    /// To be called for whatever came out of the parser.
    pub fn progress(&self) {
        self.shared.without_progress.store(0, Ordering::Relaxed);
    }

    /// Why it stopped, if it did.
    pub fn stopped(&self) -> Option<Stopped> {
        self.source().stopped
    }

    fn source(&self) -> std::sync::MutexGuard<'_, Source> {
        self.shared.source.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Stream for Incoming {
    type Item = Result<Bytes, Stopped>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let shared = Arc::clone(&self.shared);
        let mut source = shared.source.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(stopped) = source.stopped {
            return Poll::Ready(Some(Err(stopped)));
        }
        if source.is_over {
            return Poll::Ready(None);
        }
        let stopped = match source.stream.poll_next_unpin(cx) {
            Poll::Pending => {
                if source.silence.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                Stopped::Silent
            }
            Poll::Ready(None) => {
                source.is_over = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(_))) => {
                source.is_over = true;
                Stopped::Lost
            }
            Poll::Ready(Some(Ok(bytes))) => {
                source.silence.as_mut().reset(Instant::now() + SILENCE);
                let length = bytes.len() as u64;
                let without_progress =
                    shared.without_progress.fetch_add(length, Ordering::Relaxed) + length;
                // A chunk that is itself larger than the bound is no sign of anything.
                let bound = MAX_WITHOUT_PROGRESS.max(2 * length);
                if length > source.left {
                    Stopped::TooLong
                } else if without_progress > bound {
                    Stopped::NoProgress
                } else {
                    source.left -= length;
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
        };
        source.stopped = Some(stopped);
        Poll::Ready(Some(Err(stopped)))
    }
}
