//! The running sandbox as its clients see it.

mod batches;
mod driver;
mod faults;
mod files;
mod script;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::multipart::{Form, Part};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::answer::Closed;
use super::*;

const LINE: &str = "{\"custom_id\":\"t-1\"}\n";

/// A sandbox and a client of its account `blue`.
struct Blue {
    sandbox: Sandbox,
    client: Client,
}

impl Blue {
    fn start() -> Self {
        let sandbox = Sandbox::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let client = Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
        Self { sandbox, client }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.sandbox.base_url("blue"))
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path)).bearer_auth("sk-test")
    }

    fn delete(&self, id: &str) -> RequestBuilder {
        self.client.delete(self.url(&format!("/files/{id}"))).bearer_auth("sk-test")
    }

    fn post(&self, form: Form) -> RequestBuilder {
        self.client.post(self.url("/files")).bearer_auth("sk-test").multipart(form)
    }

    fn upload(
        &self,
        filename: &str,
        purpose: &'static str,
        content: &'static str,
    ) -> RequestBuilder {
        self.post(form(filename, purpose, content))
    }

    /// Uploads a batch file and gives its id.
    async fn uploaded(&self, filename: &str) -> String {
        let file = json(self.upload(filename, "batch", LINE)).await;
        file["id"].as_str().unwrap().to_owned()
    }

    fn configure(&self, settings: Settings) {
        self.sandbox.configure("blue", settings);
    }

    fn fault(&self, on: Operation, fault: Fault) {
        self.sandbox.add_fault("blue", FaultRule::new(on, fault)).unwrap();
    }

    async fn reached(&self, on: Operation, count: u64) {
        within(self.sandbox.reached("blue", on, count)).await;
    }

    async fn held(&self, count: u64) {
        eventually(|| self.sandbox.stats("blue").held == count).await;
    }

    fn live_names(&self) -> Vec<String> {
        self.sandbox.live_files("blue").into_iter().map(|file| file.filename).collect()
    }

    fn last_call(&self) -> Call {
        self.sandbox.calls("blue").pop().unwrap()
    }

    /// Sends raw bytes on a connection of its own.
    async fn dial(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.sandbox.local_addr()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }
}

fn form(filename: &str, purpose: &'static str, content: &'static str) -> Form {
    let part = Part::text(content).file_name(filename.to_owned());
    Form::new().text("purpose", purpose).part("file", part)
}

async fn json(request: RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert!(status.is_success(), "{status}: {body}");
    body
}

/// The status and the `error` object of a refused request.
async fn error(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    assert!(response.headers().contains_key("x-request-id"));
    let status = response.status().as_u16();
    let mut body: Value = response.json().await.unwrap();
    (status, body["error"].take())
}

async fn status(request: RequestBuilder) -> u16 {
    request.send().await.unwrap().status().as_u16()
}

async fn text(response: Response) -> String {
    response.text().await.unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

async fn eventually(holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Everything until the other side closes, which may also be by a reset.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut received = Vec::new();
    within(async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            received.extend_from_slice(&buffer[..count]);
        }
    })
    .await;
    String::from_utf8(received).unwrap()
}
