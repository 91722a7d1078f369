//! How many requests a key may make in a minute, over all intakes.
//!
//! Each key has a bucket: all that a minute allows may come at once, and the bucket fills evenly again. It
//! is kept in Redis where there is one, so that it is one bucket for all intakes. Redis is asked for some
//! milliseconds and never waited for: without its answer each intake counts for itself, from where the
//! bucket stood when it was last seen.

mod shared;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use redis::RedisError;

use self::shared::Shared;
use crate::config::Config;
use crate::keys;
use crate::keys::Identity;
use crate::keys::KeyHash;
use crate::notices;

/// Buckets that are remembered. Only keys that are known here have one.
const MAX_BUCKETS: usize = 10_000;
const MINUTE: i64 = 60_000_000;

/// The limits of all keys. Cloned freely.
#[derive(Clone, Debug)]
pub struct RequestLimits {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    default: Option<NonZeroU32>,
    of_keys: HashMap<KeyHash, Option<NonZeroU32>>,
    started: Instant,
    /// When each bucket is full again, in microseconds since `started`.
    full_at: Mutex<HashMap<KeyHash, i64>>,
    shared: Option<Shared>,
}

/// What a request has taken of its key's bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Requests in a minute.
    pub limit: u32,
    /// How many may still come at once.
    pub remaining: u32,
    /// How soon the bucket is full again.
    pub resets_in: Duration,
    /// `Some` when it was refused: how soon one may pass.
    pub retry_after: Option<Duration>,
}

impl RequestLimits {
    /// The limits that the configuration sets. `installation` names the buckets in a Redis that several share.
    ///
    /// # Errors
    ///
    /// When the URL of Redis is none, or the file of its authority cannot be used.
    pub fn new(config: &Config, installation: &str) -> Result<Self, RedisError> {
        let own = config
            .auth
            .keys
            .iter()
            .filter_map(|key| Some((keys::hash_of(&key.key), limit(key.requests_per_minute?))));
        let of_keys: HashMap<_, _> = own.collect();
        let default = limit(config.limits.requests_per_minute);
        let is_any = default.is_some() || of_keys.values().any(Option::is_some);
        let client = if is_any { notices::redis::client(&config.redis)? } else { None };
        let shared = client.map(|client| Shared::connect(client, installation));
        let (started, full_at) = (Instant::now(), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { default, of_keys, started, full_at, shared }) })
    }

    /// Whether any key has a limit.
    pub fn is_any(&self) -> bool {
        self.inner.default.is_some() || self.inner.of_keys.values().any(Option::is_some)
    }

    /// Takes one request of a key's bucket. `None` when the key has no limit.
    pub async fn take(&self, key: &KeyHash, identity: &Identity) -> Option<Taken> {
        let bucket = Bucket::of(self.limit(key, identity)?);
        if let Some(shared) = &self.inner.shared
            && let Some(level) = shared.take(key, &bucket).await
        {
            self.remember(key, level);
            return Some(bucket.taken(level));
        }
        Some(bucket.taken(self.take_here(key, &bucket)))
    }

    fn limit(&self, key: &KeyHash, identity: &Identity) -> Option<NonZeroU32> {
        match self.inner.of_keys.get(key) {
            Some(limit) => *limit,
            // Whoever runs the installation gets in when it is overrun, too.
            None if identity.is_admin => None,
            None => self.inner.default,
        }
    }

    fn take_here(&self, key: &KeyHash, bucket: &Bucket) -> Level {
        let now = self.now();
        let mut buckets = self.lock();
        let level = bucket.take(buckets.get(key).copied().unwrap_or(now), now);
        put(&mut buckets, now, key, level);
        level
    }

    /// What is seen of the bucket of all intakes is where this one goes on when Redis is gone.
    fn remember(&self, key: &KeyHash, level: Level) {
        let now = self.now();
        put(&mut self.lock(), now, key, level);
    }

    fn now(&self) -> i64 {
        i64::try_from(self.inner.started.elapsed().as_micros()).unwrap_or(i64::MAX / 2)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<KeyHash, i64>> {
        self.inner.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// As it is configured: 0 is none, and it is never more than a million.
fn limit(per_minute: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(per_minute).unwrap_or(u32::MAX))
}

fn put(buckets: &mut HashMap<KeyHash, i64>, now: i64, key: &KeyHash, level: Level) {
    if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(key) {
        buckets.retain(|_, full_at| *full_at > now);
        if buckets.len() >= MAX_BUCKETS {
            buckets.clear();
        }
    }
    buckets.insert(*key, now + level.until_full);
}

/// The bucket of one key. Times are in microseconds.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    limit: u32,
    /// In which it fills by one request.
    interval: i64,
}

/// Where a bucket stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    until_full: i64,
    is_refused: bool,
}

impl Bucket {
    fn of(limit: NonZeroU32) -> Self {
        Self { limit: limit.get(), interval: (MINUTE / i64::from(limit.get())).max(1) }
    }

    /// In which it fills from empty.
    fn span(&self) -> i64 {
        self.interval * i64::from(self.limit)
    }

    /// Takes one request out of a bucket that is full at `full_at`. `shared::TAKE` is the same for Redis.
    fn take(&self, full_at: i64, now: i64) -> Level {
        let full_at = full_at.clamp(now, now + self.span());
        let taken = full_at + self.interval;
        if taken - now > self.span() {
            Level { until_full: full_at - now, is_refused: true }
        } else {
            Level { until_full: taken - now, is_refused: false }
        }
    }

    fn taken(&self, level: Level) -> Taken {
        let Level { until_full, is_refused } = level;
        let left = self.span() - until_full;
        let micros = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        Taken {
            limit: self.limit,
            remaining: u32::try_from(left / self.interval).unwrap_or(0),
            resets_in: micros(until_full),
            retry_after: is_refused.then(|| micros(self.interval - left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(limit: u32) -> Bucket {
        Bucket::of(NonZeroU32::new(limit).unwrap())
    }

    #[test]
    fn a_bucket_gives_what_a_minute_allows_at_once_and_then_says_when_to_come_again() {
        let bucket = bucket(3);
        let mut full_at = 0;
        for remaining in [2, 1, 0] {
            let level = bucket.take(full_at, 1000);
            full_at = 1000 + level.until_full;
            let taken = bucket.taken(level);
            assert_eq!((taken.remaining, taken.retry_after), (remaining, None));
        }
        let refused = bucket.taken(bucket.take(full_at, 1_001_000));
        assert_eq!(refused.retry_after, Some(Duration::from_secs(19)));
        assert_eq!((refused.remaining, refused.resets_in), (0, Duration::from_secs(59)));
        let later = bucket.take(full_at, 1_001_000 + 19_000_000);
        assert!(!later.is_refused);
    }

    proptest! {
        #[test]
        fn no_time_sees_more_than_the_bucket_and_what_flowed_into_it(
            limit in 1u32..2000,
            waits in prop::collection::vec(0i64..3_000_000, 1..300),
        ) {
            let bucket = bucket(limit);
            let (mut full_at, mut now, mut passed) = (0, 0, 0);
            for wait in waits {
                now += wait;
                let level = bucket.take(full_at, now);
                full_at = now + level.until_full;
                passed += i64::from(!level.is_refused);
                prop_assert!(passed <= i64::from(limit) + now / bucket.interval);
            }
        }

        #[test]
        fn who_comes_again_when_told_to_passes(limit in 1u32..2000, spent in 0i64..120_000_000) {
            let bucket = bucket(limit);
            let level = bucket.take(spent, 0);
            let full_at = level.until_full;
            if let Some(wait) = bucket.taken(level).retry_after {
                let then = i64::try_from(wait.as_micros()).unwrap();
                prop_assert!(!bucket.take(full_at, then).is_refused);
                prop_assert!(bucket.take(full_at, then - 1).is_refused);
            }
        }
    }
}
