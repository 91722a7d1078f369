//! Batches: created once, looked at, listed and cancelled.

use super::server::Server;
use super::server::Step;
use super::server::ok;
use super::server::reply;
use super::*;
use crate::providers::RemoteBatchError;

const BATCH: &str = include_str!("../fixtures/openai-batch-validating.json");
const COMPLETED: &str = include_str!("../fixtures/openai-batch-completed.json");
const CANCELLING: &str = include_str!("../fixtures/openai-batch-cancelling.json");

fn batch_id(text: &str) -> ProviderBatchId {
    ProviderBatchId(text.to_owned())
}

/// The id in the fixtures.
fn documented() -> ProviderBatchId {
    batch_id("batch_6a41f09c77e84b1d")
}

fn new_batch() -> NewBatch {
    NewBatch {
        input_file_id: id("file-Qm4tZ9wK2bX7"),
        endpoint: "/v1/chat/completions".to_owned(),
        completion_window: "24h".to_owned(),
        marker: "ls-marker".to_owned(),
        output_expires_after: None,
        sent: SentWhole::default(),
    }
}

/// The error of one create at a server that does `step`, and whether the request was sent whole.
async fn failed_create(step: Step) -> (ProviderError, bool) {
    let server = Server::start([step]).await;
    let batch = new_batch();
    let sent = batch.sent.clone();
    let error = openai(&server).create_batch(batch).await.unwrap_err();
    assert!(error.message.len() < 700 && !error.message.contains(KEY), "{error}");
    (error, sent.is_set())
}

#[tokio::test]
async fn a_create_is_exactly_the_documented_request() {
    let mut server = Server::start([Step::Answer(ok(BATCH))]).await;
    let sent = SentWhole::default();
    let created = openai(&server)
        .create_batch(NewBatch {
            output_expires_after: Some(Duration::from_secs(604_800)),
            sent: sent.clone(),
            ..new_batch()
        })
        .await
        .unwrap();
    assert_eq!((created.id, created.state), (documented(), RemoteBatchState::Validating));
    assert!(sent.is_set());

    let request = server.seen().await;
    assert_eq!(request.line, "POST /v1/batches HTTP/1.1");
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("authorization"), Some("Bearer sk-test-000"));
    assert_eq!(request.header("transfer-encoding"), None);
    let documented = include_str!("../fixtures/openai-batch-create.request.json");
    let mut documented: Value = serde_json::from_str(documented).unwrap();
    documented["metadata"] = json!({"longshore": "ls-marker"});
    assert_eq!(serde_json::from_slice::<Value>(&request.body).unwrap(), documented);
}

#[tokio::test]
async fn the_life_of_an_output_is_brought_into_the_limits_of_the_provider() {
    for (life, seconds) in [(None, Value::Null), (Some(1), json!(3600))] {
        let mut server = Server::start([Step::Answer(ok(BATCH))]).await;
        let output_expires_after = life.map(Duration::from_secs);
        openai(&server)
            .create_batch(NewBatch { output_expires_after, ..new_batch() })
            .await
            .unwrap();
        let body: Value = serde_json::from_slice(&server.seen().await.body).unwrap();
        assert_eq!(body["output_expires_after"]["seconds"], seconds);
    }
}

#[tokio::test]
async fn after_a_whole_create_only_a_clear_answer_settles_the_outcome() {
    let raw = |text: &str| Step::Answer(text.as_bytes().to_vec());
    let garbled = ErrorKind::Garbled;
    let table = [
        ("the answer is lost", Step::HangUp, OUTAGE, None),
        ("silence", Step::Silence, OUTAGE, None),
        ("half a head", raw("HTTP/1.1 200 OK\r\ncontent-le"), OUTAGE, None),
        ("HTML", Step::Answer(ok("<html>")), garbled, Some(200)),
        ("nothing", Step::Answer(ok("")), garbled, Some(200)),
        ("no content", Step::Answer(reply(204, &[], "")), garbled, Some(204)),
        ("a file", Step::Answer(ok(FILE)), garbled, Some(200)),
        (
            "half a body",
            raw("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"id\":"),
            garbled,
            Some(200),
        ),
        ("a gateway", Step::Answer(reply(504, &[], "<html>")), OUTAGE, Some(504)),
    ];
    for (what, step, kind, status) in table {
        let (error, sent) = failed_create(step).await;
        assert_eq!((error.kind, error.http_status), (kind, status), "{what}: {error}");
        assert!(sent && error.outcome_unknown, "{what}: {error}");
    }
}

#[tokio::test]
async fn a_create_ends_in_time_however_lively_the_provider_is() {
    for step in [Step::Drip, Step::DripError] {
        let asked = Instant::now();
        let (error, sent) = failed_create(step).await;
        assert_eq!(error.kind, OUTAGE, "{error}");
        assert!(sent && error.outcome_unknown, "{error}");
        assert!(asked.elapsed() < SILENCE * 5);
    }
    assert_eq!(Limits::of_silence(Duration::MAX).create, Duration::from_mins(1));
}

#[tokio::test]
async fn a_create_that_did_not_go_out_whole_is_a_plain_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let openai = OpenAi::new(settings(&format!("http://{address}/v1"))).unwrap();
    let batch = new_batch();
    let sent = batch.sent.clone();
    let error = openai.create_batch(batch).await.unwrap_err();
    assert_eq!(error.kind, OUTAGE);
    assert!(!error.outcome_unknown && !sent.is_set());
}

#[tokio::test]
async fn a_create_that_is_dropped_tells_whether_it_went_out() {
    let mut server = Server::start([Step::Silence]).await;
    let batch = new_batch();
    let sent = batch.sent.clone();
    let openai = openai(&server);
    tokio::select! {
        _ = openai.create_batch(batch) => panic!("nobody answers"),
        request = server.seen() => assert!(request.is_complete()),
    }
    assert!(sent.is_set());

    let batch = new_batch();
    let sent = batch.sent.clone();
    drop(openai.create_batch(batch));
    assert!(!sent.is_set());
}

#[tokio::test]
async fn a_refused_create_is_told_by_its_kind() {
    let rate = ErrorKind::RateLimited { retry_after: None };
    let wait = Some(Duration::from_secs(7));
    let headers: &[(&str, &str)] = &[("retry-after", "7")];
    let table = [
        (429, &[] as &[_], "batch_enqueued_limit_reached", ErrorKind::Capacity),
        (429, &[], "something_new", ErrorKind::Capacity),
        (429, headers, "something_new", ErrorKind::RateLimited { retry_after: wait }),
        (429, &[], "rate_limit_exceeded", rate),
        (429, &[], "insufficient_quota", ErrorKind::OutOfMoney),
        (400, &[], "token_limit_exceeded", ErrorKind::Capacity),
        (400, &[], "invalid_value", ErrorKind::Rejected),
        (404, &[], "not_found", ErrorKind::NotFound),
        (401, &[], "invalid_api_key", ErrorKind::CredentialRejected),
        (503, &[], "server_is_overloaded", OUTAGE),
    ];
    for (status, headers, code, kind) in table {
        let body = json!({"error": {"message": "no", "code": code}}).to_string();
        let (error, _) = failed_create(Step::Answer(reply(status, headers, &body))).await;
        assert_eq!(error.kind, kind, "{status} {code}");
        assert_eq!(error.provider_code.as_deref(), Some(code));
        assert!(!error.outcome_unknown, "{status} {code}");
    }

    // Only of a create is a full queue an answer.
    let body = r#"{"error":{"message":"no","code":"something_new"}}"#;
    let server = Server::start([Step::Answer(reply(429, &[], body))]).await;
    assert_eq!(openai(&server).batch(&batch_id("b")).await.unwrap_err().kind, rate);
}

#[tokio::test]
async fn a_batch_is_looked_at_and_is_the_one_that_was_asked_for() {
    let mut server =
        Server::start([Step::Answer(ok(COMPLETED)), Step::Answer(ok(COMPLETED))]).await;
    let openai = openai(&server);
    let batch = openai.batch(&documented()).await.unwrap();
    assert!(batch.state.is_terminal());
    assert_eq!(server.seen().await.line, "GET /v1/batches/batch_6a41f09c77e84b1d HTTP/1.1");

    let error = openai.batch(&batch_id("batch_other")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Garbled);
    assert!(!error.outcome_unknown);
    for bad in ["", ".", ".."] {
        assert_eq!(openai.batch(&batch_id(bad)).await.unwrap_err().kind, ErrorKind::Rejected);
    }
}

#[tokio::test]
async fn texts_of_a_batch_are_fit_to_be_stored() {
    let body = json!({
        "id": "b", "object": "batch", "status": "fai\u{0}led",
        "errors": {"data": [{"code": "c", "message": format!("key {KEY}\u{0}{}", "x".repeat(900))}]},
    });
    let server = Server::start([Step::Answer(ok(&body.to_string()))]).await;
    let batch = openai(&server).batch(&batch_id("b")).await.unwrap();
    assert_eq!((batch.status.as_str(), batch.state), ("failed", RemoteBatchState::Unknown));
    let [RemoteBatchError { message: Some(message), .. }] = batch.errors.as_slice() else {
        panic!("{batch:?}")
    };
    assert!(message.starts_with("key [redacted]xxx") && message.len() <= 500, "{message}");
}

#[tokio::test]
async fn the_list_is_paged_and_one_that_stands_still_is_refused() {
    let page = include_str!("../fixtures/openai-batch-list.json");
    let more = page.replace("\"has_more\": false", "\"has_more\": true");
    let mut server = Server::start([
        Step::Answer(ok(&more)),
        Step::Answer(ok(page)),
        Step::Answer(ok(&more)),
        Step::Answer(ok(r#"{"data":[{"id":"b"}]}"#)),
    ])
    .await;
    let openai = openai(&server);
    let first = openai.list_batches(None).await.unwrap();
    assert_eq!((first.batches.len(), &first.next), (2, &Some(batch_id("batch_0b22"))));
    assert_eq!(openai.list_batches(first.next.as_ref()).await.unwrap().next, None);
    for _ in ["the same again", "an entry without a status"] {
        let error = openai.list_batches(first.next.as_ref()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Garbled, "{error}");
    }
    assert_eq!(server.seen().await.line, "GET /v1/batches?limit=100 HTTP/1.1");
    assert_eq!(server.seen().await.line, "GET /v1/batches?limit=100&after=batch_0b22 HTTP/1.1");
}

#[tokio::test]
async fn cancelling_tells_what_the_batch_is_afterwards() {
    let mut server = Server::start([Step::Answer(ok(CANCELLING))]).await;
    let batch = openai(&server).cancel_batch(&documented()).await.unwrap();
    assert_eq!(batch.state, RemoteBatchState::Cancelling);
    let request = server.seen().await;
    assert_eq!(request.line, "POST /v1/batches/batch_6a41f09c77e84b1d/cancel HTTP/1.1");
    assert_eq!(
        (request.header("content-length"), request.body.as_slice()),
        (Some("0"), &[] as &[_])
    );

    for status in [400, 409] {
        let refused = || Step::Answer(reply(status, &[], r#"{"error":{"message":"ended"}}"#));
        let server = Server::start([refused(), Step::Answer(ok(COMPLETED))]).await;
        let batch = openai(&server).cancel_batch(&documented()).await.unwrap();
        assert_eq!(batch.state, RemoteBatchState::Completed);

        // It goes on, so that it was refused for another reason.
        let server = Server::start([refused(), Step::Answer(ok(BATCH))]).await;
        let error = openai(&server).cancel_batch(&documented()).await.unwrap_err();
        assert_eq!(error.http_status, Some(status));
    }
    for (status, kind) in [
        (404, ErrorKind::NotFound),
        (401, ErrorKind::CredentialRejected),
        (429, ErrorKind::RateLimited { retry_after: None }),
        (405, ErrorKind::Unsupported),
        (500, OUTAGE),
    ] {
        let server = Server::start([Step::Answer(reply(status, &[], ""))]).await;
        let error = openai(&server).cancel_batch(&documented()).await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(!error.outcome_unknown);
    }
}
