//! A server for tests that answers from a script and remembers what it was asked.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{HeaderMap, Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::cli::client::Client;

/// What the server does with the next request, after it has read the whole of it.
pub enum Step {
    /// Answers with a status, headers and a body.
    Answer(u16, Vec<(&'static str, &'static str)>, Bytes),
    /// Announces a length, sends less, and hangs up.
    BreakOff(usize, Bytes),
    /// Hangs up without a word.
    HangUp,
    /// Never answers.
    Hold,
}

impl Step {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Answer(status, vec![("content-type", "application/json")], body.to_string().into())
    }

    pub fn error(status: u16, headers: Vec<(&'static str, &'static str)>, code: &str) -> Self {
        let body = serde_json::json!({"error": {"message": "it was refused", "type": "t", "param": null, "code": code}});
        Self::Answer(status, headers, body.to_string().into())
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method, path and query: `GET /v1/files?limit=20`.
    pub line: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

#[derive(Default)]
struct State {
    script: VecDeque<Step>,
    seen: Vec<Seen>,
}

/// Listens until it is dropped.
pub struct Server {
    pub url: String,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub async fn start(script: impl IntoIterator<Item = Step>) -> Self {
        let state =
            Arc::new(Mutex::new(State { script: script.into_iter().collect(), seen: Vec::new() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&shared);
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(Arc::clone(&state), request));
                    // A scripted hang-up is an error here, and meant.
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { url, state, accepting }
    }

    /// A client with pauses of milliseconds.
    pub fn client(&self) -> Client {
        let key = Some("sk-test".to_owned().into());
        Client::from_env(Some(self.url.clone()), key)
            .unwrap()
            .paced(Duration::from_millis(2), Duration::from_secs(20))
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> io::Result<Response> {
    let line = format!("{} {}", request.method(), request.uri());
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let step = {
        let mut state = state.lock().unwrap();
        state.seen.push(Seen { line, headers, body });
        state.script.pop_front()
    };
    let response = |status: u16| Response::builder().status(status);
    match step {
        Some(Step::Answer(status, headers, body)) => {
            let response = headers
                .into_iter()
                .fold(response(status), |response, (name, value)| response.header(name, value));
            Ok(response.body(Body::from(body)).unwrap())
        }
        Some(Step::BreakOff(length, body)) => {
            let chunks = [Ok(body), Err(io::Error::other("broken off"))];
            let body = Body::from_stream(futures_util::stream::iter(chunks));
            Ok(response(200).header("content-length", length).body(body).unwrap())
        }
        Some(Step::HangUp) => Err(io::Error::other("hung up")),
        Some(Step::Hold) => std::future::pending().await,
        None => Ok(response(599).body(Body::from("nobody scripted this call")).unwrap()),
    }
}

/// A sink whose content can be looked at while somebody else writes to it.
#[derive(Clone, Default)]
pub struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes()).unwrap()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
