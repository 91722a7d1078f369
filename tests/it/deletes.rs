//! Deleted files: gone at once for their client, and in the end at every provider.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::answer;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::run;
use crate::support::status;

const MODELS: &[&str] = &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];
const PATIENCE: Duration = Duration::from_secs(30);

fn id(file: &Value) -> &str {
    file["id"].as_str().unwrap()
}

async fn uploaded(env: &Env, models: &[&str]) -> Value {
    let file = env.client.upload(models).await;
    env.client.settled(id(&file)).await
}

async fn deletion(env: &Env, file: &Value) -> Value {
    let (status, deletion) = env.client.get(&format!("/v1/files/{}/deletion", id(file))).await;
    assert_eq!(status, 200, "{deletion}");
    deletion
}

/// The bytes go a few seconds after the file.
async fn bytes_are_gone(env: &Env) {
    eventually(PATIENCE, async || {
        let named = "SELECT count(*) FROM files WHERE blob_key IS NOT NULL";
        (env.blobs() == 0 && env.database.count(named).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_file_is_gone_at_once_and_in_the_end_at_every_provider() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let file = uploaded(&env, &["a", "b", "c"]).await;
        let (status, error) = env.client.get(&format!("/v1/files/{}/deletion", id(&file))).await;
        assert_eq!((status, &error["error"]["message"]), (404, &json!("the file is not deleted")));

        env.client.remove(&file).await;
        for path in ["", "/content"] {
            let (status, error) = env.client.get(&format!("/v1/files/{}{path}", id(&file))).await;
            assert_eq!(status, 404, "{error}");
        }
        let (status, error) = env.client.delete(&format!("/v1/files/{}", id(&file))).await;
        assert_eq!((status, &error["error"]["code"]), (404, &json!("not_found")));
        assert_eq!(env.client.get("/v1/files").await.1["data"], json!([]));

        let deletion = env.client.purged(&file).await;
        assert_eq!(deletion["status"], "done", "{deletion}");
        for model in ["a", "b", "c"] {
            let copy = mapping(&deletion, model);
            assert_eq!(copy["status"], "deleted");
            let receipt = json!({"proof": "deleted", "http_status": 200, "is_verified": true});
            assert_eq!(copy["receipt"], receipt);
            assert_eq!(copy["provider_file_id"], mapping(&file, model)["provider_file_id"]);
            let job = env.job(copy).await;
            assert_eq!(
                (&job["kind"], &job["status"]),
                (&json!("delete_file"), &json!("succeeded"))
            );
            assert_eq!(env.sandbox.live_files(model).len(), 0);
            assert_eq!(env.calls(model, Operation::Delete), 1);
        }
        bytes_are_gone(&env).await;
        let (status, _) =
            env.as_key(BOB_KEY).get(&format!("/v1/files/{}/deletion", id(&file))).await;
        assert_eq!(status, 403);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_provider_answers_to_a_delete_the_copy_goes_or_its_reason_is_shown() {
    let gone =
        |code| Fault::AfterEffect { status: code, headers: Default::default(), body: Value::Null };
    let refused = |code| Fault::status(code, Value::Null);
    let garbage = |executed| Fault::Garbage {
        content_type: "text/html".to_owned(),
        body: "<html>Sign in</html>".to_owned(),
        executed,
    };
    let faults = [
        (gone(404), "deleted"),
        (gone(410), "deleted"),
        (refused(500), "deleted"),
        (refused(503), "deleted"),
        (status(429, &[("retry-after", "1")], Value::Null), "deleted"),
        (Fault::LostAnswer, "deleted"),
        (Fault::DropBefore, "deleted"),
        (Fault::Hang { executed: true }, "deleted"),
        (garbage(true), "deleted"),
        (garbage(false), "deleted"),
        // It has the file all the same.
        (refused(404), "deleted"),
        (refused(405), "undeletable"),
        (refused(501), "undeletable"),
    ];
    let provider = "timeout = \"1s\"".to_owned();
    let env = Env::with(Options { models: MODELS, provider, ..Options::default() }).await;
    let file = uploaded(&env, MODELS).await;
    for (model, (fault, _)) in MODELS.iter().zip(&faults) {
        env.spoil_as(model, FaultRule::new(Operation::Delete, fault.clone()));
    }
    env.client.remove(&file).await;
    let deletion = env.client.purged(&file).await;
    assert_eq!(deletion["status"], "failed", "{deletion}");
    for (model, (fault, expected)) in MODELS.iter().zip(&faults) {
        let copy = mapping(&deletion, model);
        assert_eq!(copy["status"], *expected, "{fault:?}: {copy}");
        let left = usize::from(*expected == "undeletable");
        assert_eq!(env.sandbox.live_files(model).len(), left, "{fault:?}");
    }
    let stuck = mapping(&deletion, "l");
    assert_eq!(stuck["error"]["code"], "provider_unsupported", "{stuck}");
    assert_eq!(env.job(stuck).await["status"], "failed");

    // Somebody has seen to it, and tries again.
    for model in ["l", "m"] {
        let job = mapping(&deletion, model)["job_id"].as_str().unwrap();
        let (code, job) = env.client.post(&format!("/v1/jobs/{job}/retry"), json!({})).await;
        assert_eq!(code, 200, "{job}");
    }
    let deletion = env.client.purged(&file).await;
    assert_eq!(deletion["status"], "done", "{deletion}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_shown_after_its_delete_is_deleted_again() {
    let env = Env::start().await;
    let file = uploaded(&env, &["a"]).await;
    let lie = r#"{"id": "ID", "object": "file", "deleted": true}"#;
    let lie = lie.replace("ID", mapping(&file, "a")["provider_file_id"].as_str().unwrap());
    let fault =
        Fault::Garbage { content_type: "application/json".to_owned(), body: lie, executed: false };
    env.spoil_as("a", FaultRule::new(Operation::Delete, fault));
    env.client.remove(&file).await;
    let deletion = env.client.purged(&file).await;
    assert_eq!(deletion["status"], "done", "{deletion}");
    assert_eq!(env.sandbox.live_files("a").len(), 0);
    assert_eq!(env.calls("a", Operation::Delete), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_may_not_look_does_not_stop_what_it_may_delete() {
    let env = Env::start().await;
    let file = uploaded(&env, &["a"]).await;
    let forbidden =
        json!({"error": {"message": "no", "type": "invalid_request_error", "code": null}});
    env.spoil_as("a", FaultRule::new(Operation::Get, Fault::status(403, forbidden)));
    env.client.remove(&file).await;
    let deletion = env.client.purged(&file).await;
    let receipt = json!({"proof": "deleted", "http_status": 200, "is_verified": false});
    assert_eq!(mapping(&deletion, "a")["receipt"], receipt);
    assert_eq!(env.provider("a").await["paused_by"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_an_sdk_repeats_after_a_lost_answer_is_answered_again() {
    let env = Env::start().await;
    let file = uploaded(&env, &["a"]).await;
    env.client.remove(&file).await;
    let path = format!("/v1/files/{}", id(&file));
    let repeat = |key: &str| {
        let request = env.as_key(key).request(Method::DELETE, &path);
        request.header("x-stainless-retry-count", "1").send()
    };
    let again = repeat(ALICE_KEY).await.unwrap();
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    let expected = json!({"id": id(&file), "object": "file", "deleted": true});
    assert_eq!(answer(again).await, (200, expected));
    assert_eq!(repeat(BOB_KEY).await.unwrap().status(), 403);
    env.database.execute("UPDATE files SET deleted_at = 1").await;
    assert_eq!(repeat(ALICE_KEY).await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_sent_nowhere_yet_is_deleted_without_a_call() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        env.lane("a", "pause").await;
        let file = env.client.upload(&["a"]).await;
        let upload = mapping(&file, "a").clone();
        env.client.remove(&file).await;
        let deletion = deletion(&env, &file).await;
        assert_eq!(deletion["status"], "done", "{deletion}");
        assert_eq!(mapping(&deletion, "a")["receipt"]["proof"], "never_there");
        assert_eq!(env.job(&upload).await["status"], "cancelled");
        env.lane("a", "resume").await;
        env.quiet().await;
        assert_eq!(env.sandbox.stats("a").files_created, 0);
        bytes_are_gone(&env).await;
    }
}

/// A file whose upload stands at its provider, before or after it has taken effect.
async fn standing(kind: Kind, hold_before: bool) -> (Crew, Value) {
    let crew = Crew::on(kind).await;
    crew.env.spoil("a", Fault::Hold { hold_before });
    let file = crew.env.client.upload(&["a"]).await;
    crew.env.held("a", 1).await;
    (crew, file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_deleted_during_its_upload_leaves_nothing() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        for hold_before in [true, false] {
            let (crew, file) = standing(kind, hold_before).await;
            let env = &crew.env;
            env.client.remove(&file).await;
            let deletion = env.client.purged(&file).await;
            assert_eq!(deletion["status"], "done", "{deletion}");
            // What was sent may take effect now.
            env.sandbox.release("a");
            env.quiet().await;
            assert_eq!(env.sandbox.live_files("a").len(), 0, "{hold_before}");
            assert_eq!(env.calls("a", Operation::Upload), 1);
            bytes_are_gone(env).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_deleted_after_its_worker_died_leaves_nothing() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        for hold_before in [true, false] {
            let (mut crew, file) = standing(kind, hold_before).await;
            crew.kill();
            crew.restart();
            crew.env.client.remove(&file).await;
            let deletion = crew.env.client.purged(&file).await;
            assert_eq!(deletion["status"], "done", "{deletion}");
            crew.env.sandbox.release("a");
            crew.env.quiet().await;
            assert_eq!(crew.env.sandbox.live_files("a").len(), 0, "{hold_before}");
            assert_eq!(crew.env.calls("a", Operation::Upload), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_frozen_worker_uploads_after_the_file_was_deleted_is_removed() {
    let (mut crew, file) = standing(Kind::Postgres, true).await;
    crew.worker().signal("STOP");
    let _other = crew.env.also("work");
    crew.env.client.remove(&file).await;
    let deletion = crew.env.client.purged(&file).await;
    assert_eq!(mapping(&deletion, "a")["receipt"]["proof"], "not_listed", "{deletion}");
    crew.env.sandbox.release("a");
    eventually(PATIENCE, async || (crew.env.sandbox.live_files("a").len() == 1).then_some(()))
        .await;
    crew.worker().signal("CONT");
    crew.worker().logged("taken over");
    crew.env.quiet().await;
    assert_eq!(crew.env.sandbox.live_files("a").len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_whose_worker_is_killed_is_finished_by_the_next() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        for (operation, hold_before) in
            [(Operation::Delete, true), (Operation::Delete, false), (Operation::Get, true)]
        {
            let mut crew = Crew::on(kind).await;
            let file = uploaded(&crew.env, &["a"]).await;
            let rule = FaultRule::new(operation, Fault::Hold { hold_before });
            crew.env.spoil_as("a", rule);
            crew.env.client.remove(&file).await;
            crew.env.held("a", 1).await;
            crew.kill();
            crew.restart();
            let deletion = crew.env.client.purged(&file).await;
            assert_eq!(deletion["status"], "done", "{deletion}");
            assert_eq!(crew.env.sandbox.live_files("a").len(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_deletes_of_one_file_at_once_delete_it_once() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let file = env.client.upload(&["a", "b"]).await;
        let path = format!("/v1/files/{}", id(&file));
        let all = (0..50).map(|_| env.client.delete(&path));
        let answers = futures_util::future::join_all(all).await;
        let count = |wanted| answers.iter().filter(|(status, _)| *status == wanted).count();
        assert_eq!((count(200), count(404)), (1, 49), "{answers:?}");
        assert_eq!(env.client.purged(&file).await["status"], "done");
        env.quiet().await;
        let jobs = "SELECT count(*) FROM jobs WHERE kind = 'delete_file'";
        assert!(env.database.count(jobs).await <= 2);
        assert!(env.sandbox.live_files("a").is_empty() && env.sandbox.live_files("b").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_waits_for_a_provider_that_is_not_configured_and_says_so() {
    let mut env = Env::start().await;
    let file = uploaded(&env, &["a", "b"]).await;
    env.server.terminate();
    let text = std::fs::read_to_string(env.folder().join("longshore.toml")).unwrap();
    let (before, rest) = text.split_once("[[providers]]").unwrap();
    let (_, others) = rest.split_once("[[providers]]").unwrap();
    let without = format!("{before}[[providers]]{others}");
    env.reconfigure(|_| without);
    env.restart();
    env.client.remove(&file).await;
    let deletion = eventually(PATIENCE, async || {
        let deletion = deletion(&env, &file).await;
        (mapping(&deletion, "b")["status"] == "deleted").then_some(deletion)
    })
    .await;
    let copy = mapping(&deletion, "a");
    assert_eq!(copy["status"], "deleting", "{copy}");
    assert_eq!(copy["blocked_by"], "provider_not_configured", "{copy}");
    assert_eq!(env.job(copy).await["blocked_by"], "provider_not_configured");
    let checked = run(&env.folder(), &["config", "check"], &[]);
    let warning = "warning: 1 copy of files are at the provider `at-a`, which is not configured";
    assert!(checked.output.contains(warning), "{}", checked.output);
    env.server.terminate();
    env.reconfigure(|_| text);
    env.restart();
    assert_eq!(env.client.purged(&file).await["status"], "done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_fails_for_a_week_is_given_up_and_shown() {
    let env = Env::start().await;
    let file = uploaded(&env, &["a"]).await;
    let conflict = FaultRule {
        times: 0,
        ..FaultRule::new(Operation::Delete, Fault::status(409, Value::Null))
    };
    env.spoil_as("a", conflict);
    env.client.remove(&file).await;
    env.sandbox.reached("a", Operation::Delete, 3).await;
    assert_eq!(deletion(&env, &file).await["status"], "pending");
    let week = 7 * 24 * 3600 * 1000;
    let age =
        format!("UPDATE jobs SET started_at = started_at - {week} WHERE kind = 'delete_file'");
    env.database.execute(&age).await;
    let deletion = env.client.purged(&file).await;
    assert_eq!(deletion["status"], "failed", "{deletion}");
    let error = &mapping(&deletion, "a")["error"];
    assert_eq!((&error["http_status"], &error["retryable"]), (&json!(409), &json!(false)));
    assert!(error["message"].as_str().unwrap().contains("7 days"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_files_go_by_themselves() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let extra = "[sweeps]\nevery = \"200ms\"\n".to_owned();
        let env = Env::with(Options { extra, ..Options::on(kind) }).await;
        let (kept, file) = (uploaded(&env, &["a"]).await, uploaded(&env, &["a", "b"]).await);
        let past = "UPDATE files SET expires_at = 1000 WHERE managed_id = ";
        env.database.execute(&format!("{past}'{}'", id(&file))).await;
        let deletion = eventually(PATIENCE, async || {
            let (status, deletion) =
                env.client.get(&format!("/v1/files/{}/deletion", id(&file))).await;
            (status == 200 && deletion["status"] == "done").then_some(deletion)
        })
        .await;
        assert_eq!(mapping(&deletion, "b")["status"], "deleted");
        assert_eq!(env.sandbox.live_files("a").len(), 1);

        // The provider's own limit ends a copy, not the file.
        env.database.execute("UPDATE mappings SET expires_at = 1000 WHERE status = 'ready'").await;
        eventually(PATIENCE, async || {
            let file = env.client.file(id(&kept)).await;
            (mapping(&file, "a")["status"] == "expired").then_some(())
        })
        .await;
        assert_eq!(env.client.file(id(&kept)).await["status"], "processed");
    }
}

#[tokio::test]
async fn a_provider_is_told_to_let_go_of_a_file_somewhat_later_than_it_goes_here() {
    let env = Env::start().await;
    let part =
        Part { filename: "x.txt", purpose: "user_data", models: &["a"], content: b"x".to_vec() };
    let form = Client::form(part)
        .text("expires_after[anchor]", "created_at")
        .text("expires_after[seconds]", "7200");
    let request = env.client.request(Method::POST, "/v1/files").multipart(form);
    let (status, file) = answer(request.send().await.unwrap()).await;
    assert_eq!(status, 200, "{file}");
    let file = env.client.settled(id(&file)).await;
    let life = env.sandbox.live_files("a")[0].expires_after_seconds.unwrap();
    assert!((10_700..=10_800).contains(&life), "{life}");
    assert!(mapping(&file, "a")["expires_at"].as_i64() > file["expires_at"].as_i64(), "{file}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_kept_for_a_time_go_once_every_model_has_them() {
    let mut env = Env::start().await;
    let (everywhere, failed) = (uploaded(&env, &["a"]).await, {
        env.spoil("b", Fault::status(400, Value::Null));
        uploaded(&env, &["b"]).await
    });
    assert_eq!((&everywhere["status"], &failed["status"]), (&json!("processed"), &json!("error")));
    env.server.terminate();
    // Both were uploaded a day ago.
    let store = env.folder().join("blobs");
    std::fs::create_dir_all(store.join("uploads/2026-01-01/00")).unwrap();
    for (number, key) in env.blob_keys().into_iter().enumerate() {
        let old = format!("uploads/2026-01-01/00/{number:032}");
        std::fs::rename(store.join(&key), store.join(&old)).unwrap();
        let moved = format!("UPDATE files SET blob_key = '{old}' WHERE blob_key = '{key}'");
        env.database.execute(&moved).await;
    }
    env.reconfigure(|text| {
        text.replace("url = \"file://blobs\"", "url = \"file://blobs\"\nkeep = \"1d\"")
    });
    env.restart();
    eventually(PATIENCE, async || (env.blobs() == 1).then_some(())).await;
    let (status, _) = env.client.get(&format!("/v1/files/{}/content", id(&failed))).await;
    assert_eq!(status, 200, "what some model does not have is kept");
    assert_eq!(env.client.file(id(&everywhere)).await["status"], "processed");
}
