//! The few words in which SQLite and PostgreSQL differ.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

/// Runs each statement of `sql`, with the placeholders put into the words of the connected database:
///
/// | placeholder | SQLite | PostgreSQL |
/// | --- | --- | --- |
/// | `{uuid}`, `{bytes}` | `BLOB` | `UUID`, `BYTEA` |
/// | `{serial}` | `INTEGER PRIMARY KEY AUTOINCREMENT` | `BIGSERIAL PRIMARY KEY` |
/// | `{txid}` | `BIGINT NOT NULL DEFAULT 0` | the id of the inserting transaction |
///
/// # Errors
///
/// What the database says of a statement.
pub async fn run(manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
    let is_postgres = manager.get_database_backend() == DbBackend::Postgres;
    let words = if is_postgres {
        [
            ("{uuid}", "UUID"),
            ("{bytes}", "BYTEA"),
            ("{serial}", "BIGSERIAL PRIMARY KEY"),
            ("{txid}", "BIGINT NOT NULL DEFAULT (pg_current_xact_id()::text::bigint)"),
        ]
    } else {
        [
            ("{uuid}", "BLOB"),
            ("{bytes}", "BLOB"),
            ("{serial}", "INTEGER PRIMARY KEY AUTOINCREMENT"),
            ("{txid}", "BIGINT NOT NULL DEFAULT 0"),
        ]
    };
    let text = words.iter().fold(sql.to_owned(), |text, (from, to)| text.replace(from, to));
    for statement in text.split(';').map(str::trim).filter(|statement| !statement.is_empty()) {
        manager.get_connection().execute_unprepared(statement).await?;
    }
    Ok(())
}

/// Writes a migration as two SQL texts, one up and one down.
#[macro_export]
macro_rules! migration {
    (up: $up:literal, down: $down:literal) => {
        use sea_orm_migration::prelude::*;

        #[derive(DeriveMigrationName)]
        pub struct Migration;

        #[expect(elided_lifetimes_in_paths, reason = "the trait's own signature elides them")]
        #[async_trait::async_trait]
        impl MigrationTrait for Migration {
            async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
                $crate::dialect::run(manager, $up).await
            }

            async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
                $crate::dialect::run(manager, $down).await
            }
        }
    };
}
