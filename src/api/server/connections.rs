//! How many connections there are, and which of them rest: between two requests, or before the first.
//! When there is no room for another one, those that have rested longest are closed for it, so that
//! clients that hold connections without using them keep nobody out.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use http_body::SizeHint;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// The connections of a listener.
pub struct Connections {
    room: Arc<Semaphore>,
    /// How many are closed at once when there is no room: not one for each that comes.
    at_once: usize,
    resting: Arc<Mutex<Resting>>,
    closing: CancellationToken,
}

#[derive(Default)]
struct Resting {
    /// By the order in which they came to rest. The number 0 is nobody's.
    by_age: BTreeMap<u64, CancellationToken>,
    last: u64,
    /// Somebody waits for a place: whoever comes to rest now is closed at once.
    is_full: bool,
}

impl Connections {
    /// `most` at the same time. Once `closing` is cancelled, all are told to close.
    pub fn new(most: usize, closing: CancellationToken) -> Self {
        let (room, at_once) = (Arc::new(Semaphore::new(most)), most / 64 + 1);
        Self { room, at_once, resting: Arc::default(), closing }
    }

    /// A place for one more, as soon as there is one.
    pub async fn take(&self) -> Place {
        let room = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(room) => room,
            Err(_) => {
                self.make_room();
                let room = Arc::clone(&self.room).acquire_owned().await;
                lock(&self.resting).is_full = false;
                room.expect("nobody closes the semaphore")
            }
        };
        let state = State {
            resting: Arc::clone(&self.resting),
            close: self.closing.child_token(),
            rest: AtomicU64::new(0),
        };
        state.begin_rest();
        Place { state: Arc::new(state), _room: room }
    }

    fn make_room(&self) {
        let mut resting = lock(&self.resting);
        resting.is_full = true;
        for _ in 0..self.at_once {
            let Some((_, close)) = resting.by_age.pop_first() else { break };
            close.cancel();
        }
    }
}

fn lock(resting: &Mutex<Resting>) -> MutexGuard<'_, Resting> {
    resting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place of one connection, taken until it is dropped.
pub struct Place {
    state: Arc<State>,
    _room: OwnedSemaphorePermit,
}

impl Place {
    /// Where the requests of this connection are noted.
    pub fn requests(&self) -> Requests {
        Requests { state: Arc::clone(&self.state) }
    }

    pub async fn told_to_close(&self) {
        self.state.close.cancelled().await;
    }

    /// Which rest this is, if no request is under way.
    pub fn rest(&self) -> Option<u64> {
        Some(self.state.rest.load(Ordering::Acquire)).filter(|rest| *rest > 0)
    }
}

struct State {
    resting: Arc<Mutex<Resting>>,
    close: CancellationToken,
    rest: AtomicU64,
}

impl State {
    fn begin_rest(&self) {
        let mut resting = lock(&self.resting);
        resting.last += 1;
        let rest = resting.last;
        self.rest.store(rest, Ordering::Release);
        if resting.is_full {
            self.close.cancel();
        } else {
            resting.by_age.insert(rest, self.close.clone());
        }
    }

    fn end_rest(&self) {
        let mut resting = lock(&self.resting);
        resting.by_age.remove(&self.rest.swap(0, Ordering::AcqRel));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.end_rest();
    }
}

/// The requests of one connection.
pub struct Requests {
    state: Arc<State>,
}

impl Requests {
    /// A request has come.
    pub fn begin(&self) -> Busy {
        self.state.end_rest();
        Busy { state: Arc::clone(&self.state) }
    }
}

/// A request that is under way. Dropped, it is over.
pub struct Busy {
    state: Arc<State>,
}

impl Busy {
    /// The same answer; when its body has been sent, or is given up, the request is over.
    pub fn until_sent(self, answer: Response) -> Response<Answer> {
        answer.map(|body| Answer { body, _busy: self })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.begin_rest();
    }
}

/// The body of an answer, by which a request is known to be under way.
pub struct Answer {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn is_closing(place: &Place) -> bool {
        place.state.close.is_cancelled()
    }

    #[tokio::test]
    async fn who_has_rested_longest_makes_room_and_who_works_stays() {
        let connections = Connections::new(3, CancellationToken::new());
        let (first, second, third) =
            (connections.take().await, connections.take().await, connections.take().await);
        let busy = first.requests().begin();
        let waiting = connections.take();
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut waiting).await.is_err());
        assert!(!is_closing(&first) && is_closing(&second) && !is_closing(&third));
        drop(second);
        waiting.await;
        assert_eq!(first.rest(), None);
        drop(busy);
        assert!(first.rest().is_some() && !is_closing(&first));
    }

    #[tokio::test]
    async fn who_comes_to_rest_while_somebody_waits_makes_room() {
        let connections = Connections::new(1, CancellationToken::new());
        let only = connections.take().await;
        let busy = only.requests().begin();
        let waiting = connections.take();
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut waiting).await.is_err());
        assert!(!is_closing(&only));
        drop(busy);
        assert!(is_closing(&only));
        drop(only);
        assert!(!is_closing(&waiting.await));
    }

    #[tokio::test]
    async fn connections_that_are_gone_are_forgotten() {
        let connections = Connections::new(3, CancellationToken::new());
        let place = connections.take().await;
        let busy = place.requests().begin();
        drop(place);
        drop(busy);
        drop(connections.take().await);
        assert!(lock(&connections.resting).by_age.is_empty());
    }
}
