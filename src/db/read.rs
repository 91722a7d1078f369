//! Connections for reading, on either database.

use std::sync::Arc;

use sea_orm::ConnectionTrait;
use sea_orm::DbBackend;
use sea_orm::DbErr;
use sea_orm::ExecResult;
use sea_orm::QueryResult;
use sea_orm::Statement;
use tokio::sync::Semaphore;

use super::postgres::Pool;
use super::postgres::Question;
use super::shedding::Gate;
use super::sqlite;

/// What reads the database. Writing through it fails on SQLite.
#[derive(Clone, Debug)]
pub enum Reader {
    Sqlite(sqlite::Pool),
    Postgres(Pool),
    /// Another, of which only so many wait.
    Bounded(Box<Reader>, Gate),
}

impl Reader {
    /// The same, of which only so many wait; on PostgreSQL within `share` of its connections.
    pub(super) fn bounded(&self, gate: &Gate, share: Option<&Arc<Semaphore>>) -> Self {
        let reader = match (self, share) {
            (Self::Postgres(pool), Some(share)) => Self::Postgres(pool.within(share)),
            (reader, _) => reader.clone(),
        };
        Self::Bounded(Box::new(reader), gate.clone())
    }

    /// The same, for what is never turned away, nor waits for those who are many.
    pub(super) fn unbounded(&self) -> Self {
        match self {
            Self::Bounded(reader, _) => reader.unbounded(),
            Self::Postgres(pool) => Self::Postgres(pool.without_shares()),
            Self::Sqlite(pool) => Self::Sqlite(pool.clone()),
        }
    }

    /// Counts a statement: that waiters cost the database nothing each is seen by this.
    fn counted(&self) -> &Self {
        if !matches!(self, Self::Bounded(..)) {
            metrics::counter!("longshore_db_reads_total").increment(1);
        }
        self
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Reader {
    fn get_database_backend(&self) -> DbBackend {
        match self {
            Self::Sqlite(_) => DbBackend::Sqlite,
            Self::Postgres(_) => DbBackend::Postgres,
            Self::Bounded(reader, _) => reader.get_database_backend(),
        }
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        match self.counted() {
            Self::Sqlite(pool) => pool.run(move |connection| connection.execute(&statement)).await,
            Self::Postgres(pool) => pool.ask(Question::Effect(&statement)).await?.effect(),
            Self::Bounded(reader, gate) => {
                let _place = gate.enter()?;
                reader.execute_raw(statement).await
            }
        }
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        match self.counted() {
            Self::Sqlite(pool) => {
                let sql = sql.to_owned();
                pool.run(move |connection| connection.execute_batch(&sql)).await
            }
            Self::Postgres(pool) => pool.ask(Question::Batch(sql)).await?.effect(),
            Self::Bounded(reader, gate) => {
                let _place = gate.enter()?;
                reader.execute_unprepared(sql).await
            }
        }
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        match self.counted() {
            Self::Sqlite(pool) => {
                pool.run(move |connection| Ok(connection.query(&statement, 1)?.pop())).await
            }
            Self::Postgres(pool) => Ok(pool.ask(Question::Row(&statement)).await?.rows().pop()),
            Self::Bounded(reader, gate) => {
                let _place = gate.enter()?;
                reader.query_one_raw(statement).await
            }
        }
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        match self.counted() {
            Self::Sqlite(pool) => {
                pool.run(move |connection| connection.query(&statement, usize::MAX)).await
            }
            Self::Postgres(pool) => Ok(pool.ask(Question::Rows(&statement)).await?.rows()),
            Self::Bounded(reader, gate) => {
                let _place = gate.enter()?;
                reader.query_all_raw(statement).await
            }
        }
    }
}
