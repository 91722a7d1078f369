//! Secrets: no key appears anywhere but where it was configured.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use longshore::sandbox::Webhook;
use reqwest::Method;
use sea_orm::ConnectionTrait as _;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Collector;
use crate::support::ENCRYPTION_KEY;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::PROVIDER_KEY;
use crate::support::Process;
use crate::support::Receiver;
use crate::support::Reply;
use crate::support::answer;
use crate::support::batches::WATCHFUL;
use crate::support::eventually;

/// What a provider signs with.
const PROVIDERS_SECRET: &str = "cHJvdmlkZXJzLXNlY3JldC1jYW5hcnktNmYxMQ==";

const COLLECTORS_KEY: &str = "collectors-canary-3c85";

/// The keys that must not be seen: as they are, and as the digits of their bytes.
struct Keys(Vec<String>);

impl Keys {
    fn new(keys: &[&str]) -> Self {
        let hexadecimal = keys.iter().map(|key| data_encoding::HEXLOWER.encode(key.as_bytes()));
        Self(keys.iter().map(|key| (*key).to_owned()).chain(hexadecimal).collect())
    }

    fn are_not_in(&self, what: &str, text: &str) {
        for key in &self.0 {
            assert!(!text.contains(key), "`{key}` is in {what}");
        }
    }
}

/// Every file below `folder` but the configuration, as text.
fn contents(folder: &std::path::Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().is_none_or(|name| name != "longshore.toml") {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    found
}

/// Every value of every column of every table, as text.
async fn values(env: &Env) -> Vec<(String, String)> {
    let columns = match env.options.kind {
        Kind::Sqlite => {
            "SELECT t.name AS a, c.name AS b, c.type AS c FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.type = 'table'"
        }
        Kind::Postgres => {
            "SELECT table_name::text AS a, column_name::text AS b, data_type::text AS c FROM information_schema.columns \
             WHERE table_schema = 'public'"
        }
    };
    let mut tables: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for row in env.database.query(columns).await {
        let text = |name: &str| row.try_get::<String>("", name).unwrap();
        let (table, column, kind) = (text("a"), text("b"), text("c"));
        let value = match (env.options.kind, kind.as_str()) {
            (Kind::Sqlite, _) => format!("CAST(\"{column}\" AS TEXT)"),
            (Kind::Postgres, "bytea") => format!("encode(\"{column}\", 'escape')"),
            (Kind::Postgres, _) => format!("\"{column}\"::text"),
        };
        tables.entry(table).or_default().push((column, value));
    }
    let mut found = Vec::new();
    for (table, columns) in tables {
        let values: Vec<_> = columns.iter().map(|(_, value)| value.as_str()).collect();
        let sql = format!("SELECT {} FROM \"{table}\"", values.join(", "));
        for row in env.database.query(&sql).await {
            for (at, (column, _)) in columns.iter().enumerate() {
                // Bytes that are no text hold no key either: those are looked for in the files.
                if let Ok(Some(value)) = row.try_get_by_index::<Option<String>>(at) {
                    found.push((format!("{table}.{column}"), value));
                }
            }
        }
    }
    found
}

fn id(thing: &Value) -> &str {
    thing["id"].as_str().unwrap()
}

/// A batch whose create its provider refuses.
async fn batch_that_is_refused(env: &Env, refusal: Value) -> Value {
    let rule = FaultRule::new(Operation::CreateBatch, Fault::status(400, refusal));
    env.sandbox.add_fault("c", rule).unwrap();
    let batch = env.client.batch_on(&env.client.upload_requests(&["c"], 1).await).await;
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["status"], "failed", "{batch}");
    batch
}

/// A batch whose end its provider tells.
async fn batch_that_is_told_of(env: &Env) -> Value {
    let webhook = Webhook {
        url: format!("{}/v1/provider_events/at-c", env.client.base),
        secret: format!("whsec_{PROVIDERS_SECRET}"),
    };
    let settings = env.sandbox.settings("c");
    env.sandbox.configure("c", Settings { webhook: Some(webhook), ..settings });
    let batch = env.client.batch_on(&env.client.upload_requests(&["c"], 1).await).await;
    eventually(Duration::from_secs(30), async || {
        (env.sandbox.stats("c").events_taken == 1).then_some(())
    })
    .await;
    env.client.batch_ended(&batch).await
}

async fn all_is_clean(kind: Kind) {
    let collector = Collector::start().await;
    let extra = format!(
        "{WATCHFUL}[webhooks]\nallow_private_addresses = true\n{}otlp_headers = \"x-key={COLLECTORS_KEY}\"\n",
        collector.section()
    );
    let provider = format!("webhook_secret = \"whsec_{PROVIDERS_SECRET}\"\n");
    let env = Env::with(Options { log: "trace", extra, provider, ..Options::on(kind) }).await;
    let (admin, bob) = (env.as_key(ADMIN_KEY), env.as_key(BOB_KEY));
    // A provider that repeats the key it was sent, in each of its refusals.
    let refusal = json!({"error": {"message": format!("Incorrect API key provided: {PROVIDER_KEY}."),
        "type": "invalid_request_error", "param": PROVIDER_KEY, "code": "invalid_api_key"}});
    for (account, status) in [("a", 401), ("b", 400), ("c", 500)] {
        let rule = FaultRule::new(Operation::Upload, Fault::status(status, refusal.clone()));
        env.sandbox.add_fault(account, rule).unwrap();
    }
    // A key that is made here is said once, in this answer.
    let (_, made) = admin.post("/v1/admin/keys", json!({"owner": "carol"})).await;
    let carol = env.as_key(made["key"].as_str().unwrap());
    // So is the secret of a webhook, and again when it is replaced. It answers to what it was sent, and fails.
    let receiver = Receiver::answering(Reply::Status(500)).await;
    let mut secrets = Vec::new();
    let hook = json!({"name": "h", "url": receiver.url(), "event_types": ["file.deleted"]});
    let create = admin.request(Method::POST, "/v1/webhook_endpoints").json(&hook);
    let create = create.header("Idempotency-Key", "w").header("X-Longshore-Owner", "alice");
    let (_, hook) = answer(create.send().await.unwrap()).await;
    let hook_path = format!("/v1/webhook_endpoints/{}", hook["id"].as_str().unwrap());
    secrets.push(hook["signing_secret"].as_str().unwrap().to_owned());
    let keep = json!({"keep_old_secret_active_for_24_hours": true});
    let (_, rotated) = env.client.post(&format!("{hook_path}/rotate_secret"), keep).await;
    secrets.push(rotated["signing_secret"].as_str().unwrap().to_owned());
    let bare = secrets.iter().map(|secret| secret.trim_start_matches("whsec_"));
    let mut all = vec![
        ADMIN_KEY,
        ALICE_KEY,
        BOB_KEY,
        PROVIDER_KEY,
        PROVIDERS_SECRET,
        COLLECTORS_KEY,
        &carol.key,
    ];
    all.extend(bare);
    if kind == Kind::Postgres {
        all.push(ENCRYPTION_KEY);
    }
    let keys = Keys::new(&all);
    let mut answers = Vec::new();
    let file = env.client.upload(&["a", "b", "c"]).await;
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    eventually(Duration::from_secs(30), async || {
        let file = env.client.get(&path).await.1;
        let has_ended = file["mappings"][0]["error"].is_object()
            && file["mappings"][1]["status"] == "failed"
            && file["mappings"][2]["status"] == "ready";
        has_ended.then_some(())
    })
    .await;
    let deleted = env.client.upload(&["b"]).await;
    env.client.remove(&deleted).await;
    let delivered = receiver.received(1).await;
    for secret in &secrets {
        assert_eq!(delivered[0].verify(secret), Ok(()));
    }
    answers.push(env.client.post(&hook_path, json!({"name": "other"})).await.1.to_string());
    for client in [&bob, &carol] {
        let key = ("Idempotency-Key", "k");
        let form = crate::support::RawForm::new()
            .field("purpose", "user_data")
            .field("target_model_names", "b")
            .file("in.txt", b"x");
        let request = client.raw_upload(form.end()).header(key.0, key.1);
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let batches = [batch_that_is_refused(&env, refusal).await, batch_that_is_told_of(&env).await];
    for batch in &batches {
        answers.push(batch.to_string());
        answers.push(
            env.client.get(&format!("/v1/batches/{}/results", id(batch))).await.1.to_string(),
        );
        answers.push(
            env.client
                .post(&format!("/v1/batches/{}/retry", id(batch)), json!({}))
                .await
                .1
                .to_string(),
        );
    }
    let forged = json!({"type": "batch.completed", "data": {"id": PROVIDER_KEY}});
    answers.push(env.client.post("/v1/provider_events/at-a", forged).await.1.to_string());
    for path in [
        &path,
        "/v1/files",
        "/v1/batches",
        "/v1/jobs",
        "/v1/models",
        "/v1/admin/keys",
        "/v1/admin/providers",
        "/v1/webhook_endpoints",
        &hook_path,
        "/metrics",
        "/readyz",
        "/v1/nowhere",
        "/v1/files?limit=x",
    ] {
        answers.push(admin.get(path).await.1.to_string());
    }
    for job in admin.get("/v1/jobs").await.1["data"].as_array().unwrap().iter() {
        let path = format!("/v1/jobs/{}/attempts", job["id"].as_str().unwrap());
        answers.push(admin.get(&path).await.1.to_string());
    }
    for key in [&format!("{ALICE_KEY}x"), &PROVIDER_KEY.to_owned()] {
        let (status, error) = env.as_key(key).get("/v1/files").await;
        assert_eq!(status, 401);
        answers.push(error.to_string());
    }
    answers.push(bob.get(&path).await.1.to_string());
    let revoked = format!("/v1/admin/keys/{}", made["id"].as_str().unwrap());
    let (_, gone) = answer(admin.request(Method::DELETE, &revoked).send().await.unwrap()).await;
    answers.push(gone.to_string());
    keys.are_not_in("an answer", &answers.join("\n"));
    let log = env.server.log();
    assert!(log.contains("\"TRACE\""), "the log does not tell all");
    keys.are_not_in("the log", &log);
    keys.are_not_in("the output", &env.server.output());
    let sent = collector.0.received(1).await;
    assert_eq!(sent[0].header("x-key"), COLLECTORS_KEY);
    for name in ["POST upload_file", "POST webhook", "POST create_batch", "POST /v1/admin/keys"] {
        eventually(Duration::from_secs(20), async || {
            collector.spans().iter().any(|span| span.name == name).then_some(())
        })
        .await;
    }
    keys.are_not_in("a trace", &collector.bodies());
    let rows = values(&env).await;
    for what in [
        "files.managed_id",
        "mappings.error",
        "jobs.payload",
        "job_attempts.error",
        "lanes.credential",
        "webhook_endpoints.secret_hint",
        "batches.errors",
        "batch_runs.error",
        "provider_events.event_id",
        "idempotency_keys.response",
    ] {
        assert!(rows.iter().any(|(column, _)| column == what), "the search found no `{what}`");
    }
    for (column, value) in rows {
        keys.are_not_in(&column, &value);
    }
    if kind == Kind::Sqlite {
        let db = env.database.open().await;
        db.read().execute_unprepared("PRAGMA wal_checkpoint(FULL)").await.unwrap();
    }
    for (name, text) in contents(&env.folder()) {
        // Its own place, for the user of the server alone.
        if name.ends_with("longshore.db.key") {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(&name).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let key = text.trim().to_owned();
            Keys::new(&[&key]).are_not_in("the log", &log);
        }
        keys.are_not_in(&name, &text);
    }
}

#[tokio::test]
async fn no_key_is_in_a_log_a_metric_an_answer_or_a_row_on_sqlite() {
    all_is_clean(Kind::Sqlite).await;
}

#[tokio::test]
async fn no_key_is_in_a_log_a_metric_an_answer_or_a_row_on_postgres() {
    all_is_clean(Kind::Postgres).await;
}

#[test]
fn passwords_of_a_database_and_of_redis_are_not_said_when_they_cannot_be_reached() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::new(&["database-canary-51c0", "redis-canary-9b2e", ADMIN_KEY]);
    let configuration = format!(
        "[database]\nurl = \"postgres://longshore:database-canary-51c0@127.0.0.1:1/longshore\"\n\
         [redis]\nurl = \"redis://:redis-canary-9b2e@127.0.0.1:1\"\n[auth]\nadmin_key = \"{ADMIN_KEY}\"\n"
    );
    std::fs::write(folder.path().join("longshore.toml"), configuration).unwrap();
    for arguments in [&["up"][..], &["migrate", "status"], &["config", "check"]] {
        let mut process = Process::start(folder.path(), arguments, &[("LONGSHORE_LOG", "trace")]);
        process.wait(Duration::from_secs(30));
        let (output, log) = process.all();
        assert!(!output.is_empty() || log.contains("cannot open the database"), "{output}{log}");
        keys.are_not_in("the output", &output);
        keys.are_not_in("the log", &log);
    }
}
