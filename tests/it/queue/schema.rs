//! The schema: it comes and goes, and refuses rows that cannot be.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use longshore::db::Db;
use migrations::Migrator;
use migrations::MigratorTrait;

use super::on_both;
use crate::support::Database;
use crate::support::Queue;

on_both!(
    the_migrations_go_down_and_up_again,
    every_migration_only_adds_so_that_the_version_before_it_goes_on,
    jobs_that_cannot_be_are_refused,
    mappings_and_files_that_cannot_be_are_refused,
    lanes_and_records_that_cannot_be_are_refused,
);

async fn the_migrations_go_down_and_up_again(queue: Queue) {
    queue.one().await;
    let connection = queue.db.for_migrations().await.unwrap();
    Migrator::down(&connection, None).await.unwrap();
    let missing = queue.db.schema().await.unwrap().missing;
    assert_eq!(missing.len(), Migrator::migrations().len());
    let tables = if queue.db.is_postgres() {
        "SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()"
    } else {
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    };
    assert_eq!(queue.elsewhere().await.text(tables).await, ["seaql_migrations"]);
    queue.db.migrate().await.unwrap();
    assert_eq!(queue.db.schema().await.unwrap().missing.len(), 0);
    assert_eq!(queue.elsewhere().await.count("SELECT count(*) FROM jobs").await, 0);
    queue.db.migrate().await.unwrap();
}

/// The columns of all tables, `table.column`, each with its type and whether a row has to bring a value for it.
type Columns = BTreeMap<String, (String, bool)>;

async fn columns(queue: &Queue) -> Columns {
    // A value has to be brought where NULL is refused and there is no default.
    let sql = if queue.db.is_postgres() {
        "SELECT table_name || '.' || column_name || ' ' || CASE WHEN is_nullable = 'NO' AND column_default IS NULL \
         THEN 'asked' ELSE 'free' END || ' ' || data_type FROM information_schema.columns \
         WHERE table_schema = current_schema()"
    } else {
        "SELECT t.name || '.' || c.name || ' ' || CASE WHEN c.\"notnull\" = 1 AND c.dflt_value IS NULL AND c.pk = 0 \
         THEN 'asked' ELSE 'free' END || ' ' || c.type FROM sqlite_master t JOIN pragma_table_info(t.name) c \
         WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
    };
    let rows = queue.elsewhere().await.text(sql).await;
    let columns = rows.iter().map(|row| {
        let mut words = row.splitn(3, ' ');
        let [name, asked, kind] = [(); 3].map(|()| words.next().unwrap().to_owned());
        (name, (kind, asked == "asked"))
    });
    columns.collect()
}

/// What the version before a migration would not get on with.
fn faults(before: &Columns, after: &Columns) -> Vec<String> {
    let table = |column: &str| column.split_once('.').unwrap().0.to_owned();
    let tables: BTreeSet<_> = before.keys().map(|column| table(column)).collect();
    let gone = before.iter().filter_map(|(column, (kind, was_asked))| match after.get(column) {
        None => Some(format!("`{column}` is gone or renamed: what reads or writes it fails")),
        Some((now, _)) if now != kind => Some(format!("`{column}` was {kind} and is {now}")),
        Some((_, true)) if !was_asked => Some(format!("`{column}` is asked for, and was not")),
        Some(_) => None,
    });
    let new = after.iter().filter(|(column, (_, is_asked))| {
        *is_asked && !before.contains_key(*column) && tables.contains(&table(column))
    });
    let new = new.map(|(column, _)| {
        format!("`{column}` is new, may not be NULL and has no default: inserts without it fail")
    });
    gone.chain(new).collect()
}

async fn every_migration_only_adds_so_that_the_version_before_it_goes_on(queue: Queue) {
    let connection = queue.db.for_migrations().await.unwrap();
    Migrator::down(&connection, None).await.unwrap();
    let mut before = columns(&queue).await;
    for migration in Migrator::migrations() {
        Migrator::up(&connection, Some(1)).await.unwrap();
        let after = columns(&queue).await;
        assert_eq!(faults(&before, &after), Vec::<String>::new(), "{}", migration.name());
        before = after;
    }
    assert!(before.contains_key("files.id") && before.contains_key("workers.id"));
}

#[test]
fn a_migration_that_takes_away_or_asks_for_more_is_found() {
    let columns = |rows: &[(&str, &str, bool)]| -> Columns {
        let rows = rows
            .iter()
            .map(|(name, kind, asked)| ((*name).to_owned(), ((*kind).to_owned(), *asked)));
        rows.collect()
    };
    let before = columns(&[("a.x", "TEXT", true), ("a.y", "TEXT", false)]);
    let after = |rows: &[(&str, &str, bool)]| faults(&before, &columns(rows));
    let (x, y) = (("a.x", "TEXT", true), ("a.y", "TEXT", false));
    assert_eq!(after(&[x, y, ("a.z", "TEXT", false), ("b.x", "TEXT", true)]), Vec::<String>::new());
    assert!(after(&[x])[0].contains("gone or renamed"));
    assert!(after(&[x, ("a.y", "BIGINT", false)])[0].contains("was TEXT and is BIGINT"));
    assert!(after(&[x, ("a.y", "TEXT", true)])[0].contains("was not"));
    assert!(after(&[x, y, ("a.z", "TEXT", true)])[0].contains("inserts without it fail"));
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
