//! Webhooks: endpoints, and what they are told.

use std::time::Duration;
use std::time::Instant;

use longshore::webhooks::signature::Forged;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Receiver;
use crate::support::Reply;
use crate::support::answer;
use crate::support::eventually;
use crate::support::run;

const BOTH: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];
const PATIENCE: Duration = Duration::from_secs(30);
const PRIVATE: &str = "[webhooks]\nallow_private_addresses = true\n";

fn options(kind: Kind) -> Options {
    Options { extra: PRIVATE.to_owned(), ..Options::on(kind) }
}

async fn endpoint(client: &Client, url: &str, types: &[&str]) -> Value {
    let asked = json!({"name": "hook", "url": url, "event_types": types});
    let (status, endpoint) = client.post("/v1/webhook_endpoints", asked).await;
    assert_eq!(status, 200, "{endpoint}");
    endpoint
}

fn path(endpoint: &Value) -> String {
    format!("/v1/webhook_endpoints/{}", endpoint["id"].as_str().unwrap())
}

fn secret(endpoint: &Value) -> &str {
    endpoint["signing_secret"].as_str().unwrap()
}

/// The deliveries in the job list, the oldest first.
async fn deliveries(client: &Client) -> Vec<Value> {
    let (status, jobs) = client.get("/v1/jobs?kind=deliver_webhook&order=asc&limit=100").await;
    assert_eq!(status, 200, "{jobs}");
    jobs["data"].as_array().unwrap().clone()
}

/// The deliveries once all have this status.
async fn all_are(client: &Client, count: usize, status: &str) -> Vec<Value> {
    eventually(PATIENCE, async || {
        let jobs = deliveries(client).await;
        let are = jobs.len() == count && jobs.iter().all(|job| job["status"] == status);
        are.then_some(jobs)
    })
    .await
}

/// Brings on what is to be tried again later.
async fn hasten(env: &Env) {
    env.database
        .execute(
            "UPDATE jobs SET run_at = 1 WHERE kind = 'deliver_webhook' AND status = 'retrying'",
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_told_once_of_what_it_listens_to_and_can_check_who_says_it() {
    for kind in BOTH {
        let (env, receiver) = (Env::with(options(kind)).await, Receiver::start().await);
        let hook =
            endpoint(&env.client, &receiver.url(), &["file.processed", "file.deleted"]).await;
        endpoint(&env.client, &format!("{}/never", receiver.base), &["sweep.completed"]).await;
        let bob = env.as_key(BOB_KEY);
        endpoint(&bob, &format!("{}/bob", receiver.base), &["file.processed"]).await;
        let file = env.client.upload(&["a", "b"]).await;
        let told = receiver.received(1).await;
        env.client.remove(&file).await;
        let told = [told[0].clone(), receiver.received(2).await[1].clone()];
        for (told, kind) in told.iter().zip(["file.processed", "file.deleted"]) {
            let event = told.json();
            assert_eq!(told.path, "/hook");
            assert_eq!((&event["object"], &event["type"]), (&json!("event"), &json!(kind)));
            assert_eq!(event["data"], json!({"id": file["id"]}));
            assert!(event["created_at"].as_i64().unwrap() >= file["created_at"].as_i64().unwrap());
            assert_eq!(event["id"].as_str().unwrap(), told.header("webhook-id"));
            assert!(told.header("webhook-id").starts_with("evt_"));
            assert_eq!(told.header("content-type"), "application/json");
            let agent = concat!("longshore/", env!("CARGO_PKG_VERSION"));
            assert_eq!(told.header("user-agent"), agent);
            assert_eq!(told.verify(secret(&hook)), Ok(()));
            assert_eq!(told.verify("whsec_AAAA"), Err(Forged::Unsigned));
        }
        let jobs = all_are(&env.client, 2, "succeeded").await;
        assert_eq!((&jobs[0]["max_attempts"], &jobs[0]["attempt"]), (&json!(10), &json!(1)));
        let (_, waited) =
            env.client.get(&format!("/v1/jobs/{}?wait=1", jobs[0]["id"].as_str().unwrap())).await;
        assert_eq!(waited["status"], "succeeded");
        assert_eq!(receiver.delivered().len(), 2);
        assert!(deliveries(&bob).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_answered_with_success_is_repeated_after_five_seconds_under_the_same_id() {
    for kind in BOTH {
        let (env, receiver) = (Env::with(options(kind)).await, Receiver::start().await);
        let elsewhere = Receiver::start().await;
        let hook = endpoint(&env.client, &receiver.url(), &["file.processed"]).await;
        receiver.answer_next([
            Reply::Status(500),
            Reply::Redirect(elsewhere.url()),
            Reply::Status(404),
            Reply::Flood,
        ]);
        env.client.upload(&["a"]).await;
        let first = receiver.received(2).await;
        let rest = first[1].at - first[0].at;
        assert!(rest > Duration::from_secs(4) && rest < Duration::from_secs(9), "{rest:?}");
        for attempt in [3, 4] {
            eventually(PATIENCE, async || {
                let job = deliveries(&env.client).await.remove(0);
                (job["status"] == "retrying" && job["attempt"] == attempt - 1).then_some(())
            })
            .await;
            let failing = env.client.get(&path(&hook)).await.1["failing_since"].clone();
            assert!(failing.is_i64(), "{failing}");
            hasten(&env).await;
            receiver.received(attempt).await;
        }
        // What follows the 200 is not waited for.
        let job = all_are(&env.client, 1, "succeeded").await.remove(0);
        assert_eq!((&job["attempt"], &job["error"]), (&json!(4), &Value::Null));
        let all = receiver.delivered();
        assert_eq!(all.len(), 4);
        assert!(all.iter().all(|one| one.header("webhook-id") == all[0].header("webhook-id")));
        assert!(all.iter().all(|one| one.body == all[0].body));
        let timestamps: Vec<i64> =
            all.iter().map(|one| one.header("webhook-timestamp").parse().unwrap()).collect();
        assert!(timestamps[1] >= timestamps[0] + 4, "{timestamps:?}: each is its attempt's own");
        assert!(all.iter().all(|one| one.verify(secret(&hook)).is_ok()));
        assert!(elsewhere.delivered().is_empty(), "a redirect was followed");
        assert_eq!(env.client.get(&path(&hook)).await.1["failing_since"], Value::Null);
        let attempts = format!("/v1/jobs/{}/attempts", job["id"].as_str().unwrap());
        let attempts = env.client.get(&attempts).await.1;
        let codes: Vec<_> = attempts["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|attempt| attempt["error"]["http_status"].clone())
            .collect();
        assert_eq!(codes, [json!(500), json!(307), json!(404), Value::Null]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_that_it_is_gone_hears_no_more_until_it_is_enabled() {
    for kind in BOTH {
        let (env, receiver) = (Env::with(options(kind)).await, Receiver::start().await);
        let hook = endpoint(&env.client, &receiver.url(), &["file.processed"]).await;
        receiver.answer_next([Reply::Status(503), Reply::Status(410)]);
        env.client.upload(&["a"]).await;
        all_are(&env.client, 1, "retrying").await;
        env.client.upload(&["a"]).await;
        let jobs = eventually(PATIENCE, async || {
            let jobs = deliveries(&env.client).await;
            (jobs.len() == 2 && jobs[1]["status"] == "failed").then_some(jobs)
        })
        .await;
        // The one that was to be repeated is called off with it.
        assert_eq!(jobs[0]["status"], "cancelled");
        assert_eq!(
            (&jobs[1]["error"]["code"], &jobs[1]["error"]["http_status"]),
            (&json!("webhook_gone"), &json!(410))
        );
        let disabled = env.client.get(&path(&hook)).await.1;
        assert_eq!(
            (&disabled["status"], &disabled["disabled_reason"]),
            (&json!("disabled"), &json!("gone"))
        );
        let file = env.client.upload(&["a"]).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(deliveries(&env.client).await.len(), 2);

        let (status, enabled) = env.client.post(&path(&hook), json!({"status": "enabled"})).await;
        assert_eq!((status, &enabled["status"]), (200, &json!("enabled")), "{enabled}");
        assert!(enabled["disabled_reason"].is_null() && enabled["failing_since"].is_null());
        env.client.upload(&["a"]).await;
        assert_eq!(receiver.received(3).await.len(), 3);
        // What it missed can be told by hand, under the id that it had.
        let retry = format!("/v1/jobs/{}/retry", jobs[1]["id"].as_str().unwrap());
        assert_eq!(env.client.post(&retry, json!({})).await.0, 200);
        let told = receiver.received(4).await;
        assert_eq!(told[3].header("webhook-id"), told[1].header("webhook-id"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_for_the_whole_of_a_delivery_is_disabled() {
    for kind in BOTH {
        let (env, receiver) =
            (Env::with(options(kind)).await, Receiver::answering(Reply::Status(500)).await);
        let hook = endpoint(&env.client, &receiver.url(), &["file.processed", "job.failed"]).await;
        env.client.upload(&["a"]).await;
        all_are(&env.client, 1, "retrying").await;
        // Three days later.
        env.database.execute("UPDATE jobs SET attempt = 9 WHERE kind = 'deliver_webhook'").await;
        hasten(&env).await;
        let job = all_are(&env.client, 1, "failed").await.remove(0);
        assert_eq!((&job["attempt"], &job["error"]["retryable"]), (&json!(10), &json!(false)));
        let disabled = env.client.get(&path(&hook)).await.1;
        assert_eq!(
            (&disabled["status"], &disabled["disabled_reason"]),
            (&json!("disabled"), &json!("failing"))
        );
        // Its own failure is nothing that it is told of.
        assert_eq!(deliveries(&env.client).await.len(), 1);

        // A success in between, and the next failure is judged by itself.
        env.client.post(&path(&hook), json!({"status": "enabled"})).await;
        receiver.answer_next([Reply::Status(500), Reply::Status(200)]);
        env.client.upload(&["a"]).await;
        eventually(PATIENCE, async || {
            (deliveries(&env.client).await.last().unwrap()["status"] == "retrying").then_some(())
        })
        .await;
        env.client.upload(&["a"]).await;
        eventually(PATIENCE, async || {
            (deliveries(&env.client).await.last().unwrap()["status"] == "succeeded").then_some(())
        })
        .await;
        env.database.execute("UPDATE jobs SET attempt = 9, started_at = started_at - 86400000 WHERE status = 'retrying'").await;
        hasten(&env).await;
        eventually(PATIENCE, async || {
            (deliveries(&env.client).await[1]["status"] == "failed").then_some(())
        })
        .await;
        assert_eq!(env.client.get(&path(&hook)).await.1["status"], "enabled");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_the_middle_of_a_delivery_leaves_one_that_comes_again_under_its_id() {
    for kind in BOTH {
        let (mut crew, receiver) =
            (Crew::with(options(kind)).await, Receiver::answering(Reply::Hang).await);
        let hook = endpoint(&crew.env.client, &receiver.url(), &["file.processed"]).await;
        crew.env.client.upload(&["a"]).await;
        receiver.received(1).await;
        crew.kill();
        receiver.answer(Reply::Status(204));
        crew.restart();
        let told = receiver.received(2).await;
        assert_eq!(told[0].header("webhook-id"), told[1].header("webhook-id"));
        assert_eq!(told[0].body, told[1].body);
        assert_eq!(told[1].verify(secret(&hook)), Ok(()));
        all_are(&crew.env.client, 1, "succeeded").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_secret_signs_beside_the_new_one_if_it_is_to_be_kept() {
    for kind in BOTH {
        let (env, receiver) = (Env::with(options(kind)).await, Receiver::start().await);
        let hook = endpoint(&env.client, &receiver.url(), &["file.processed"]).await;
        let rotate = format!("{}/rotate_secret", path(&hook));
        let keep = json!({"keep_old_secret_active_for_24_hours": true});
        let (status, second) = env.client.post(&rotate, keep).await;
        assert_eq!(status, 200, "{second}");
        assert_ne!(secret(&second), secret(&hook));
        let until = second["old_secret_active_until"].as_i64().unwrap();
        assert_eq!(until, second["updated_at"].as_i64().unwrap() + 86_400);
        env.client.upload(&["a"]).await;
        let told = receiver.received(1).await.remove(0);
        assert_eq!(told.header("webhook-signature").split(' ').count(), 2);
        for hook in [&hook, &second] {
            assert_eq!(told.verify(secret(hook)), Ok(()));
        }
        // Its day is over.
        env.database.execute("UPDATE webhook_endpoints SET previous_until = 1").await;
        env.client.upload(&["a"]).await;
        let told = receiver.received(2).await.remove(1);
        assert_eq!(told.verify(secret(&hook)), Err(Forged::Unsigned));
        assert_eq!(told.verify(secret(&second)), Ok(()));

        let (_, third) =
            answer(env.client.request(Method::POST, &rotate).send().await.unwrap()).await;
        assert_eq!(third["old_secret_active_until"], Value::Null);
        env.client.upload(&["a"]).await;
        let told = receiver.received(3).await.remove(2);
        assert_eq!(told.verify(secret(&second)), Err(Forged::Unsigned));
        assert_eq!(told.verify(secret(&third)), Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_hangs_holds_up_no_other() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let (hanging, lively) = (Receiver::answering(Reply::Hang).await, Receiver::start().await);
        endpoint(&env.client, &hanging.url(), &["file.deleted"]).await;
        for _ in 0..40 {
            let file = env.client.upload(&["a"]).await;
            env.client.remove(&file).await;
        }
        hanging.received(8).await;
        // One of the same owner, and one of another.
        endpoint(&env.client, &lively.url(), &["file.processed"]).await;
        let bob = env.as_key(BOB_KEY);
        endpoint(&bob, &lively.url(), &["file.processed"]).await;
        for (client, count) in [(&env.client, 1), (&bob, 2)] {
            let file = client.upload(&["a"]).await;
            client.settled(file["id"].as_str().unwrap()).await;
            let processed = Instant::now();
            lively.received(count).await;
            assert!(processed.elapsed() < Duration::from_secs(2), "{:?}", processed.elapsed());
        }
        assert_eq!(hanging.delivered().len(), 8, "only so many at once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_an_endpoint_that_is_deleted_or_disabled_is_called_off() {
    for kind in BOTH {
        let (env, receiver) =
            (Env::with(options(kind)).await, Receiver::answering(Reply::Status(500)).await);
        for is_deleted in [true, false] {
            let hook = endpoint(&env.client, &receiver.url(), &["file.processed"]).await;
            env.client.upload(&["a"]).await;
            let before = deliveries(&env.client).await.len();
            eventually(PATIENCE, async || {
                let jobs = deliveries(&env.client).await;
                (jobs.last().is_some_and(|job| job["status"] == "retrying")).then_some(())
            })
            .await;
            if is_deleted {
                let (status, gone) = env.client.delete(&path(&hook)).await;
                let expected = json!({"id": hook["id"], "object": "webhook_endpoint.deleted", "deleted": true});
                assert_eq!((status, gone), (200, expected));
                assert_eq!(env.client.get(&path(&hook)).await.0, 404);
                assert_eq!(env.client.delete(&path(&hook)).await.0, 404);
            } else {
                let (status, off) =
                    env.client.post(&path(&hook), json!({"status": "disabled"})).await;
                assert_eq!((status, &off["disabled_reason"]), (200, &json!("by_owner")), "{off}");
            }
            let jobs = deliveries(&env.client).await;
            assert!(jobs.iter().all(|job| job["status"] == "cancelled"), "{jobs:?} {before}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_their_owners_alone() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let (bob, admin) = (env.as_key(BOB_KEY), env.as_key(ADMIN_KEY));
        let hook =
            endpoint(&env.client, "http://127.0.0.1:9/", &["file.processed", "file.processed"])
                .await;
        assert_eq!(hook["event_types"], json!(["file.processed"]));
        let path = path(&hook);
        let refused = [
            bob.get(&path).await,
            bob.post(&path, json!({"name": "mine"})).await,
            bob.post(&format!("{path}/rotate_secret"), json!({})).await,
            bob.post(&format!("{path}/test"), json!({"event_type": "file.processed"})).await,
            bob.delete(&path).await,
        ];
        for (status, error) in refused {
            assert_eq!(status, 403, "{error}");
            let message = error["error"]["message"].as_str().unwrap();
            let id = hook["id"].as_str().unwrap();
            assert_eq!(
                message,
                format!("User bob does not have access to the webhook endpoint {id}")
            );
        }
        let list = |client: Client| async move {
            client.get("/v1/webhook_endpoints").await.1["data"].clone()
        };
        assert_eq!(list(bob.clone()).await, json!([]));
        let mut shown = hook.clone();
        shown.as_object_mut().unwrap().remove("signing_secret");
        assert_eq!(list(env.client.clone()).await, json!([shown]));
        assert_eq!(list(admin.clone()).await, json!([shown]));
        assert_eq!(env.client.get(&path).await.1, shown);
        let after = format!("/v1/webhook_endpoints?after={}", hook["id"].as_str().unwrap());
        assert_eq!(bob.get(&after).await.0, 400);
        env.client.delete(&path).await;
        assert_eq!(env.client.get(&after).await.0, 200, "one that was deleted since");
        assert_eq!(env.client.get("/v1/webhook_endpoints?after=we_x").await.0, 400);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_creation_answers_with_the_first_endpoint_and_its_secret() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let create = |url: &str| {
            let body = json!({"name": "n", "url": url, "event_types": ["file.failed"]});
            env.client
                .request(Method::POST, "/v1/webhook_endpoints")
                .header("Idempotency-Key", "k")
                .json(&body)
                .send()
        };
        let first = answer(create("http://127.0.0.1:9/").await.unwrap()).await;
        let again = create("http://127.0.0.1:9/").await.unwrap();
        assert_eq!(again.headers()["idempotency-replayed"], "true");
        assert_eq!(answer(again).await, first);
        assert!(secret(&first.1).starts_with("whsec_"));
        assert_eq!(create("http://127.0.0.1:8/").await.unwrap().status(), 422);
        let rotate = format!("{}/rotate_secret", path(&first.1));
        let rotate = || {
            let request = env.client.request(Method::POST, &rotate).header("Idempotency-Key", "r");
            request.json(&json!({"keep_old_secret_active_for_24_hours": true})).send()
        };
        let rotated = answer(rotate().await.unwrap()).await;
        assert_eq!(answer(rotate().await.unwrap()).await, rotated, "a lost answer costs no secret");
        assert_ne!(secret(&rotated.1), secret(&first.1));
        for made in [&first.1, &rotated.1] {
            let text = secret(made).trim_start_matches("whsec_");
            let kept =
                format!("SELECT COUNT(*) FROM idempotency_keys WHERE response LIKE '%{text}%'");
            assert_eq!(env.database.count(&kept).await, 0);
        }
    }
}

#[tokio::test]
async fn an_owner_has_twenty_endpoints_at_most() {
    let env = Env::with(options(Kind::Sqlite)).await;
    let mut last = Value::Null;
    for _ in 0..20 {
        last = endpoint(&env.client, "http://127.0.0.1:9/", &["file.processed"]).await;
    }
    let asked =
        json!({"name": "hook", "url": "http://127.0.0.1:9/", "event_types": ["file.processed"]});
    let (status, error) = env.client.post("/v1/webhook_endpoints", asked.clone()).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (409, &json!("too_many_webhook_endpoints")),
        "{error}"
    );
    assert_eq!(env.as_key(BOB_KEY).post("/v1/webhook_endpoints", asked.clone()).await.0, 200);
    env.client.delete(&path(&last)).await;
    assert_eq!(env.client.post("/v1/webhook_endpoints", asked).await.0, 200);
}

#[tokio::test]
async fn what_is_not_in_order_is_refused_and_said() {
    let env = Env::with(options(Kind::Sqlite)).await;
    let good =
        json!({"name": "n", "url": "http://127.0.0.1:9/", "event_types": ["file.processed"]});
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("a\nb")),
        ("name", json!("x".repeat(257))),
        ("url", json!("nonsense")),
        ("url", json!("ftp://127.0.0.1/")),
        ("event_types", json!([])),
        ("event_types", json!(["file.exploded"])),
    ] {
        let mut asked = good.clone();
        asked[field] = value.clone();
        let (status, error) = env.client.post("/v1/webhook_endpoints", asked).await;
        assert_eq!((status, &error["error"]["param"]), (400, &json!(field)), "{value}: {error}");
        let mut asked = good.clone();
        asked.as_object_mut().unwrap().remove(field);
        let (status, error) = env.client.post("/v1/webhook_endpoints", asked).await;
        assert_eq!((status, &error["error"]["param"]), (400, &json!(field)), "{error}");
    }
    let (_, error) = env.client.post("/v1/webhook_endpoints", json!({"name": null})).await;
    assert_eq!(error["error"]["code"], "invalid_json");
    let hook = endpoint(&env.client, "http://127.0.0.1:9/", &["file.processed"]).await;
    let before = env.client.get(&path(&hook)).await.1;
    let (status, same) = env.client.post(&path(&hook), json!({"name": "hook"})).await;
    assert_eq!((status, same), (200, before.clone()));
    let update =
        json!({"name": "other", "url": "http://127.0.0.1:8/x", "event_types": ["job.failed"]});
    let (status, changed) = env.client.post(&path(&hook), update.clone()).await;
    assert_eq!(status, 200, "{changed}");
    for (field, value) in update.as_object().unwrap() {
        assert_eq!(&changed[field], value);
    }
    assert_eq!(changed["created_at"], before["created_at"]);
}

#[tokio::test]
async fn a_test_tells_what_the_endpoint_answered_or_that_it_did_not() {
    let (env, receiver) = (Env::with(options(Kind::Sqlite)).await, Receiver::start().await);
    let hook = endpoint(&env.client, &receiver.url(), &["file.processed"]).await;
    let test = format!("{}/test", path(&hook));
    for status in [200, 418, 302] {
        receiver.answer(Reply::Status(status));
        let (answered, result) =
            env.client.post(&test, json!({"event_type": "batch.completed"})).await;
        assert_eq!(answered, 200);
        let expected = json!({"object": "webhook_endpoint.test", "webhook_endpoint_id": hook["id"],
            "event_type": "batch.completed", "success": true, "status_code": status});
        assert_eq!(result, expected);
    }
    let told = receiver.delivered().remove(0);
    assert_eq!(told.verify(secret(&hook)), Ok(()));
    assert_eq!(
        (&told.json()["type"], &told.json()["data"]),
        (&json!("batch.completed"), &json!({"id": "sample"}))
    );
    assert_eq!(env.client.post(&test, json!({"event_type": "x"})).await.0, 400);
    assert_eq!(env.client.post(&test, json!({})).await.0, 400);
    let nobody = endpoint(&env.client, "http://127.0.0.1:9/", &["file.processed"]).await;
    let (status, error) = env
        .client
        .post(&format!("{}/test", path(&nobody)), json!({"event_type": "file.failed"}))
        .await;
    assert_eq!((status, &error["error"]["code"]), (409, &json!("webhook_unreachable")), "{error}");
    assert!(deliveries(&env.client).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_into_the_servers_own_network_unless_it_is_allowed() {
    let (mut env, receiver) = (Env::with(options(Kind::Sqlite)).await, Receiver::start().await);
    let port = receiver.base.rsplit(':').next().unwrap().to_owned();
    // What was registered while it was allowed, by address and by name.
    for url in [
        receiver.url(),
        format!("http://localhost:{port}/"),
        format!("https://localhost:{port}/"),
        format!("https://127.0.0.1:{port}/"),
    ] {
        endpoint(&env.client, &url, &["file.processed"]).await;
    }
    env.server.terminate();
    env.reconfigure(|text| {
        text.replace("allow_private_addresses = true", "allow_private_addresses = false")
    });
    env.restart();
    let mut connections = receiver.delivered().len();
    env.client.upload(&["a"]).await;
    let jobs = all_are(&env.client, 4, "retrying").await;
    for job in jobs {
        assert_eq!(job["error"]["code"], "webhook_address_refused", "{job}");
    }
    connections = receiver.delivered().len() - connections;
    assert_eq!(connections, 0);
    for url in [
        "http://example.com/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest",
        "https://localhost/",
        "https://localhost.:8443/",
        "https://user@8.8.8.8/",
        "https://8.8.8.8/#x",
        "https://nowhere.invalid/",
    ] {
        let asked = json!({"name": "hook", "url": url, "event_types": ["file.processed"]});
        let (status, error) = env.client.post("/v1/webhook_endpoints", asked).await;
        assert_eq!((status, &error["error"]["param"]), (400, &json!("url")), "{url}: {error}");
    }
    endpoint(&env.client, "https://8.8.8.8/hook", &["sweep.completed"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_key_for_all_processes_no_secret_is_stored_and_the_server_says_what_to_set() {
    let mut env = Env::with(options(Kind::Postgres)).await;
    let receiver = Receiver::start().await;
    let check = |env: &Env| run(&env.folder(), &["config", "check"], &[]).output;
    assert!(
        check(&env).contains("webhook secrets: encrypted with `auth.encryption_key`"),
        "{}",
        check(&env)
    );
    endpoint(&env.client, &receiver.url(), &["file.processed"]).await;
    env.server.terminate();
    env.reconfigure(|text| text.replace("encryption_key = ", "#"));
    env.restart();
    let asked =
        json!({"name": "hook", "url": "http://127.0.0.1:9/", "event_types": ["file.processed"]});
    let (status, error) = env.client.post("/v1/webhook_endpoints", asked).await;
    assert_eq!(
        (status, &error["error"]["code"]),
        (409, &json!("encryption_key_missing")),
        "{error}"
    );
    assert!(error["error"]["message"].as_str().unwrap().contains("LONGSHORE_ENCRYPTION_KEY"));
    assert!(
        check(&env).contains("webhook secrets: cannot be stored; set `auth.encryption_key`"),
        "{}",
        check(&env)
    );
    // What is there already waits for the key to come back.
    env.client.upload(&["a"]).await;
    let jobs = all_are(&env.client, 1, "retrying").await;
    assert_eq!(jobs[0]["error"]["code"], "webhook_secret_unreadable");
    assert!(receiver.delivered().is_empty());
}
