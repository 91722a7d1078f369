//! Says in the log when the database goes away and when it is back: once, and not for each statement that fails.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::config;

/// While it stays away, that is said again this often.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// Another reason is said sooner, and so is a connection that is lost now and then.
const SAID_AT_MOST: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Health {
    is_away: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when nothing was answered after a connection was lost.
    away_since: Option<Instant>,
    said: Option<Said>,
    crowded_said_at: Option<Instant>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    reason: String,
    is_over: bool,
}

impl Health {
    /// A connection was lost, or could not be made.
    pub fn lost(&self, error: &sqlx::Error) {
        let mut state = self.lock();
        self.is_away.store(true, Ordering::Relaxed);
        let since = *state.away_since.get_or_insert_with(Instant::now);
        let reason = error.to_string();
        let is_said = state.said.as_ref().is_some_and(|said| {
            let is_the_same = !said.is_over && said.reason == reason;
            said.at.elapsed() < if is_the_same { SAID_AGAIN } else { SAID_AT_MOST }
        });
        if is_said {
            return;
        }
        let seconds = since.elapsed().as_secs();
        tracing::warn!(
            error = reason,
            "the database is away, for {seconds} s now; what needs it waits for a moment, and is answered 503 after that"
        );
        state.said = Some(Said { at: Instant::now(), reason, is_over: false });
    }

    /// A connection was made, or something was answered on one.
    pub fn answered(&self) {
        if !self.is_away.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        self.is_away.store(false, Ordering::Relaxed);
        let Some(since) = state.away_since.take() else { return };
        if let Some(said) = state.said.as_mut().filter(|said| !said.is_over) {
            said.is_over = true;
            tracing::info!("the database is back, after {:.1} s", since.elapsed().as_secs_f64());
        }
    }

    /// No connection was free in time.
    pub fn crowded(&self, settings: &config::Database) {
        let mut state = self.lock();
        // While it is away, all of them wait for it.
        let is_said = state.crowded_said_at.is_some_and(|said_at| said_at.elapsed() < SAID_AGAIN);
        if is_said || state.away_since.is_some() {
            return;
        }
        state.crowded_said_at = Some(Instant::now());
        tracing::warn!(
            "all {} connections to the database were in use for {}; raise `database.max_connections` if that goes on",
            settings.max_connections,
            humantime::format_duration(settings.acquire_timeout)
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
