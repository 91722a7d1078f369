//! A request's body as it arrives: counted, bounded, and never waited for without end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::answer::Closed;
use super::call::InFlight;

/// How long a client may send nothing in the middle of a body.
const MAX_SILENCE: Duration = Duration::from_mins(5);

/// What a reader that looks for the end of something may hold in memory.
const MAX_AHEAD: u64 = 1 << 20;

/// Why no more of a body can be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the connection broke within the body")]
    Broken(#[from] hyper::Error),
    #[error("nothing of the body arrived for `{}` seconds", MAX_SILENCE.as_secs())]
    Silent,
    #[error("`{MAX_AHEAD}` bytes of the body hold no end of a part's head")]
    Endless,
}

/// How much of a body was read, and how much may be, seen also while a reader borrows the body.
#[derive(Debug)]
pub(super) struct Progress {
    received: AtomicU64,
    ceiling: AtomicU64,
}

impl Progress {
    /// Lets the reader buffer afresh, because it has handed on what it had.
    pub(super) fn allow_more(&self) {
        self.ceiling.store(self.received.load(Relaxed).saturating_add(MAX_AHEAD), Relaxed);
    }
}

/// The body of one call.
pub(super) struct RequestBody<'c> {
    incoming: Incoming,
    call: &'c InFlight,
    progress: Arc<Progress>,
    silence: Option<Pin<Box<Sleep>>>,
}

impl<'c> RequestBody<'c> {
    pub(super) fn new(incoming: Incoming, call: &'c InFlight) -> Self {
        let progress = Progress { received: AtomicU64::new(0), ceiling: AtomicU64::new(MAX_AHEAD) };
        Self { incoming, call, progress: Arc::new(progress), silence: None }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// The whole body; none where it is longer than `max_bytes`, of which the rest is forgotten.
    pub(super) async fn collect(&mut self, max_bytes: usize) -> Result<Option<BytesMut>, Closed> {
        self.progress.ceiling.store(u64::MAX, Relaxed);
        let mut whole = BytesMut::new();
        while let Some(chunk) = self.next().await {
            let chunk = chunk.map_err(|_| Closed)?;
            if whole.len() + chunk.len() > max_bytes {
                self.drain().await?;
                return Ok(None);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Some(whole))
    }

    /// Reads and forgets what is left.
    pub(super) async fn drain(&mut self) -> Result<(), Closed> {
        self.read_until(u64::MAX).await
    }

    /// Reads and forgets until `bytes` were received in all, or the body ends.
    pub(super) async fn read_until(&mut self, bytes: u64) -> Result<(), Closed> {
        self.progress.ceiling.store(u64::MAX, Relaxed);
        while self.progress.received.load(Relaxed) < bytes {
            match self.next().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return Err(Closed),
                None => break,
            }
        }
        Ok(())
    }
}

impl Stream for RequestBody<'_> {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match Pin::new(&mut self.incoming).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.silence = None;
                    // Trailers say nothing here.
                    let Ok(data) = frame.into_data() else { continue };
                    let length = data.len() as u64;
                    let before = self.progress.received.fetch_add(length, Relaxed);
                    if before == 0 && length > 0 {
                        self.call.first_byte();
                    }
                    if before + length > self.progress.ceiling.load(Relaxed) {
                        return Poll::Ready(Some(Err(BodyError::Endless)));
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => {
                    let silence = self
                        .silence
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(MAX_SILENCE)));
                    ready!(silence.as_mut().poll(context));
                    return Poll::Ready(Some(Err(BodyError::Silent)));
                }
            }
        }
    }
}
