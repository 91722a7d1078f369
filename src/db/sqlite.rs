//! SQLite in the calling thread. A statement is a function call here, not a message to a thread of the
//! driver's and back: on a busy machine the two switches cost many times what the statement does.
//!
//! Rows are handed to sea-orm as its proxy rows. Their values take the types that the schema declares:
//! `INTEGER` is 32 bits wide and `BIGINT` 64, as on PostgreSQL, and so is what has no declared type (an
//! expression, so that a serial number is read as one); a `BLOB` of 16 bytes is a UUID, since the schema
//! has no other blob of that length.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use rusqlite::types::ToSqlOutput;
use rusqlite::types::ValueRef;
use sea_orm::DbErr;
use sea_orm::ExecResult;
use sea_orm::ProxyDatabaseTrait;
use sea_orm::ProxyExecResult;
use sea_orm::ProxyRow;
use sea_orm::QueryResult;
use sea_orm::RuntimeErr;
use sea_orm::Statement;
use sea_orm::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use uuid::Uuid;

/// How long a statement waits for another process that writes, at the least.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it looks whether that is done.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// How long a reader waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// What the writer keeps: its statements come in as many lengths as there are lists of parameters.
const WRITER: Caches = Caches { statements: 512, kibibytes: 32 * 1024 };
/// What each reader keeps. There are a dozen of them, and memory is to stay flat.
const READER: Caches = Caches { statements: 64, kibibytes: 2 * 1024 };

struct Caches {
    statements: usize,
    /// Of pages.
    kibibytes: u32,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Write,
    Read,
}

/// Whether to look once more, after a pause. SQLite's own pauses grow to 100 ms, and who looks that seldom finds a
/// process that writes all the time writing, for seconds.
fn wait_for_others(tries: i32) -> bool {
    let most = BUSY_TIMEOUT.as_millis() / BUSY_PAUSE.as_millis();
    let is_early = u128::try_from(tries).is_ok_and(|tries| tries < most);
    if is_early {
        std::thread::sleep(BUSY_PAUSE);
    }
    is_early
}

/// A connection, used by one thread at a time.
#[derive(Debug)]
pub struct Connection {
    inner: Mutex<rusqlite::Connection>,
}

impl Connection {
    /// Opens `path`, creating the file if it is missing.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or is no database.
    pub fn open(path: &Path, access: Access) -> Result<Self, DbErr> {
        let open = || {
            let connection = rusqlite::Connection::open(path)?;
            connection.busy_handler(Some(wait_for_others))?;
            let caches = if access == Access::Write { WRITER } else { READER };
            connection.set_prepared_statement_cache_capacity(caches.statements);
            // Every commit is on disk when it returns: a commit is what a client was promised.
            connection.execute_batch(&format!(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; \
                 PRAGMA cache_size = -{}; PRAGMA temp_store = MEMORY;",
                caches.kibibytes
            ))?;
            if access == Access::Read {
                connection.execute_batch("PRAGMA query_only = ON;")?;
            }
            Ok(connection)
        };
        let connection = open().map_err(|error: rusqlite::Error| {
            DbErr::Conn(RuntimeErr::Internal(format!("`{}`: {error}", path.display())))
        })?;
        Ok(Self { inner: Mutex::new(connection) })
    }

    /// Runs a statement that answers no rows.
    ///
    /// # Errors
    ///
    /// What SQLite says of it.
    pub fn execute(&self, statement: &Statement) -> Result<ExecResult, DbErr> {
        let connection = self.lock();
        let run = || {
            let mut prepared = prepare(&connection, statement)?;
            let mut rows = prepared.raw_query();
            // Some statements answer rows that nobody asked for.
            while rows.next()?.is_some() {}
            drop(rows);
            Ok(connection.changes())
        };
        let rows_affected = run().map_err(|error| DbErr::Exec(failure(error)))?;
        Ok(ProxyExecResult { last_insert_id: 0, rows_affected }.into())
    }

    /// Runs statements without parameters.
    ///
    /// # Errors
    ///
    /// What SQLite says of them.
    pub fn execute_batch(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let connection = self.lock();
        connection.execute_batch(sql).map_err(|error| DbErr::Exec(failure(error)))?;
        Ok(ProxyExecResult { last_insert_id: 0, rows_affected: connection.changes() }.into())
    }

    /// Runs a query, and reads at most `limit` of its rows.
    ///
    /// # Errors
    ///
    /// What SQLite says of it.
    pub fn query(&self, statement: &Statement, limit: usize) -> Result<Vec<QueryResult>, DbErr> {
        let rows = self.query_rows(statement, limit)?;
        Ok(rows.into_iter().map(QueryResult::from).collect())
    }

    /// As [`Connection::query`].
    ///
    /// # Errors
    ///
    /// What SQLite says of it.
    pub fn query_rows(&self, statement: &Statement, limit: usize) -> Result<Vec<ProxyRow>, DbErr> {
        let connection = self.lock();
        let run = || {
            let mut prepared = prepare(&connection, statement)?;
            let columns: Vec<_> = prepared
                .columns()
                .iter()
                .map(|column| (column.name().to_owned(), Declared::of(column.decl_type())))
                .collect();
            let mut rows = prepared.raw_query();
            let mut read = Vec::new();
            while let Some(row) = rows.next()? {
                let mut values = BTreeMap::new();
                for (place, (name, declared)) in columns.iter().enumerate() {
                    values.insert(name.clone(), declared.read(row.get_ref(place)?));
                }
                read.push(ProxyRow::new(values));
                if read.len() == limit {
                    // The statement is run to its end all the same, since it may write.
                    while rows.next()?.is_some() {}
                    break;
                }
            }
            Ok(read)
        };
        run().map_err(|error| DbErr::Query(failure(error)))
    }

    /// Whether no transaction is open: SQLite ends one by itself when the disk is full or fails.
    pub fn is_idle(&self) -> bool {
        self.lock().is_autocommit()
    }

    fn lock(&self) -> MutexGuard<'_, rusqlite::Connection> {
        // A panic in the middle of a statement leaves a connection that still knows its state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Prepares a statement and binds its parameters, which are `$1`, `$2`, …: SQLite takes these for names,
/// and numbers them as they come.
fn prepare<'c>(
    connection: &'c rusqlite::Connection,
    statement: &Statement,
) -> rusqlite::Result<rusqlite::CachedStatement<'c>> {
    let mut prepared = connection.prepare_cached(&statement.sql)?;
    let values = statement.values.as_ref().map_or(&[][..], |values| &values.0);
    for place in 1..=prepared.parameter_count() {
        let number = match prepared.parameter_name(place) {
            None => Some(place),
            Some(name) => name.get(1..).and_then(|number| number.parse().ok()),
        };
        let value = number.and_then(|number| values.get(number.checked_sub(1)?));
        let Some(value) = value else {
            let name = prepared.parameter_name(place).unwrap_or("?").to_owned();
            return Err(rusqlite::Error::InvalidParameterName(name));
        };
        prepared.raw_bind_parameter(place, Parameter(value))?;
    }
    Ok(prepared)
}

/// A value as SQLite stores it.
struct Parameter<'v>(&'v Value);

impl rusqlite::ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let integer = |value: Option<i64>| value.map_or(ValueRef::Null, ValueRef::Integer);
        let value =
            match self.0 {
                Value::Bool(value) => integer(value.map(i64::from)),
                Value::TinyInt(value) => integer(value.map(i64::from)),
                Value::SmallInt(value) => integer(value.map(i64::from)),
                Value::Int(value) => integer(value.map(i64::from)),
                Value::BigInt(value) => integer(*value),
                Value::TinyUnsigned(value) => integer(value.map(i64::from)),
                Value::SmallUnsigned(value) => integer(value.map(i64::from)),
                Value::Unsigned(value) => integer(value.map(i64::from)),
                Value::BigUnsigned(value) => {
                    let value = value.map(i64::try_from).transpose();
                    integer(value.map_err(|error| {
                        rusqlite::Error::ToSqlConversionFailure(Box::new(error))
                    })?)
                }
                Value::Float(value) => {
                    value.map_or(ValueRef::Null, |value| ValueRef::Real(value.into()))
                }
                Value::Double(value) => value.map_or(ValueRef::Null, ValueRef::Real),
                Value::String(value) => {
                    value.as_ref().map_or(ValueRef::Null, |value| ValueRef::Text(value.as_bytes()))
                }
                Value::Bytes(value) => {
                    value.as_ref().map_or(ValueRef::Null, |value| ValueRef::Blob(value))
                }
                Value::Uuid(value) => {
                    value.as_ref().map_or(ValueRef::Null, |value| ValueRef::Blob(value.as_bytes()))
                }
                other => {
                    let message = format!("no column holds a value like {other:?}");
                    return Err(rusqlite::Error::ToSqlConversionFailure(message.into()));
                }
            };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

/// What a column is declared as.
#[derive(Clone, Copy)]
enum Declared {
    Bool,
    Int,
    Other,
}

impl Declared {
    fn of(declared: Option<&str>) -> Self {
        match declared {
            Some("BOOLEAN") => Self::Bool,
            Some("INTEGER") => Self::Int,
            _ => Self::Other,
        }
    }

    fn read(self, value: ValueRef<'_>) -> Value {
        match (self, value) {
            // Of whatever type: a null of another type than asked for is read as none.
            (_, ValueRef::Null) => Value::String(None),
            (Self::Bool, ValueRef::Integer(value)) => Value::Bool(Some(value != 0)),
            (Self::Int, ValueRef::Integer(value)) if i32::try_from(value).is_ok() => {
                Value::Int(i32::try_from(value).ok())
            }
            (_, ValueRef::Integer(value)) => Value::BigInt(Some(value)),
            (_, ValueRef::Real(value)) => Value::Double(Some(value)),
            (_, ValueRef::Text(text)) => {
                Value::String(Some(String::from_utf8_lossy(text).into_owned()))
            }
            (_, ValueRef::Blob(bytes)) => match Uuid::from_slice(bytes) {
                Ok(uuid) => Value::Uuid(Some(uuid)),
                Err(_) => Value::Bytes(Some(bytes.to_vec())),
            },
        }
    }
}

/// An error as sqlx would tell it, so that whoever asks what it means need not know the driver.
fn failure(error: rusqlite::Error) -> RuntimeErr {
    let error = match error {
        rusqlite::Error::SqliteFailure(code, message) => {
            let message = message.unwrap_or_else(|| code.to_string());
            sqlx::Error::Database(Box::new(Failure { code: code.extended_code, message }))
        }
        error => sqlx::Error::Encode(Box::new(error)),
    };
    RuntimeErr::SqlxError(error.into())
}

/// SQLite's extended result code, and what it says of it.
#[derive(Debug, thiserror::Error)]
#[error("(code: {code}) {message}")]
pub struct Failure {
    pub code: i32,
    message: String,
}

impl sqlx::error::DatabaseError for Failure {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some(self.code.to_string().into())
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> sqlx::error::ErrorKind {
        match self.code {
            rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE
            | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY => {
                sqlx::error::ErrorKind::UniqueViolation
            }
            rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY => {
                sqlx::error::ErrorKind::ForeignKeyViolation
            }
            rusqlite::ffi::SQLITE_CONSTRAINT_NOTNULL => sqlx::error::ErrorKind::NotNullViolation,
            rusqlite::ffi::SQLITE_CONSTRAINT_CHECK => sqlx::error::ErrorKind::CheckViolation,
            _ => sqlx::error::ErrorKind::Other,
        }
    }
}

/// Connections for reading.
#[derive(Clone, Debug)]
pub struct Pool {
    idle: Arc<Mutex<Vec<Connection>>>,
    places: Arc<Semaphore>,
    thread: Thread,
}

/// Where the statements of a pool run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// In the caller's, for queries that an index answers within microseconds.
    Callers,
    /// In one that may be blocked, for queries that read many rows.
    ItsOwn,
}

impl Pool {
    /// Opens `size` connections.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn open(path: &Path, size: usize, thread: Thread) -> Result<Self, DbErr> {
        let connections: Result<Vec<_>, _> =
            (0..size).map(|_| Connection::open(path, Access::Read)).collect();
        Ok(Self {
            idle: Arc::new(Mutex::new(connections?)),
            places: Arc::new(Semaphore::new(size)),
            thread,
        })
    }

    /// Runs `read` on a connection that nobody else uses meanwhile.
    pub async fn run<T, F>(&self, read: F) -> Result<T, DbErr>
    where
        F: FnOnce(&Connection) -> Result<T, DbErr> + Send + 'static,
        T: Send + 'static,
    {
        let place = tokio::time::timeout(ACQUIRE_TIMEOUT, Arc::clone(&self.places).acquire_owned());
        let Ok(Ok(place)) = place.await else {
            tracing::warn!(
                "all connections for reading were in use for {} s",
                ACQUIRE_TIMEOUT.as_secs()
            );
            return Err(DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::Timeout));
        };
        let lent =
            Lent { connection: self.lock().pop(), idle: Arc::clone(&self.idle), _place: place };
        let run = move || match &lent.connection {
            Some(connection) => read(connection),
            None => Err(DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::ConnectionClosed)),
        };
        match self.thread {
            Thread::Callers => run(),
            Thread::ItsOwn => tokio::task::spawn_blocking(run)
                .await
                .unwrap_or_else(|error| Err(DbErr::Custom(error.to_string()))),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that goes back to its pool, whatever happens.
struct Lent {
    connection: Option<Connection>,
    idle: Arc<Mutex<Vec<Connection>>>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}

/// The migrations' view of a connection: sea-orm's migrator takes its own connections only.
#[derive(Debug)]
pub struct Migrations(pub Connection);

#[async_trait::async_trait]
impl ProxyDatabaseTrait for Migrations {
    async fn query(&self, statement: Statement) -> Result<Vec<ProxyRow>, DbErr> {
        let mut rows = self.0.query_rows(&statement, usize::MAX)?;
        // The migrator's own table has times in a column that it calls `integer`.
        for value in rows.iter_mut().flat_map(|row| row.values.values_mut()) {
            if let Value::Int(number) = value {
                *value = Value::BigInt(number.map(i64::from));
            }
        }
        Ok(rows)
    }

    async fn execute(&self, statement: Statement) -> Result<ProxyExecResult, DbErr> {
        self.0.execute(&statement).map(ProxyExecResult::from)
    }
}
