//! The database, for whoever judges.

use longshore::db::Db;
use sea_orm::ConnectionTrait as _;
use sea_orm::QueryResult;

use super::fleet::Fleet;

/// The database, without any proxy before it.
pub struct Rows(Db);

impl Rows {
    pub async fn of(fleet: &Fleet) -> Self {
        Self(Db::connect(&fleet.database_url()).await.unwrap())
    }

    pub async fn query(&self, sql: &str) -> Vec<QueryResult> {
        let statement = longshore::db::statement(self.0.read(), sql, []);
        self.0.scan().query_all_raw(statement).await.unwrap()
    }

    /// The time by the database's clock, in milliseconds.
    pub async fn now(&self) -> i64 {
        self.count("SELECT (extract(epoch from clock_timestamp()) * 1000)::bigint").await
    }

    pub async fn count(&self, sql: &str) -> i64 {
        self.query(sql).await[0].try_get_by_index(0).unwrap()
    }

    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.query(sql).await;
        rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    pub async fn execute(&self, sql: &'static str) {
        let written: Result<(), sea_orm::DbErr> = self
            .0
            .work_alone(move |tx| {
                Box::pin(async move { tx.execute_unprepared(sql).await.map(|_| ()) })
            })
            .await;
        written.unwrap();
    }
}
