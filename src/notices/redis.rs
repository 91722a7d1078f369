//! Hints between processes, over Redis pub/sub. Redis away costs a poll's latency, and nothing else.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::AsyncCommands as _;
use redis::Client;
use redis::ErrorKind;
use redis::RedisError;
use redis::ServerErrorKind;
use redis::TlsCertificates;
use redis::aio::MultiplexedConnection;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Hint;
use crate::config;

const CHANNEL: &str = "longshore:hints";
/// Hints that wait for Redis. One that finds no room is dropped: the poll covers it.
const QUEUE: usize = 64;
/// How long Redis may take for anything that it is asked.
const LIMIT: Duration = Duration::from_secs(3);
/// How often a connection that only listens asks whether anybody is still there.
const PING_EVERY: Duration = Duration::from_secs(5);
/// The wait before Redis is tried again, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// While it stays away, that is said again this often.
const SAID_AGAIN: Duration = Duration::from_mins(5);

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

/// Who connects to the Redis that the settings name, if they name one. Nothing is connected yet.
///
/// # Errors
///
/// When the URL is none, or the file of the authority cannot be used.
pub fn client(settings: &config::Redis) -> Result<Option<Client>, RedisError> {
    let Some(url) = &settings.url else { return Ok(None) };
    let client = match &settings.ca_file {
        None => Client::open(url.expose())?,
        Some(path) => {
            let root_cert = Some(std::fs::read(path)?);
            Client::build_with_tls(url.expose(), TlsCertificates { client_tls: None, root_cert })?
        }
    };
    Ok(Some(client))
}

/// A connection to the other processes.
#[derive(Clone, Debug)]
pub struct Relay {
    client: Client,
    outgoing: mpsc::Sender<Hint>,
    is_connected: Arc<AtomicBool>,
}

impl Relay {
    /// Begins to publish. Redis need not be there yet.
    pub fn new(client: Client) -> Self {
        let (outgoing, hints) = mpsc::channel(QUEUE);
        tokio::spawn(publish(client.clone(), hints));
        Self { client, outgoing, is_connected: Arc::new(AtomicBool::new(false)) }
    }

    /// Never waits.
    pub fn publish(&self, hint: Hint) {
        // A full queue means that hints are on their way already, or that Redis is away.
        if self.outgoing.try_send(hint).is_err() {
            metrics::counter!("longshore_hints_dropped_total").increment(1);
        }
    }

    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Calls `heard` for each hint of any process, until it answers `false`. After a gap it is called
    /// for every kind of hint, since any may have been missed.
    pub fn listen(&self, heard: impl Fn(Hint) -> bool + Send + Sync + 'static) {
        let relay = self.clone();
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            let mut said_at = None;
            loop {
                let error = match relay.subscribe(&heard, &mut said_at).await {
                    Ok(()) => return,
                    Err(error) => error,
                };
                if relay.is_connected.swap(false, Ordering::Relaxed) {
                    pause = FIRST_PAUSE;
                }
                let meanwhile = "changes of other processes are seen at the next poll meanwhile";
                say_away(&error, meanwhile, &mut said_at);
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                if !Hint::ALL.into_iter().all(&heard) {
                    return;
                }
            }
        });
    }

    /// Ends well when nobody wants to hear any more.
    async fn subscribe(
        &self,
        heard: &(impl Fn(Hint) -> bool + Send + Sync),
        said_at: &mut Option<Instant>,
    ) -> Result<(), RedisError> {
        let (mut sink, mut messages) = limited(self.client.get_async_pubsub()).await?.split();
        limited(sink.subscribe(CHANNEL)).await?;
        self.is_connected.store(true, Ordering::Relaxed);
        if said_at.take().is_some() {
            tracing::info!("Redis is back");
        }
        if !Hint::ALL.into_iter().all(heard) {
            return Ok(());
        }
        let mut pings = tokio::time::interval(PING_EVERY);
        loop {
            let message = tokio::select! {
                message = messages.next() => message.ok_or_else(closed)?,
                _ = pings.tick() => {
                    let _: redis::Value = limited(sink.ping()).await?;
                    continue;
                }
            };
            let text: String = message.get_payload()?;
            if let Some(hint) = Hint::ALL.into_iter().find(|hint| hint.as_str() == text)
                && !heard(hint)
            {
                return Ok(());
            }
        }
    }
}

/// Says that Redis is away and what that means, and not at every try.
pub fn say_away(error: &RedisError, meanwhile: &str, said_at: &mut Option<Instant>) {
    if said_at.is_some_and(|said_at| said_at.elapsed() < SAID_AGAIN) {
        return;
    }
    *said_at = Some(Instant::now());
    if is_refusal(error) {
        tracing::error!(error = %error, "Redis refuses the user or password of `redis.url`; {meanwhile}");
    } else {
        tracing::warn!(error = %error, "Redis is away; {meanwhile}");
    }
}

/// Whether Redis is there, and does not let us in.
pub fn is_refusal(error: &RedisError) -> bool {
    let says_so = matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "NOPERM"));
    says_so
        || matches!(
            error.kind(),
            ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm)
        )
}

fn closed() -> RedisError {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed").into()
}

/// What Redis answers, if it does within `LIMIT`.
pub async fn limited<T>(
    call: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, RedisError> {
    tokio::time::timeout(LIMIT, call).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} s", LIMIT.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, message).into())
    })
}

async fn publish(client: Client, mut hints: mpsc::Receiver<Hint>) {
    let mut connection: Option<MultiplexedConnection> = None;
    let mut pause = FIRST_PAUSE;
    while let Some(hint) = hints.recv().await {
        let sent = limited(async {
            let mut connected = match connection.take() {
                Some(connected) => connected,
                None => client.get_multiplexed_async_connection().await?,
            };
            let _: i64 = connected.publish(CHANNEL, hint.as_str()).await?;
            Ok(connected)
        });
        match sent.await {
            Ok(connected) => {
                connection = Some(connected);
                pause = FIRST_PAUSE;
            }
            Err(error) => {
                // Whoever listens says so.
                tracing::debug!(error = %error, "could not publish a hint");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
