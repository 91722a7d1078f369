//! What one key and one owner may ask for, and what whoever asks for more is told.

use std::time::Duration;

use reqwest::Method;
use reqwest::Response;
use reqwest::header::HeaderMap;
use serde_json::Value;
use serde_json::json;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::support::ADMIN_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::Redis;
use crate::support::answer;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

async fn ask(client: &Client, path: &str) -> Response {
    client.request(Method::GET, path).send().await.unwrap()
}

/// Of the requests of a key, how many were answered and how many refused.
async fn burst(clients: &[&Client], each: usize) -> (usize, usize) {
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..each {
        for client in clients {
            match ask(client, "/v1/models").await.status().as_u16() {
                200 => passed += 1,
                429 => refused += 1,
                other => panic!("{other}"),
            }
        }
    }
    (passed, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_past_its_limit_is_told_when_to_come_again_and_others_are_not() {
    let env = Env::with(Options {
        extra: "[limits]\nrequests_per_minute = 4\n".to_owned(),
        ..Options::default()
    })
    .await;
    for (path, remaining) in [("/v1/models", "3"), ("/v1/none", "2"), ("/v1/files", "1")] {
        let response = ask(&env.client, path).await;
        let headers = response.headers();
        assert_eq!(header(headers, "x-ratelimit-limit-requests"), Some("4"), "{path}");
        assert_eq!(header(headers, "x-ratelimit-remaining-requests"), Some(remaining), "{path}");
        let reset = header(headers, "x-ratelimit-reset-requests").unwrap();
        assert!(reset.ends_with('s'), "{reset}");
    }
    assert_eq!(ask(&env.client, "/v1/jobs").await.status(), 200);
    let response = ask(&env.client, "/v1/models").await;
    assert_eq!(response.status(), 429);
    let headers = response.headers().clone();
    assert_eq!(header(&headers, "x-ratelimit-remaining-requests"), Some("0"));
    let wait: u64 = header(&headers, "retry-after").unwrap().parse().unwrap();
    assert!((1..=15).contains(&wait), "{wait}");
    assert!(headers.contains_key("x-request-id"));
    let (_, body) = answer(response).await;
    let error = &body["error"];
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (&json!("rate_limit_error"), &json!("rate_limit_exceeded"), &Value::Null)
    );
    // Health is asked by whoever knows no better than to send a key with it.
    for path in ["/healthz", "/readyz"] {
        let response = ask(&env.client, path).await;
        assert_eq!(response.status(), 200);
        assert!(!response.headers().contains_key("x-ratelimit-limit-requests"));
    }
    assert_eq!(ask(&env.as_key(BOB_KEY), "/v1/models").await.status(), 200);
    let admin = env.as_key(ADMIN_KEY);
    assert_eq!(burst(&[&admin], 8).await, (8, 0));
    let (status, _) = answer(ask(&env.as_key("of-nobody"), "/v1/models").await).await;
    assert_eq!(status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_has_its_own_limit_or_none_and_a_stored_one_that_of_all() {
    let env = Env::with(Options {
        extra: "[limits]\nrequests_per_minute = 3\n".to_owned(),
        ..Options::default()
    })
    .await;
    env.reconfigure(|text| {
        text.replace("owner = \"alice\"", "owner = \"alice\"\nrequests_per_minute = 6")
            .replace("owner = \"bob\"", "owner = \"bob\"\nrequests_per_minute = 0")
    });
    let mut server = env.also("serve");
    let line = server.logged("listening on http://");
    let base = line.split_once("listening on ").unwrap().1.split('"').next().unwrap();
    let admin = Client::new(base, ADMIN_KEY);
    let (status, made) = admin.post("/v1/admin/keys", json!({"owner": "carol"})).await;
    assert_eq!(status, 200, "{made}");
    let carol = admin.with_key(made["key"].as_str().unwrap());
    // A minute brings six more, so it takes ten seconds for one.
    let (passed, _) = burst(&[&admin.with_key(&env.client.key)], 9).await;
    assert!((6..9).contains(&passed), "{passed}");
    assert_eq!(burst(&[&admin.with_key(BOB_KEY)], 9).await, (9, 0));
    let (passed, _) = burst(&[&carol], 6).await;
    assert!((3..6).contains(&passed), "{passed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_past_the_limit_is_refused_before_its_body_is_asked_for() {
    let env = Env::with(Options {
        extra: "[limits]\nrequests_per_minute = 1\n".to_owned(),
        ..Options::default()
    })
    .await;
    assert_eq!(ask(&env.client, "/v1/models").await.status(), 200);
    let head = env.client.upload_head(1_000_000, "Expect: 100-continue\r\n");
    let said = env.client.converse(&head, false).await;
    assert!(said.starts_with("HTTP/1.1 429 "), "{said}");
    env.holds_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intakes_count_a_keys_requests_together_and_each_alone_while_redis_is_frozen() {
    let redis = Redis::running();
    let env = Env::with(Options {
        command: "serve",
        extra: format!("[redis]\nurl = \"{}\"\n[limits]\nrequests_per_minute = 30\n", redis.url()),
        ..Options::on(Kind::Postgres)
    })
    .await;
    let mut other = env.also("serve");
    let line = other.logged("listening on http://");
    let base = line.split_once("listening on ").unwrap().1.split('"').next().unwrap();
    other.logged("the requests of keys are counted in Redis");
    eventually(PATIENCE, async || {
        env.server.log().contains("the requests of keys are counted in Redis").then_some(())
    })
    .await;
    let beside = Client::new(base, &env.client.key);
    let (passed, refused) = burst(&[&env.client, &beside], 30).await;
    // 30 at once, and one every two seconds; a slow answer of Redis may let in a few. Apart, it would be 60.
    assert!((30..50).contains(&passed), "{passed} passed, {refused} refused");

    redis.freeze();
    let (bob, also_bob) = (env.as_key(BOB_KEY), beside.with_key(BOB_KEY));
    let (passed, _) = burst(&[&bob, &also_bob], 35).await;
    assert!((60..70).contains(&passed), "{passed}");
    // It is Redis that is away, not the service.
    assert_eq!(ask(&env.as_key(ADMIN_KEY), "/v1/files").await.status(), 200);
    other.logged("this intake counts the requests of keys by itself meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_with_a_full_backlog_on_sqlite_waits_and_nobody_else_does() {
    a_full_backlog_refuses_what_would_add_to_it(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_with_a_full_backlog_on_postgres_waits_and_nobody_else_does() {
    a_full_backlog_refuses_what_would_add_to_it(Kind::Postgres).await;
}

async fn a_full_backlog_refuses_what_would_add_to_it(kind: Kind) {
    let env = Env::with(Options {
        extra: "[limits]\nmax_pending_jobs_per_owner = 5\n".to_owned(),
        ..Options::on(kind)
    })
    .await;
    for account in env.options.models {
        env.lane(account, "pause").await;
    }
    let upload = |client: &Client, models: &'static [&'static str], key: &str| {
        let part = Part {
            filename: "in.jsonl",
            purpose: "batch",
            models,
            content: crate::support::batches::requests(1),
        };
        let request = client.request(Method::POST, "/v1/files").multipart(Client::form(part));
        let request = request.header("idempotency-key", key);
        async { request.send().await.unwrap() }
    };
    let refused = async |response: Response| {
        let wait = header(response.headers(), "retry-after").unwrap_or_default().to_owned();
        let (status, body) = answer(response).await;
        assert_eq!((status, wait.as_str()), (429, "30"), "{body}");
        assert_eq!(body["error"]["code"], "too_many_pending_jobs");
    };
    let (status, first) = answer(upload(&env.client, &["a", "b", "c"], "1").await).await;
    assert_eq!(status, 200, "{first}");
    refused(upload(&env.client, &["a", "b", "c"], "2").await).await;
    let (status, second) = answer(upload(&env.client, &["a", "b"], "3").await).await;
    assert_eq!(status, 200, "{second}");
    refused(upload(&env.client, &["a"], "4").await).await;
    let (id, ids) = (second["id"].as_str().unwrap(), json!([second["id"]]));
    let post = async |path: &str, body: Value| {
        env.client.request(Method::POST, path).json(&body).send().await.unwrap()
    };
    refused(post(&format!("/v1/files/{id}/mappings"), json!({"target_model_names": ["c"]})).await)
        .await;
    refused(post("/v1/sweeps", json!({"file_ids": ids})).await).await;
    refused(
        post(
            "/v1/batches",
            json!({"input_file_id": id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}),
        )
        .await,
    )
    .await;
    assert_eq!(env.database.count("SELECT count(*) FROM files").await, 2);
    assert_eq!(env.database.count("SELECT count(*) FROM jobs").await, 5);
    assert_eq!(env.blobs(), 2);

    // What adds nothing, what was answered already, and what others do.
    let (status, counted) =
        env.client.post("/v1/sweeps", json!({"file_ids": ids, "dry_run": true})).await;
    assert_eq!(status, 200, "{counted}");
    let again = upload(&env.client, &["a", "b", "c"], "1").await;
    assert_eq!(header(again.headers(), "idempotency-replayed"), Some("true"));
    assert_eq!(answer(again).await.1["id"], first["id"]);
    let (status, others) = answer(upload(&env.as_key(BOB_KEY), &["a"], "1").await).await;
    assert_eq!(status, 200, "{others}");

    // A delete is never refused, and makes room.
    env.client.remove(&first).await;
    eventually(PATIENCE, async || {
        let (status, _) = answer(upload(&env.client, &["c"], "5").await).await;
        (status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_those_that_may_wait_for_the_database_are_told_so_at_once() {
    const REQUESTS: usize = 100;
    // So few descriptors that it is the least there is.
    const PLACES: usize = 32;
    let env = Env::with(Options {
        command: "serve",
        descriptors: Some(256),
        ..Options::on(Kind::Postgres)
    })
    .await;
    let mut holder = PgConnection::connect(&env.database.url).await.unwrap();
    holder.execute("BEGIN; LOCK TABLE files IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut requests = JoinSet::new();
    for _ in 0..REQUESTS {
        let client = env.client.clone();
        requests.spawn(async move { ask(&client, "/v1/files").await });
    }
    let mut shed = 0;
    while shed < REQUESTS - PLACES {
        let next = tokio::time::timeout(PATIENCE, requests.join_next()).await.unwrap();
        let response = next.unwrap().unwrap();
        assert_eq!(response.status(), 503);
        let wait = header(response.headers(), "retry-after").unwrap().to_owned();
        let (_, body) = answer(response).await;
        if body["error"]["code"] == "overloaded" {
            assert_eq!(wait, "1");
            shed += 1;
        }
    }
    assert_eq!(ask(&env.client, "/healthz").await.status(), 200);
    holder.execute("ROLLBACK").await.unwrap();
    drop(requests.join_all().await);
    assert_eq!(ask(&env.client, "/v1/files").await.status(), 200);
}
