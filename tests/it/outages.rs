//! What speaks against a provider as a whole: its lane stands still, and its jobs wait at no cost.

mod two_hours;

use std::time::Duration;
use std::time::UNIX_EPOCH;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Sandbox;
use longshore::sandbox::Settings;
use serde_json::Value;
use serde_json::json;

use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::PROVIDER_KEY;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::now;
use crate::support::status;

const PATIENCE: Duration = Duration::from_secs(30);

/// The mapping of a file once something holds it up, and its job.
async fn blocked(env: &Env, id: &str, model: &str) -> (Value, Value) {
    let found = eventually(PATIENCE, async || {
        let file = env.client.file(id).await;
        let found = mapping(&file, model).clone();
        (found["blocked_by"].is_string() && found["status"] == "pending").then_some(found)
    })
    .await;
    let job = env.job(&found).await;
    (found, job)
}

fn unix_now() -> i64 {
    i64::try_from(now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_down_costs_one_job_an_attempt_and_not_every_job() {
    let mut env = Env::with(Options { models: &["a"], ..Options::default() }).await;
    let address = env.sandbox.local_addr();
    env.sandbox.shutdown().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(env.client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
    }
    let lane = eventually(PATIENCE, async || {
        let lane = env.provider("a").await;
        (lane["failures"].as_i64() >= Some(2)).then_some(lane)
    })
    .await;
    assert_eq!(lane["paused_by"], "outage");
    let (waiting, job) = blocked(&env, &ids[40], "a").await;
    assert_eq!((&waiting["blocked_by"], &job["blocked_by"]), (&json!("outage"), &json!("outage")));
    assert!(waiting["retry_at"].as_i64().unwrap() <= unix_now() + 9, "{waiting}");

    env.sandbox = Sandbox::bind(address).unwrap();
    let mut attempts = 0;
    for id in &ids {
        let file = env.client.settled(id).await;
        assert_eq!(file["status"], "processed", "{file}");
        let attempt = env.job(mapping(&file, "a")).await["attempt"].as_i64().unwrap();
        assert!(attempt <= 3, "{file}");
        attempts += attempt;
    }
    assert!(attempts <= 50 + 5, "{attempts} attempts for 50 jobs");
    assert_eq!(env.sandbox.live_files("a").len(), 50);
    let lane = env.provider("a").await;
    assert_eq!((&lane["failures"], &lane["paused_by"]), (&json!(0), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_is_waited_out_as_long_as_the_provider_asks_and_costs_no_attempt() {
    let in_three_seconds = httpdate::fmt_http_date(now() + Duration::from_secs(3));
    let headers: [(&str, Option<&str>, std::ops::RangeInclusive<i64>); 5] = [
        ("a", Some("2"), 0..=2),
        ("b", Some(&in_three_seconds), 0..=3),
        ("c", Some("315360000"), 3590..=3600),
        ("d", Some("-5"), 0..=2),
        ("e", None, 0..=2),
    ];
    let models = &["a", "b", "c", "d", "e"];
    let mut env = Env::with(Options { models, ..Options::default() }).await;
    for (account, value, _) in &headers {
        let headers: Vec<_> = value.iter().map(|value| ("retry-after", *value)).collect();
        env.spoil(account, status(429, &headers, json!({"error": {"message": "slow down"}})));
    }
    let file = env.client.upload(models).await;
    let id = file["id"].as_str().unwrap().to_owned();
    for (account, value, expected) in &headers {
        let (waiting, job) = blocked(&env, &id, account).await;
        assert_eq!(waiting["blocked_by"], "rate_limit", "{value:?}");
        assert_eq!(waiting["error"]["code"], "provider_rate_limited");
        assert_eq!(job["blocked_by"], "rate_limit");
        assert_eq!(job["attempt"], 0, "{value:?}: {job}");
        let wait = waiting["retry_at"].as_i64().unwrap() - unix_now();
        assert!(expected.contains(&wait) || wait == -1, "{value:?}: {wait} s");
    }
    // The limit outlives the process.
    env.server.kill();
    env.restart();
    let file = eventually(PATIENCE, async || {
        let file = env.client.file(&id).await;
        let ready = file["mappings"].as_array().unwrap().iter();
        (ready.filter(|mapping| mapping["status"] == "ready").count() == 4).then_some(file)
    })
    .await;
    assert_eq!(mapping(&file, "c")["blocked_by"], "rate_limit");
    for model in ["a", "b", "d", "e"] {
        assert_eq!(env.job(mapping(&file, model)).await["attempt"], 1, "{file}");
        let calls = env.sandbox.calls(model);
        assert_eq!(calls.len(), 2, "{model}");
    }
    let gap = |account: &str| {
        let calls = env.sandbox.calls(account);
        calls[1].at_ms - calls[0].at_ms
    };
    assert!(gap("a") >= 1900, "{} ms", gap("a"));
    assert_eq!(env.calls("c", Operation::Upload), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_that_meets_many_uploads_at_once_counts_as_one() {
    let env = Env::with(Options { models: &["a"], ..Options::default() }).await;
    env.sandbox.configure("a", Settings { latency_ms: 400, ..Settings::default() });
    let limited = FaultRule::new(Operation::Upload, Fault::status(429, Value::Null));
    env.spoil_as("a", FaultRule { times: 8, ..limited });
    env.lane("a", "pause").await;
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(env.client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
    }
    env.lane("a", "resume").await;
    eventually(PATIENCE, async || {
        let stats = env.sandbox.stats("a");
        (stats.faults_queued == 0 && stats.in_flight == 0).then_some(())
    })
    .await;
    assert_eq!(env.sandbox.stats("a").max_in_flight, 8);
    for id in &ids {
        let file = env.client.settled(id).await;
        assert_eq!(env.job(mapping(&file, "a")).await["attempt"], 1, "{file}");
    }
    let calls = env.sandbox.calls("a");
    assert!(calls[8].at_ms - calls[7].at_ms < 4000, "the pause grew with each refusal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_credential_parks_the_lane_until_another_is_configured() {
    let mut env = Env::start().await;
    let before = env.client.upload(&["a"]).await;
    env.client.settled(before["id"].as_str().unwrap()).await;
    let key = || Some("sk-the-new-one".to_owned());
    env.sandbox.configure("a", Settings { expected_key: key(), ..Settings::default() });
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(env.client.upload(&["a", "b"]).await["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        let (waiting, job) = blocked(&env, id, "a").await;
        assert_eq!(waiting["blocked_by"], "credential_rejected");
        assert!(waiting.get("retry_at").is_none(), "{waiting}");
        assert_eq!(
            (&job["blocked_by"], &job["attempt"]),
            (&json!("credential_rejected"), &json!(0))
        );
        assert_eq!(env.client.file(id).await["status"], "uploaded");
    }
    // The same key again changes nothing.
    env.server.kill();
    env.restart();
    assert_eq!(env.provider("a").await["paused_by"], "credential_rejected");
    let refused = env.calls("a", Operation::Upload);

    env.server.kill();
    env.reconfigure(|text| text.replace(PROVIDER_KEY, "sk-the-new-one"));
    env.restart();
    for id in &ids {
        assert_eq!(env.client.settled(id).await["status"], "processed");
    }
    assert!(refused <= 6, "{refused} calls with a rejected key");
    assert_eq!(env.sandbox.live_files("a").len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_without_money_is_waited_for() {
    let env = Env::start().await;
    let body = json!({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota", "type": "insufficient_quota"}});
    env.spoil("a", Fault::status(429, body));
    let file = env.client.upload(&["a", "b"]).await;
    let id = file["id"].as_str().unwrap();
    let (waiting, job) = blocked(&env, id, "a").await;
    assert_eq!(waiting["blocked_by"], "out_of_money");
    assert!(waiting["retry_at"].as_i64().unwrap() > unix_now() + 600);
    assert_eq!(job["attempt"], 0);
    env.lane("a", "resume").await;
    let file = env.client.settled(id).await;
    assert_eq!(file["status"], "processed", "{file}");
    env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_together_keep_the_concurrency_of_a_provider() {
    let env = Env::with(Options {
        command: "serve",
        models: &["a", "b", "c"],
        provider: "max_concurrency = 2\n".to_owned(),
        ..Options::on(Kind::Postgres)
    })
    .await;
    for account in env.options.models {
        env.sandbox.configure(account, Settings { latency_ms: 30, ..Settings::default() });
    }
    let _workers = [env.also("work"), env.also("work")];
    let mut ids = Vec::new();
    for _ in 0..40 {
        ids.push(env.client.upload(&["a", "b", "c"]).await["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        assert_eq!(env.client.settled(id).await["status"], "processed");
    }
    for account in env.options.models {
        assert_eq!(env.sandbox.stats(account).max_in_flight, 2, "{account}");
        assert_eq!(env.sandbox.live_files(account).len(), 40);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_together_keep_the_rate_of_a_provider() {
    let env = Env::with(Options {
        command: "serve",
        models: &["a"],
        provider: "requests_per_minute = 60\n".to_owned(),
        ..Options::on(Kind::Postgres)
    })
    .await;
    let _workers = [env.also("work"), env.also("work")];
    for _ in 0..12 {
        env.client.upload(&["a"]).await;
    }
    tokio::time::timeout(PATIENCE, env.sandbox.reached("a", Operation::Upload, 9)).await.unwrap();
    let calls = env.sandbox.calls("a");
    // Six may go at once, then not even one each second.
    let took = calls[8].at_ms - calls[0].at_ms;
    assert!((3000..8000).contains(&took), "nine uploads in {took} ms");
    let file = env.client.get("/v1/files?limit=1").await.1["data"][0].clone();
    assert_eq!(env.job(mapping(&file, "a")).await["attempt"], 0);
}
