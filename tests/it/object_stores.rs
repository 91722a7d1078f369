//! Bytes in an object store: a real S3, with its signatures and its multipart uploads.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::Method;
use reqwest::multipart;
use serde_json::Value;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::Client;
use crate::support::Done;
use crate::support::Env;
use crate::support::Options;
use crate::support::Part;
use crate::support::Proxy;
use crate::support::S3;
use crate::support::answer;
use crate::support::batches::WATCHFUL;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::run;

const PATIENCE: Duration = Duration::from_secs(60);
/// More than a part.
const LARGE: usize = 7 << 20;
/// Likewise, in pieces of 512 KiB.
const MORE_THAN_A_PART: usize = 12;

async fn on(s3: &S3, port: u16) -> Env {
    let extra = WATCHFUL.to_owned();
    Env::with(Options { blobs: s3.settings(port), extra, ..Options::default() }).await
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|place| (place % 251) as u8).collect()
}

async fn upload(client: &Client, models: &[&str], content: Vec<u8>) -> (u16, Value) {
    let part = Part { filename: "in.bin", purpose: "user_data", models, content };
    client.try_upload(part).await
}

async fn range(client: &Client, id: &Value, range: &str) -> Vec<u8> {
    let path = format!("/v1/files/{}/content", id.as_str().unwrap());
    let answer = client.request(Method::GET, &path).header("Range", range).send().await.unwrap();
    assert_eq!(answer.status(), 206);
    answer.bytes().await.unwrap().to_vec()
}

/// Begins an upload that never ends, after so many pieces of 512 KiB.
fn begin_upload(client: &Client, pieces: usize) -> JoinHandle<reqwest::Result<reqwest::Response>> {
    let piece = || Ok(Bytes::from(vec![b'x'; 512 << 10]));
    let begun = futures_util::stream::iter((0..pieces).map(move |_| piece()));
    let body = begun.chain(futures_util::stream::pending::<std::io::Result<Bytes>>());
    let part = multipart::Part::stream(reqwest::Body::wrap_stream(body)).file_name("a.txt");
    let form = multipart::Form::new()
        .text("purpose", "user_data")
        .text("target_model_names", "a")
        .part("file", part);
    tokio::spawn(client.request(Method::POST, "/v1/files").multipart(form).send())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_lie_in_the_bucket_from_upload_to_deletion() {
    let s3 = S3::start();
    let options = Options { blobs: s3.settings(s3.port), log: "trace", ..Options::default() };
    let env = Env::with(Options { extra: WATCHFUL.to_owned(), ..options }).await;
    let client = &env.client;
    let mut files = Vec::new();
    for size in [0, 11, LARGE] {
        let (status, file) = upload(client, &["a", "b", "c"], content(size)).await;
        assert_eq!(status, 200, "{file}");
        let file = client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        assert!(client.content(&file["id"]).await == content(size), "{size} bytes");
        files.push(file);
    }
    let last = content(LARGE);
    assert_eq!(
        range(client, &files[2]["id"], "bytes=5242870-5242899").await,
        last[5242870..5242900]
    );
    assert_eq!(range(client, &files[2]["id"], "bytes=-3").await, last[LARGE - 3..]);
    let held = s3.held().await;
    assert!(held.objects.keys().all(|name| name.starts_with("lane/one/")), "{held:?}");
    assert_eq!(held.files().len(), 3);
    assert!(held.uploads.is_empty() && held.objects.values().any(|size| *size == LARGE as u64));

    let input = client.upload_requests(&["a", "b"], 3).await;
    let batch = client.batch_ended(&client.batch_on(&input).await).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    let output = client.content(&batch["output_file_id"]).await;
    assert_eq!(String::from_utf8(output).unwrap().lines().count(), 6);
    let held = s3.held().await;
    assert!(held.files().iter().any(|name| name.starts_with("lane/one/outputs/")), "{held:?}");

    for file in &files {
        client.remove(file).await;
        assert_eq!(client.purged(file).await["status"], "done");
    }
    for file in client.get("/v1/files").await.1["data"].as_array().unwrap() {
        client.remove(file).await;
    }
    eventually(PATIENCE, async || s3.held().await.files().is_empty().then_some(())).await;
    assert!(s3.held().await.uploads.is_empty());
    let log = env.server.log();
    assert!(log.contains("\"TRACE\""), "the log does not tell all");
    assert!(!log.contains(&s3.key.secret_access_key), "the secret is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_is_broken_off_leaves_nothing_in_the_bucket() {
    let s3 = S3::start();
    let mut env = on(&s3, s3.port).await;
    let has_parts = async |uploads: usize| {
        let held = s3.held().await;
        (held.uploads.len() == uploads && held.uploads.values().all(|parts| *parts > 0))
            .then_some(())
    };

    // A client that hangs up.
    let begun = begin_upload(&env.client, MORE_THAN_A_PART);
    eventually(PATIENCE, async || has_parts(1).await).await;
    begun.abort();
    eventually(PATIENCE, async || s3.held().await.uploads.is_empty().then_some(())).await;
    // One that sends more than a file may have, though not more than a form.
    let before = s3.held().await.begun;
    let (status, refused) = upload(&env.client, &["a"], content((8 << 20) + 1000)).await;
    assert_eq!(status, 413, "{refused}");
    eventually(PATIENCE, async || {
        let held = s3.held().await;
        (held.begun == before + 1 && held.uploads.is_empty()).then_some(())
    })
    .await;

    // A process that dies leaves it to whoever sweeps, once nothing was added to it for long.
    let long = Duration::from_secs(3 * 3600);
    let orphan = format!("lane/one/uploads/2026-11-23/00/{}", "0".repeat(32));
    s3.put(&orphan).await;
    s3.age_one(&orphan, long).await;
    let begun = [(); 2].map(|()| begin_upload(&env.client, MORE_THAN_A_PART));
    eventually(PATIENCE, async || has_parts(2).await).await;
    env.server.kill();
    for upload in begun {
        assert!(upload.await.unwrap().is_err());
    }
    let uploads = s3.held().await.uploads;
    // What comes last in the list is looked at last.
    let (young, old) = (uploads.keys().next().unwrap(), uploads.keys().last().unwrap());
    s3.age_one(old, long).await;
    env.restart();
    eventually(PATIENCE, async || (!s3.held().await.uploads.contains_key(old)).then_some(())).await;
    let held = s3.held().await;
    assert!(held.uploads.contains_key(young), "one that may still grow was called off");
    s3.age(long).await;
    env.restart();
    eventually(PATIENCE, async || s3.held().await.uploads.is_empty().then_some(())).await;
    // Blobs are swept before, but none that was seen once: its upload may have been a long one.
    assert_eq!(s3.held().await.files(), [orphan]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_for_which_there_is_no_memory_are_told_to_come_again() {
    let s3 = S3::start();
    let env = on(&s3, s3.port).await;
    let begun: Vec<_> = (0..51).map(|_| begin_upload(&env.client, 1)).collect();
    let refused = eventually(PATIENCE, async || {
        let part = Part {
            filename: "a",
            purpose: "user_data",
            models: &["a"],
            content: content(512 << 10),
        };
        let form = Client::form(part);
        let sent = env.client.request(Method::POST, "/v1/files").multipart(form).send().await;
        let answer = sent.unwrap();
        (answer.status() != 200).then_some(answer)
    })
    .await;
    assert!(refused.headers().contains_key("retry-after"));
    let (status, error) = answer(refused).await;
    assert_eq!((status, &error["error"]["code"]), (503, &json!("overloaded")), "{error}");
    // Small ones need none, and others do as soon as there is some.
    assert_eq!(upload(&env.client, &["a"], content(100)).await.0, 200);
    begun[0].abort();
    assert_eq!(upload(&env.client, &["a"], content(LARGE)).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_deletes_is_told_of_once_for_many_files() {
    let s3 = S3::start();
    let env = on(&s3, s3.port).await;
    env.lane("a", "pause").await;
    let mut files = Vec::new();
    for _ in 0..3 {
        files.push(env.client.upload(&["a"]).await);
    }
    s3.keep().await;
    let ids: Vec<&Value> = files.iter().map(|file| &file["id"]).collect();
    let sweep = json!({"file_ids": ids});
    let (status, sweep) = env.client.post("/v1/sweeps", sweep).await;
    assert_eq!(status, 200, "{sweep}");
    let said = |line: &&str| line.contains("could not delete the bytes");
    eventually(PATIENCE, async || {
        let log = env.server.log();
        let lines =
            log.lines().filter(said).map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["files"].as_u64().unwrap()).find(|files| *files == 3)
    })
    .await;
    assert_eq!(s3.held().await.files().len(), 3);
    s3.let_go().await;
    eventually(PATIENCE, async || s3.held().await.files().is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start_whose_write_meets_another_goes_by_what_the_store_has() {
    let s3 = S3::start();
    s3.conflict(2).await;
    let env = on(&s3, s3.port).await;
    let held = s3.held().await;
    assert!(held.objects.contains_key("lane/one/installation"), "{held:?}");
    assert!(!env.server.log().contains("belong to different installations"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_costs_time_and_nothing_else() {
    let s3 = S3::start();
    let proxy = Proxy::before(s3.port);
    let env = on(&s3, proxy.port).await;
    let deleted = env.client.upload(&["a"]).await;
    env.client.settled(deleted["id"].as_str().unwrap()).await;
    env.lane("b", "pause").await;
    let file = env.client.upload(&["a", "b"]).await;
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    eventually(PATIENCE, async || {
        (mapping(&env.client.get(&path).await.1, "a")["status"] == "ready").then_some(())
    })
    .await;

    proxy.cut();
    let form = Client::form(Part {
        filename: "in.bin",
        purpose: "user_data",
        models: &["a"],
        content: content(100),
    });
    let refused = env.client.request(Method::POST, "/v1/files").multipart(form).send().await;
    let refused = refused.unwrap();
    assert_eq!(refused.headers()["retry-after"], "2");
    let (status, error) = answer(refused).await;
    assert_eq!(status, 503, "{error}");
    let message = error["error"]["message"].as_str().unwrap();
    assert_eq!(message, "the blob store cannot be reached; try again");
    let (status, refused) = upload(&env.client, &["a"], content(LARGE)).await;
    assert_eq!(status, 503, "{refused}");
    assert_eq!(env.client.get("/readyz").await.0, 503);
    // What needs bytes waits; what does not goes on.
    env.lane("b", "resume").await;
    eventually(PATIENCE, async || {
        let job = env.job(mapping(&env.client.get(&path).await.1, "b")).await;
        (job["error"]["code"] == "source_unreadable").then_some(())
    })
    .await;
    env.client.remove(&deleted).await;
    assert_eq!(env.client.purged(&deleted).await["status"], "done");

    proxy.pass();
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    let (status, file) = upload(&env.client, &["a"], content(LARGE)).await;
    assert_eq!(status, 200, "{file}");
    assert_eq!(env.client.settled(file["id"].as_str().unwrap()).await["status"], "processed");
    assert_eq!(env.client.get("/readyz").await.0, 200);
    eventually(PATIENCE, async || (s3.held().await.files().len() == 2).then_some(())).await;

    // A bucket that is gone is no reason to believe that all files are lost.
    env.lane("b", "pause").await;
    let file = env.client.upload(&["b"]).await;
    s3.hide().await;
    env.lane("b", "resume").await;
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    eventually(PATIENCE, async || {
        let job = env.job(mapping(&env.client.get(&path).await.1, "b")).await;
        (job["error"]["code"] == "source_unreadable").then_some(())
    })
    .await;
    assert_eq!(env.client.get("/readyz").await.0, 503);
    s3.show().await;
    assert_eq!(env.client.get("/readyz").await.0, 200);
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_whose_connection_to_the_store_breaks_goes_on_at_its_place() {
    let s3 = S3::start();
    let proxy = Proxy::before(s3.port);
    let env = on(&s3, proxy.port).await;
    let (_, file) = upload(&env.client, &["a"], content(LARGE)).await;
    env.client.settled(file["id"].as_str().unwrap()).await;
    // Slow enough to be cut in the middle.
    proxy.delay(Duration::from_millis(20));
    let path = format!("/v1/files/{}/content", file["id"].as_str().unwrap());
    let mut download = env.client.request(Method::GET, &path).send().await.unwrap();
    assert_eq!(download.status(), 200);
    let mut read = download.chunk().await.unwrap().unwrap().to_vec();
    let connections = proxy.accepted();
    proxy.cut();
    eventually(PATIENCE, async || (proxy.open() == 0).then_some(())).await;
    proxy.pass();
    while let Some(chunk) = download.chunk().await.unwrap() {
        read.extend_from_slice(&chunk);
    }
    assert!(read == content(LARGE), "{} bytes", read.len());
    assert!(proxy.accepted() > connections, "the connection was not cut");
}

/// The check of the blob store by `longshore doctor`.
fn examined(env: &Env) -> (Done, Value) {
    let done = run(&env.folder(), &["doctor", "--json"], &[]);
    let report: Value = serde_json::from_str(&done.output).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["check"] == "blobs").unwrap().clone();
    (done, check)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_tells_what_is_wrong_with_a_bucket() {
    let s3 = S3::start();
    let env = on(&s3, s3.port).await;
    env.client.upload(&["a"]).await;
    let (done, check) = examined(&env);
    assert_eq!((done.code, &check["status"]), (0, &json!("ok")), "{check:#}");
    assert!(check["message"].as_str().unwrap().contains("s3://longshore-test/lane/one"));

    let (id, secret) = (&s3.key.access_key_id, &s3.key.secret_access_key);
    let closed = crate::support::free_port().to_string();
    for (right, wrong, says, advises) in [
        (secret.as_str(), "canary-secret-5a1c", "SignatureDoesNotMatch", "access_key_id"),
        (id, "AKIACANARY", "InvalidAccessKeyId", "this machine's clock"),
        ("longshore-test", "longshore-nowhere", "no such bucket", "make the bucket"),
        (&s3.port.to_string(), &closed, "refused", "blobs.endpoint"),
    ] {
        env.reconfigure(|text| text.replace(right, wrong));
        let (done, check) = examined(&env);
        assert_eq!((done.code, &check["status"]), (1, &json!("failed")), "{check:#}");
        assert!(check["message"].as_str().unwrap().contains(says), "{check:#}");
        assert!(check["remedy"].as_str().unwrap().contains(advises), "{check:#}");
        let started = run(&env.folder(), &["work"], &[("LONGSHORE_LOG", "trace")]);
        assert_eq!(started.code, 1, "{}", started.log);
        assert!(started.log.contains(says), "{}", started.log);
        for text in [&done.output, &done.log, &started.output, &started.log] {
            assert!(!text.contains("canary-secret-5a1c") && !text.contains(secret.as_str()));
        }
        env.reconfigure(|text| text.replace(wrong, right));
    }

    // What is not in the configuration is in the environment.
    env.reconfigure(|text| {
        let lines = text.lines().filter(|line| !line.contains("access_key"));
        lines.collect::<Vec<_>>().join("\n")
    });
    let variables = [("AWS_ACCESS_KEY_ID", id.as_str()), ("AWS_SECRET_ACCESS_KEY", secret)];
    let done = run(&env.folder(), &["doctor"], &variables);
    assert_eq!(done.code, 0, "{}", done.output);
}
