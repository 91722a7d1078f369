//! Hints between processes, over Redis pub/sub. Redis away costs a poll's latency, and nothing else.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::AsyncCommands as _;
use redis::Client;
use redis::RedisError;
use tokio::sync::mpsc;

use super::Hint;

const CHANNEL: &str = "longshore:hints";
/// Hints that wait for Redis. One that finds no room is dropped: the poll covers it.
const QUEUE: usize = 64;
/// How long to wait before Redis is tried again.
const PAUSE: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);

impl Hint {
    const ALL: [Self; 3] = [Self::Work, Self::Change, Self::Cancel];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Change => "change",
            Self::Cancel => "cancel",
        }
    }
}

/// A connection to the other processes.
#[derive(Clone, Debug)]
pub struct Relay {
    client: Client,
    outgoing: mpsc::Sender<Hint>,
    is_connected: Arc<AtomicBool>,
}

impl Relay {
    /// Begins to publish to the Redis at `url`. It need not be there yet.
    ///
    /// # Errors
    ///
    /// When the URL is none.
    pub fn new(url: &str) -> Result<Self, RedisError> {
        let client = Client::open(url)?;
        let (outgoing, hints) = mpsc::channel(QUEUE);
        tokio::spawn(publish(client.clone(), hints));
        Ok(Self { client, outgoing, is_connected: Arc::new(AtomicBool::new(false)) })
    }

    pub fn publish(&self, hint: Hint) {
        // A full queue means that hints are on their way already, or that Redis is away.
        if self.outgoing.try_send(hint).is_err() {
            tracing::trace!("a hint found no room");
        }
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Calls `heard` for each hint of any process, until it answers `false`. After a gap it is called
    /// for every kind of hint, since any may have been missed.
    pub fn listen(&self, heard: impl Fn(Hint) -> bool + Send + Sync + 'static) {
        let (client, is_connected) = (self.client.clone(), Arc::clone(&self.is_connected));
        tokio::spawn(async move {
            loop {
                let ended = subscribe(&client, &is_connected, &heard).await;
                if is_connected.swap(false, Ordering::Relaxed) {
                    tracing::warn!(error = ?ended.err().map(|error| error.to_string()), "lost Redis; changes of other processes are seen at the next poll");
                }
                tokio::time::sleep(PAUSE).await;
                if !Hint::ALL.into_iter().all(&heard) {
                    return;
                }
            }
        });
    }
}

async fn subscribe(
    client: &Client,
    is_connected: &AtomicBool,
    heard: &(impl Fn(Hint) -> bool + Send + Sync),
) -> Result<(), RedisError> {
    let connect = tokio::time::timeout(TIMEOUT, client.get_async_pubsub());
    let mut pubsub = connect
        .await
        .map_err(|_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut)))??;
    pubsub.subscribe(CHANNEL).await?;
    is_connected.store(true, Ordering::Relaxed);
    let mut messages = pubsub.on_message();
    while let Some(message) = messages.next().await {
        let text: String = message.get_payload()?;
        if let Some(hint) = Hint::ALL.into_iter().find(|hint| hint.as_str() == text)
            && !heard(hint)
        {
            return Ok(());
        }
    }
    Ok(())
}

async fn publish(client: Client, mut hints: mpsc::Receiver<Hint>) {
    let mut connection = None;
    while let Some(hint) = hints.recv().await {
        let sent = tokio::time::timeout(TIMEOUT, async {
            let connected = match connection.take() {
                Some(connected) => connected,
                None => client.get_multiplexed_async_connection().await?,
            };
            let mut connected: redis::aio::MultiplexedConnection = connected;
            let _: i64 = connected.publish(CHANNEL, hint.as_str()).await?;
            Ok::<_, RedisError>(connected)
        });
        match sent.await {
            Ok(Ok(connected)) => connection = Some(connected),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "could not publish a hint");
                tokio::time::sleep(PAUSE).await;
            }
            Err(_) => tracing::debug!("publishing a hint took too long"),
        }
    }
}
