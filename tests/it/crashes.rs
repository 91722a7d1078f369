//! Crashes of the process that runs the jobs, at each step of an upload's life.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use reqwest::Method;
use reqwest::multipart;
use serde_json::json;

use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::eventually;
use crate::support::mapping;

const BOTH: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_not_whole_at_a_crash_leaves_a_blob_that_goes_when_it_is_old() {
    let mut env = Env::start().await;
    let begun = futures_util::stream::once(async { Ok(Bytes::from(vec![b'x'; 1 << 20])) });
    let body = begun.chain(futures_util::stream::pending::<std::io::Result<Bytes>>());
    let part = multipart::Part::stream(reqwest::Body::wrap_stream(body)).file_name("a.txt");
    let form = multipart::Form::new()
        .text("purpose", "user_data")
        .text("target_model_names", "a")
        .part("file", part);
    let upload = env.client.request(Method::POST, "/v1/files").multipart(form);
    let upload = tokio::spawn(upload.send());
    eventually(PATIENCE, async || (env.blobs() == 1).then_some(())).await;
    env.server.kill();
    assert!(upload.await.unwrap().is_err());

    env.restart();
    let (_, files) = env.client.get("/v1/files").await;
    assert_eq!(files["data"], json!([]));
    assert_eq!(env.blobs(), 1, "a blob that may still be written to was taken for an orphan");
    env.age_blobs();
    env.restart();
    eventually(PATIENCE, async || (env.blobs() == 0).then_some(())).await;
    assert_eq!(env.calls("a", Operation::Upload), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_answered_outlives_a_crash_before_it_is_claimed() {
    for kind in BOTH {
        let mut crew = Crew::on(kind).await;
        crew.env.lane("a", "pause").await;
        let file = crew.env.client.upload(&["a"]).await;
        crew.kill();
        crew.env.server.kill();
        crew.env.restart();
        if kind == Kind::Postgres {
            crew.restart();
        }
        assert_eq!(crew.env.client.file(file["id"].as_str().unwrap()).await["status"], "uploaded");
        crew.env.lane("a", "resume").await;
        let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        crew.env.assert_one_copy(&file);
        assert_eq!(crew.env.calls("a", Operation::Upload), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_after_the_effect_of_its_upload_leaves_a_copy_that_is_adopted() {
    for kind in BOTH {
        let mut crew = Crew::on(kind).await;
        crew.env.spoil("a", Fault::Hold { hold_before: false });
        let file = crew.env.client.upload(&["a"]).await;
        crew.env.held("a", 1).await;
        crew.kill();
        crew.restart();
        let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        assert_eq!(crew.env.outcomes(mapping(&file, "a")).await, ["died", "succeeded"]);
        crew.env.quiet().await;
        crew.env.assert_one_copy(&file);
        assert_eq!(crew.env.calls("a", Operation::Upload), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_takes_effect_long_after_its_worker_was_killed_leaves_no_second_copy() {
    for kind in BOTH {
        let mut crew = Crew::on(kind).await;
        crew.env.spoil("a", Fault::Hold { hold_before: true });
        let file = crew.env.client.upload(&["a"]).await;
        crew.env.held("a", 1).await;
        crew.kill();
        crew.restart();
        let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        assert!(crew.env.calls("a", Operation::List) >= 2, "the list was not asked twice");
        crew.env.sandbox.release("a");
        eventually(PATIENCE, async || (crew.env.sandbox.stats("a").in_flight == 0).then_some(()))
            .await;
        crew.env.quiet().await;
        crew.env.assert_one_copy(&file);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_of_a_killed_worker_are_taken_over_in_time() {
    let mut crew = Crew::with(Options { lease: "2s", ..Options::on(Kind::Postgres) }).await;
    crew.env.spoil("a", Fault::Hold { hold_before: false });
    let file = crew.env.client.upload(&["a"]).await;
    crew.env.held("a", 1).await;
    let _other = crew.env.also("work");
    crew.kill();
    let killed = Instant::now();
    crew.env.sandbox.reached("a", Operation::List, 1).await;
    // A lease, two heartbeats and a second.
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
    let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_workers_one_can_be_killed_under_load() {
    let mut crew = Crew::on(Kind::Postgres).await;
    let _other = crew.env.also("work");
    crew.env.sandbox.configure("a", Settings { latency_ms: 150, ..Settings::default() });
    let mut ids = Vec::new();
    for _ in 0..30 {
        ids.push(crew.env.client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
    }
    crew.env.sandbox.reached("a", Operation::Upload, 10).await;
    crew.kill();
    for id in &ids {
        assert_eq!(crew.env.client.settled(id).await["status"], "processed");
    }
    crew.env.quiet().await;
    assert_eq!(crew.env.sandbox.live_files("a").len(), ids.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_outlives_three_workers_is_a_dead_letter_and_the_others_go_on() {
    let mut env = Env::start().await;
    env.spoil_as(
        "a",
        FaultRule {
            times: 0,
            filename_contains: Some("deadly".to_owned()),
            ..FaultRule::new(Operation::Upload, Fault::Hold { hold_before: true })
        },
    );
    let part = Part {
        filename: "deadly.txt",
        purpose: "user_data",
        models: &["a"],
        content: b"bytes\n".to_vec(),
    };
    let (_, deadly) = env.client.try_upload(part).await;
    let deadly = deadly["id"].as_str().unwrap().to_owned();
    for death in 1..=3 {
        // The sandbox notes when it has chosen to hold a call.
        eventually(PATIENCE, async || {
            let calls = env.sandbox.calls("a");
            let held = calls.iter().filter(|call| call.fault.as_deref() == Some("hold")).count();
            (held == death).then_some(())
        })
        .await;
        let other = env.client.upload(&["a"]).await;
        let other = env.client.settled(other["id"].as_str().unwrap()).await;
        assert_eq!(other["status"], "processed", "{other}");
        env.server.kill();
        env.restart();
    }
    let file = env.client.settled(&deadly).await;
    assert_eq!(file["status"], "error", "{file}");
    assert_eq!(mapping(&file, "a")["error"]["code"], "worker_died");
    assert_eq!(env.job(mapping(&file, "a")).await["status"], "failed");
    let outcomes = env.outcomes(mapping(&file, "a")).await;
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "died").count(), 3, "{outcomes:?}");

    env.sandbox.clear_faults("a");
    env.sandbox.release("a");
    let (status, _) = env.client.post(&format!("/v1/files/{deadly}/retry"), json!({})).await;
    assert_eq!(status, 200);
    assert_eq!(env.client.settled(&deadly).await["status"], "processed");
    env.quiet().await;
    assert_eq!(env.sandbox.live_files("a").len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_that_cannot_be_read_fails_its_upload_and_no_other() {
    let env = Env::start().await;
    env.lane("a", "pause").await;
    let damaged = env.client.upload(&["a", "b"]).await;
    env.database.execute("UPDATE jobs SET payload = '{\"mapping\": 7}' WHERE model = 'a'").await;
    let sound = env.client.upload(&["a"]).await;
    env.lane("a", "resume").await;
    assert_eq!(env.client.settled(sound["id"].as_str().unwrap()).await["status"], "processed");
    let file = env.client.settled(damaged["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "error", "{file}");
    assert_eq!(mapping(&file, "a")["error"]["code"], "payload_unreadable", "{file}");
    assert_eq!(mapping(&file, "b")["status"], "ready");
    let job = env.job(mapping(&file, "a")).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(1)));
}
