//! An older and a newer version on one database: the older one meets a schema, jobs and words that it does not know.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::Crew;
use crate::support::Database;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::eventually;
use crate::support::run;

const BOTH: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];
const PATIENCE: Duration = Duration::from_secs(30);

/// What a newer version may do to the schema: it only adds.
const NEWER: [&str; 5] = [
    "ALTER TABLE files ADD COLUMN colour TEXT",
    "ALTER TABLE jobs ADD COLUMN weight BIGINT NOT NULL DEFAULT 1",
    "ALTER TABLE mappings ADD COLUMN shelf TEXT CHECK (shelf <> '')",
    "CREATE TABLE shelves (id BIGINT PRIMARY KEY NOT NULL)",
    "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m20990101_000099_create_shelves', 0)",
];

async fn carry(env: &Env) {
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    assert_eq!(env.client.get("/v1/files").await.0, 200);
    env.client.remove(&file).await;
    env.client.purged(&file).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_goes_on_and_starts_on_the_schema_of_a_newer_one() {
    for kind in BOTH {
        let mut crew = Crew::on(kind).await;
        carry(&crew.env).await;
        for sql in NEWER {
            crew.env.database.execute(sql).await;
        }
        carry(&crew.env).await;
        assert_eq!(crew.worker().terminate().0.code(), Some(0));
        crew.restart();
        if kind == Kind::Postgres {
            crew.env.server.terminate();
            crew.env.restart();
        }
        assert!(crew.env.server.log().contains("a newer version has been here"));
        carry(&crew.env).await;
        let folder = crew.env.folder();
        let status = run(&folder, &["migrate", "status"], &[]);
        assert_eq!(status.code, 0, "{}", status.log);
        assert!(status.output.contains("m20990101_000099_create_shelves"), "{}", status.output);
        assert_eq!(run(&folder, &["migrate"], &[]).code, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_lacks_something_and_has_something_unknown_is_refused_by_name() {
    for kind in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let database = match kind {
            Kind::Sqlite => Database::sqlite(folder.path()),
            Kind::Postgres => Database::postgres_schema().await,
        };
        drop(database.open().await);
        let config = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[database]\nurl = \"{}\"\n[auth]\nadmin_key = \"k\"\n",
            database.url
        );
        std::fs::write(folder.path().join("longshore.toml"), config).unwrap();
        database.execute("DELETE FROM seaql_migrations WHERE version LIKE '%create_workers'").await;
        database.execute(NEWER[4]).await;
        for command in ["serve", "work"] {
            let done = run(folder.path(), &[command], &[]);
            assert_eq!(done.code, 1, "{}", done.log);
            let names = |text: &str| done.log.contains(text);
            // A worker on PostgreSQL leaves the schema to others, and says that it is too old.
            let is_told = names("create_workers") && names("create_shelves");
            assert!(is_told || names("run `longshore migrate` first"), "{}", done.log);
        }
        let migrate = run(folder.path(), &["migrate"], &[]);
        assert_eq!(migrate.code, 1);
        assert!(migrate.log.contains("create_shelves"), "{}", migrate.log);
    }
}

/// Writes a job of a kind that only a newer version knows, like an upload.
async fn add_newer_job(env: &Env, columns: &str, values: &str) {
    let id = match env.options.kind {
        Kind::Sqlite => "randomblob(16)",
        Kind::Postgres => "gen_random_uuid()",
    };
    let sql = format!(
        "INSERT INTO jobs (id, kind, lane, rank, owner, payload, max_attempts, run_at, created_at, {columns}) \
         SELECT {id}, 'paint_file', 'provider:at-a', 0, 'alice', '{{\"colour\": \"red\"}}', 30, 0, 0, {values}"
    );
    env.database.execute(&sql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_a_kind_that_only_a_newer_version_knows_is_left_to_it_and_holds_up_nobody() {
    for kind in BOTH {
        let crew = Crew::on(kind).await;
        let env = &crew.env;
        add_newer_job(env, "status", "'queued'").await;
        // Its worker, of the newer version, has died, and so has one of this version.
        let left = "status, epoch, attempt, lease_owner, lease_until, started_at";
        add_newer_job(env, left, "'running', 1, 1, 'w', 1, 1").await;
        env.client.upload(&["b"]).await;
        env.quiet_but(2).await;
        env.lane("b", "pause").await;
        env.client.upload(&["b"]).await;
        let taken = "UPDATE jobs SET status = 'running', epoch = 1, attempt = 1, lease_owner = 'w', lease_until = 1, \
                     started_at = 1 WHERE status = 'queued' AND kind = 'upload_file'";
        env.database.execute(taken).await;
        let reaped = "SELECT count(*) FROM job_attempts WHERE outcome = 'died'";
        eventually(PATIENCE, async || (env.database.count(reaped).await == 1).then_some(())).await;
        let untouched = "SELECT count(*) FROM jobs WHERE kind = 'paint_file' \
                         AND ((status = 'queued' AND attempt = 0) OR (status = 'running' AND epoch = 1))";
        assert_eq!(env.database.count(untouched).await, 2);
        env.lane("b", "resume").await;
        carry(env).await;

        let jobs = env.client.get("/v1/jobs?kind=paint_file").await.1;
        assert_eq!(jobs["data"].as_array().unwrap().len(), 2, "{jobs}");
        for action in ["cancel", "retry"] {
            let path = format!("/v1/jobs/{}/{action}", jobs["data"][0]["id"].as_str().unwrap());
            let (status, error) = env.client.post(&path, json!({})).await;
            let said = (status, error["error"]["code"].as_str());
            assert_eq!(said, (409, Some("job_of_newer_version")), "{error}");
        }
        assert_eq!(env.database.count(untouched).await, 2);
    }
}

/// On PostgreSQL a migration of a newer version can let more words in; on SQLite nobody else is beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_of_a_newer_version_are_shown_as_they_are_and_stop_nobody_else() {
    let env = Env::with(Options::on(Kind::Postgres)).await;
    // Nothing moves while the test writes.
    env.lane("a", "pause").await;
    let file = env.client.upload_requests(&["a"], 2).await;
    let batch = env.client.batch_on(&file).await;
    let sweep = env.client.post("/v1/sweeps", json!({"all": true, "dry_run": true})).await.1;
    eventually(PATIENCE, async || {
        let path = format!("/v1/sweeps/{}?wait=10", sweep["id"].as_str().unwrap());
        (env.client.get(&path).await.1["status"] == "succeeded").then_some(())
    })
    .await;
    let unchecked = "DO $$ DECLARE c record; BEGIN \
         FOR c IN SELECT conrelid::regclass AS t, conname AS n FROM pg_constraint \
         WHERE contype = 'c' AND connamespace = current_schema()::regnamespace LOOP \
         EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.t, c.n); END LOOP; END $$";
    env.database.execute(unchecked).await;
    for table in ["files", "mappings", "batches", "batch_runs", "sweeps"] {
        env.database.execute(&format!("UPDATE {table} SET status = 'on_the_shelf'")).await;
    }
    env.database.execute("UPDATE jobs SET status = 'on_the_shelf' WHERE kind = 'sweep'").await;
    let far = i64::MAX / 2;
    env.database
        .execute(&format!(
            "UPDATE lanes SET pause_reason = 'on_the_shelf', paused_at = 1, paused_until = {far} \
             WHERE name = 'provider:at-b'"
        ))
        .await;

    let id = |thing: &Value| thing["id"].as_str().unwrap().to_owned();
    let paths = [
        "/v1/files".to_owned(),
        format!("/v1/files/{}", id(&file)),
        "/v1/batches".to_owned(),
        format!("/v1/batches/{}", id(&batch)),
        "/v1/sweeps".to_owned(),
        "/v1/jobs?kind=sweep".to_owned(),
        "/v1/admin/providers".to_owned(),
    ];
    let admin = env.as_key(ADMIN_KEY);
    for path in paths {
        let (status, answer) = admin.get(&path).await;
        assert_eq!(status, 200, "{path}: {answer}");
        assert!(answer.to_string().contains("on_the_shelf"), "{path}: {answer}");
    }
    // Its lane stands still; the others' do not.
    env.lane("a", "resume").await;
    let waits = env.client.upload(&["b"]).await;
    carry(&env).await;
    let waits = env.client.file(&id(&waits)).await;
    assert_eq!(waits["mappings"][0]["status"], "pending", "{waits}");
}
