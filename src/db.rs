//! The connection to SQLite or PostgreSQL, and the one way to write to it.
//!
//! Reads go to [`Db::read`], or to [`Db::scan`] where they read many rows. Writes are closures over a
//! transaction, handed to [`Db::intake`] (what a client waits for) or [`Db::work`] (what workers
//! report). On SQLite, which has one writer, both end in one group that commits many of them together,
//! the intake's first; on PostgreSQL the intake writes on its own connections and only the workers'
//! writes are grouped.

mod group;
mod inspect;
mod read;
mod schema;
mod sqlite;
mod transaction;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use migrations::Migrator;
use migrations::MigratorTrait;
use sea_orm::ConnectionTrait;
use sea_orm::Database;
use sea_orm::DatabaseConnection;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::SqlxPostgresConnector;
use sea_orm::Statement;
use sea_orm::TransactionTrait;
use sea_orm::Value;
use sqlx::Connection as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::postgres::PgPoolOptions;

use group::Group;
use transaction::Connection;

pub use inspect::Facts;
pub use inspect::sqlite_file;
pub use read::Reader;
pub use schema::Schema;
pub use transaction::Transaction;

/// How long a request waits for a free connection before it is told that the database is unreachable.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections for reading. SQLite reads in the calling process, so more than a few only compete.
const SQLITE_READERS: usize = 8;
const SQLITE_SCANNERS: usize = 4;
const POSTGRES_CONNECTIONS: u32 = 16;
/// A connection that has rested for longer is asked whether it still stands before it is used. The pool asks
/// each one when it comes back; to ask again at once is a journey to the server and back for every read.
const UNTESTED_REST: Duration = Duration::from_millis(100);
/// How often a transaction that PostgreSQL broke off for another's sake is begun anew.
const MAX_CONFLICTS: u32 = 5;

/// The database.
#[derive(Clone, Debug)]
pub struct Db {
    read: Reader,
    scan: Reader,
    writer: Writer,
}

#[derive(Clone, Debug)]
enum Writer {
    Sqlite { path: PathBuf, group: Group },
    Postgres { pool: DatabaseConnection, work: Group },
}

/// What a write can end with: it tells whether the database itself failed.
pub trait WriteError: From<DbErr> + Send + 'static {
    fn as_db_err(&self) -> Option<&DbErr>;
}

impl WriteError for DbErr {
    fn as_db_err(&self) -> Option<&DbErr> {
        Some(self)
    }
}

impl Db {
    /// Connects to `sqlite://path` or `postgres://…`, creating the SQLite file and its folder if missing.
    ///
    /// # Errors
    ///
    /// When the URL cannot be read or the database cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, DbErr> {
        if url.starts_with("sqlite:") {
            Self::connect_sqlite(url)
        } else {
            Self::connect_postgres(url).await
        }
    }

    fn connect_sqlite(url: &str) -> Result<Self, DbErr> {
        let path = sqlite_file(url).ok_or_else(|| {
            DbErr::Conn(sea_orm::RuntimeErr::Internal(
                "the URL names no file; write it like \"sqlite://data/longshore.db\"".to_owned(),
            ))
        })?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|error| {
                DbErr::Custom(format!(
                    "cannot create the folder `{}` of the database: {error}",
                    folder.display()
                ))
            })?;
        }
        // The writer first: it makes the file what readers expect.
        let writer = sqlite::Connection::open(&path, sqlite::Access::Write)?;
        let read = sqlite::Pool::open(&path, SQLITE_READERS, sqlite::Thread::Callers)?;
        let scan = sqlite::Pool::open(&path, SQLITE_SCANNERS, sqlite::Thread::ItsOwn)?;
        let group = Group::spawn(Connection::Sqlite(Arc::new(writer))).map_err(no_writer)?;
        Ok(Self {
            read: Reader::Sqlite(read),
            scan: Reader::Sqlite(scan),
            writer: Writer::Sqlite { path, group },
        })
    }

    async fn connect_postgres(url: &str) -> Result<Self, DbErr> {
        let options = PgConnectOptions::from_str(url)
            .map_err(connection_error)?
            .application_name("longshore")
            .options([
                ("statement_timeout", "30s"),
                ("lock_timeout", "10s"),
                // A process that is frozen in the middle of a transaction holds up all others by its locks.
                ("idle_in_transaction_session_timeout", "5s"),
                ("timezone", "UTC"),
            ]);
        let pool = PgPoolOptions::new()
            .max_connections(POSTGRES_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, rested| {
                Box::pin(async move {
                    if rested.idle_for > UNTESTED_REST {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_with(options.clone())
            .await;
        let pool = match pool {
            Ok(pool) => pool,
            // The pool goes on trying, for a server that is starting, and in the end says only that time is up.
            Err(sqlx::Error::PoolTimedOut) => {
                return Err(connection_error(inspect::refusal(&options).await));
            }
            Err(error) => return Err(connection_error(error)),
        };
        let pool = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
        let work = Group::spawn(Connection::Postgres(pool.clone())).map_err(no_writer)?;
        Ok(Self {
            read: Reader::Postgres(pool.clone()),
            scan: Reader::Postgres(pool.clone()),
            writer: Writer::Postgres { pool, work },
        })
    }

    /// For reading a few rows that an index finds.
    pub fn read(&self) -> &Reader {
        &self.read
    }

    /// For reading what may be many rows: it holds up nobody else.
    pub fn scan(&self) -> &Reader {
        &self.scan
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self.writer, Writer::Postgres { .. })
    }

    /// Runs `write` in a transaction that a client waits for; it is on disk when this returns `Ok`.
    ///
    /// `write` may be run more than once, each time on a fresh transaction, and must change nothing
    /// but the database. An error of its own undoes what it wrote. A caller that stops waiting does
    /// not stop the write.
    ///
    /// # Errors
    ///
    /// Whatever `write` answered, or what the database said of the commit.
    pub async fn intake<T, E, F>(&self, write: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
        T: Send + 'static,
        E: WriteError,
    {
        match &self.writer {
            Writer::Sqlite { group, .. } => group.write(group::Urgency::Intake, write).await,
            Writer::Postgres { pool, .. } => on_a_connection(pool.clone(), write).await,
        }
    }

    /// Like [`Db::work`], but on PostgreSQL in a transaction of its own: for what holds rows that other
    /// processes want too, as a lane. In one with others, each of two would hold what the other wants.
    ///
    /// # Errors
    ///
    /// Whatever `write` answered, or what the database said of the commit.
    pub async fn work_alone<T, E, F>(&self, write: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
        T: Send + 'static,
        E: WriteError,
    {
        match &self.writer {
            Writer::Sqlite { group, .. } => group.write(group::Urgency::Work, write).await,
            Writer::Postgres { pool, .. } => on_a_connection(pool.clone(), write).await,
        }
    }

    /// Like [`Db::intake`], for what workers report: grouped with others, behind the intake's writes.
    ///
    /// # Errors
    ///
    /// Whatever `write` answered, or what the database said of the commit.
    pub async fn work<T, E, F>(&self, write: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
        T: Send + 'static,
        E: WriteError,
    {
        match &self.writer {
            Writer::Sqlite { group, .. } | Writer::Postgres { work: group, .. } => {
                group.write(group::Urgency::Work, write).await
            }
        }
    }

    /// Brings the schema up to date, one process at a time: on PostgreSQL under an advisory lock. What a newer version
    /// has added stays.
    ///
    /// # Errors
    ///
    /// What the database says of a migration, or that the schema is one of another line of versions.
    pub async fn migrate(&self) -> Result<(), DbErr> {
        match &self.writer {
            Writer::Sqlite { .. } => {
                // All or nothing, and one process at a time. Dropped, the connection undoes it.
                let connection = self.for_migrations().await?;
                connection.execute_unprepared("BEGIN IMMEDIATE").await?;
                if Schema::read(&connection).await?.is_behind()? {
                    Migrator::up(&connection, None).await?;
                }
                connection.execute_unprepared("COMMIT").await.map(|_| ())
            }
            Writer::Postgres { pool, .. } => {
                // Held by this transaction's connection and let go with it, also when the process dies.
                let lock = pool.begin().await?;
                lock.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
                lock.execute_unprepared("SET LOCAL lock_timeout = 0").await?;
                lock.execute_unprepared("SET LOCAL idle_in_transaction_session_timeout = 0")
                    .await?;
                lock.execute_unprepared(
                    "SELECT pg_advisory_xact_lock(hashtext('longshore.migrate'))",
                )
                .await?;
                if Schema::read(pool).await?.is_behind()? {
                    Migrator::up(pool, None).await?;
                }
                lock.commit().await
            }
        }
    }

    /// A connection as sea-orm's migrator takes it. On SQLite it is one of its own.
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
            Writer::Postgres { pool, .. } => Ok(pool.clone()),
        }
    }

    /// Answers when the database does.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn ping(&self) -> Result<(), DbErr> {
        self.read.query_one_raw(statement(&self.read, "SELECT 1 AS one", [])).await.map(|_| ())
    }
}

/// Runs `write` on a connection of the pool, whether its caller goes on waiting or not.
async fn on_a_connection<T, E, F>(pool: DatabaseConnection, write: F) -> Result<T, E>
where
    F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    T: Send + 'static,
    E: WriteError,
{
    let connection = Connection::Postgres(pool);
    let task = tokio::spawn(async move { write_alone(&connection, &write).await });
    task.await.unwrap_or_else(|error| Err(DbErr::Custom(error.to_string()).into()))
}

/// A transaction of its own, begun anew when PostgreSQL broke it off for another's sake.
async fn write_alone<T, E, F>(connection: &Connection, write: &F) -> Result<T, E>
where
    F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync,
    E: WriteError,
{
    let mut conflicts = 0;
    loop {
        let tx = connection.begin().await?;
        let error = match attempt(write, &tx).await {
            Ok(value) => match tx.commit().await {
                Ok(()) => return Ok(value),
                Err(error) => E::from(error),
            },
            Err(error) => {
                tx.rollback().await?;
                error
            }
        };
        conflicts += 1;
        if conflicts >= MAX_CONFLICTS || !error.as_db_err().is_some_and(is_conflict) {
            return Err(error);
        }
    }
}

/// Runs `write` once. A panic in it is an error of its own: the writer goes on for all others.
async fn attempt<T, E, F>(write: &F, tx: &Transaction) -> Result<T, E>
where
    F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync,
    E: WriteError,
{
    let run = AssertUnwindSafe(async { write(tx).await }).catch_unwind().await;
    run.unwrap_or_else(|_| Err(DbErr::Custom("a write panicked".to_owned()).into()))
}

/// A statement whose parameters are `$1`, `$2`, … on either database.
pub fn statement<V>(db: &impl ConnectionTrait, sql: &str, values: V) -> Statement
where
    V: IntoIterator<Item = Value>,
{
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

/// Whether `db` is PostgreSQL, for the few statements that differ.
pub fn is_postgres(db: &impl ConnectionTrait) -> bool {
    db.get_database_backend() == DbBackend::Postgres
}

/// The database's own clock, in milliseconds since the Unix epoch, as an expression.
///
/// `clock_timestamp()`, because `now()` predates a wait for a lock.
pub fn now(db: &impl ConnectionTrait) -> &'static str {
    if is_postgres(db) {
        "(extract(epoch from clock_timestamp()) * 1000)::bigint"
    } else {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    }
}

/// `$n, $n+1, …` for `count` parameters, counted from `first`.
pub fn placeholders(first: usize, count: usize) -> String {
    let names: Vec<_> = (first..first + count).map(|number| format!("${number}")).collect();
    names.join(", ")
}

/// A deadlock or serialization failure: the same transaction, begun anew, may pass.
fn is_conflict(error: &DbErr) -> bool {
    matches!(sql_state(error).as_deref(), Some("40001" | "40P01"))
}

/// The disk or a quota is full: SQLite's `SQLITE_FULL`, or no room for its shared memory
/// (`SQLITE_IOERR_SHMSIZE`); PostgreSQL's 53100.
pub fn is_disk_full(error: &DbErr) -> bool {
    let Some(error) = database_error(error) else { return false };
    match sqlite_code(error) {
        Some(code) => code & 0xff == 13 || code == 4874,
        None => error.code().is_some_and(|code| code == "53100"),
    }
}

/// SQLite's extended result code; its lowest byte is the plain one.
pub fn sqlite_code(error: &dyn sqlx::error::DatabaseError) -> Option<i32> {
    error.try_downcast_ref::<sqlite::Failure>().map(|failure| failure.code)
}

fn sql_state(error: &DbErr) -> Option<String> {
    database_error(error)?.code().map(|code| code.into_owned())
}

fn database_error(error: &DbErr) -> Option<&dyn sqlx::error::DatabaseError> {
    let (DbErr::Exec(sea_orm::RuntimeErr::SqlxError(error))
    | DbErr::Query(sea_orm::RuntimeErr::SqlxError(error))) = error
    else {
        return None;
    };
    error.as_database_error()
}

fn no_writer(error: std::io::Error) -> DbErr {
    DbErr::Custom(format!("cannot start the thread that writes to the database: {error}"))
}

fn connection_error(error: sqlx::Error) -> DbErr {
    DbErr::Conn(sea_orm::RuntimeErr::Internal(error.to_string()))
}
