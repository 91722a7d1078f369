//! A fresh database for a test: a SQLite file, or a PostgreSQL database of its own.

use std::path::Path;

use longshore::db::Db;
use sea_orm::ConnectionTrait;
use sea_orm::Database as Connect;
use sea_orm::QueryResult;

/// Which database a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A database, gone with the test.
pub struct Database {
    pub url: String,
    /// The PostgreSQL server, and what drops the database there.
    drop: Option<(String, String)>,
}

impl Database {
    /// A SQLite file in `folder`.
    pub fn sqlite(folder: &Path) -> Self {
        Self { url: format!("sqlite://{}/longshore.db", folder.display()), drop: None }
    }

    /// A new database on the server that the tests were given.
    pub async fn postgres() -> Self {
        Self::postgres_with("").await
    }

    /// A new database with `options` of `CREATE DATABASE`.
    pub async fn postgres_with(options: &str) -> Self {
        let (server, name) = (server(), new_name());
        run(&server, &format!("CREATE DATABASE {name} {options}")).await;
        let (base, _) = server.rsplit_once('/').unwrap();
        let url = format!("{base}/{name}");
        Self { url, drop: Some((server, format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"))) }
    }

    /// A new schema in the database that the tests were given: made in an instant, for tests that do
    /// not look at what the whole database does.
    pub async fn postgres_schema() -> Self {
        let (server, name) = (server(), new_name());
        run(&server, &format!("CREATE SCHEMA {name}")).await;
        let url = format!("{server}?options[search_path]={name}");
        Self { url, drop: Some((server, format!("DROP SCHEMA {name} CASCADE"))) }
    }

    /// One on a server of the test's own, which goes with the server.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), drop: None }
    }

    /// A fresh database of `kind`.
    pub async fn of(kind: Kind, folder: &Path) -> Self {
        match kind {
            Kind::Sqlite => Self::sqlite(folder),
            Kind::Postgres => Self::postgres().await,
        }
    }

    /// A connection of the test's own, with the schema in place.
    pub async fn open(&self) -> Db {
        let db = Db::connect(&self.url).await.unwrap();
        db.migrate().await.unwrap();
        db
    }

    /// Drops the PostgreSQL database under whoever uses it.
    pub async fn take_away(&self) {
        let (server, sql) = self.drop.as_ref().expect("a database on PostgreSQL");
        run(server, sql).await;
    }

    /// The rows that a query answers. For reading what the server under test has written.
    pub async fn query(&self, sql: &str) -> Vec<QueryResult> {
        let db = Db::connect(&self.url).await.unwrap();
        let statement = longshore::db::statement(db.read(), sql, []);
        db.read().query_all_raw(statement).await.unwrap()
    }

    /// Changes what the server under test has written: to bring on what is minutes away, or to damage it.
    pub async fn execute(&self, sql: &str) {
        let db = Db::connect(&self.url).await.unwrap();
        let sql: std::sync::Arc<str> = sql.into();
        let written: Result<(), sea_orm::DbErr> = db
            .work(move |tx| {
                let sql = std::sync::Arc::clone(&sql);
                Box::pin(async move { tx.execute_unprepared(&sql).await.map(|_| ()) })
            })
            .await;
        written.unwrap();
    }

    /// The one number that a query answers.
    pub async fn count(&self, sql: &str) -> i64 {
        self.query(sql).await[0].try_get_by_index(0).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some((server, sql)) = self.drop.take() else { return };
        // A runtime of its own: the test's may be gone, and may not be blocked.
        let dropped = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(&server, &sql));
        });
        assert!(
            dropped.join().is_ok() || std::thread::panicking(),
            "the test's database was not dropped"
        );
    }
}

fn server() -> String {
    std::env::var("LONGSHORE_TEST_POSTGRES_URL")
        .expect("tests/run.sh sets LONGSHORE_TEST_POSTGRES_URL")
}

fn new_name() -> String {
    format!("longshore_test_{}", uuid::Uuid::new_v4().simple())
}

async fn run(server: &str, sql: &str) {
    let connection = Connect::connect(server).await.unwrap();
    connection.execute_unprepared(sql).await.unwrap();
    connection.close().await.unwrap();
}
