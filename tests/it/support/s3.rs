//! An S3 of a test's own: moto's, which tests/s3 sets up.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::io::BufReader;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;

use super::free_port;

pub const BUCKET: &str = "longshore-test";

/// A running server with one bucket. Gone with the test.
pub struct S3 {
    pub port: u16,
    pub key: Key,
    server: Child,
    http: reqwest::Client,
}

/// What it takes.
#[derive(Clone, Debug, Deserialize)]
pub struct Key {
    pub access_key_id: String,
    pub secret_access_key: String,
}

/// What the bucket holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Held {
    /// The sizes of objects, in bytes.
    pub objects: BTreeMap<String, u64>,
    /// How many parts uploads have that were not ended.
    pub uploads: BTreeMap<String, u64>,
    /// When each object was written.
    pub written_at: BTreeMap<String, String>,
    /// How many uploads in parts were ever begun.
    pub begun: u64,
}

impl Held {
    /// The objects that are bytes of files.
    pub fn files(&self) -> Vec<&str> {
        let names = self.objects.keys().map(String::as_str);
        names.filter(|name| name.contains("uploads/") || name.contains("outputs/")).collect()
    }
}

impl S3 {
    pub fn start() -> Self {
        let python = std::env::var("LONGSHORE_TEST_S3_PYTHON").expect(
            "LONGSHORE_TEST_S3_PYTHON is not set: `bash tests/run.sh` installs an S3 and sets it",
        );
        let port = free_port();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/s3/server.py");
        let mut server = Command::new(python)
            .args([script, &port.to_string(), BUCKET])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let key = serde_json::from_str(&line).expect("the S3 has started");
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "the S3 does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { port, key, server, http }
    }

    /// The settings of a store in it, under a prefix, which is reached by a port.
    pub fn settings(&self, port: u16) -> String {
        let Key { access_key_id, secret_access_key } = &self.key;
        format!(
            "url = \"s3://{BUCKET}/lane/one\"\nendpoint = \"http://127.0.0.1:{port}\"\nregion = \"us-east-1\"\n\
             access_key_id = \"{access_key_id}\"\nsecret_access_key = \"{secret_access_key}\"\nallow_http = true\n"
        )
    }

    /// What the bucket holds.
    pub async fn held(&self) -> Held {
        serde_json::from_str(&self.control("state").await).unwrap()
    }

    /// Makes all that it holds older.
    pub async fn age(&self, by: Duration) {
        self.control(&format!("age?seconds={}", by.as_secs())).await;
    }

    /// Makes one of them older.
    pub async fn age_one(&self, name: &str, by: Duration) {
        self.control(&format!("age?seconds={}&name={name}", by.as_secs())).await;
    }

    /// Makes an object.
    pub async fn put(&self, name: &str) {
        self.control(&format!("put?name={name}")).await;
    }

    /// No object may be deleted any more.
    pub async fn keep(&self) {
        self.control("keep").await;
    }

    /// They may again.
    pub async fn let_go(&self) {
        self.control("let_go").await;
    }

    /// Answers so many writes that must not replace an object as if another one were under way.
    pub async fn conflict(&self, times: u32) {
        self.control(&format!("conflict?times={times}")).await;
    }

    /// There is no such bucket any more.
    pub async fn hide(&self) {
        self.control("hide").await;
    }

    /// There it is again, with all that it held.
    pub async fn show(&self) {
        self.control("show").await;
    }

    async fn control(&self, what: &str) -> String {
        let url = format!("http://127.0.0.1:{}/_test/{what}", self.port);
        let answer = self.http.get(url).send().await.unwrap();
        answer.error_for_status().unwrap().text().await.unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
