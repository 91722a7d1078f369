//! apalis over our own queue: its worker polls what the dispatcher claimed.
//!
//! Nothing is prefetched: an attempt brings its slot along, so claiming and concurrency cannot drift
//! apart. The job table is the queue; apalis is the runtime.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;

use apalis_core::backend::Backend;
use apalis_core::backend::BackendConfig;
use apalis_core::backend::finalize::Ephemeral;
use apalis_core::layers::Identity;
use apalis_core::task::Task;
use apalis_core::worker::context::WorkerContext;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;

/// What was claimed and apalis has not taken yet. Told to stop it takes nothing more: the dispatcher, which shares
/// this, runs what is left by itself. Dropped, it would be a lease that nobody keeps.
#[derive(Clone)]
pub struct Untaken(Arc<Mutex<mpsc::Receiver<Task<Arc<Attempt>>>>>);

impl Untaken {
    pub fn new(claimed: mpsc::Receiver<Task<Arc<Attempt>>>) -> Self {
        Self(Arc::new(Mutex::new(claimed)))
    }

    /// The next one, if there is any now.
    pub fn take(&self) -> Option<Arc<Attempt>> {
        self.lock().try_recv().ok().map(|task| task.args)
    }

    fn lock(&self) -> MutexGuard<'_, mpsc::Receiver<Task<Arc<Attempt>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The attempts that the dispatcher claimed, as apalis takes them.
pub struct Claims {
    claimed: Untaken,
    stop: CancellationToken,
}

impl Claims {
    /// `stop` is cancelled when apalis shuts the worker down: then no more is claimed.
    pub fn new(claimed: Untaken, stop: CancellationToken) -> Self {
        Self { claimed, stop }
    }
}

impl Backend for Claims {
    type Task = Task<Arc<Attempt>>;
    type Error = Infallible;

    fn poll_ready(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        self.claimed.lock().poll_recv(cx).map(|task| task.map(Ok))
    }

    fn poll_close(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        self.stop.cancel();
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Claims {
    type Args = Arc<Attempt>;
    type Id = String;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}
