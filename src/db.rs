//! The connection to SQLite or PostgreSQL, and the one way to write to it.
//!
//! Reads go to [`Db::read`], or to [`Db::scan`] where they read many rows. Writes are closures over a
//! transaction, handed to [`Db::intake`] (what a client waits for) or [`Db::work`] (what workers
//! report). On SQLite, which has one writer, both end in one group that commits many of them together,
//! the intake's first; on PostgreSQL the intake writes on its own connections and only the workers'
//! writes are grouped.

pub mod backup;
mod group;
mod inspect;
mod migrate;
mod postgres;
mod read;
mod schema;
mod shedding;
mod sqlite;
mod transaction;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sea_orm::ConnectionTrait;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::RuntimeErr;
use sea_orm::Statement;
use sea_orm::Value;
use sqlx::postgres::PgConnectOptions;

use crate::config;
use crate::config::DatabaseKind;
use group::Group;
use shedding::Gate;
use transaction::Connection;

use crate::traces;

pub use inspect::Facts;
pub use inspect::sqlite_file;
pub use read::Reader;
pub use schema::Schema;
pub use shedding::is_overload;
pub use transaction::Transaction;

/// Connections for reading. SQLite reads in the calling process, so more than a few only compete.
const SQLITE_READERS: usize = 8;
const SQLITE_SCANNERS: usize = 4;
/// How often a transaction that PostgreSQL broke off for another's sake is begun anew.
const MAX_CONFLICTS: u32 = 5;
/// How often one that lost its connection before its commit is.
const MAX_CUTS: u32 = 2;

/// The database.
#[derive(Clone, Debug)]
pub struct Db {
    read: Reader,
    scan: Reader,
    writer: Writer,
    /// Of requests that write. `None` where nobody is turned away.
    gate: Option<Gate>,
}

#[derive(Clone, Debug)]
enum Writer {
    Sqlite { path: PathBuf, group: Group },
    Postgres { pool: postgres::Pool, work: Group },
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
    /// Connects to `sqlite://path` or `postgres://…` with the usual settings.
    ///
    /// # Errors
    ///
    /// As [`Db::open`].
    pub async fn connect(url: &str) -> Result<Self, DbErr> {
        let url = config::DatabaseUrl::parse(url).map_err(unusable)?;
        Self::open(&config::Database { url, ..config::Database::default() }).await
    }

    /// Connects to what the settings name, creating the SQLite file and its folder if missing.
    ///
    /// # Errors
    ///
    /// When the URL cannot be read or the database cannot be reached.
    pub async fn open(settings: &config::Database) -> Result<Self, DbErr> {
        match settings.url.kind() {
            DatabaseKind::Sqlite => Self::connect_sqlite(settings.url.expose()),
            DatabaseKind::Postgres => Self::connect_postgres(settings).await,
        }
    }

    fn connect_sqlite(url: &str) -> Result<Self, DbErr> {
        let path = sqlite_file(url).ok_or_else(|| {
            unusable(
                "the URL names no file; write it like \"sqlite://data/longshore.db\"".to_owned(),
            )
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
            gate: None,
        })
    }

    async fn connect_postgres(settings: &config::Database) -> Result<Self, DbErr> {
        let options = PgConnectOptions::from_str(settings.url.expose())
            .map_err(|error| unusable(error.to_string()))?
            .application_name("longshore")
            // PgBouncer refuses it, and nothing is read as text.
            .extra_float_digits(None);
        let pool = postgres::Pool::new(options, settings);
        drop(pool.lend().await?);
        let work = Group::spawn(Connection::Postgres(pool.clone())).map_err(no_writer)?;
        Ok(Self {
            read: Reader::Postgres(pool.clone()),
            scan: Reader::Postgres(pool.for_scans()),
            writer: Writer::Postgres { pool, work },
            gate: None,
        })
    }

    /// The same, for requests: no more than `places` of them use it or wait for it at the same time. On PostgreSQL they
    /// leave a few connections to everybody else.
    pub fn bounded(&self, places: usize) -> Self {
        let gate = Gate::new(places);
        let (share, writer) = match &self.writer {
            Writer::Postgres { pool, work } => {
                let share = pool.share_of_requests();
                let pool = pool.within(&share);
                (Some(share), Writer::Postgres { pool, work: work.clone() })
            }
            writer => (None, writer.clone()),
        };
        Self {
            read: self.read.bounded(&gate, share.as_ref()),
            scan: self.scan.bounded(&gate, share.as_ref()),
            writer,
            gate: Some(gate),
        }
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
        let _place = self.gate.as_ref().map(Gate::enter).transpose()?;
        // What a client waits for, with the writes that share its commit.
        let _span = traces::Span::child(|| {
            let system = if self.is_postgres() { "postgresql" } else { "sqlite" };
            let attributes = vec![traces::KeyValue::new("db.system.name", system)];
            traces::Description::new("commit", traces::SpanKind::Internal, attributes)
        });
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

    /// Answers when the database does, and takes writes.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn ping(&self) -> Result<(), DbErr> {
        // Whether it is there, not whether there is room: a busy intake that was taken out of service for
        // that would leave its requests to the others.
        let reader = self.read.unbounded();
        if !self.is_postgres() {
            return reader.query_one_raw(statement(&reader, "SELECT 1 AS one", [])).await.map(drop);
        }
        let sql = "SELECT current_setting('transaction_read_only')::bool";
        let row = reader.query_one_raw(statement(&reader, sql, [])).await?;
        let is_read_only: bool = row.map_or(Ok(false), |row| row.try_get_by_index(0))?;
        if is_read_only { Err(postgres::read_only()) } else { Ok(()) }
    }
}

/// Runs `write` on a connection of the pool, whether its caller goes on waiting or not.
async fn on_a_connection<T, E, F>(pool: postgres::Pool, write: F) -> Result<T, E>
where
    F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
    T: Send + 'static,
    E: WriteError,
{
    let connection = Connection::Postgres(pool);
    let task = async move { write_alone(&connection, &write).await };
    let task = tokio::spawn(traces::here().hold(task));
    task.await.unwrap_or_else(|error| Err(DbErr::Custom(error.to_string()).into()))
}

/// A transaction of its own, begun anew when PostgreSQL broke it off for another's sake, or its connection was lost
/// before the commit.
async fn write_alone<T, E, F>(connection: &Connection, write: &F) -> Result<T, E>
where
    F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync,
    E: WriteError,
{
    let (mut conflicts, mut cuts) = (0, 0);
    loop {
        let tx = connection.begin().await?;
        let (error, is_undone) = match attempt(write, &tx).await {
            // PostgreSQL would undo it, and answer its commit like any other.
            Ok(value) if !(tx.has_failed() && is_postgres(&tx)) => match tx.commit().await {
                Ok(()) => return Ok(value),
                Err(error) => (E::from(error), false),
            },
            ended => {
                let error = ended.err().unwrap_or_else(|| broken().into());
                if let Err(error) = tx.rollback().await {
                    tracing::debug!(error = %error, "could not roll back; the connection is thrown away");
                }
                (error, true)
            }
        };
        let Some(cause) = error.as_db_err() else { return Err(error) };
        if is_conflict(cause) {
            conflicts += 1;
        } else if is_undone && postgres::was_cut(cause) {
            cuts += 1;
        } else {
            return Err(error);
        }
        if conflicts >= MAX_CONFLICTS || cuts > MAX_CUTS {
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

/// Whether the database is away, shutting down or too busy, so that another try may pass.
pub fn is_away(error: &DbErr) -> bool {
    match error {
        DbErr::Conn(_) | DbErr::ConnectionAcquire(_) => true,
        _ => driver_error(error).is_some_and(|error| match error {
            sqlx::Error::Database(cause) => match sqlite_code(cause.as_ref()) {
                // Busy or locked by another process for longer than the busy timeout; or its disk fails.
                Some(code) => matches!(code & 0xff, 5 | 6 | 10),
                None => postgres::is_away(error),
            },
            error => postgres::is_away(error),
        }),
    }
}

/// Logs what did not succeed, and is tried again. That PostgreSQL is away was said when it was lost
/// (`postgres`), and is not said by everyone who notices.
pub fn warn_of(error: &DbErr, what: &str) {
    if is_said(error) {
        tracing::debug!(error = %error, "{what}: the database is away");
    } else {
        tracing::warn!(error = %error, "{what}");
    }
}

/// Whether the log says already, of PostgreSQL, that it is away: what ended a connection, or kept one from being made.
/// A statement that was cut off by a time limit says nothing of that, and nobody else tells of it.
pub fn is_said(error: &DbErr) -> bool {
    match error {
        DbErr::ConnectionAcquire(_) => true,
        DbErr::Conn(_) => database_error(error).is_none_or(|error| sqlite_code(error).is_none()),
        _ => driver_error(error).is_some_and(postgres::is_lost),
    }
}

fn sql_state(error: &DbErr) -> Option<String> {
    database_error(error)?.code().map(|code| code.into_owned())
}

fn database_error(error: &DbErr) -> Option<&dyn sqlx::error::DatabaseError> {
    driver_error(error)?.as_database_error()
}

fn driver_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// The same error, for another who waits.
fn copy(error: &DbErr) -> DbErr {
    match error {
        DbErr::Exec(RuntimeErr::SqlxError(error)) => {
            DbErr::Exec(RuntimeErr::SqlxError(Arc::clone(error)))
        }
        DbErr::Query(RuntimeErr::SqlxError(error)) => {
            DbErr::Query(RuntimeErr::SqlxError(Arc::clone(error)))
        }
        other => DbErr::Conn(RuntimeErr::Internal(other.to_string())),
    }
}

/// What a transaction ends with in which a statement failed that its write made nothing of.
fn broken() -> DbErr {
    DbErr::Custom("a statement of the transaction failed".to_owned())
}

fn no_writer(error: std::io::Error) -> DbErr {
    DbErr::Custom(format!("cannot start the thread that writes to the database: {error}"))
}

fn unusable(message: String) -> DbErr {
    DbErr::Conn(RuntimeErr::Internal(message))
}
