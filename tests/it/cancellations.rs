//! A client calls off an upload that is under way.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use serde_json::Value;
use serde_json::json;

use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::status;

async fn cancel(env: &Env, file: &Value) {
    let job = mapping(file, "a")["job_id"].as_str().unwrap();
    let (code, job) = env.client.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    assert_eq!(code, 200, "{job}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_called_off_leaves_nothing_at_the_provider() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let crew = Crew::on(kind).await;
        let env = &crew.env;
        env.spoil("a", Fault::Hold { hold_before: false });
        let file = env.client.upload(&["a", "b"]).await;
        env.held("a", 1).await;
        cancel(env, &file).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "error", "{file}");
        assert_eq!(mapping(&file, "a")["error"]["code"], "cancelled");
        assert_eq!(mapping(&file, "b")["status"], "ready");
        assert_eq!(env.job(mapping(&file, "a")).await["status"], "cancelled");
        assert_eq!(env.sandbox.live_files("a").len(), 1);
        env.quiet().await;
        assert_eq!(env.sandbox.live_files("a").len(), 0);
        assert_eq!(env.sandbox.live_files("b").len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_called_off_by_a_client_ends_although_its_worker_dies() {
    let mut crew = Crew::on(Kind::Postgres).await;
    crew.env.spoil("a", Fault::Hold { hold_before: false });
    let file = crew.env.client.upload(&["a"]).await;
    crew.env.held("a", 1).await;
    crew.kill();
    cancel(&crew.env, &file).await;
    crew.restart();
    let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(mapping(&file, "a")["error"]["code"], "cancelled", "{file}");
    crew.env.quiet().await;
    assert_eq!(crew.env.sandbox.live_files("a").len(), 0);
}

/// The worker hears of a cancellation with its next heartbeat, five seconds away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_that_its_worker_has_not_heard_of_is_not_lost_with_a_failed_attempt() {
    let crew = Crew::with(Options { lease: "20s", ..Options::on(Kind::Postgres) }).await;
    let env = &crew.env;
    env.sandbox.configure("a", Settings { latency_ms: 1500, ..Settings::default() });
    env.spoil("a", status(429, &[("retry-after", "600")], Value::Null));
    let file = env.client.upload(&["a"]).await;
    env.sandbox.reached("a", Operation::Upload, 1).await;
    cancel(env, &file).await;
    let file = eventually(Duration::from_secs(10), async || {
        let file = env.client.file(file["id"].as_str().unwrap()).await;
        (file["status"] == "error").then_some(file)
    })
    .await;
    assert_eq!(mapping(&file, "a")["error"]["code"], "cancelled", "{file}");
    assert_eq!(env.job(mapping(&file, "a")).await["status"], "cancelled");
}
