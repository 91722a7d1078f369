//! The time, as a value that is handed in: tests can move it.

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use sea_orm::DeriveValueType;
use serde::Deserialize;
use serde::Serialize;

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

/// Where the time comes from: the machine's clock, shifted by a fixed amount.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    offset_ms: i64,
}

impl Clock {
    /// A clock that runs `offset_ms` ahead of the machine's (behind it, if negative).
    pub const fn shifted(offset_ms: i64) -> Self {
        Self { offset_ms }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(millis(since_epoch).saturating_add(self.offset_ms))
    }
}
