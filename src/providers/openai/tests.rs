//! The driver against a server on a real socket, which answers, lies, falls silent and hangs up.

mod batches;
mod files;
mod server;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::server::{Server, Step, ok, reply};
use super::*;
use crate::providers::{ByteStream, SentWhole};

const FILE: &str = include_str!("fixtures/openai-file-object.json");
const KEY: &str = "sk-test-000";
/// Of silence in these tests: long enough for a busy machine, short enough to wait for.
const SILENCE: Duration = Duration::from_millis(400);
const OUTAGE: ErrorKind = ErrorKind::Outage { retry_after: None };

fn settings(base_url: &str) -> Settings {
    Settings {
        name: "openai".to_owned(),
        base_url: base_url.to_owned(),
        api_key: SecretString::from(KEY),
        timeout: SILENCE,
    }
}

fn openai(server: &Server) -> OpenAi {
    let limits = Limits { silence: SILENCE, answer: SILENCE * 2, create: SILENCE * 3 };
    OpenAi::with_limits(settings(&server.base_url), limits).unwrap()
}

fn id(text: &str) -> ProviderFileId {
    ProviderFileId(text.to_owned())
}

fn body(content: &'static [u8]) -> ByteStream {
    stream::iter([Ok(Bytes::from_static(content))]).boxed()
}

fn upload(bytes: u64, body: ByteStream) -> Upload {
    Upload {
        filename: "in.jsonl".to_owned(),
        content_type: "application/jsonl".to_owned(),
        purpose: "batch".to_owned(),
        bytes,
        expires_after: None,
        body,
        sent: SentWhole::default(),
    }
}

#[tokio::test]
async fn every_documented_error_is_classified() {
    let rate = |milliseconds| ErrorKind::RateLimited { retry_after: milliseconds };
    let ms = |milliseconds| Some(Duration::from_millis(milliseconds));
    for (fixture, kind, code) in [
        (
            include_str!("fixtures/openai-error-auth.json"),
            ErrorKind::CredentialRejected,
            Some("invalid_api_key"),
        ),
        (
            include_str!("fixtures/openai-error-credit-exhausted.json"),
            ErrorKind::OutOfMoney,
            Some("credit_balance_exhausted"),
        ),
        (include_str!("fixtures/openai-error-download-forbidden.json"), ErrorKind::Rejected, None),
        (include_str!("fixtures/openai-error-file-too-large.json"), ErrorKind::Rejected, None),
        (include_str!("fixtures/openai-error-not-found.json"), ErrorKind::NotFound, None),
        (include_str!("fixtures/openai-error-not-jsonl.json"), ErrorKind::Rejected, None),
        (
            include_str!("fixtures/openai-error-overloaded.json"),
            OUTAGE,
            Some("server_is_overloaded"),
        ),
        (
            include_str!("fixtures/openai-error-project-spend-limit.json"),
            ErrorKind::OutOfMoney,
            Some("project_spend_limit_exceeded"),
        ),
        (
            include_str!("fixtures/openai-error-rate-limit.json"),
            rate(ms(6500)),
            Some("rate_limit_exceeded"),
        ),
        (include_str!("fixtures/openai-error-server.json"), OUTAGE, None),
        (include_str!("fixtures/openai-error-slow-down.json"), rate(ms(30_000)), Some("slow_down")),
    ] {
        let fixture: Value = serde_json::from_str(fixture).unwrap();
        let headers: Vec<_> = fixture["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
            .collect();
        let status = fixture["status"].as_u64().unwrap() as u16;
        let server =
            Server::start([Step::Answer(reply(status, &headers, &fixture["body"].to_string()))])
                .await;

        let error = openai(&server).file(&id("file-gone")).await.unwrap_err();
        let message = fixture["body"]["error"]["message"].as_str().unwrap();
        assert_eq!(
            error,
            ProviderError {
                kind,
                outcome_unknown: false,
                message: format!("openai answered {status}: {message}"),
                http_status: Some(status),
                provider_code: code.map(str::to_owned),
                provider_request_id: Some(
                    fixture["headers"]["x-request-id"].as_str().unwrap().to_owned()
                ),
            }
        );
    }
}

#[tokio::test]
async fn an_outage_keeps_the_wait_that_the_provider_asked_for_and_ignores_should_retry() {
    let answer = reply(503, &[("retry-after", "12"), ("x-should-retry", "false")], "");
    let server = Server::start([Step::Answer(answer)]).await;
    let error = openai(&server).file(&id("f")).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(12)));
    assert!(error.is_transient());
}

#[tokio::test]
async fn the_key_is_taken_out_of_everything_that_comes_back() {
    let echo = json!({"error": {"message": format!("bad key {KEY}"), "type": "t", "code": KEY}})
        .to_string();
    let server = Server::start([Step::Answer(reply(400, &[("x-request-id", KEY)], &echo))]).await;
    let error = openai(&server).file(&id("f")).await.unwrap_err();
    assert_eq!(error.message, "openai answered 400: bad key [redacted]");
    assert!(!format!("{error:?}").contains(KEY));
    assert!(!format!("{:?}", settings("http://localhost")).contains(KEY));
}

#[tokio::test]
async fn calls_that_create_nothing_fail_without_doubt_and_without_waiting_for_ever() {
    let page = format!("{{\"data\":[],\"x\":\"{}\"}}", "x".repeat(MAX_OBJECT_BYTES));
    let location = [("location", "http://127.0.0.1:1/elsewhere")];
    for (what, step, kind) in [
        ("lost", Step::HangUp, OUTAGE),
        ("silence", Step::Silence, OUTAGE),
        ("a drip", Step::Drip, OUTAGE),
        ("HTML", Step::Answer(ok("<html>")), ErrorKind::Garbled),
        ("nothing", Step::Answer(ok("")), ErrorKind::Garbled),
        ("too much", Step::Answer(ok(&page)), ErrorKind::Garbled),
        ("another file", Step::Answer(ok(FILE)), ErrorKind::Garbled),
        ("a redirect", Step::Answer(reply(302, &location, "")), ErrorKind::Rejected),
        ("a dripping error", Step::DripError, OUTAGE),
    ] {
        let server = Server::start([step]).await;
        let asked = Instant::now();
        let error = openai(&server).file(&id("f")).await.unwrap_err();
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert!(!error.outcome_unknown, "{what}");
        assert!(asked.elapsed() < SILENCE * 10, "{what}");
    }
}

#[tokio::test]
async fn operators_see_each_call_and_its_bytes_but_nothing_of_what_was_said() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let (traces, writer) = Traces::new();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(writer)
        .finish();
    let _recording = metrics::set_default_local_recorder(&recorder);
    // While there is one subscriber, an event first met on the thread of another test is off everywhere.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _tracing = tracing::subscriber::set_default(subscriber);

    let server =
        Server::start([Step::Answer(ok(FILE)), Step::Answer(reply(429, &[], FILE)), Step::HangUp])
            .await;
    let openai = openai(&server);
    openai.upload_file(upload(20, body(b"{\"secret\":\"content\"}"))).await.unwrap();
    openai.file(&id("f")).await.unwrap_err();
    openai.delete_file(&id("f")).await.unwrap_err();

    let metrics = metrics.render();
    for line in [
        r#"longshore_provider_calls_total{provider="openai",operation="upload_file",status="200"} 1"#,
        r#"longshore_provider_calls_total{provider="openai",operation="file",status="429"} 1"#,
        r#"longshore_provider_calls_total{provider="openai",operation="delete_file",status="error"} 1"#,
        r#"longshore_provider_call_seconds_count{provider="openai",operation="upload_file"} 1"#,
        &format!(
            r#"longshore_provider_bytes_total{{provider="openai",direction="received"}} {}"#,
            FILE.len()
        ),
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }

    let traces = traces.text();
    assert_eq!(traces.matches("called `openai`").count(), 3, "{traces}");
    assert!(
        traces.contains("status=429") && traces.contains(r#"provider.name=openai"#),
        "{traces}"
    );
    for secret in [KEY, "secret", "tickets"] {
        assert!(!traces.contains(secret) && !metrics.contains(secret), "{secret}\n{traces}");
    }
}

/// What was traced, as text.
#[derive(Clone, Default)]
struct Traces(Arc<Mutex<Vec<u8>>>);

impl Traces {
    fn new() -> (Self, impl Fn() -> Self) {
        let traces = Self::default();
        (traces.clone(), move || traces.clone())
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Traces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn settings_that_cannot_work_are_refused_at_once_without_showing_secrets() {
    let refused = |settings| OpenAi::new(settings).err().unwrap().to_string();
    for bad in [
        "",
        "api.openai.com",
        "ftp://x/v1",
        "http://u:hunter2@x/v1",
        "https://x/v1?hunter2",
        "https://x/#hunter2",
    ] {
        let message = refused(settings(bad));
        assert!(
            message.contains("`base_url` of provider `openai`") && !message.contains("hunter2"),
            "{message}"
        );
    }
    for bad in ["", "sk hunter2", "hunter2\n", "hunter2é"] {
        let message =
            refused(Settings { api_key: SecretString::from(bad), ..settings("http://x") });
        assert!(message.contains("`api_key`") && !message.contains("hunter2"), "{message}");
    }
    assert!(bearer(&SecretString::from(KEY)).unwrap().is_sensitive());
    let message = refused(Settings { timeout: Duration::ZERO, ..settings("http://x") });
    assert!(message.contains("`timeout`"), "{message}");
}

#[test]
fn any_wait_can_be_configured() {
    for silence in [Duration::from_nanos(1), Duration::from_secs(120), Duration::MAX] {
        let Limits { answer, .. } = Limits::of_silence(silence);
        assert!(answer >= Duration::from_mins(1) && answer >= silence);
    }
}

#[test]
fn only_content_that_openai_gives_back_counts_as_readable() {
    for purpose in ["batch", "batch_output", "fine-tune", "fine-tune-results"] {
        assert!(CAPABILITIES.content_readable(purpose), "{purpose}");
    }
    for purpose in ["user_data", "vision", "assistants", "", "something-new"] {
        assert!(!CAPABILITIES.content_readable(purpose), "{purpose}");
    }
}

#[tokio::test]
async fn a_check_asks_for_one_file_and_tells_how_far_the_clocks_are_apart() {
    let empty = include_str!("fixtures/openai-file-list-empty.json");
    let long_ago = [("date", "Sun, 06 Nov 1994 08:49:37 GMT")];
    let script = [
        Step::Answer(ok(empty)),
        Step::Answer(reply(200, &long_ago, empty)),
        Step::Answer(ok("{\"hello\": 1}")),
        Step::Answer(reply(401, &[], &format!("{{\"error\": {{\"message\": \"not {KEY}\"}}}}"))),
    ];
    let mut server = Server::start(script).await;
    let openai = openai(&server);
    assert_eq!(openai.check().await, Ok(Contact { clock_ahead: None }));
    assert_eq!(server.seen().await.line, "GET /v1/files?limit=1 HTTP/1.1");
    let ahead = openai.check().await.unwrap().clock_ahead.unwrap();
    assert!(ahead > 1_000_000_000, "{ahead} s");
    assert_eq!(openai.check().await.unwrap_err().kind, ErrorKind::Garbled);
    let refused = openai.check().await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::CredentialRejected);
    assert!(!refused.message.contains(KEY), "{refused}");
}
