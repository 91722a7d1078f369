//! A database of a row's own on the PostgreSQL server that was given.

use anyhow::Context as _;
use sqlx::AssertSqlSafe;
use sqlx::Connection as _;
use sqlx::Executor as _;

use crate::Bench;

/// It is dropped by [`Database::remove`]. A run that is broken off leaves it behind, by its name
/// `longshore_bench_…`.
pub struct Database {
    pub url: String,
    server: String,
    name: String,
}

impl Database {
    pub async fn create(bench: &Bench) -> anyhow::Result<Self> {
        let server = bench.options.postgres.clone().context("no PostgreSQL server was given")?;
        let name = format!("longshore_bench_{}", uuid::Uuid::new_v4().simple());
        run(&server, format!("CREATE DATABASE {name}")).await?;
        let (base, _) = server.rsplit_once('/').context("the server's URL names no database")?;
        Ok(Self { url: format!("{base}/{name}"), server, name })
    }

    /// Runs a statement, however long it takes.
    pub async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        run(&self.url, sql.to_owned()).await
    }

    /// The texts that a query answers.
    pub async fn texts(&self, sql: &str) -> anyhow::Result<Vec<String>> {
        let mut connection = sqlx::PgConnection::connect(&self.url).await?;
        let texts = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        let texts = texts.fetch_all(&mut connection).await?;
        connection.close().await?;
        Ok(texts)
    }

    pub async fn remove(self) -> anyhow::Result<()> {
        run(&self.server, format!("DROP DATABASE {} WITH (FORCE)", self.name)).await
    }
}

async fn run(server: &str, sql: String) -> anyhow::Result<()> {
    let mut connection = sqlx::PgConnection::connect(server).await?;
    connection.execute(AssertSqlSafe(sql)).await?;
    Ok(connection.close().await?)
}
