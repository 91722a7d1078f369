//! The schema brought up to date, by one process at a time.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use migrations::Migrator;
use migrations::MigratorTrait;
use sea_orm::ConnectionTrait;
use sea_orm::Database;
use sea_orm::DatabaseConnection;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::SqlxPostgresConnector;
use sqlx::Executor as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgPoolOptions;

use super::Db;
use super::Schema;
use super::Writer;
use super::driver_error;
use super::sql_state;
use super::sqlite;
use super::sqlite_code;

/// Other processes that start wait for the one that migrates, and no statement of it is cut off; but not for ever.
const LONGEST: Duration = Duration::from_hours(1);
/// How long the lock is waited for at a time: a statement that waits on a connection that the network has forgotten
/// would wait for good. The first wait is shorter, so that what it waits for is said.
const FIRST_WAIT: Duration = Duration::from_secs(3);
const WAIT: Duration = Duration::from_mins(1);
/// What an answer may take beyond that.
const JOURNEY: Duration = Duration::from_secs(10);
/// Between two tries on SQLite, each of which waits for a while.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a migration waits for a table that another session reads (as `pg_dump` does), since all statements of
/// others on that table queue behind it: less than they wait for a lock, so that none of them fails.
const TABLE_WAIT: Duration = Duration::from_secs(2);
/// Then it gives way to them for as long, and is begun anew.
const TABLE_PAUSE: Duration = Duration::from_secs(1);
/// By statements and not with the connection's start, where PgBouncer lets no setting through.
const UNLIMITED: &str = "SET statement_timeout = 0; SET lock_timeout = 0; \
     SET idle_in_transaction_session_timeout = 0; SET timezone = 'UTC'; \
     SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";

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
                    begin(&connection).await?;
                    if Schema::read(&connection).await?.is_behind()? {
                        Migrator::up(&connection, None).await?;
                    }
                    connection.execute_unprepared("COMMIT").await?;
                }
                Writer::Postgres { .. } => {
                    // Of the connection that migrates, so that whoever lost the lock cannot go on: each migration is
                    // a transaction, and the next would need another connection.
                    lock(&connection).await?;
                    if Schema::read(&connection).await?.is_behind()? {
                        up_between_others(&connection).await?;
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

/// One connection and no other: once it is lost so is the lock, and nothing more may be asked. The server notices within
/// half a minute when this machine is gone.
async fn unlimited(options: &PgConnectOptions) -> Result<DatabaseConnection, DbErr> {
    let pool = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
    // Else one that was found dead would be replaced.
    let pool = pool.test_before_acquire(false).acquire_timeout(JOURNEY);
    let was_made = Arc::new(AtomicBool::new(false));
    let pool = pool.after_connect(move |connection, _| {
        let was_made = Arc::clone(&was_made);
        Box::pin(async move {
            if was_made.load(Ordering::Acquire) {
                return Err(sqlx::Error::PoolClosed);
            }
            connection.execute(UNLIMITED).await?;
            was_made.store(true, Ordering::Release);
            Ok(())
        })
    });
    let pool = pool.connect_with(options.clone()).await;
    let pool = pool.map_err(super::postgres::connection_failed)?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Waits for SQLite's one writer.
async fn begin(connection: &DatabaseConnection) -> Result<(), DbErr> {
    const BUSY: i32 = 5;

    let is_busy = |error: &DbErr| match driver_error(error) {
        Some(sqlx::Error::Database(error)) => {
            sqlite_code(error.as_ref()).is_some_and(|code| code & 0xff == BUSY)
        }
        _ => false,
    };
    loop {
        match connection.execute_unprepared("BEGIN IMMEDIATE").await {
            Ok(_) => return Ok(()),
            Err(error) if is_busy(&error) => say_waiting(),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for PostgreSQL's lock, in the order in which processes come.
async fn lock(connection: &DatabaseConnection) -> Result<(), DbErr> {
    let mut wait = FIRST_WAIT;
    loop {
        let sql = format!(
            "SET lock_timeout = {}; SELECT pg_advisory_lock(hashtext('longshore.migrate')); SET lock_timeout = {}",
            wait.as_millis(),
            TABLE_WAIT.as_millis()
        );
        let locked = connection.execute_unprepared(&sql);
        let Ok(locked) = tokio::time::timeout(wait + JOURNEY, locked).await else {
            return Err(super::postgres::silence(wait + JOURNEY));
        };
        match locked {
            Ok(_) => return Ok(()),
            Err(error) if is_held(&error) => say_waiting(),
            Err(error) => return Err(error),
        }
        wait = WAIT;
    }
}

/// Migrates, again and again while a session of somebody else holds a table: what was broken off is undone.
async fn up_between_others(connection: &DatabaseConnection) -> Result<(), DbErr> {
    let mut is_said = false;
    loop {
        match Migrator::up(connection, None).await {
            Err(error) if is_held(&error) => {
                if !std::mem::replace(&mut is_said, true) {
                    tracing::warn!(
                        "a migration waits for a table that another session holds, as a backup does; trying again until it is free"
                    );
                }
            }
            ended => return ended,
        }
        tokio::time::sleep(TABLE_PAUSE).await;
    }
}

/// Whether a lock was waited for in vain: for too long, or because its holder waited for one of ours.
fn is_held(error: &DbErr) -> bool {
    matches!(sql_state(error).as_deref(), Some("55P03" | "40P01"))
}

fn say_waiting() {
    tracing::info!("another process brings the schema up to date; waiting for it");
}
