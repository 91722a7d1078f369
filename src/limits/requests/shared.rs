//! The buckets of all intakes, in Redis. Redis away or slow is no answer, and never an error.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use data_encoding::HEXLOWER;
use redis::Client;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Bucket;
use super::Level;
use crate::keys::KeyHash;
use crate::notices::redis::limited;
use crate::notices::redis::say_away;

/// How long a request waits for Redis. After one that waited in vain, nobody asks until Redis answers again.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long to wait before Redis is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// [`Bucket::take`], in one step, by the clock of Redis, which all intakes share. A bucket that is full has no key.
const TAKE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, span = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = tonumber(redis.call('GET', KEYS[1]) or now)
full_at = math.min(math.max(full_at, now), now + span)
local taken = full_at + interval
if taken - now > span then return {1, full_at - now} end
redis.call('SET', KEYS[1], string.format('%.0f', taken), 'PX', math.ceil((taken - now) / 1000))
return {0, taken - now}
";

/// A connection that is there or not; it comes back by itself.
#[derive(Clone, Debug)]
pub struct Shared {
    prefix: Arc<str>,
    connection: Arc<Mutex<Option<MultiplexedConnection>>>,
    lost: Arc<Notify>,
}

impl Shared {
    /// Begins to connect. Redis need not be there yet.
    pub fn connect(client: Client, installation: &str) -> Self {
        let shared = Self {
            prefix: format!("longshore:{installation}:requests:").into(),
            connection: Arc::default(),
            lost: Arc::default(),
        };
        tokio::spawn(shared.clone().keep_connected(client));
        shared
    }

    /// Takes one request of a bucket. `None` when Redis does not say, at once.
    pub async fn take(&self, key: &KeyHash, bucket: &Bucket) -> Option<Level> {
        let mut connection = self.lock().clone()?;
        let mut command = redis::cmd("EVAL");
        command.arg(TAKE).arg(1).arg(format!("{}{}", self.prefix, HEXLOWER.encode(&key[..16])));
        command.arg(bucket.interval).arg(bucket.span());
        let error = match timeout(PATIENCE, command.query_async(&mut connection)).await {
            Ok(Ok((refused, until_full))) => {
                let (refused, until_full): (i64, i64) = (refused, until_full);
                return Some(Level { until_full, is_refused: refused != 0 });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer for {} ms", PATIENCE.as_millis()),
        };
        if self.lock().take().is_some() {
            tracing::warn!(error, "lost Redis; this intake counts the requests of keys by itself");
            self.lost.notify_one();
        }
        None
    }

    async fn keep_connected(self, client: Client) {
        let mut said_at = None;
        loop {
            match limited(client.get_multiplexed_async_connection()).await {
                Ok(connection) => {
                    *self.lock() = Some(connection);
                    said_at = None;
                    tracing::debug!("the requests of keys are counted in Redis");
                    self.lost.notified().await;
                }
                Err(error) => {
                    let meanwhile = "this intake counts the requests of keys by itself meanwhile";
                    say_away(&error, meanwhile, &mut said_at);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<MultiplexedConnection>> {
        self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
