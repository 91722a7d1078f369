//! A transaction as a write sees it, on either database.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use sea_orm::ConnectionTrait;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::ExecResult;
use sea_orm::QueryResult;
use sea_orm::Statement;
use tokio::sync::Mutex;

use super::postgres::Answer;
use super::postgres::Lent;
use super::postgres::Pool;
use super::postgres::Question;
use super::sqlite;

/// Where transactions are begun.
#[derive(Clone, Debug)]
pub enum Connection {
    Sqlite(Arc<sqlite::Connection>),
    Postgres(Pool),
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
    Postgres { connection: Arc<Mutex<Lent>>, is_savepoint: bool },
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
            Self::Postgres(pool) => {
                let connection = Arc::new(Mutex::new(pool.begin().await?));
                Ok(Transaction::new(Inner::Postgres { connection, is_savepoint: false }))
            }
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
            Inner::Postgres { connection, .. } => {
                connection.lock().await.ask(Question::Batch("SAVEPOINT part")).await?;
                let connection = Arc::clone(connection);
                Ok(Self::new(Inner::Postgres { connection, is_savepoint: true }))
            }
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
            Inner::Postgres { connection, is_savepoint } => {
                let mut connection = connection.lock().await;
                if is_savepoint {
                    connection.ask(Question::Batch("RELEASE part")).await.map(drop)
                } else {
                    connection.end("COMMIT").await
                }
            }
        }
    }

    pub async fn rollback(self) -> Result<(), DbErr> {
        match self.inner {
            Inner::Sqlite { connection, is_savepoint: true } => {
                run(&connection, "ROLLBACK TO part")?;
                run(&connection, "RELEASE part")
            }
            Inner::Sqlite { connection, is_savepoint: false } => roll_back(&connection),
            Inner::Postgres { connection, is_savepoint } => {
                let mut connection = connection.lock().await;
                if is_savepoint {
                    let undo = Question::Batch("ROLLBACK TO part; RELEASE part");
                    connection.ask(undo).await.map(drop)
                } else {
                    connection.end("ROLLBACK").await
                }
            }
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
            Inner::Postgres { .. } => DbBackend::Postgres,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => connection.execute(&statement),
            Inner::Postgres { connection, .. } => {
                let answer = connection.lock().await.ask(Question::Effect(&statement)).await;
                answer.and_then(Answer::effect)
            }
        };
        self.noted(result)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => connection.execute_batch(sql),
            Inner::Postgres { connection, .. } => {
                let answer = connection.lock().await.ask(Question::Batch(sql)).await;
                answer.and_then(Answer::effect)
            }
        };
        self.noted(result)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => {
                connection.query(&statement, 1).map(|mut rows| rows.pop())
            }
            Inner::Postgres { connection, .. } => {
                let answer = connection.lock().await.ask(Question::Row(&statement)).await;
                answer.map(|answer| answer.rows().pop())
            }
        };
        self.noted(result)
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let result = match &self.inner {
            Inner::Sqlite { connection, .. } => connection.query(&statement, usize::MAX),
            Inner::Postgres { connection, .. } => {
                connection.lock().await.ask(Question::Rows(&statement)).await.map(Answer::rows)
            }
        };
        self.noted(result)
    }
}
