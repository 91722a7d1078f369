//! The schema: it comes and goes, and refuses rows that cannot be.

use longshore::db::Db;
use migrations::Migrator;
use migrations::MigratorTrait;

use super::on_both;
use crate::support::Database;
use crate::support::Queue;

on_both!(
    the_migrations_go_down_and_up_again,
    jobs_that_cannot_be_are_refused,
    mappings_and_files_that_cannot_be_are_refused,
    lanes_and_records_that_cannot_be_are_refused,
);

async fn the_migrations_go_down_and_up_again(queue: Queue) {
    queue.one().await;
    let connection = queue.db.for_migrations().await.unwrap();
    Migrator::down(&connection, None).await.unwrap();
    let missing = queue.db.pending_migrations().await.unwrap();
    assert_eq!(missing.len(), Migrator::migrations().len());
    let tables = if queue.db.is_postgres() {
        "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()"
    } else {
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    };
    assert_eq!(queue.elsewhere().await.text(tables).await, ["seaql_migrations"]);
    queue.db.migrate().await.unwrap();
    assert!(queue.db.pending_migrations().await.unwrap().is_empty());
    assert_eq!(queue.elsewhere().await.count("SELECT count(*) FROM jobs").await, 0);
    queue.db.migrate().await.unwrap();
}

/// Asserts that each of these is refused, where `SELECT 1` in its place is not.
async fn refused(queue: &Queue, updates: &[&str]) {
    for update in updates {
        assert!(queue.try_sql(update).await.is_err(), "taken: {update}");
    }
}

async fn jobs_that_cannot_be_are_refused(queue: Queue) {
    queue.one().await;
    refused(
        &queue,
        &[
            "UPDATE jobs SET status = 'running'",
            "UPDATE jobs SET status = 'running', lease_owner = 'w'",
            "UPDATE jobs SET status = 'running', lease_until = 1",
            "UPDATE jobs SET lease_owner = 'w', lease_until = 1",
            "UPDATE jobs SET status = 'succeeded'",
            "UPDATE jobs SET finished_at = 1",
            "UPDATE jobs SET status = 'succeeded', finished_at = 1, lease_owner = 'w', lease_until = 1",
            "UPDATE jobs SET status = 'done', finished_at = 1",
            "INSERT INTO job_attempts SELECT id, 1, 1, 'w', 'vanished', NULL, 1, 1 FROM jobs",
        ],
    )
    .await;
    queue.sql("UPDATE jobs SET status = 'running', lease_owner = 'w', lease_until = 1").await;
    queue.sql("INSERT INTO job_attempts SELECT id, 1, 1, 'w', 'died', NULL, 1, 1 FROM jobs").await;
    refused(
        &queue,
        &["INSERT INTO job_attempts SELECT id, 1, 2, 'x', 'died', NULL, 1, 1 FROM jobs"],
    )
    .await;
}

async fn mappings_and_files_that_cannot_be_are_refused(queue: Queue) {
    queue.file(&["m"]).await;
    refused(
        &queue,
        &[
            "UPDATE mappings SET status = 'ready'",
            "UPDATE mappings SET provider_file_id = 'file-1'",
            "UPDATE mappings SET status = 'deleted'",
            "UPDATE mappings SET deleted_at = 1",
            "UPDATE mappings SET looked_at = 1",
            "UPDATE mappings SET status = 'somewhere'",
            "DELETE FROM files",
            "UPDATE files SET status = 'deleted'",
            "UPDATE files SET deleted_at = 1",
            "UPDATE files SET bytes = -1",
            "INSERT INTO mappings (id, file_id, position, deployment_id, model, provider, provider_model, marker, \
             status, job_id, created_at) SELECT job_id, file_id, 1, deployment_id, 'm', 'p', 'm', 'another', \
             'pending', id, 1 FROM mappings",
        ],
    )
    .await;
    queue.sql("UPDATE mappings SET status = 'ready', provider_file_id = 'file-1'").await;
}

async fn lanes_and_records_that_cannot_be_are_refused(queue: Queue) {
    refused(
        &queue,
        &[
            "UPDATE lanes SET paused_until = 1",
            "UPDATE lanes SET pause_reason = 'outage'",
            "UPDATE lanes SET paused_until = 1, paused_at = 1, pause_reason = 'a whim'",
            "INSERT INTO installation VALUES (2, 'another', 1)",
        ],
    )
    .await;
    queue.sql("UPDATE lanes SET paused_until = 1, paused_at = 1, pause_reason = 'outage'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_migrate_at_once_wait_for_each_other() {
    let database = Database::postgres().await;
    let starts = (0..6).map(|_| async {
        let db = Db::connect(&database.url).await.unwrap();
        db.migrate().await
    });
    for migrated in futures_util::future::join_all(starts).await {
        migrated.unwrap();
    }
    let applied = database.count("SELECT count(*) FROM seaql_migrations").await;
    assert_eq!(applied, Migrator::migrations().len() as i64);
}
