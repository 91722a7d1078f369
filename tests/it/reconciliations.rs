//! Reconciliation: what a provider holds, compared with what is known here.

use std::time::Duration;

use bytes::Bytes;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Purpose;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::PROVIDER_KEY;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

async fn begin(env: &Env, dry_run: bool) -> Value {
    let admin = env.as_key(ADMIN_KEY);
    let path = "/v1/admin/providers/at-a/reconcile";
    let (status, reconciliation) = admin.post(path, json!({"dry_run": dry_run})).await;
    assert_eq!(status, 200, "{reconciliation}");
    reconciliation
}

async fn ended(env: &Env, reconciliation: &Value) -> Value {
    let admin = env.as_key(ADMIN_KEY);
    let path = format!("/v1/admin/reconciliations/{}", reconciliation["id"].as_str().unwrap());
    eventually(PATIENCE, async || {
        let (status, reconciliation) = admin.get(&path).await;
        assert_eq!(status, 200, "{reconciliation}");
        (reconciliation["status"] != "queued").then_some(reconciliation)
    })
    .await
}

/// The report of a reconciliation that was begun now.
async fn report(env: &Env, dry_run: bool) -> Value {
    let over = ended(env, &begin(env, dry_run).await).await;
    assert_eq!(
        (&over["status"], &over["dry_run"]),
        (&json!("succeeded"), &json!(dry_run)),
        "{over}"
    );
    over["report"].clone()
}

fn plant(env: &Env, filename: &str) -> String {
    env.sandbox.plant("a", filename, Purpose::UserData, Bytes::from_static(b"x")).id
}

async fn text(env: &Env, sql: &str) -> String {
    env.database.query(sql).await[0].try_get("", "text").unwrap()
}

/// The marked filename of a file's copy.
async fn marked(env: &Env, file: &Value) -> String {
    let id = file["id"].as_str().unwrap();
    let marker = format!(
        "SELECT marker AS text FROM mappings JOIN files ON files.id = mappings.file_id WHERE managed_id = '{id}'"
    );
    format!("notes.{}.txt", text(env, &marker).await)
}

fn live(env: &Env) -> Vec<String> {
    env.sandbox.live_files("a").into_iter().map(|file| file.id).collect()
}

async fn uploaded(env: &Env) -> Value {
    let file = env.client.upload(&["a"]).await;
    env.client.settled(file["id"].as_str().unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_deleted_or_superseded_here_is_deleted_there() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let (kept, deleted) = (uploaded(&env).await, uploaded(&env).await);
        env.client.remove(&deleted).await;
        env.client.purged(&deleted).await;
        let installation = text(&env, "SELECT id AS text FROM installation").await;
        let mut left = live(&env);
        left.extend([
            plant(&env, "a stranger's.txt"),
            plant(&env, "of.zzzzzzaaaaaaaaaa.txt"),
            plant(&env, &format!("after a restore.{installation}aaaaaaaaaa.txt")),
            // A stranger's own name, which holds a marker of ours where none is put.
            plant(&env, &marked(&env, &deleted).await.replace(".txt", ".a long extension.txt")),
        ]);
        let superfluous = [
            plant(&env, &marked(&env, &kept).await),
            plant(&env, &marked(&env, &deleted).await),
            plant(&env, &marked(&env, &deleted).await),
        ];

        let dry = report(&env, true).await;
        assert_eq!(live(&env).len(), 8, "it only tells");
        let wet = report(&env, false).await;
        assert_eq!(live(&env), left);
        for (report, gone) in [(&dry, 0), (&wet, 3)] {
            let counts = [
                ("listed", 8),
                ("held", 1),
                ("left", 0),
                ("unknown", 1),
                ("foreign", 3),
                ("superfluous", 3),
                ("deleted", gone),
                ("missing", 0),
                ("lost", 0),
            ];
            for (name, count) in counts {
                assert_eq!(report[name], count, "{name}: {report}");
            }
            let samples = report["samples"].as_array().unwrap();
            for id in &superfluous {
                assert!(samples.iter().any(|sample| sample["provider_file_id"] == id.as_str()));
            }
        }
        assert_eq!(report(&env, false).await["superfluous"], 0);
        let (_, list) = env.as_key(ADMIN_KEY).get("/v1/admin/providers/at-a/reconciliations").await;
        assert_eq!(list["data"].as_array().unwrap().len(), 3);
        assert!(
            left.contains(&kept["mappings"][0]["provider_file_id"].as_str().unwrap().to_owned())
        );
    }
}

/// Deletes copies behind our back.
async fn vanish(env: &Env, ids: &[String]) {
    for id in ids {
        let url = format!("{}/files/{id}", env.sandbox.base_url("a"));
        let request = env.client.http.delete(url).bearer_auth(PROVIDER_KEY);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_gone_is_lost_and_many_at_once_are_not_believed() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let ids = env.seed("alice", 200).await;
        let young = uploaded(&env).await;
        let copies = live(&env);
        vanish(&env, &copies[..2]).await;
        vanish(&env, &[young["mappings"][0]["provider_file_id"].as_str().unwrap().to_owned()])
            .await;
        let lost = report(&env, false).await;
        assert_eq!(
            (&lost["expected"], &lost["missing"], &lost["lost"]),
            (&json!(200), &json!(2), &json!(2))
        );
        let file = env.client.file(&ids[0]).await;
        assert_eq!(file["mappings"][0]["status"], "lost", "{file}");
        let young = env.client.file(young["id"].as_str().unwrap()).await;
        assert_eq!(
            young["mappings"][0]["status"], "ready",
            "it may be missing from a list that lags"
        );

        vanish(&env, &copies[2..5]).await;
        let stopped = report(&env, false).await;
        assert_eq!((&stopped["missing"], &stopped["lost"]), (&json!(3), &json!(0)), "{stopped}");
        assert!(stopped["stopped"].as_str().unwrap().contains("3 of 198"), "{stopped}");
        // A copy that is lost is deleted like any other.
        assert_eq!(env.client.delete(&format!("/v1/files/{}", ids[0])).await.0, 200);
        let deletion = env.client.purged(&json!({"id": ids[0]})).await;
        assert_eq!(deletion["mappings"][0]["receipt"]["proof"], "already_gone", "{deletion}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deleted_while_database_and_blobs_belong_to_different_installations() {
    let mut env = Env::start().await;
    let file = uploaded(&env).await;
    plant(&env, &marked(&env, &file).await);
    env.server.terminate();
    std::fs::write(env.folder().join("blobs/installation"), "zzzzzz").unwrap();
    env.restart();
    let untrusted = report(&env, false).await;
    assert_eq!((&untrusted["superfluous"], &untrusted["deleted"]), (&json!(1), &json!(0)));
    assert!(untrusted["stopped"].as_str().unwrap().contains("doctor"), "{untrusted}");
    env.client.remove(&file).await;
    let waiting = eventually(PATIENCE, async || {
        let (_, jobs) = env.client.get("/v1/jobs?kind=delete_file&status=retrying").await;
        jobs["data"].get(0).cloned()
    })
    .await;
    assert_eq!(waiting["error"]["code"], "installation_mismatch", "{waiting}");
    assert_eq!(live(&env).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_of_the_database_with_a_store_of_its_own_deletes_nothing() {
    let mut env = Env::start().await;
    let file = uploaded(&env).await;
    plant(&env, &marked(&env, &file).await);
    env.server.terminate();
    std::fs::remove_dir_all(env.folder().join("blobs")).unwrap();
    env.restart();
    let untrusted = report(&env, false).await;
    assert_eq!((&untrusted["superfluous"], &untrusted["deleted"]), (&json!(1), &json!(0)));
    assert_eq!(live(&env).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_cannot_be_deleted_stands_in_the_way_of_no_other() {
    let env = Env::start().await;
    let file = uploaded(&env).await;
    let filename = marked(&env, &file).await;
    for _ in 0..3 {
        plant(&env, &filename);
    }
    env.spoil_as("a", FaultRule::new(Operation::Delete, Fault::status(405, Value::Null)));
    let first = report(&env, false).await;
    assert_eq!((&first["deleted"], &first["failed"]), (&json!(2), &json!(1)), "{first}");
    let second = report(&env, false).await;
    assert_eq!((&second["deleted"], &second["failed"]), (&json!(1), &json!(0)), "{second}");
    assert_eq!(live(&env).len(), 1);
}

/// A copy that was said to be deleted, and is there again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_again_is_deleted_again() {
    let env = Env::start().await;
    let file = uploaded(&env).await;
    env.client.remove(&file).await;
    env.client.purged(&file).await;
    let again = plant(&env, &marked(&env, &file).await);
    let renamed = format!("UPDATE mappings SET provider_file_id = '{again}'");
    env.database.execute(&renamed).await;
    assert_eq!(report(&env, false).await["deleted"], 1);
    assert!(live(&env).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconciliation_whose_worker_is_killed_begins_anew() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let mut crew = Crew::on(kind).await;
        let file = uploaded(&crew.env).await;
        plant(&crew.env, &marked(&crew.env, &file).await);
        for operation in [Operation::List, Operation::Delete] {
            let rule = FaultRule::new(operation, Fault::Hold { hold_before: true });
            crew.env.spoil_as("a", rule);
        }
        let begun = begin(&crew.env, false).await;
        for _ in 0..2 {
            crew.env.held("a", 1).await;
            crew.kill();
            crew.env.sandbox.release("a");
            crew.restart();
        }
        let over = ended(&crew.env, &begun).await;
        assert_eq!(over["status"], "succeeded", "{over}");
        assert_eq!(live(&crew.env).len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_are_reconciled_by_themselves() {
    let extra = "[sweeps]\nreconcile_every = \"1s\"\n".to_owned();
    let mut env = Env::with(Options { extra, ..Options::default() }).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    env.server.terminate();
    env.restart();
    eventually(PATIENCE, async || {
        let done = "SELECT count(*) FROM reconciliations WHERE status = 'succeeded'";
        (env.database.count(done).await >= 3).then_some(())
    })
    .await;
}
