//! What providers tell by their own webhooks: it saves the wait for the next look, and nothing more is believed of it.

use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::BatchEnd;
use longshore::sandbox::BatchState;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Webhook;
use longshore::webhooks::signature;
use secrecy::SecretString;
use serde_json::Value;
use serde_json::json;

use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::answer;
use crate::support::batches::run;
use crate::support::eventually;
use crate::support::now;

const SECRET: &str = "whsec_cHJvdmlkZXItZXZlbnRzLWNhbmFyeQ==";
const PATIENCE: Duration = Duration::from_secs(30);

/// An installation that looks rarely, and whose provider tells of what ends if `is_told`.
async fn rarely_looking(kind: Kind, is_told: bool) -> Env {
    let provider = format!("webhook_secret = \"{SECRET}\"");
    let env = Env::with(Options { provider, models: &["a"], ..Options::on(kind) }).await;
    if is_told {
        let url = format!("{}/v1/provider_events/at-a", env.client.base);
        let mut settings = env.sandbox.settings("a");
        settings.webhook = Some(Webhook { url, secret: SECRET.to_owned() });
        env.sandbox.configure("a", settings);
    }
    env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
    env
}

/// A batch that is at its provider, and what it is called there.
async fn submitted(env: &Env) -> (Value, String) {
    let file = env.client.upload_requests(&["a"], 1).await;
    let batch = env.client.batch_on(&file).await;
    let shown = env
        .client
        .batch_when(&batch, |batch| !run(batch, "a")["provider_batch_id"].is_null())
        .await;
    let there = run(&shown, "a")["provider_batch_id"].as_str().unwrap().to_owned();
    (batch, there)
}

/// Sends an event, signed as of `age` ago with `secret`.
async fn send(env: &Env, id: &str, secret: &str, age: i64, body: &Value) -> (u16, Value) {
    let at = now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 - age;
    let body = body.to_string();
    let secret = SecretString::from(secret);
    let signed = signature::sign([&secret], id, at, body.as_bytes());
    let request = env
        .client
        .http
        .post(format!("{}/v1/provider_events/at-a", env.client.base))
        .header("webhook-id", id)
        .header("webhook-timestamp", at.to_string())
        .header("webhook-signature", signed)
        .body(body);
    answer(request.send().await.unwrap()).await
}

fn completed(batch: &str) -> Value {
    json!({"id": "evt_1", "object": "event", "type": "batch.completed", "created_at": 1, "data": {"id": batch}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_the_provider_tells_is_seen_at_once() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = rarely_looking(kind, true).await;
        let (batch, there) = submitted(&env).await;
        let begun = Instant::now();
        env.sandbox.end_batch("a", &there, BatchEnd::Completed).unwrap();
        assert_eq!(env.client.batch_ended(&batch).await["status"], "completed");
        // The first look by itself would be after half a minute.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_comes_before_the_create_is_answered_is_not_lost() {
    let env = rarely_looking(Kind::Sqlite, true).await;
    env.treat_batches("a", |batches| batches.hold_at = None);
    let hold = Fault::Hold { hold_before: false };
    env.spoil_as("a", FaultRule::new(Operation::CreateBatch, hold));
    let file = env.client.upload_requests(&["a"], 1).await;
    let batch = env.client.batch_on(&file).await;
    env.held("a", 1).await;
    eventually(PATIENCE, async || {
        let come = "SELECT count(*) FROM provider_events";
        (env.database.count(come).await == 1).then_some(())
    })
    .await;
    let begun = Instant::now();
    env.sandbox.release("a");
    assert_eq!(env.client.batch_ended(&batch).await["status"], "completed");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_believed_only_with_a_signature_and_says_nothing_that_is_not_looked_at() {
    let env = rarely_looking(Kind::Sqlite, false).await;
    let (batch, there) = submitted(&env).await;
    let event = completed(&there);
    for (secret, age) in [("whsec_Zm9yZ2Vk", 0), (SECRET, 301), (SECRET, -301)] {
        let (status, answer) = send(&env, "wh_1", secret, age, &event).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_event")), "{answer}");
    }
    assert_eq!(env.database.count("SELECT count(*) FROM provider_events").await, 0);

    // The batch has not ended, whatever is said; and each event counts once.
    let looks = env.calls("a", Operation::GetBatch);
    for _ in 0..3 {
        assert_eq!(send(&env, "wh_1", SECRET, 0, &event).await.0, 200);
    }
    eventually(PATIENCE, async || (env.calls("a", Operation::GetBatch) > looks).then_some(()))
        .await;
    let status = &env.client.batch(&batch).await["status"];
    assert!(status == "validating" || status == "in_progress", "{status}");
    assert_eq!(env.database.count("SELECT count(*) FROM provider_events").await, 1);

    for other in [
        json!({"type": "response.completed", "data": {"id": "resp_1"}}),
        json!({"type": "batch.completed"}),
        completed("batch_nobodys"),
    ] {
        assert_eq!(
            send(&env, &other.to_string().len().to_string(), SECRET, 0, &other).await.0,
            200
        );
    }
    assert_eq!(send(&env, "wh_2", SECRET, 0, &json!([])).await.0, 400);
    let long = json!({"type": "batch.completed", "data": {"id": "x".repeat(70_000)}});
    assert_eq!(send(&env, "wh_3", SECRET, 0, &long).await.0, 413);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_without_a_secret_has_no_such_path() {
    let env = Env::start().await;
    let (status, answer) = send(&env, "wh_1", SECRET, 0, &completed("batch_1")).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("not_found")));
}
