//! Disks that are full: what cannot be kept is refused whole, what is there is still read, and all goes
//! on by itself when there is room again.

use std::time::Duration;

use longshore::sandbox::Fault;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::Env;
use crate::support::Options;
use crate::support::RawForm;
use crate::support::SmallDisk;
use crate::support::answer;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

/// A form whose row takes about 8 KiB in the database.
fn form(content: &[u8]) -> Vec<u8> {
    let fields = RawForm::new().field("purpose", "user_data").field("target_model_names", "a");
    let metadata = (0..16)
        .fold(fields, |form, number| form.field(&format!("metadata[k{number}]"), &"v".repeat(512)));
    metadata.file("in.bin", content).end()
}

async fn upload(env: &Env, key: &str, size: usize) -> (u16, Value) {
    let request = env.client.raw_upload(form(&vec![b'x'; size])).header("Idempotency-Key", key);
    answer(request.send().await.unwrap()).await
}

fn assert_full(status: u16, error: &Value, what: &str) {
    assert_eq!(status, 507, "{error}");
    let detail = &error["error"];
    assert_eq!((&detail["type"], &detail["code"]), (&json!("server_error"), &json!("disk_full")));
    let message = detail["message"].as_str().unwrap();
    assert!(message.contains(what) && message.contains("full"), "{message}");
}

/// What is there can be read, by clients and by whoever watches.
async fn is_read(env: &Env, id: &str) {
    assert_eq!(env.client.file(id).await["id"], id);
    let content = env.client.request(Method::GET, &format!("/v1/files/{id}/content"));
    assert_eq!(content.send().await.unwrap().status(), 200);
    assert!(!env.client.get("/v1/files").await.1["data"].as_array().unwrap().is_empty());
    assert_eq!(env.client.get("/readyz").await.0, 200);
}

/// There are this many files, each with its blob, and nothing else.
async fn holds(env: &Env, files: usize) {
    let count = env.database.count("SELECT count(*) FROM files").await;
    assert_eq!(usize::try_from(count).unwrap(), files);
    eventually(PATIENCE, async || (env.blobs() == files).then_some(())).await;
}

async fn with_small(what: SmallDisk) -> Env {
    Env::with(Options { small_disk: Some(what), ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_store_without_room_refuses_uploads_whole_and_takes_them_when_there_is_room() {
    let env = with_small(SmallDisk::Blobs).await;
    let (_, first) = upload(&env, "first", 100_000).await;
    let first = first["id"].as_str().unwrap();
    env.client.settled(first).await;
    let disk = env.disk();
    disk.fill_but(0);
    for size in [1, 3 << 20] {
        let (status, error) = upload(&env, "refused", size).await;
        assert_full(status, &error, "the blob store");
    }
    holds(&env, 1).await;
    is_read(&env, first).await;

    // There is room for the beginning of a file, and for a small one.
    disk.free();
    disk.fill_but(1 << 20);
    let (status, error) = upload(&env, "refused", 3 << 20).await;
    assert_full(status, &error, "the blob store");
    holds(&env, 1).await;
    let (status, small) = upload(&env, "small", 1).await;
    assert_eq!(status, 200, "{small}");

    disk.free();
    // The key of what was refused is free.
    let (status, large) = upload(&env, "refused", 3 << 20).await;
    assert_eq!(status, 200, "{large}");
    for file in [&small, &large] {
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
    }
    holds(&env, 3).await;
    assert_eq!(env.sandbox.live_files("a").len(), 3);
}

/// Uploads until the database says that it is full: the ids of what was taken before.
async fn upload_until_full(env: &Env, round: usize) -> Vec<String> {
    let mut taken = Vec::new();
    loop {
        let (status, file) = upload(env, &format!("k-{round}-{}", taken.len()), 10).await;
        if status != 200 {
            assert_full(status, &file, "the database");
            return taken;
        }
        taken.push(file["id"].as_str().unwrap().to_owned());
        assert!(taken.len() < 5000, "the disk has no end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_room_refuses_uploads_whole_and_goes_on_when_there_is_room() {
    let env = with_small(SmallDisk::Database).await;
    env.spoil("b", Fault::Hold { hold_before: false });
    let held = env.client.upload(&["b"]).await;
    env.held("b", 1).await;
    for round in 0..2 {
        env.disk().fill_but(64 << 10);
        let mut taken = upload_until_full(&env, round).await;
        for number in 0..20 {
            let key = format!("refused-{round}-{number}");
            let (status, error) = upload(&env, &key, 10).await;
            assert_full(status, &error, "the database");
        }
        is_read(&env, held["id"].as_str().unwrap()).await;
        // The end of an upload cannot be written either.
        env.sandbox.release("b");

        env.disk().free();
        // Not even the key of what was refused could be let go then; it is now.
        let file = eventually(Duration::from_secs(10), async || {
            let (status, file) = upload(&env, &format!("refused-{round}-0"), 10).await;
            assert!(matches!(status, 200 | 409), "{file}");
            (status == 200).then_some(file)
        })
        .await;
        taken.push(file["id"].as_str().unwrap().to_owned());
        taken.push(held["id"].as_str().unwrap().to_owned());
        for id in &taken {
            let file = env.client.settled(id).await;
            assert_eq!(file["status"], "processed", "{file}");
        }
        let count = env.database.count("SELECT count(*) FROM files").await;
        holds(&env, usize::try_from(count).unwrap()).await;
        env.quiet().await;
        let live = env.sandbox.live_files("a").len() + env.sandbox.live_files("b").len();
        assert_eq!(live, usize::try_from(count).unwrap());
    }
    assert!(!env.server.log().contains("panicked"));
}
