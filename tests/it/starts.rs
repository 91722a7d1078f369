//! Several processes that start at once, and one that dies in the middle of its start.

use std::path::Path;
use std::time::Duration;

use migrations::Migrator;
use migrations::MigratorTrait;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::PgConnection;

use crate::support::Database;
use crate::support::Process;
use crate::support::eventually;

const WAITS_FOR_A_LOCK: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                                AND wait_event_type = 'Lock'";

fn configure(folder: &Path, database: &Database, settings: &str) {
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[auth]\nadmin_key = \"k\"\n\
         encryption_key = \"Y2FuYXJ5LW9mLWVuY3J5cHRpb24ta2V5LTVkN2EtMDE=\"\n[database]\nurl = \"{}\"\n{settings}",
        database.url
    );
    std::fs::write(folder.join("longshore.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_at_once_on_a_new_sqlite_file_are_one_installation() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::sqlite(folder.path());
    configure(folder.path(), &database, "");
    let mut servers: Vec<_> =
        (0..4).map(|_| Process::start(folder.path(), &["serve"], &[])).collect();
    for server in &mut servers {
        server.logged("listening on");
        assert!(!server.log().contains("different installations"), "{}", server.log());
    }
    assert_eq!(database.count("SELECT count(*) FROM installation").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_killed_while_it_migrates_leaves_nothing_that_blocks_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::postgres().await;
    configure(folder.path(), &database, "lock_timeout = \"500ms\"\nstatement_timeout = \"1s\"\n");
    // A table of the name of one that a migration makes, which is not there yet for anybody else.
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    other.execute("BEGIN; CREATE TABLE lanes (n bigint)").await.unwrap();
    let mut first = Process::start(folder.path(), &["serve"], &[]);
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND now() - query_start > interval '1 s'";
    eventually(Duration::from_secs(60), async || (database.count(waits).await == 1).then_some(()))
        .await;
    // Longer than a statement may take, or wait: that holds for no migration.
    assert!(!first.has_ended());
    let mut second = Process::start(folder.path(), &["serve"], &[]);
    second.logged("another process brings the schema up to date");
    first.kill();
    other.execute("ROLLBACK").await.unwrap();
    second.logged("listening on");
    assert_eq!(database.count("SELECT count(*) FROM installation").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_told_to_stop_while_it_waits_to_migrate_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::postgres().await;
    configure(folder.path(), &database, "");
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    other.execute("BEGIN; CREATE TABLE lanes (n bigint)").await.unwrap();
    let mut process = Process::start(folder.path(), &["up"], &[]);
    eventually(Duration::from_secs(60), async || {
        (database.count(WAITS_FOR_A_LOCK).await == 1).then_some(())
    })
    .await;
    let (status, took) = process.terminate();
    assert!(status.success() && took < Duration::from_secs(2), "{status} after {took:?}");
    let (_, log) = process.all();
    assert!(log.contains("stopped before anything was started"), "{log}");
    other.execute("ROLLBACK").await.unwrap();
    Process::start(folder.path(), &["up"], &[]).logged("listening on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_waits_for_a_table_holds_up_nobody_who_reads_it() {
    let database = Database::postgres().await;
    let db = database.open().await;
    let name = "add_traceparent_to_jobs";
    let steps = Migrator::migrations().iter().rev().position(|each| each.name().contains(name));
    let connection = db.for_migrations().await.unwrap();
    Migrator::down(&connection, Some(steps.unwrap() as u32 + 1)).await.unwrap();
    connection.close().await.unwrap();
    let mut backup = PgConnection::connect(&database.url).await.unwrap();
    backup.execute("BEGIN; LOCK TABLE jobs IN ACCESS SHARE MODE").await.unwrap();
    let migrating = tokio::spawn({
        let db = db.clone();
        async move { db.migrate().await }
    });
    eventually(Duration::from_secs(60), async || {
        (database.count(WAITS_FOR_A_LOCK).await == 1).then_some(())
    })
    .await;
    // It waits for a lock for no longer than others do.
    assert_eq!(database.count("SELECT count(*) FROM jobs").await, 0);
    assert!(!migrating.is_finished());
    backup.execute("ROLLBACK").await.unwrap();
    migrating.await.unwrap().unwrap();
    assert!(db.schema().await.unwrap().missing.is_empty());
}
