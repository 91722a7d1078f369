//! A receiver of webhooks, that answers as it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::Uri;
use axum::http::header::LOCATION;
use axum::response::IntoResponse as _;
use axum::response::Response;
use longshore::clock::Clock;
use longshore::webhooks::signature;
use longshore::webhooks::signature::Forged;
use longshore::webhooks::signature::Signed;
use serde_json::Value;
use tokio::net::TcpListener;

use super::eventually;

/// How it answers.
#[derive(Clone, Debug)]
pub enum Reply {
    Status(u16),
    Redirect(String),
    /// With 200, and then bytes without end.
    Flood,
    /// Never.
    Hang,
}

/// What it was sent.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub at: Instant,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Delivered {
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Whether it was signed, now, with this secret.
    pub fn verify(&self, secret: &str) -> Result<(), Forged> {
        let signed = Signed {
            id: self.header("webhook-id"),
            timestamp: self.header("webhook-timestamp"),
            signature: self.header("webhook-signature"),
        };
        signature::verify([&secret.into()], signed, &self.body, Clock::default().now())
    }
}

#[derive(Clone)]
pub struct Receiver {
    pub base: String,
    state: Arc<Mutex<Told>>,
}

struct Told {
    next: VecDeque<Reply>,
    otherwise: Reply,
    delivered: Vec<Delivered>,
}

impl Receiver {
    /// One that answers 200.
    pub async fn start() -> Self {
        Self::answering(Reply::Status(200)).await
    }

    pub async fn answering(otherwise: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let told = Told { next: VecDeque::new(), otherwise, delivered: Vec::new() };
        let receiver = Self { base, state: Arc::new(Mutex::new(told)) };
        let router = Router::new().fallback(receive).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        receiver
    }

    pub fn url(&self) -> String {
        format!("{}/hook", self.base)
    }

    /// How it answers from now on.
    pub fn answer(&self, reply: Reply) {
        self.state.lock().unwrap().otherwise = reply;
    }

    /// How it answers next, before it goes on as otherwise.
    pub fn answer_next(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state.lock().unwrap().next.extend(replies);
    }

    pub fn delivered(&self) -> Vec<Delivered> {
        self.state.lock().unwrap().delivered.clone()
    }

    /// The deliveries once there are so many.
    pub async fn received(&self, count: usize) -> Vec<Delivered> {
        eventually(Duration::from_secs(30), async || {
            let delivered = self.delivered();
            (delivered.len() >= count).then_some(delivered)
        })
        .await
    }
}

async fn receive(
    State(receiver): State<Receiver>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let reply = {
        let mut told = receiver.state.lock().unwrap();
        let path = uri.path().to_owned();
        told.delivered.push(Delivered { at: Instant::now(), path, headers, body });
        let next = told.next.pop_front();
        next.unwrap_or_else(|| told.otherwise.clone())
    };
    match reply {
        Reply::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Reply::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)]).into_response(),
        Reply::Flood => {
            let chunk = || Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1 << 16]));
            Body::from_stream(futures_util::stream::repeat_with(chunk)).into_response()
        }
        Reply::Hang => std::future::pending().await,
    }
}
