//! `longshore backup`: a copy that is made while the server runs, and what a restored one may do.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use longshore::sandbox::Operation;
use serde_json::Value;
use serde_json::json;

use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::batches::WATCHFUL;
use crate::support::eventually;
use crate::support::run;

const PATIENCE: Duration = Duration::from_secs(60);

fn ids(files: &Value) -> Vec<String> {
    let files = files["data"].as_array().unwrap();
    files.iter().map(|file| file["id"].as_str().unwrap().to_owned()).collect()
}

/// Puts a copy in the place of the database, as a restore does.
fn restore(folder: &Path, copy: &str) {
    for end in ["", "-wal", "-shm"] {
        let path = folder.join(format!("longshore.db{end}"));
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::copy(folder.join(copy), folder.join("longshore.db")).unwrap();
    std::fs::copy(folder.join(format!("{copy}.key")), folder.join("longshore.db.key")).unwrap();
}

fn installation(folder: &Path, arguments: &[&str]) -> (i32, Value) {
    let done = run(folder, &[&["doctor", "--json"], arguments].concat(), &[]);
    let report: Value = serde_json::from_str(&done.output).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["check"] == "installation").unwrap();
    (done.code, check.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_made_under_load_is_a_database_that_serves_once_it_is_adopted() {
    let mut env = Env::start().await;
    let hook = json!({"name": "n", "url": "https://8.8.8.8/", "event_types": ["sweep.completed"]});
    assert_eq!(env.client.post("/v1/webhook_endpoints", hook).await.0, 200);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (client, is_over) = (env.client.clone(), Arc::clone(&is_over));
        load.spawn(async move {
            let mut taken = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                taken.push(client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
            }
            taken
        });
    }
    let mut before = Vec::new();
    for copy in ["first.copy", "second.copy"] {
        before.push(env.client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
        let done = run(&env.folder(), &["backup", copy], &[]);
        assert_eq!(done.code, 0, "{}", done.log);
        assert!(done.output.starts_with(&format!("{copy}: ")), "{}", done.output);
        assert!(done.log.contains("back up file://blobs"), "{}", done.log);
    }
    is_over.store(true, Ordering::Relaxed);
    let taken = load.join_all().await.concat();
    assert!(!taken.is_empty());
    let late = env.client.upload(&["a"]).await;
    env.client.settled(late["id"].as_str().unwrap()).await;
    let blobs = env.blobs();
    env.server.terminate();

    restore(&env.folder(), "second.copy");
    env.age_blobs();
    env.restart();
    env.server.logged("restored from a backup");
    let (_, files) = env.client.get("/v1/files?limit=10000").await;
    let restored = ids(&files);
    assert!(before.iter().all(|id| restored.contains(id)), "a file from before is missing");
    assert!(restored.iter().all(|id| taken.contains(id) || before.contains(id)));
    for id in restored.iter().take(20) {
        assert_eq!(env.client.content(&json!(id)).await, b"some bytes\n");
    }
    // A webhook's secret can be read with the key of the backup.
    let endpoints = env.client.get("/v1/webhook_endpoints").await.1;
    assert_eq!(endpoints["data"].as_array().unwrap().len(), 1);
    assert!(!run(&env.folder(), &["doctor"], &[]).output.contains("cannot be read"));

    // It knows that there may have been more: it deletes no bytes that it does not know.
    let (code, check) = installation(&env.folder(), &[]);
    assert_eq!((code, &check["status"]), (1, &json!("failed")), "{check:#}");
    assert!(check["message"].as_str().unwrap().contains("restored from a backup"), "{check:#}");
    env.server.terminate();
    env.restart();
    env.client.upload(&["a"]).await;
    assert_eq!(env.blobs(), blobs + 1);
    let (code, check) = installation(&env.folder(), &["--adopt"]);
    assert_eq!((code, &check["status"]), (0, &json!("ok")), "{check:#}");
    env.server.terminate();
    env.database.execute("UPDATE jobs SET run_at = 0 WHERE finished_at IS NULL").await;
    env.restart();
    for id in restored.iter().take(20) {
        assert_eq!(env.client.settled(id).await["status"], "processed");
    }
    let known = restored.len() + 1;
    eventually(PATIENCE, async || (env.blobs() == known).then_some(())).await;
    let (code, _) = installation(&env.folder(), &[]);
    assert_eq!(code, 0);
    assert!(!env.server.log().contains("restored from a backup"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restored_database_takes_for_not_sent_is_looked_for_before_it_is_sent() {
    let mut env = Env::with(Options { extra: WATCHFUL.to_owned(), ..Options::default() }).await;
    let file = env.client.upload_requests(&["a"], 1).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    env.lane("a", "pause").await;
    let batch = env.client.batch_on(&file).await;
    let other = env.client.upload(&["a"]).await;
    assert_eq!(run(&env.folder(), &["backup", "copy"], &[]).code, 0);
    env.lane("a", "resume").await;
    assert_eq!(env.client.batch_ended(&batch).await["status"], "completed");
    env.client.settled(other["id"].as_str().unwrap()).await;
    env.server.terminate();

    restore(&env.folder(), "copy");
    env.restart();
    env.lane("a", "resume").await;
    let waiting = "SELECT count(*) FROM jobs WHERE error LIKE '%installation_mismatch%'";
    eventually(PATIENCE, async || (env.database.count(waiting).await == 2).then_some(())).await;
    assert_eq!(installation(&env.folder(), &["--adopt"]).0, 0);
    env.server.terminate();
    env.database.execute("UPDATE jobs SET run_at = 0 WHERE finished_at IS NULL").await;
    env.restart();
    let settled = env.client.settled(other["id"].as_str().unwrap()).await;
    assert_eq!(settled["status"], "processed", "{settled}");
    assert_eq!(env.client.batch_ended(&batch).await["status"], "completed");
    assert_eq!(env.calls("a", Operation::CreateBatch), 1);
    assert_eq!(env.calls("a", Operation::Upload), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_takes_the_key_along_and_overwrites_nothing() {
    use std::os::unix::fs::PermissionsExt as _;

    let env = Env::start().await;
    env.client.upload(&["a"]).await;
    let folder = env.folder();
    let names = || {
        let entries = std::fs::read_dir(&folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(run(&folder, &["backup", "copy"], &[]).code, 0);
    for (copy, original) in [("copy", None), ("copy.key", Some("longshore.db.key"))] {
        let path = folder.join(copy);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{copy}");
        if let Some(original) = original {
            let original = std::fs::read(folder.join(original)).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), original);
        }
    }

    std::fs::write(folder.join("other.key"), "another key").unwrap();
    let (there, copy) = (names(), std::fs::read(folder.join("copy")).unwrap());
    for (name, says) in [
        ("copy", "is there already"),
        ("other", "other.key"),
        ("longshore.db", "is there already"),
        ("nowhere/copy", "cannot write to the folder"),
    ] {
        let done = run(&folder, &["backup", name], &[]);
        assert_eq!(done.code, 1, "{name}: {}", done.log);
        assert!(done.log.contains(says), "{}", done.log);
    }
    assert_eq!(names(), there);
    assert_eq!(std::fs::read(folder.join("copy")).unwrap(), copy);
    assert_eq!(std::fs::read(folder.join("other.key")).unwrap(), b"another key");
    assert_eq!(run(&folder, &["backup"], &[]).code, 2);

    // What is no whole database is not taken for one.
    let elsewhere = tempfile::tempdir().unwrap();
    let backup = || run(elsewhere.path(), &["backup", "copy"], &[]);
    let done = backup();
    assert_eq!(done.code, 1);
    assert!(done.log.contains("there is no database `data/longshore.db`"), "{}", done.log);
    assert!(!elsewhere.path().join("data").exists(), "it made a database");
    std::fs::create_dir(elsewhere.path().join("data")).unwrap();
    std::fs::write(elsewhere.path().join("data/longshore.db"), vec![b'x'; 8192]).unwrap();
    let done = backup();
    assert_eq!(done.code, 1);
    assert!(done.log.contains("not a database"), "{}", done.log);
    assert!(!elsewhere.path().join("copy").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_postgres_is_backed_up_by_its_own_means() {
    let env = Env::with(Options::on(Kind::Postgres)).await;
    let done = run(&env.folder(), &["backup", "copy"], &[]);
    assert_eq!(done.code, 2);
    assert!(done.log.contains("pg_dump"), "{}", done.log);
    assert!(!env.folder().join("copy").exists());
}
