//! `longshore doctor`: every check is made, whatever became of the others, and says what to do.
//!
//! The sandbox lives in this process and has to answer while a command is waited for: hence the runtime of
//! several threads.

use std::path::Path;
use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::PROVIDER_KEY;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::run;
use crate::support::status;

/// What `doctor --json` has found.
struct Examined {
    code: i32,
    report: Value,
}

impl Examined {
    /// The check of this name, about this subject if it has one.
    fn check(&self, name: &str, subject: Option<&str>) -> &Value {
        let checks = self.report["checks"].as_array().unwrap();
        let found = checks
            .iter()
            .find(|check| check["check"] == name && check["subject"].as_str() == subject);
        found.unwrap_or_else(|| panic!("no check `{name}` of {subject:?} in {:#}", self.report))
    }

    fn assert(&self, name: &str, subject: Option<&str>, verdict: &str, says: &[&str]) {
        let check = self.check(name, subject);
        assert_eq!(check["status"], verdict, "{check:#}");
        let text = format!("{} {}", check["message"], check["remedy"]);
        for says in says {
            assert!(text.contains(says), "`{says}` is not in {check:#}");
        }
    }
}

fn examine(folder: &Path, more: &[&str], environment: &[(&str, &str)]) -> Examined {
    let arguments = [&["doctor", "--json"], more].concat();
    let done = run(folder, &arguments, environment);
    for key in [ADMIN_KEY, ALICE_KEY, PROVIDER_KEY] {
        assert!(!done.output.contains(key) && !done.log.contains(key), "a key is in the report");
    }
    assert_eq!(done.log, "", "{}", done.output);
    Examined { code: done.code, report: serde_json::from_str(&done.output).unwrap() }
}

fn write(folder: &Path, text: &str) {
    std::fs::write(folder.join("longshore.toml"), text).unwrap();
}

/// An address of this machine on which nobody listens.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

async fn passes_every_check(options: Options) {
    let env = Env::with(options).await;
    let kind = env.options.kind;
    let file = env.client.upload(&["a", "b"]).await;
    env.client.settled(file["id"].as_str().unwrap()).await;
    let listen = env.client.base.trim_start_matches("http://").to_owned();
    let environment = [("LONGSHORE__SERVER__LISTEN", listen.as_str())];
    let examined = examine(&env.folder(), &[], &environment);
    assert_eq!(examined.code, 0, "{:#}", examined.report);
    for check in examined.report["checks"].as_array().unwrap() {
        // The disk of this machine is not the test's.
        let is_room = check["check"].as_str().unwrap().ends_with("_room");
        assert!(check["status"] == "ok" || is_room, "{check:#}");
    }
    let database = match kind {
        Kind::Sqlite => "SQLite 3.",
        Kind::Postgres => "PostgreSQL 1",
    };
    examined.assert("database", None, "ok", &[database]);
    examined.assert("files", None, "ok", &["the newest 1 are there"]);
    examined.assert("workers", None, "ok", &["1 process: 1 up", "the last job ended"]);
    examined.assert("provider", Some("at-c"), "ok", &["takes the key"]);
    if kind == Kind::Postgres {
        examined.assert("redis", None, "ok", &["answers PING"]);
    }
    assert_eq!(env.blobs(), 1);

    let shown = run(&env.folder(), &["doctor"], &environment);
    assert_eq!(shown.code, 0, "{}", shown.output);
    assert!(shown.output.contains("provider at-a"), "{}", shown.output);
    assert!(shown.output.contains("is ready"), "{}", shown.output);
    assert!(!(shown.output + &shown.log).contains(['\u{1b}', '\r']));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_works_passes_every_check_on_sqlite() {
    passes_every_check(Options::on(Kind::Sqlite)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_that_works_passes_every_check_on_postgres_and_redis() {
    let redis = std::env::var("LONGSHORE_TEST_REDIS_URL").expect("tests/run.sh sets it");
    let extra = format!("[redis]\nurl = \"{redis}\"\n");
    passes_every_check(Options { extra, ..Options::on(Kind::Postgres) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_is_asked_and_one_that_fails_hides_no_other() {
    let models = &["a", "b", "c", "d", "e", "f"];
    let env = Env::with(Options { models, ..Options::default() }).await;
    let list = |fault| FaultRule { times: 0, ..FaultRule::new(Operation::List, fault) };
    let expected_key = Some("another".to_owned());
    env.sandbox.configure("a", Settings { expected_key, ..Settings::default() });
    env.spoil_as("b", list(status(503, &[], json!({"error": {"message": "overloaded"}}))));
    env.spoil_as("c", list(Fault::Hang { executed: false }));
    let broke = json!({"error": {"message": "no credit", "code": "insufficient_quota"}});
    env.spoil_as("d", list(status(429, &[], broke)));
    let page = json!({"object": "list", "data": [], "has_more": false});
    let date = [("date", "Sun, 06 Nov 1994 08:49:37 GMT")];
    env.spoil_as("e", list(status(200, &date, page)));
    let examined = examine(&env.folder(), &["--timeout", "2s"], &[]);
    assert_eq!(examined.code, 1, "{:#}", examined.report);
    assert_eq!(examined.report["status"], "failed");
    examined.assert("provider", Some("at-a"), "failed", &["401", "correct `api_key`"]);
    examined.assert("provider", Some("at-b"), "failed", &["503", "overloaded", "status page"]);
    examined.assert("provider", Some("at-c"), "failed", &["no answer within 2s"]);
    examined.assert("provider", Some("at-d"), "failed", &["add credit"]);
    examined.assert("provider", Some("at-e"), "warning", &["clock", "ahead of"]);
    examined.assert("provider", Some("at-f"), "ok", &["takes the key"]);
    examined.assert("database_writes", None, "ok", &[]);
    // They are asked at the same time.
    let took = examined.check("provider", Some("at-c"))["duration_ms"].as_u64().unwrap();
    assert!((2000..4000).contains(&took), "{took} ms");

    let shown = run(&env.folder(), &["doctor", "--timeout", "2s"], &[]);
    assert_eq!(shown.code, 1);
    assert!(shown.output.contains("→ correct `api_key`"), "{}", shown.output);
    assert!(shown.output.contains("4 checks failed"), "{}", shown.output);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_away_has_a_remedy_and_the_rest_is_checked_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (database, redis, provider, listen) = (nobody(), nobody(), nobody(), nobody());
    std::fs::write(folder.path().join("blobs"), "a file").unwrap();
    write(
        folder.path(),
        &format!(
            "[server]\nlisten = \"{listen}\"\n[database]\nurl = \"postgres://me:canary@{database}/db\"\n\
             [redis]\nurl = \"redis://:canary@{redis}\"\n[blobs]\nurl = \"file://blobs\"\n\
             [[providers]]\nname = \"p\"\nkind = \"openai\"\nbase_url = \"http://{provider}/v1\"\n"
        ),
    );
    let examined = examine(folder.path(), &[], &[]);
    assert_eq!(examined.code, 1);
    assert!(!examined.report.to_string().contains("canary"), "{:#}", examined.report);
    examined.assert("configuration", None, "warning", &["no model is at the provider `p`"]);
    examined.assert("database", None, "failed", &["Connection refused", "start PostgreSQL"]);
    examined.assert("schema", None, "skipped", &["cannot be reached"]);
    examined.assert("queue", None, "skipped", &["cannot be reached"]);
    examined.assert("installation", None, "skipped", &[]);
    examined.assert("blobs", None, "failed", &["is not a folder"]);
    examined.assert("redis", None, "warning", &["Connection refused", "start Redis"]);
    examined.assert("provider", Some("p"), "failed", &["cannot connect", "check `base_url`"]);
    examined.assert("server", None, "warning", &["nothing listens", "longshore up"]);

    // Not only here: this is what a start says, too.
    let up = run(folder.path(), &["migrate", "status"], &[]);
    assert_eq!(up.code, 1);
    assert!(up.log.contains("Connection refused"), "{}", up.log);
    assert!(up.log.contains("start PostgreSQL") && !up.log.contains("canary"), "{}", up.log);
}

#[test]
fn where_nothing_is_yet_it_makes_nothing_and_only_warns() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [("LONGSHORE__SERVER__LISTEN", "127.0.0.1:0")];
    let examined = examine(folder.path(), &[], &environment);
    assert_eq!(examined.code, 0, "{:#}", examined.report);
    assert_eq!(examined.report["status"], "warning");
    examined.assert("configuration", None, "warning", &["OPENAI_API_KEY"]);
    examined.assert("database", None, "warning", &["longshore up"]);
    examined.assert("blobs", None, "warning", &["longshore up"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_of_another_version_is_told_and_left_alone() {
    let env = Env::start().await;
    env.database
        .execute("DELETE FROM seaql_migrations WHERE version LIKE '%create_idempotency_keys'")
        .await;
    for _ in 0..2 {
        let examined = examine(&env.folder(), &[], &[]);
        assert_eq!(examined.code, 1);
        examined.assert(
            "schema",
            None,
            "failed",
            &["create_idempotency_keys", "longshore migrate"],
        );
        examined.assert("queue", None, "skipped", &["not up to date"]);
    }
    env.database
        .execute("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m2099_x', 0)")
        .await;
    let examined = examine(&env.folder(), &[], &[]);
    let says = ["create_idempotency_keys", "another version has been here", "m2099_x"];
    examined.assert("schema", None, "failed", &says);
    let applied = "INSERT INTO seaql_migrations (version, applied_at) \
                   SELECT version || 'create_idempotency_keys', 0 FROM (SELECT 'm20261123_000008_' AS version) AS missing";
    env.database.execute(applied).await;
    let examined = examine(&env.folder(), &[], &[]);
    assert_eq!(examined.code, 0, "{:#}", examined.report);
    examined.assert("schema", None, "ok", &["a newer version", "m2099_x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_nobody_serves_and_lanes_that_stand_still_are_told() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    env.client.upload(&["a", "b"]).await;
    env.lane("b", "pause").await;
    let fresh = examine(&env.folder(), &[], &[]);
    assert_eq!(fresh.code, 0, "{:#}", fresh.report);
    fresh.assert("queue", None, "ok", &["2 jobs waiting"]);
    fresh.assert("workers", None, "warning", &["1 process: 1 serve", "none runs jobs"]);
    fresh.assert("lane", Some("at-b"), "warning", &["`paused`", "1 job waiting", "at-b/resume"]);

    env.database.execute("UPDATE jobs SET run_at = run_at - 90000").await;
    env.database
        .execute(
            "UPDATE lanes SET pause_reason = 'credential_rejected' WHERE name = 'provider:at-b'",
        )
        .await;
    let examined = examine(&env.folder(), &[], &[]);
    assert_eq!(examined.code, 1);
    examined.assert("workers", None, "failed", &["1 job due", "longshore work"]);
    examined.assert("lane", Some("at-b"), "failed", &["correct `api_key`"]);

    env.reconfigure(|text| text.replace("\"at-a\"", "\"at-elsewhere\""));
    let examined = examine(&env.folder(), &[], &[]);
    examined.assert("lane", Some("at-a"), "failed", &["not configured", "configure `at-a` again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_store_of_another_installation_is_adopted_by_hand_and_nothing_is_deleted_before() {
    let mut env = Env::start().await;
    env.spoil("a", Fault::LostAnswer);
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(mapping(&file, "a")["status"], "ready", "{file}");
    env.server.terminate();
    let mark = env.folder().join("blobs").join("installation");
    let ours = std::fs::read_to_string(&mark).unwrap();
    std::fs::write(&mark, "zzzzzz").unwrap();

    // A look after a lost answer deletes superfluous copies: not now.
    env.restart();
    env.database
        .execute("UPDATE jobs SET run_at = 0 WHERE kind = 'verify_upload' AND finished_at IS NULL")
        .await;
    let waiting = "SELECT count(*) FROM jobs WHERE kind = 'verify_upload' AND error LIKE '%installation_mismatch%'";
    eventually(Duration::from_secs(20), async || {
        (env.database.count(waiting).await == 1).then_some(())
    })
    .await;

    for _ in 0..2 {
        let examined = examine(&env.folder(), &[], &[]);
        assert_eq!(examined.code, 1);
        let says = [ours.as_str(), "`zzzzzz`", "nothing is deleted", "longshore doctor --adopt"];
        examined.assert("installation", None, "failed", &says);
    }
    let adopted = examine(&env.folder(), &["--adopt"], &[]);
    assert_eq!(adopted.code, 0, "{:#}", adopted.report);
    adopted.assert("installation", None, "ok", &["adopted", &ours, "`zzzzzz`", "restart"]);
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), ours);
    let again = examine(&env.folder(), &["--adopt"], &[]);
    again.assert("installation", None, "ok", &["nothing to adopt"]);

    env.server.terminate();
    env.restart();
    env.quiet().await;
    let verified =
        "SELECT count(*) FROM jobs WHERE kind = 'verify_upload' AND status = 'succeeded'";
    assert_eq!(env.database.count(verified).await, 1);
    env.assert_one_copy(&file);
    assert!(!env.server.log().contains("different installations"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_whose_bytes_are_gone_and_a_store_that_was_emptied_are_told() {
    let env = Env::start().await;
    env.client.upload(&["a"]).await;
    // Whoever still reads or writes there would make folders again while they are removed.
    env.quiet().await;
    std::fs::remove_dir_all(env.folder().join("blobs")).unwrap();
    let examined = examine(&env.folder(), &[], &[]);
    assert_eq!(examined.code, 1);
    examined.assert("blobs", None, "warning", &["there is no folder"]);
    examined.assert("installation", None, "failed", &["has files", "correct `blobs.url`"]);

    // The server may have made it again.
    std::fs::create_dir_all(env.folder().join("blobs")).unwrap();
    let examined = examine(&env.folder(), &[], &[]);
    assert_eq!(examined.code, 1);
    examined.assert("files", None, "failed", &["the bytes of 1 of the newest 1"]);
}

#[tokio::test]
async fn secrets_of_webhooks_that_cannot_be_read_are_told() {
    let mut env = Env::start().await;
    examine(&env.folder(), &[], &[]).assert("webhook_secrets", None, "ok", &["there are none yet"]);
    let hook = json!({"name": "n", "url": "https://8.8.8.8/", "event_types": ["file.processed"]});
    assert_eq!(env.client.post("/v1/webhook_endpoints", hook).await.0, 200);
    let said = &["those of 1 endpoint can be read"];
    examine(&env.folder(), &[], &[]).assert("webhook_secrets", None, "ok", said);
    let key = env.folder().join("longshore.db.key");
    std::fs::rename(&key, env.folder().join("lost")).unwrap();
    let examined = examine(&env.folder(), &[], &[]);
    assert_eq!(examined.code, 1);
    examined.assert("webhook_secrets", None, "failed", &["no key", "stored with"]);
    assert!(!key.exists(), "it changes nothing");
    env.server.terminate();
    env.restart();
    let said = &["1 of 1 cannot be read"];
    examine(&env.folder(), &[], &[]).assert("webhook_secrets", None, "failed", said);
}
