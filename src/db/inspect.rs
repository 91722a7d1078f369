//! What there is to know of a database without changing anything in it.

use std::path::PathBuf;

use sea_orm::DbErr;
use sea_orm::FromQueryResult;

use super::Db;
use super::now;
use super::statement;
use crate::clock::Timestamp;

/// The database as it describes itself.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Facts {
    pub version: String,
    pub bytes: i64,
    /// Its own clock.
    pub now: Timestamp,
}

impl Db {
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn facts(&self) -> Result<Facts, DbErr> {
        let (version, bytes) = if self.is_postgres() {
            ("current_setting('server_version')", "pg_database_size(current_database())")
        } else {
            (
                "sqlite_version()",
                "(SELECT page_count * page_size FROM pragma_page_count, pragma_page_size)",
            )
        };
        let sql =
            format!("SELECT {version} AS version, {bytes} AS bytes, {} AS now", now(self.read()));
        let facts = Facts::find_by_statement(statement(self.read(), &sql, [])).one(self.read());
        facts.await?.ok_or_else(|| DbErr::RecordNotFound("the database's version".to_owned()))
    }

    /// Its own clock.
    ///
    /// # Errors
    ///
    /// When the database cannot be asked.
    pub async fn time(&self) -> Result<Timestamp, DbErr> {
        #[derive(FromQueryResult)]
        struct Time {
            now: Timestamp,
        }
        let sql = format!("SELECT {} AS now", now(self.read()));
        let time = Time::find_by_statement(statement(self.read(), &sql, [])).one(self.read());
        let time = time.await?.ok_or_else(|| DbErr::RecordNotFound("its time".to_owned()))?;
        Ok(time.now)
    }
}

/// The file that `sqlite://path` or `sqlite:path` names; none for another database, or one in memory.
pub fn sqlite_file(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let (path, options) = path.split_once('?').unwrap_or((path, ""));
    let path = percent_encoding::percent_decode_str(path).decode_utf8().ok()?;
    let is_file = !path.is_empty() && path != ":memory:" && !options.contains("mode=memory");
    is_file.then(|| PathBuf::from(&*path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sqlite_url_of_a_file_names_one() {
        assert_eq!(sqlite_file("sqlite://data/l.db"), Some("data/l.db".into()));
        assert_eq!(sqlite_file("sqlite:///data/l.db?mode=rwc"), Some("/data/l.db".into()));
        for url in ["sqlite://:memory:", "sqlite::memory:", "postgres://host/db"] {
            assert_eq!(sqlite_file(url), None, "{url}");
        }
    }
}
