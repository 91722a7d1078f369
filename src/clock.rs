//! The time: one for all processes that share a database.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use sea_orm::DbErr;
use sea_orm::DeriveValueType;
use serde::Deserialize;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use crate::db::Db;

/// A moment in UTC: milliseconds since the Unix epoch, as it is stored.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    DeriveValueType,
)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Whole Unix seconds, as the API shows times.
    pub const fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    pub const fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The moment `duration` later; saturates at the end of time.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// A duration in the milliseconds that the database counts in.
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Where the time comes from: the machine's clock, put right by that of a database which several machines share. Cloned
/// freely; every clone is put right with it.
///
/// What one process writes another judges: how long ago a list was read, until when a key is held, what is due. Were each
/// to go by its own clock, one that is an hour off would look too early, or an hour late.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// By how many milliseconds the database's is ahead of the machine's.
    ahead: Arc<AtomicI64>,
}

impl Clock {
    /// How often it is compared with the database's.
    const EVERY: Duration = Duration::from_secs(10);
    /// An answer that takes longer than this tells too little; the one before it counts on.
    const SLOW: Duration = Duration::from_millis(500);
    /// A machine's clock that is off by more is worth a line in the log.
    const NOTABLE_MS: i64 = 2_000;

    /// The time, by the database's clock as far as it was asked.
    pub fn now(&self) -> Timestamp {
        Timestamp(machine().0.saturating_add(self.ahead.load(Ordering::Relaxed)))
    }

    /// Puts it right, to half of what the answer took. SQLite goes by this machine's clock itself.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked; the clock goes on as it was.
    pub async fn set_by(&self, db: &Db) -> Result<(), DbErr> {
        if db.is_postgres() {
            let (theirs, _) = Self::ask(db).await?;
            self.put_right(theirs);
        }
        Ok(())
    }

    /// What the database's says now, to half of what the answer took, and whether that was slow each time.
    async fn ask(db: &Db) -> Result<(Timestamp, bool), DbErr> {
        let mut tries = 3;
        loop {
            let asked = Instant::now();
            let theirs = db.time().await?;
            let took = asked.elapsed();
            tries -= 1;
            let is_slow = took > Self::SLOW;
            if !is_slow || tries == 0 {
                return Ok((theirs.after(took / 2), is_slow));
            }
        }
    }

    fn put_right(&self, theirs: Timestamp) {
        let ahead = theirs.0.saturating_sub(machine().0);
        let before = self.ahead.swap(ahead, Ordering::Relaxed);
        if ahead.abs_diff(before) > Self::NOTABLE_MS.unsigned_abs() {
            let apart = Duration::from_millis(ahead.unsigned_abs() / 1000 * 1000);
            let apart = humantime::format_duration(apart);
            if ahead.abs() <= Self::NOTABLE_MS {
                tracing::info!("this machine's clock and the database's agree again");
            } else {
                let side = if ahead < 0 { "ahead of" } else { "behind" };
                tracing::warn!(
                    "this machine's clock is {apart} {side} the database's, which counts; set both clocks, by NTP"
                );
            }
        }
    }

    /// Puts it right again and again. A database that is away is told elsewhere.
    pub async fn follow(self, db: Db) {
        if !db.is_postgres() {
            return;
        }
        let mut ticks = tokio::time::interval(Self::EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            match Self::ask(&db).await {
                Ok((theirs, false)) => self.put_right(theirs),
                // What took so long may have been the wait for a connection: it would be put wrong.
                Ok((_, true)) => tracing::debug!("the database told its time too slowly"),
                Err(error) => tracing::debug!("cannot ask for the database's time: {error}"),
            }
        }
    }
}

/// What this machine's clock says, right or wrong.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
pub fn machine() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(millis(since_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_an_hour_off_is_put_right_for_all_who_hold_it() {
        let clock = Clock::default();
        let held = clock.clone();
        let theirs = machine().before(Duration::from_hours(1));
        clock.put_right(theirs);
        assert!(held.now().since(theirs) < Duration::from_mins(1));
        assert!(machine().since(held.now()) > Duration::from_mins(59));
        clock.put_right(machine());
        assert!(machine().since(held.now()) < Duration::from_mins(1));
    }
}
