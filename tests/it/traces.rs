//! Traces, as a collector sees them.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::Operation;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::Client;
use crate::support::Collector;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::Receiver;
use crate::support::Redis;
use crate::support::Reply;
use crate::support::answer;
use crate::support::batches::WATCHFUL;
use crate::support::collector::CLIENT;
use crate::support::collector::CONSUMER;
use crate::support::collector::Received;
use crate::support::collector::SERVER;
use crate::support::eventually;

/// The trace and the span of a client that asks.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn traceparent(is_sampled: bool) -> String {
    format!("00-{TRACE}-{SPAN}-0{}", u8::from(is_sampled))
}

/// `POST path` as a part of a client's trace.
async fn post(client: &Client, path: &str, traceparent: &str, body: Value) -> Value {
    let request = client.request(Method::POST, path).header("traceparent", traceparent);
    let (status, answer) = answer(request.json(&body).send().await.unwrap()).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// Uploads a file as a part of a client's trace.
async fn upload(client: &Client, models: &[&str], traceparent: &str) -> Value {
    let content = b"content canary\n".to_vec();
    let part = Part { filename: "canary-of-a-name.txt", purpose: "user_data", models, content };
    let request = client.request(Method::POST, "/v1/files").header("traceparent", traceparent);
    let (status, file) = answer(request.multipart(Client::form(part)).send().await.unwrap()).await;
    assert_eq!(status, 200, "{file}");
    file
}

fn id(thing: &Value) -> &str {
    thing["id"].as_str().unwrap()
}

fn named<'s>(spans: &'s [Received], name: &str) -> Vec<&'s Received> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn only<'s>(spans: &'s [Received], name: &str) -> &'s Received {
    let named = named(spans, name);
    assert_eq!(named.len(), 1, "{name}: {spans:#?}");
    named[0]
}

/// A file that meets a failing provider on its way is one trace, from its client to each provider.
async fn an_upload_is_one_trace(kind: Kind, redis: &str) {
    let collector = Collector::start().await;
    let extra = format!("{}{redis}", collector.section());
    let mut crew = Crew::with(Options { extra, lease: "20s", ..Options::on(kind) }).await;
    // It says that it did not take it: the next attempt need not look for it.
    crew.env.spoil("a", Fault::status(503, json!({})));
    let file = upload(&crew.env.client, &["a", "b"], &traceparent(true)).await;
    assert_eq!(crew.env.client.settled(id(&file)).await["status"], "processed");
    let spans = collector.trace(TRACE, |spans| {
        named(spans, "upload_file").len() == 3 && !named(spans, "POST /v1/files").is_empty()
    });
    let spans = spans.await;

    let request = only(&spans, "POST /v1/files");
    assert_eq!((request.kind, request.parent.as_str()), (SERVER, SPAN));
    assert_eq!(request.get("http.request.method"), "POST");
    assert_eq!(request.get("http.route"), "/v1/files");
    assert_eq!(request.get("http.response.status_code"), "200");
    assert!(!request.has_failed);
    assert!(named(&spans, "commit").iter().all(|commit| commit.parent == request.id));
    assert_eq!(only(&spans, "finish blob").parent, request.id);

    let attempts = named(&spans, "upload_file");
    for attempt in &attempts {
        assert_eq!((attempt.kind, &attempt.parent), (CONSUMER, &request.id));
        assert_eq!(attempt.instance == request.instance, kind == Kind::Sqlite);
        assert_eq!(attempt.get("owner.id"), "alice");
        let calls: Vec<_> = spans.iter().filter(|span| span.parent == attempt.id).collect();
        assert_eq!(calls.len(), 1, "{spans:#?}");
        let call = calls[0];
        assert_eq!((call.kind, call.name.as_str()), (CLIENT, "POST upload_file"));
        assert_eq!(call.get("server.address"), "127.0.0.1");
        let lane = format!("provider:{}", call.get("provider.name"));
        assert_eq!(attempt.get("job.lane"), lane);
        let is_repeated = attempt.get("job.epoch") != "1";
        // The attempt that found the outage is spent, and so the probe is the second.
        let resends = if is_repeated { "1" } else { "" };
        assert_eq!(call.get("http.request.resend_count"), resends);
        let is_spoilt = lane == "provider:at-a" && !is_repeated;
        let (status, outcome) = if is_spoilt { ("503", "retried") } else { ("200", "succeeded") };
        assert_eq!(call.get("http.response.status_code"), status);
        assert_eq!(attempt.get("job.outcome"), outcome);
        assert_eq!((attempt.has_failed, call.has_failed), (is_spoilt, is_spoilt));
    }

    // Both logs lead there.
    let leads =
        |log: &str, text: &str| log.lines().any(|line| line.contains(text) && line.contains(TRACE));
    assert!(leads(&crew.env.server.log(), "accepted file"));
    eventually(Duration::from_secs(10), async || {
        leads(&crew.worker().log(), "job succeeded").then_some(())
    })
    .await;
    assert!(!collector.bodies().contains("canary"), "more is told than it should be");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_one_trace_in_one_process() {
    an_upload_is_one_trace(Kind::Sqlite, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_is_one_trace_over_two_processes() {
    let redis = Redis::running();
    let table = format!("[redis]\nurl = \"{}\"\n", redis.url());
    an_upload_is_one_trace(Kind::Postgres, &table).await;
}

/// From the request to the webhook that tells of the end; looks that see nothing new are no part of it.
async fn a_batch_is_one_trace(kind: Kind) {
    let (collector, receiver) = (Collector::start().await, Receiver::start().await);
    let extra =
        format!("{}{WATCHFUL}[webhooks]\nallow_private_addresses = true\n", collector.section());
    let mut crew = Crew::with(Options { extra, lease: "20s", ..Options::on(kind) }).await;
    let client = crew.env.client.clone();
    let hook = json!({"name": "h", "url": receiver.url(), "event_types": ["batch.completed"]});
    post(&client, "/v1/webhook_endpoints", "nonsense", hook).await;
    crew.env.treat_batches("a", |batches| batches.phase_ms = 1000);
    let file = client.upload_requests(&["a"], 3).await;
    client.settled(id(&file)).await;
    let asked = json!({"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let batch = post(&client, "/v1/batches", &traceparent(true), asked).await;
    assert_eq!(client.batch_ended(&batch).await["status"], "completed");
    let delivered = receiver.received(1).await;
    for header in ["traceparent", "tracestate", "baggage"] {
        assert!(!delivered[0].headers.contains_key(header), "{header} was sent to a webhook");
    }
    crew.worker().terminate();
    let spans = collector
        .trace(TRACE, |spans| {
            !named(spans, "POST webhook").is_empty() && !named(spans, "POST /v1/batches").is_empty()
        })
        .await;

    let request = only(&spans, "POST /v1/batches");
    assert_eq!(request.parent, SPAN);
    let submit = only(&spans, "submit_batch");
    assert_eq!((submit.kind, &submit.parent), (CONSUMER, &request.id));
    assert_eq!(only(&spans, "POST create_batch").parent, submit.id);
    let ingest = only(&spans, "ingest_batch");
    let looks = named(&spans, "watch_batch");
    let look = looks.iter().find(|look| look.id == ingest.parent).expect("a look that saw the end");
    assert_eq!((look.kind, &look.parent), (CONSUMER, &request.id));
    assert_eq!(look.get("batch.provider_status"), "completed");
    // It was looked at more often than it went from one state to another.
    let mut states: Vec<_> = looks.iter().map(|look| look.get("batch.provider_status")).collect();
    states.sort_unstable();
    states.dedup();
    assert_eq!(states.len(), looks.len(), "{looks:#?}");
    assert!(crew.env.calls("a", Operation::GetBatch) > looks.len() as u64);
    assert_eq!(only(&spans, "GET file_content").parent, ingest.id);
    let delivery = only(&spans, "deliver_webhook");
    assert_eq!((delivery.kind, &delivery.parent), (CONSUMER, &ingest.id));
    let call = only(&spans, "POST webhook");
    assert_eq!((call.kind, &call.parent), (CLIENT, &delivery.id));
    assert_eq!(call.get("http.response.status_code"), "200");
    // What said nonsense began a trace of its own, and no trace has the watch itself.
    let all = collector.spans();
    assert!(only(&all, "POST /v1/webhook_endpoints").parent.is_empty());
    assert_eq!(named(&all, "watch_batch").len(), looks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_one_trace_in_one_process() {
    a_batch_is_one_trace(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_one_trace_over_two_processes() {
    a_batch_is_one_trace(Kind::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deletes_of_a_sweep_are_traces_of_their_own_that_lead_back_to_it() {
    let collector = Collector::start().await;
    let env = Env::with(Options { extra: collector.section(), ..Options::default() }).await;
    for _ in 0..3 {
        let file = env.client.upload(&["a"]).await;
        env.client.settled(id(&file)).await;
    }
    let sweep = post(&env.client, "/v1/sweeps", &traceparent(true), json!({"all": true})).await;
    let path = format!("/v1/sweeps/{}?wait=10", id(&sweep));
    eventually(Duration::from_secs(60), async || {
        (env.client.get(&path).await.1["status"] == "succeeded").then_some(())
    })
    .await;
    let spans = collector.trace(TRACE, |spans| !named(spans, "sweep").is_empty()).await;
    assert!(named(&spans, "delete_file").is_empty(), "{spans:#?}");
    let sweeps: Vec<_> = named(&spans, "sweep").iter().map(|span| span.id.clone()).collect();
    let deletes = eventually(Duration::from_secs(30), async || {
        let mut spans = collector.spans();
        spans.retain(|span| span.name == "delete_file");
        // One that comes too soon after the upload is repeated.
        let done = spans.iter().filter(|span| span.get("job.outcome") == "succeeded").count();
        (done == 3).then_some(spans)
    })
    .await;
    for delete in deletes {
        assert!(delete.parent.is_empty());
        assert_eq!(delete.links.len(), 1);
        assert!(sweeps.contains(&delete.links[0]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_trace_is_sent_to_a_provider() {
    let (collector, provider) =
        (Collector::start().await, Receiver::answering(Reply::Status(400)).await);
    let options = Options { extra: collector.section(), models: &["a"], ..Options::default() };
    let mut env = Env::with(options).await;
    env.server.terminate();
    let (sandbox, other) = (env.sandbox.base_url("a"), format!("{}/v1", provider.base));
    env.reconfigure(|text| text.replace(&sandbox, &other));
    env.restart();
    upload(&env.client, &["a"], &traceparent(true)).await;
    let called = provider.received(1).await;
    assert_eq!(called[0].path, "/v1/files");
    for header in ["traceparent", "tracestate", "baggage"] {
        assert!(!called[0].headers.contains_key(header), "{header} was sent to a provider");
    }
    collector.trace(TRACE, |spans| !named(spans, "POST upload_file").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_nothing_is_traced_or_stored() {
    let env = Env::start().await;
    let file = upload(&env.client, &["a"], &traceparent(true)).await;
    env.client.settled(id(&file)).await;
    let stored = "SELECT COUNT(*) FROM jobs WHERE traceparent IS NOT NULL";
    assert_eq!(env.database.count(stored).await, 0);
    assert!(!env.server.log().contains(TRACE), "{}", env.server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_traces_that_begin_here_as_many_are_sent_as_configured_and_all_that_clients_send() {
    let collector = Collector::start().await;
    let extra = format!("{}sample_ratio = 0\n", collector.section());
    let env = Env::with(Options { extra, ..Options::default() }).await;
    let unsampled = TRACE.replace('4', "5");
    let said = format!("00-{unsampled}-{SPAN}-00");
    for file in [env.client.upload(&["a"]).await, upload(&env.client, &["a"], &said).await] {
        env.client.settled(id(&file)).await;
    }
    // Whatever process runs the job is to decide alike.
    let stored = format!("SELECT COUNT(*) FROM jobs WHERE traceparent LIKE '00-{unsampled}-%-00'");
    assert_eq!(env.database.count(&stored).await, 1);
    let file = upload(&env.client, &["a"], &traceparent(true)).await;
    env.client.settled(id(&file)).await;
    collector.trace(TRACE, |spans| !named(spans, "POST upload_file").is_empty()).await;
    assert!(collector.spans().iter().all(|span| span.trace == TRACE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_to_be_sent_is_sent_at_the_end_of_the_process() {
    let collector = Collector::start().await;
    let mut env = Env::with(Options { extra: collector.section(), ..Options::default() }).await;
    let file = upload(&env.client, &["a"], &traceparent(true)).await;
    env.client.settled(id(&file)).await;
    let (status, _) = env.server.terminate();
    assert!(status.success());
    let spans = collector.spans();
    only(&spans, "POST /v1/files");
    only(&spans, "upload_file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_holds_up_neither_work_nor_the_end_of_the_process() {
    let collector = Collector::answering(Reply::Hang).await;
    let options = Options { extra: collector.section(), drain: "1s", ..Options::default() };
    let mut env = Env::with(options).await;
    for _ in 0..2 {
        let file = env.client.upload(&["a", "b", "c"]).await;
        assert_eq!(env.client.settled(id(&file)).await["status"], "processed");
        // Now it waits for an answer that never comes.
        collector.0.received(1).await;
    }
    let (status, took) = env.server.terminate();
    assert!(status.success());
    assert!(took < Duration::from_secs(25), "it took {took:?}");
    // What is left of the time to drain, and of the second and a half behind it.
    let (_, log) = env.server.all();
    let (_, given) = log.split_once("the last traces were not sent within ").unwrap();
    let given: u32 = given.split_once(" ms").unwrap().0.parse().unwrap();
    assert!(given <= 2500, "{given} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_refuses_is_counted_and_said_once() {
    let begun = std::time::Instant::now();
    let collector = Collector::answering(Reply::Status(500)).await;
    let mut env = Env::with(Options { extra: collector.section(), ..Options::default() }).await;
    for number in 1..=3 {
        let file = env.client.upload(&["a"]).await;
        assert_eq!(env.client.settled(id(&file)).await["status"], "processed");
        collector.0.received(number).await;
    }
    let admin = env.as_key(ADMIN_KEY);
    eventually(Duration::from_secs(20), async || {
        let (_, metrics) = admin.get("/metrics").await;
        let counted = "longshore_spans_dropped_total{reason=\"refused\"}";
        metrics.as_str().unwrap().contains(counted).then_some(())
    })
    .await;
    collector.0.answer(Reply::Status(200));
    eventually(Duration::from_secs(20), async || {
        env.client.upload(&["a"]).await;
        env.server.log().contains("traces reach their collector again").then_some(())
    })
    .await;
    env.server.terminate();
    let (_, log) = env.server.all();
    let said = log.matches("does not take them").count() as u64;
    // Once a minute.
    assert!((1..=1 + begun.elapsed().as_secs() / 60).contains(&said), "{said} times:\n{log}");
}
