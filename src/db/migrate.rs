//! The schema brought up to date, by one process at a time.

use std::sync::Arc;
use std::time::Duration;

use migrations::Migrator;
use migrations::MigratorTrait;
use sea_orm::ConnectionTrait;
use sea_orm::Database;
use sea_orm::DatabaseConnection;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::SqlxPostgresConnector;
use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgPoolOptions;
use tokio::time::Instant;

use super::Db;
use super::Schema;
use super::Writer;
use super::driver_error;
use super::sqlite;
use super::sqlite_code;
use super::statement;

/// Other processes that start wait for the one that migrates, and no statement of it is cut off; but not for ever.
const LONGEST: Duration = Duration::from_hours(1);
/// How often the lock is asked for. Asked again and again, and not waited for: a statement that waits on a
/// connection that the network has forgotten would wait for good.
const PAUSE: Duration = Duration::from_millis(200);
/// A wait for another process that is longer than this is said.
const SAID_AFTER: Duration = Duration::from_secs(3);

impl Db {
    /// Brings the schema up to date, one process at a time: on PostgreSQL under an advisory lock, on SQLite under
    /// the file's. Either goes with the process that holds it. What a newer version has added stays.
    ///
    /// # Errors
    ///
    /// What the database says of a migration, that the schema is one of another line of versions, and when it takes
    /// longer than an hour.
    pub async fn migrate(&self) -> Result<(), DbErr> {
        let migration = async {
            let connection = self.for_migrations().await?;
            match &self.writer {
                Writer::Sqlite { .. } => {
                    // All or nothing. Dropped, the connection undoes it.
                    until_taken(async || is_begun(&connection).await).await?;
                    if Schema::read(&connection).await?.is_behind()? {
                        Migrator::up(&connection, None).await?;
                    }
                    connection.execute_unprepared("COMMIT").await?;
                }
                Writer::Postgres { .. } => {
                    // Of the connection that migrates, so that whoever lost the lock cannot go on: each migration is
                    // a transaction, and the next would need another connection.
                    until_taken(async || is_locked(&connection).await).await?;
                    if Schema::read(&connection).await?.is_behind()? {
                        Migrator::up(&connection, None).await?;
                    }
                }
            }
            connection.close().await
        };
        tokio::time::timeout(LONGEST, migration).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(LONGEST);
            Err(DbErr::Custom(format!("the migrations did not end within {limit}")))
        })
    }

    /// A connection of its own, without limits on what a statement may take, as sea-orm's migrator takes it.
    ///
    /// # Errors
    ///
    /// When the database cannot be opened.
    pub async fn for_migrations(&self) -> Result<DatabaseConnection, DbErr> {
        match &self.writer {
            Writer::Sqlite { path, .. } => {
                let connection = sqlite::Connection::open(path, sqlite::Access::Write)?;
                let proxy = Arc::new(Box::new(sqlite::Migrations(connection)) as Box<_>);
                Database::connect_proxy(DbBackend::Sqlite, proxy).await
            }
            Writer::Postgres { pool, .. } => unlimited(pool.options()).await,
        }
    }
}

/// One connection and no other. The server notices within half a minute when this machine is gone.
async fn unlimited(options: &PgConnectOptions) -> Result<DatabaseConnection, DbErr> {
    let options = options.clone().options([
        ("statement_timeout", "0"),
        ("lock_timeout", "0"),
        ("idle_in_transaction_session_timeout", "0"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("timezone", "UTC"),
    ]);
    let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    let pool = pool.connect_with(options).await.map_err(super::postgres::connection_failed)?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

async fn until_taken(take: impl AsyncFn() -> Result<bool, DbErr>) -> Result<(), DbErr> {
    let (begun, mut is_said) = (Instant::now(), false);
    while !take().await? {
        if begun.elapsed() > SAID_AFTER && !is_said {
            is_said = true;
            tracing::info!("another process brings the schema up to date; waiting for it");
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn is_begun(connection: &DatabaseConnection) -> Result<bool, DbErr> {
    const BUSY: i32 = 5;

    let begun = connection.execute_unprepared("BEGIN IMMEDIATE").await;
    let is_busy = |error: &DbErr| match driver_error(error) {
        Some(sqlx::Error::Database(error)) => {
            sqlite_code(error.as_ref()).is_some_and(|code| code & 0xff == BUSY)
        }
        _ => false,
    };
    match begun {
        Ok(_) => Ok(true),
        Err(error) if is_busy(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn is_locked(connection: &DatabaseConnection) -> Result<bool, DbErr> {
    let sql = "SELECT pg_try_advisory_lock(hashtext('longshore.migrate'))";
    let row = connection.query_one_raw(statement(connection, sql, [])).await?;
    row.map_or(Ok(false), |row| row.try_get_by_index(0))
}
