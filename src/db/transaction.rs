//! A transaction as a write sees it, on either database.

use std::sync::Arc;

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
pub struct Transaction(Inner);

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
                run(connection, "BEGIN IMMEDIATE")?;
                let connection = Arc::clone(connection);
                Ok(Transaction(Inner::Sqlite { connection, is_savepoint: false }))
            }
            Self::Postgres(pool) => Ok(Transaction(Inner::Postgres(pool.begin().await?))),
        }
    }
}

impl Transaction {
    /// A part of this transaction that can be undone without the rest.
    pub async fn savepoint(&self) -> Result<Self, DbErr> {
        match &self.0 {
            Inner::Sqlite { connection, .. } => {
                run(connection, "SAVEPOINT part")?;
                let connection = Arc::clone(connection);
                Ok(Self(Inner::Sqlite { connection, is_savepoint: true }))
            }
            Inner::Postgres(tx) => Ok(Self(Inner::Postgres(tx.begin().await?))),
        }
    }

    pub async fn commit(self) -> Result<(), DbErr> {
        match self.0 {
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
        match self.0 {
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
        match &self.0 {
            Inner::Sqlite { .. } => DbBackend::Sqlite,
            Inner::Postgres(_) => DbBackend::Postgres,
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Inner::Sqlite { connection, .. } => connection.execute(&statement),
            Inner::Postgres(tx) => tx.execute_raw(statement).await,
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match &self.0 {
            Inner::Sqlite { connection, .. } => connection.execute_batch(sql),
            Inner::Postgres(tx) => tx.execute_unprepared(sql).await,
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match &self.0 {
            Inner::Sqlite { connection, .. } => Ok(connection.query(&statement, 1)?.pop()),
            Inner::Postgres(tx) => tx.query_one_raw(statement).await,
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match &self.0 {
            Inner::Sqlite { connection, .. } => connection.query(&statement, usize::MAX),
            Inner::Postgres(tx) => tx.query_all_raw(statement).await,
        }
    }
}
