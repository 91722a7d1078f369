//! How the schema stands to this program: what it lacks, and what a newer version has added.
//!
//! Migrations only add (see ARCHITECTURE.md), so that a version gets on with the schema of a newer one. sea-orm's
//! migrator refuses any migration that it does not know; it is asked only where one is missing.

use std::collections::HashSet;

use migrations::Migrator;
use migrations::MigratorTrait as _;
use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;

use super::Db;
use super::is_postgres;
use super::statement;

/// The schema, compared with the migrations of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    /// Migrations that it lacks, by name.
    pub missing: Vec<String>,
    /// Migrations of a newer version, by name.
    pub unknown: Vec<String>,
}

impl Schema {
    /// Reads which migrations were applied. Changes nothing.
    pub(super) async fn read(db: &impl ConnectionTrait) -> Result<Self, DbErr> {
        let applied = applied(db).await?;
        let ours: Vec<String> =
            Migrator::migrations().iter().map(|migration| migration.name().to_owned()).collect();
        let known: HashSet<&str> = ours.iter().map(String::as_str).collect();
        let mut unknown: Vec<_> =
            applied.iter().filter(|name| !known.contains(name.as_str())).cloned().collect();
        unknown.sort();
        let missing = ours.into_iter().filter(|name| !applied.contains(name)).collect();
        Ok(Self { missing, unknown })
    }

    /// Whether anything is missing.
    ///
    /// # Errors
    ///
    /// When it has been changed by a version of another line: what is missing may contradict what is there.
    pub(super) fn is_behind(&self) -> Result<bool, DbErr> {
        if self.missing.is_empty() || self.unknown.is_empty() {
            return Ok(!self.missing.is_empty());
        }
        Err(DbErr::Custom(format!(
            "the database has been changed by another version of longshore ({}), and lacks what this one, {}, needs ({}); \
             run a version that knows both",
            self.unknown.join(", "),
            env!("CARGO_PKG_VERSION"),
            self.missing.join(", "),
        )))
    }
}

async fn applied(db: &impl ConnectionTrait) -> Result<HashSet<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        version: String,
    }
    let table = if is_postgres(db) {
        "SELECT 1 AS one WHERE to_regclass('seaql_migrations') IS NOT NULL"
    } else {
        "SELECT 1 AS one FROM sqlite_master WHERE name = 'seaql_migrations'"
    };
    if db.query_one_raw(statement(db, table, [])).await?.is_none() {
        return Ok(HashSet::new());
    }
    let sql = "SELECT version FROM seaql_migrations";
    let rows = Row::find_by_statement(statement(db, sql, [])).all(db).await?;
    Ok(rows.into_iter().map(|row| row.version).collect())
}

impl Db {
    /// How the schema stands to this program. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn schema(&self) -> Result<Schema, DbErr> {
        Schema::read(self.read()).await
    }
}
