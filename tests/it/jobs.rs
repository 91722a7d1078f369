//! What a person sees of jobs and files, and does to them: wait, cancel, retry, send to more, pause.

use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::eventually;

const HOLD: Fault = Fault::Hold { hold_before: true };

fn id(thing: &Value) -> &str {
    thing["id"].as_str().unwrap()
}

fn job(file: &Value, mapping: usize) -> String {
    file["mappings"][mapping]["job_id"].as_str().unwrap().to_owned()
}

async fn refuse(env: &Env, account: &str) {
    let body = json!({"error": {"message": "no such purpose", "type": "invalid_request_error", "param": "purpose", "code": null}});
    env.sandbox
        .add_fault(account, FaultRule::new(Operation::Upload, Fault::status(400, body)))
        .unwrap();
}

async fn held(env: &Env, account: &str) {
    tokio::time::timeout(
        Duration::from_secs(20),
        env.sandbox.reached(account, Operation::Upload, 1),
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn those_who_wait_are_answered_as_soon_as_it_is_over() {
    let env = Env::start().await;
    env.sandbox.add_fault("a", FaultRule::new(Operation::Upload, HOLD)).unwrap();
    let file = env.client.upload(&["a"]).await;
    let (path, job) =
        (format!("/v1/files/{}?wait=60", id(&file)), format!("/v1/jobs/{}?wait=60", job(&file, 0)));
    held(&env, "a").await;
    let begun = Instant::now();
    let waiters = futures_util::future::join_all((0..100).map(|number| {
        let (client, path) =
            (env.client.clone(), if number % 2 == 0 { path.clone() } else { job.clone() });
        async move { client.get(&path).await.1["status"].clone() }
    }));
    let release = async {
        let admin = env.as_key(ADMIN_KEY);
        eventually(Duration::from_secs(20), async || {
            let metrics = admin.get("/metrics").await.1;
            metrics.as_str().unwrap().contains("longshore_waiters 100\n").then_some(())
        })
        .await;
        env.sandbox.release("a");
        Instant::now()
    };
    let (statuses, released) = tokio::join!(waiters, release);
    assert!(
        statuses.iter().all(|status| status == "processed" || status == "succeeded"),
        "{statuses:?}"
    );
    assert!(
        released.elapsed() < Duration::from_secs(5),
        "{:?} of {:?}",
        released.elapsed(),
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_wait_ends_when_its_time_is_up() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    let file = env.client.upload(&["a"]).await;
    let begun = Instant::now();
    let (status, waited) = env.client.get(&format!("/v1/files/{}?wait=0.5", id(&file))).await;
    assert_eq!((status, waited["status"].as_str()), (200, Some("uploaded")));
    assert!(begun.elapsed() >= Duration::from_millis(500));
    for wait in ["-1", "soon", "NaN", "inf", "1s"] {
        let (status, error) = env.client.get(&format!("/v1/files/{}?wait={wait}", id(&file))).await;
        assert_eq!((status, error["error"]["param"].as_str()), (400, Some("wait")), "{wait}");
    }
    for wait in ["", "0"] {
        assert_eq!(env.client.get(&format!("/v1/files/{}?wait={wait}", id(&file))).await.0, 200);
    }
}

#[tokio::test]
async fn a_failed_mapping_says_why_and_can_be_retried() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        refuse(&env, "a").await;
        let file = env.client.upload(&["a", "b"]).await;
        let failed = env.client.settled(id(&file)).await;
        assert_eq!(failed["status"], "error");
        assert!(failed["status_details"].as_str().unwrap().contains("`a`"), "{failed}");
        let error = &failed["mappings"][0]["error"];
        assert_eq!(
            (error["http_status"].as_i64(), error["retryable"].as_bool()),
            (Some(400), Some(false)),
            "{error}"
        );
        let attempts = env.client.get(&format!("/v1/jobs/{}/attempts", job(&file, 0))).await.1;
        assert_eq!(
            (&attempts["data"][0]["outcome"], &attempts["data"][0]["attempt"]),
            (&json!("failed"), &json!(1))
        );

        let (status, again) =
            env.client.post(&format!("/v1/files/{}/retry", id(&file)), Value::Null).await;
        assert_eq!((status, again["status"].as_str()), (200, Some("uploaded")), "{again}");
        let done = env.client.settled(id(&file)).await;
        assert_eq!(
            (done["status"].as_str(), &done["status_details"]),
            (Some("processed"), &Value::Null)
        );
        assert_eq!(done["mappings"][1]["attempts"], 1);
        assert_eq!(env.sandbox.live_files("b").len(), 1);
        // Nothing has failed any more, so there is nothing to do.
        let (status, same) =
            env.client.post(&format!("/v1/files/{}/retry", id(&file)), Value::Null).await;
        assert_eq!((status, same["status"].as_str()), (200, Some("processed")));
    }
}

#[tokio::test]
async fn a_file_that_exists_is_sent_to_more_models_and_not_again_to_the_same() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let file = env.client.upload(&["a"]).await;
        env.client.settled(id(&file)).await;
        let path = format!("/v1/files/{}/mappings", id(&file));
        let (status, more) =
            env.client.post(&path, json!({"target_model_names": ["a", "b", "b"]})).await;
        assert_eq!((status, more["status"].as_str()), (200, Some("uploaded")), "{more}");
        let done = env.client.settled(id(&file)).await;
        let models: Vec<_> = done["mappings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mapping| mapping["model"].clone())
            .collect();
        assert_eq!(models, ["a", "b"]);
        assert_eq!((env.sandbox.live_files("a").len(), env.sandbox.live_files("b").len()), (1, 1));
        assert_eq!(env.client.post(&path, json!({"target_model_names": "b,c"})).await.0, 200);
        assert_eq!(env.client.settled(id(&file)).await["mappings"].as_array().unwrap().len(), 3);
        for (body, code) in [
            (json!({"target_model_names": ["nowhere"]}), "model_not_found"),
            (json!({"target_model_names": []}), "missing_required_parameter"),
            (json!({"target_model_names": 5}), "invalid_json"),
            (json!({}), "invalid_json"),
        ] {
            let (status, error) = env.client.post(&path, body).await;
            assert_eq!((status, error["error"]["code"].as_str()), (400, Some(code)), "{error}");
        }
        let both = futures_util::future::join_all(
            (0..10).map(|_| env.client.post(&path, json!({"target_model_names": ["c"]}))),
        );
        assert!(both.await.iter().all(|(status, _)| *status == 200));
    }
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_can_be_retried() {
    let env = Env::start().await;
    let admin = env.as_key(ADMIN_KEY);
    assert_eq!(admin.post("/v1/admin/providers/at-a/pause", Value::Null).await.0, 200);
    let file = env.client.upload(&["a"]).await;
    let job = job(&file, 0);
    let (status, cancelled) = env.client.post(&format!("/v1/jobs/{job}/cancel"), Value::Null).await;
    assert_eq!((status, cancelled["status"].as_str()), (200, Some("cancelled")), "{cancelled}");
    let file = env.client.settled(id(&file)).await;
    assert_eq!(
        (file["status"].as_str(), file["mappings"][0]["error"]["code"].as_str()),
        (Some("error"), Some("cancelled"))
    );
    let (status, error) = env.client.post(&format!("/v1/jobs/{job}/cancel"), Value::Null).await;
    assert_eq!((status, error["error"]["type"].as_str()), (409, Some("conflict_error")), "{error}");
    let (status, queued) = env.client.post(&format!("/v1/jobs/{job}/retry"), Value::Null).await;
    assert_eq!((status, queued["status"].as_str()), (200, Some("queued")), "{queued}");
    assert_eq!(env.client.post(&format!("/v1/jobs/{job}/retry"), Value::Null).await.0, 409);
    assert_eq!(admin.post("/v1/admin/providers/at-a/resume", Value::Null).await.0, 200);
    assert_eq!(env.client.settled(id(&file)).await["status"], "processed");
}

#[tokio::test]
async fn a_running_job_is_cancelled_and_leaves_no_copy_that_is_called_ready() {
    let env = Env::start().await;
    env.sandbox.add_fault("a", FaultRule::new(Operation::Upload, HOLD)).unwrap();
    let file = env.client.upload(&["a"]).await;
    let job = job(&file, 0);
    held(&env, "a").await;
    assert_eq!(env.client.get(&format!("/v1/jobs/{job}")).await.1["status"], "running");
    let (status, answer) = env.client.post(&format!("/v1/jobs/{job}/cancel"), Value::Null).await;
    assert_eq!(status, 200, "{answer}");
    let ended = env.client.get(&format!("/v1/jobs/{job}?wait=20")).await.1;
    assert_eq!(ended["status"], "cancelled", "{ended}");
    assert_eq!(env.client.settled(id(&file)).await["mappings"][0]["status"], "failed");
    env.sandbox.release("a");
}

#[tokio::test]
async fn a_paused_provider_gets_nothing_until_it_is_resumed_and_says_so() {
    let env = Env::start().await;
    let admin = env.as_key(ADMIN_KEY);
    let (status, providers) = admin.post("/v1/admin/providers/at-a/pause", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(providers["data"][0]["paused_by"], "paused");
    assert_eq!(providers["data"][0]["paused_until"], Value::Null);
    let file = env.client.upload(&["a", "b"]).await;
    let waiting = eventually(Duration::from_secs(20), async || {
        let file = env.client.file(id(&file)).await;
        (file["mappings"][1]["status"] == "ready").then_some(file)
    })
    .await;
    assert_eq!(waiting["mappings"][0]["status"], "pending");
    assert_eq!(waiting["mappings"][0]["blocked_by"], "paused");
    assert_eq!(
        env.client.get(&format!("/v1/jobs/{}", job(&file, 0))).await.1["blocked_by"],
        "paused"
    );
    assert_eq!(env.sandbox.stats("a").calls.get(&Operation::Upload), None);
    assert_eq!(admin.post("/v1/admin/providers/at-a/resume", Value::Null).await.0, 200);
    assert_eq!(env.client.settled(id(&file)).await["status"], "processed");
    assert_eq!(admin.post("/v1/admin/providers/nowhere/pause", Value::Null).await.0, 404);
}
