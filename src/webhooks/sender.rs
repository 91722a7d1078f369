//! Sends a message to an endpoint, once, within bounds: of time, of where it may go, of what is read of the answer.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::Method;
use reqwest::Response;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderName;
use reqwest::header::HeaderValue;
use secrecy::SecretString;
use tokio::sync::Semaphore;

use super::address;
use super::address::Reach;
use super::address::Refused;
use super::address::Resolver;
use super::signature;
use crate::clock::Timestamp;
use crate::traces::Description;
use crate::traces::Span;

/// For all of it: the name, the connection, the answer.
pub const TIME_LIMIT: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that has rested for longer is not used again.
const IDLE: Duration = Duration::from_secs(10);
const MAX_IDLE: usize = 8;
/// What is read of an answer, so that its connection can be used again. It is not looked at.
const MAX_ANSWER: usize = 4096;
/// How long that may take.
const ENOUGH: Duration = Duration::from_secs(1);
/// Messages that are sent while a client waits, over all of them.
const MOST_TESTS: usize = 16;

/// What is to be said to an endpoint.
#[derive(Clone, Debug)]
pub struct Message {
    /// The same at every attempt.
    pub id: String,
    pub body: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("it did not answer within {} s", TIME_LIMIT.as_secs())]
    TimedOut,
    #[error("it could not be reached: {0}")]
    Unreachable(String),
    #[error("its connection ended without an answer: {0}")]
    Lost(String),
    #[error("this server cannot make TLS connections: {0}")]
    NoTls(String),
}

impl Unsent {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "webhook_address_refused",
            Self::TimedOut => "webhook_timed_out",
            Self::Unreachable(_) => "webhook_unreachable",
            Self::Lost(_) => "webhook_connection_lost",
            Self::NoTls(_) => "webhook_tls_unavailable",
        }
    }
}

/// The client that sends messages. Cloned freely.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Or why there is none: what needs no webhooks goes on without.
    client: Result<Client, Arc<str>>,
    reach: Reach,
    tests: Arc<Semaphore>,
}

impl Sender {
    pub fn new(allow_private_addresses: bool) -> Self {
        let reach = if allow_private_addresses { Reach::Anywhere } else { Reach::Public };
        let client = Client::builder()
            .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(TIME_LIMIT)
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_only()
            .https_only(reach == Reach::Public)
            // Each of these would lead somewhere that nobody has checked.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Resolver(reach))
            .retry(reqwest::retry::never())
            .referer(false)
            .build()
            .map_err(|error| innermost(&error.without_url()).into());
        Self { client, reach, tests: Arc::new(Semaphore::new(MOST_TESTS)) }
    }

    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// A place among the messages that clients wait for; `None` when there is none.
    pub fn place_for_test(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.tests).try_acquire_owned().ok()
    }

    /// Sends a message, and answers with the status that it was answered with.
    ///
    /// # Errors
    ///
    /// When there was no answer.
    pub async fn send(
        &self,
        url: &str,
        message: Message,
        secrets: &[SecretString],
        now: Timestamp,
    ) -> Result<u16, Unsent> {
        let client = self.client.as_ref().map_err(|error| Unsent::NoTls(error.to_string()))?;
        // Addresses in place of a name are never resolved; and the setting may be another than at registration.
        let url = address::parse(url, self.reach)?;
        let timestamp = now.unix_seconds();
        let signature = signature::sign(secrets, &message.id, timestamp, message.body.as_bytes());
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
        for (name, value) in [("webhook-id", &message.id), ("webhook-signature", &signature)] {
            let value = HeaderValue::from_str(value)
                .map_err(|_| Unsent::Lost("an id that is no header".to_owned()))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        let span = Span::child(|| Description::call(&Method::POST, "webhook", &url));
        let request = client.post(url).headers(headers).body(message.body);
        let exchange = async {
            let response = request.send().await.map_err(unsent)?;
            let status = response.status().as_u16();
            // It is known how it went: an end that never comes changes nothing.
            drop(tokio::time::timeout(ENOUGH, forget(response)).await);
            Ok(status)
        };
        let exchanged = tokio::time::timeout(TIME_LIMIT, exchange).await;
        let exchanged = exchanged.unwrap_or(Err(Unsent::TimedOut));
        match &exchanged {
            Ok(status) => {
                span.answered(*status);
                if *status >= 400 {
                    span.fail(&status.to_string());
                }
            }
            Err(unsent) => span.fail(unsent.code()),
        }
        exchanged
    }
}

/// Reads a short answer to its end. A longer one costs its connection; one that breaks off is an answer all the same.
async fn forget(mut response: Response) {
    let mut left = MAX_ANSWER;
    while let Ok(Some(bytes)) = response.chunk().await {
        left = left.saturating_sub(bytes.len());
        if left == 0 {
            return;
        }
    }
}

fn unsent(error: reqwest::Error) -> Unsent {
    let error = error.without_url();
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = source {
        if let Some(refused) = current.downcast_ref::<Refused>() {
            return Unsent::Refused(refused.clone());
        }
        source = current.source();
    }
    if error.is_timeout() {
        Unsent::TimedOut
    } else if error.is_connect() {
        Unsent::Unreachable(innermost(&error))
    } else {
        Unsent::Lost(innermost(&error))
    }
}

/// What lies at the bottom of an error: above it is only who passed it on.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string().chars().take(200).collect()
}
