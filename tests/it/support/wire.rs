//! Requests as bytes: forms that no client library would write, and connections that end in the middle.

use std::time::Duration;

use reqwest::RequestBuilder;
use reqwest::header::CONTENT_TYPE;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Client;

const BOUNDARY: &str = "a-boundary-of-the-test";

/// A `multipart/form-data` body, written by hand.
#[derive(Clone, Default)]
pub struct RawForm(pub Vec<u8>);

impl RawForm {
    pub fn new() -> Self {
        Self::default()
    }

    /// A part with this header and content, whatever they are.
    pub fn part(mut self, header: &[u8], content: &[u8]) -> Self {
        self.0.extend_from_slice(format!("--{BOUNDARY}\r\n").as_bytes());
        self.0.extend_from_slice(header);
        self.0.extend_from_slice(b"\r\n\r\n");
        self.0.extend_from_slice(content);
        self.0.extend_from_slice(b"\r\n");
        self
    }

    pub fn field(self, name: &str, value: &str) -> Self {
        let header = format!("Content-Disposition: form-data; name=\"{name}\"");
        self.part(header.as_bytes(), value.as_bytes())
    }

    pub fn file(self, filename: &str, content: &[u8]) -> Self {
        let header =
            format!("Content-Disposition: form-data; name=\"file\"; filename=\"{filename}\"");
        self.part(header.as_bytes(), content)
    }

    /// The body with its closing boundary.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        self.0
    }
}

/// The `Content-Type` of a [`RawForm`].
pub fn form_type() -> String {
    format!("multipart/form-data; boundary={BOUNDARY}")
}

impl Client {
    /// `POST /v1/files` with a body written by hand.
    pub fn raw_upload(&self, body: Vec<u8>) -> RequestBuilder {
        self.request(reqwest::Method::POST, "/v1/files")
            .header(CONTENT_TYPE, form_type())
            .body(body)
    }

    /// The head of `POST /v1/files` as it goes over the wire, for `length` bytes of a form.
    pub fn upload_head(&self, length: usize, more: &str) -> Vec<u8> {
        format!(
            "POST /v1/files HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\nContent-Type: {}\r\n\
             Content-Length: {length}\r\n{more}\r\n",
            self.key,
            form_type()
        )
        .into_bytes()
    }

    /// A connection to the server, without HTTP.
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.base.trim_start_matches("http://")).await.unwrap()
    }

    /// Sends bytes, ends the sending side if `is_over`, and reads whatever comes until the server closes
    /// or has been silent for a while after answering.
    pub async fn converse(&self, bytes: &[u8], is_over: bool) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        if is_over {
            stream.shutdown().await.unwrap();
        }
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let patience = Duration::from_secs(if answer.is_empty() { 20 } else { 1 });
            match tokio::time::timeout(patience, stream.read(&mut buffer)).await {
                Ok(Ok(read)) if read > 0 => answer.extend_from_slice(&buffer[..read]),
                Ok(_) | Err(_) => break,
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    }
}
