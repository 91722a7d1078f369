//! A request's body as it arrives: never longer than allowed, never silent for too long, and never so
//! slow that a handful of senders could hold all connections for days.

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

use crate::error::Error;

/// What a sender has to bring for each second that is spent waiting for it.
const LEAST_PER_SECOND: f64 = 1024.0;
/// What may arrive without a field or a piece of one coming out of it: headers, boundaries, preamble.
const MAX_WITHOUT_PROGRESS: u64 = 256 * 1024;

/// Why a body stopped in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    #[error("the body is longer than it may be")]
    TooLong,
    #[error("the sender was silent for too long")]
    Silent,
    #[error("the sender was too slow")]
    Slow,
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
    patience: Duration,
}

struct Source {
    stream: BodyDataStream,
    pace: Pace,
    left: u64,
    stopped: Option<Stopped>,
    is_over: bool,
}

impl Incoming {
    /// At most `limit` bytes of `body`, from a sender that is neither silent for as long as `patience`
    /// nor slower over it than it may be.
    pub fn new(body: Body, limit: u64, patience: Duration) -> Self {
        let source = Source {
            stream: body.into_data_stream(),
            pace: Pace::new(patience),
            left: limit,
            stopped: None,
            is_over: false,
        };
        let (source, without_progress) = (Mutex::new(source), AtomicU64::new(0));
        Self { shared: Arc::new(Shared { source, without_progress, patience }) }
    }

    /// To be called for whatever came out of the parser.
    pub fn progress(&self) {
        self.shared.without_progress.store(0, Ordering::Relaxed);
    }

    /// Why it stopped, if it did.
    pub fn stopped(&self) -> Option<Stopped> {
        self.source().stopped
    }

    /// What a sender is told that was silent or slow.
    pub fn too_slow(&self, stopped: Stopped) -> Error {
        let patience = self.shared.patience;
        Error::SenderTooSlow(if stopped == Stopped::Slow {
            format!(
                "less than 1 KiB/s of the body arrived over {patience:?} (`server.body_timeout`); send it faster"
            )
        } else {
            format!(
                "nothing arrived for {patience:?} in the middle of the body (`server.body_timeout`)"
            )
        })
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
            Poll::Pending => match source.pace.poll_wait(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(stopped) => stopped,
            },
            Poll::Ready(None) => {
                source.is_over = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(_))) => {
                source.is_over = true;
                Stopped::Lost
            }
            Poll::Ready(Some(Ok(bytes))) => {
                let length = bytes.len() as u64;
                source.pace.arrived(length);
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

/// How fast a sender is, by the time that is spent waiting for it: what a slow disk of ours takes is
/// not its fault.
struct Pace {
    patience: Duration,
    timer: Pin<Box<Sleep>>,
    /// The wait that goes on now.
    wait: Option<Wait>,
    /// The waits since the window opened that are over, and what came in it.
    waited: Duration,
    brought: u64,
}

#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    /// Where its share of the open window begins.
    counts_from: Instant,
}

impl Pace {
    fn new(patience: Duration) -> Self {
        Self {
            patience,
            timer: Box::pin(tokio::time::sleep(patience)),
            wait: None,
            waited: Duration::ZERO,
            brought: 0,
        }
    }

    /// Nothing is there: ready when it is not worth waiting any longer, and why.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Stopped> {
        loop {
            let now = Instant::now();
            let wait = *self.wait.get_or_insert_with(|| {
                self.timer.as_mut().reset(now + self.patience.saturating_sub(self.waited));
                Wait { since: now, counts_from: now }
            });
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if now.duration_since(wait.since) >= self.patience {
                return Poll::Ready(Stopped::Silent);
            }
            if self.is_slow() {
                return Poll::Ready(Stopped::Slow);
            }
            // The next window; the silence in which this one ended goes on.
            (self.waited, self.brought) = (Duration::ZERO, 0);
            self.wait = Some(Wait { counts_from: now, ..wait });
            self.timer.as_mut().reset(wait.since + self.patience);
        }
    }

    fn arrived(&mut self, bytes: u64) {
        if let Some(wait) = self.wait.take() {
            self.waited += wait.counts_from.elapsed();
        }
        self.brought += bytes;
    }

    fn is_slow(&self) -> bool {
        (self.brought as f64) < self.patience.as_secs_f64() * LEAST_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A body of which a piece of this size comes after each of these waits, in seconds.
    fn sender(pieces: Vec<(f64, usize)>) -> Incoming {
        let stream = futures_util::stream::iter(pieces).then(|(wait, size)| async move {
            tokio::time::sleep(Duration::from_secs_f64(wait)).await;
            std::io::Result::Ok(Bytes::from(vec![b'x'; size]))
        });
        Incoming::new(Body::from_stream(stream), u64::MAX, PATIENCE)
    }

    /// What came, and how it ended.
    async fn receive(mut incoming: Incoming) -> (usize, Option<Stopped>) {
        let mut received = 0;
        while let Some(next) = incoming.next().await {
            incoming.progress();
            match next {
                Ok(bytes) => received += bytes.len(),
                Err(stopped) => return (received, Some(stopped)),
            }
        }
        (received, None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_a_second_is_too_slow() {
        let begun = Instant::now();
        let (received, stopped) = receive(sender(vec![(1.0, 1); 10_000])).await;
        assert_eq!(stopped, Some(Stopped::Slow));
        assert!(received < 31 && begun.elapsed() < Duration::from_secs(31), "{received}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_beginning_does_not_buy_a_slow_end() {
        let pieces = [vec![(0.0, 1 << 20)], vec![(1.0, 1); 10_000]].concat();
        let begun = Instant::now();
        assert_eq!(receive(sender(pieces)).await.1, Some(Stopped::Slow));
        assert!(begun.elapsed() < Duration::from_secs(62), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_body_after_the_whole_of_the_patience_and_not_before() {
        assert_eq!(receive(sender(vec![(29.0, 1 << 20); 5])).await, (5 << 20, None));
        let begun = Instant::now();
        assert_eq!(receive(sender(vec![(1.0, 1 << 20), (40.0, 1)])).await.1, Some(Stopped::Silent));
        assert_eq!(begun.elapsed().as_secs(), 31);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_that_is_fast_enough_may_take_hours() {
        assert_eq!(receive(sender(vec![(1.0, 1100); 10_000])).await, (11_000_000, None));
        assert_eq!(receive(sender(vec![(3.0, 4000); 500])).await, (2_000_000, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_reader_takes_is_not_the_senders_fault() {
        let mut incoming = sender(vec![(1.0, 100); 20]);
        let mut received = 0;
        while let Some(bytes) = incoming.next().await {
            incoming.progress();
            received += bytes.unwrap().len();
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(received, 2000);
    }
}
