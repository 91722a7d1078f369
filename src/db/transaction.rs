//! A transaction as a write sees it, on either database.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use sea_orm::ConnectionTrait;
use sea_orm::DatabaseConnection;
use sea_orm::DatabaseTransaction;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::ExecResult;
use sea_orm::QueryResult;
use sea_orm::Statement;
use sea_orm::TransactionTrait as _;

use super::sqlite;

/// Where transactions are begun.
#[derive(Clone, Debug)]
pub enum Connection {
    Sqlite(Arc<sqlite::Connection>),
    Postgres(DatabaseConnection),
}

/// An open transaction, or a savepoint in one. Dropped, it is rolled back on PostgreSQL; on SQLite
/// whoever began it ends it, which is the group of writes alone.
#[derive(Debug)]
pub struct Transaction {
    inner: Inner,
    has_failed: AtomicBool,
}

#[derive(Debug)]
enum Inner {
    Sqlite { connection: Arc<sqlite::Connection>, is_savepoint: bool },
    Postgres(DatabaseTransaction),
}

impl Connection {
    pub async fn begin(&self) -> Result<Transaction, DbErr> {
        match self {
            Self::Sqlite(connection) => {
                // Taking the write lock at once means waiting for another process here, under the busy
                // timeout, and not failing in the middle because the snapshot has grown old.
                // What a failing disk left open goes first.
                roll_back(connection)?;
                run(connection, "BEGIN IMMEDIATE")?;
                let connection = Arc::clone(connection);
                Ok(Transaction::new(Inner::Sqlite { connection, is_savepoint: false }))
            }
            Self::Postgres(pool) => match pool.begin().await {
                Ok(tx) => Ok(Transaction::new(Inner::Postgres(tx))),
                // The connection may have been lost since it was last used: once more, on another.
                Err(_) => Ok(Transaction::new(Inner::Postgres(pool.begin().await?))),
            },
        }
    }
}

impl Transaction {
    fn new(inner: Inner) -> Self {
        Self { inner, has_failed: AtomicBool::new(false) }
    }

    /// Whether a statement of it failed, whatever the write made of that: PostgreSQL answers the commit of
    /// such a transaction like any other, and undoes it.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    fn noted<T>(&self, result: Result<T, DbErr>) -> Result<T, DbErr> {
        if result.is_err() {
            self.has_failed.store(true, Ordering::Relaxed);
        }
        result
    }

    /// A part of this transaction that can be undone without the rest.
    pub async fn savepoint(&self) -> Result<Self, DbErr> {
        match &self.inner {
            Inner::Sqlite { connection, .. } => {
                run(connection, "SAVEPOINT part")?;
                let connection = Arc::clone(connection);
                Ok(Self::new(Inner::Sqlite { connection, is_savepoint: true }))
            }
            Inner::Postgres(tx) => Ok(Self::new(Inner::Postgres(tx.begin().await?))),
        }
    }

    pub async fn commit(self) -> Result<(), DbErr> {
        match self.inner {
            Inner::Sqlite { connection, is_savepoint: true } => run(&connection, "RELEASE part"),
            Inner::Sqlite { connection, is_savepoint: false } => {
                let committed = run(&connection, "COMMIT");
                if committed.is_err() {
                    // A commit that failed leaves the transaction open.
                    roll_back(&connection)?;
                }
                committed
            }
            Inner::Postgres(tx) => tx.commit().await,
        }
    }

    pub async fn rollback(self) -> Result<(), DbErr> {
        match self.inner {
            Inner::Sqlite { connection, is_savepoint: true } => {
                run(&connection, "ROLLBACK TO part")?;
                run(&connection, "RELEASE part")
            }
            Inner::Sqlite { connection, is_savepoint: false } => roll_back(&connection),
            Inner::Postgres(tx) => tx.rollback().await,
        }
    }
}

fn run(connection: &sqlite::Connection, sql: &str) -> Result<(), DbErr> {
    connection.execute(&Statement::from_string(DbBackend::Sqlite, sql)).map(|_| ())
}

fn roll_back(connection: &sqlite::Connection) -> Result<(), DbErr> {
    if connection.is_idle() { Ok(()) } else { run(connection, "ROLLBACK") }
}

#[async_trait::async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        match &self.inner {
            Inner::Sqlite { .. } => DbBackend::Sqlite,
            Inner::Postgres(_) => DbBackend::Postgres,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => connection.execute(&statement),
            Inner::Postgres(tx) => tx.execute_raw(statement).await,
        };
        self.noted(result)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => connection.execute_batch(sql),
            Inner::Postgres(tx) => tx.execute_unprepared(sql).await,
        };
        self.noted(result)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => {
                connection.query(&statement, 1).map(|mut rows| rows.pop())
            }
            Inner::Postgres(tx) => tx.query_one_raw(statement).await,
        };
        self.noted(result)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => connection.query(&statement, usize::MAX),
            Inner::Postgres(tx) => tx.query_all_raw(statement).await,
        };
        self.noted(result)
    }
}
