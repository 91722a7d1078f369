//! The database: whether it answers, has the schema, takes writes, and has room to grow.

use std::path::Path;
use std::time::Duration;

use sea_orm::ConnectionTrait as _;
use sea_orm::DbErr;

use super::Finding;
use super::Name;
use super::Opened;
use super::Part;
use super::counted;
use super::now;
use super::spoken;
use super::store::room;
use super::timed;
use crate::cli::output::bytes;
use crate::config::Config;
use crate::db::Db;
use crate::db::Schema;
use crate::db::is_disk_full;
use crate::db::sqlite_file;
use crate::processes::VERSION;

/// A smaller disk than this fails soon.
const MUCH_ROOM: u64 = 1 << 30;
/// A clock that differs by more makes the times in logs and in the database contradict each other.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);
/// A commit that takes longer holds up every client.
const SLOW_COMMIT: Duration = Duration::from_secs(1);

/// Connects, without making a database where there is none.
pub async fn open(config: &Config, limit: Duration) -> Opened<Db> {
    let url = &config.database.url;
    let mut part = Part::Broken;
    let finding = async {
        if let Some(file) = sqlite_file(url.expose()) {
            match exists(&file).await {
                Ok(true) => {}
                Ok(false) => {
                    part = Part::Missing;
                    return Finding::warning(
                        format!("there is no file `{}` yet", file.display()),
                        "`longshore up` makes it; where there was one, check the working directory and `database.url`",
                    );
                }
                Err(error) => {
                    return Finding::failed(
                        format!("cannot look for `{}`: {error}", file.display()),
                        "give the user that runs longshore access to this folder",
                    );
                }
            }
        }
        let opened = async {
            let db = Db::open(&config.database).await?;
            let facts = db.facts().await?;
            Ok::<_, DbErr>((db, facts))
        };
        match opened.await {
            Ok((db, facts)) => {
                let kind = if db.is_postgres() { "PostgreSQL" } else { "SQLite" };
                let size = bytes(u64::try_from(facts.bytes).unwrap_or_default());
                part = Part::There(db);
                let message = format!("{kind} {} at `{url}`, {size}", facts.version);
                let apart = facts.now.since(now()).max(now().since(facts.now));
                if apart > CLOCK_TOLERANCE {
                    let apart = spoken(apart);
                    return Finding::warning(
                        format!("{message}; its clock and this machine's are {apart} apart"),
                        "set both clocks, by NTP: jobs go by the database's, times in logs by this machine's",
                    );
                }
                Finding::ok(message)
            }
            Err(error) => Finding::failed(format!("cannot open `{url}`: {error}"), remedy(&error)),
        }
    };
    let mut checks = vec![timed(limit, Name::Database, None, finding).await];
    if let (Some(file), Part::There(_)) = (sqlite_file(url.expose()), &part) {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        checks.push(timed(limit, Name::DatabaseRoom, None, room(folder, MUCH_ROOM)).await);
    }
    Opened { part, checks }
}

/// Whether the schema is the one of this program.
pub async fn schema(database: &Opened<Db>) -> Finding {
    let db = match database.for_check("database") {
        Ok(db) => db,
        Err(finding) => return finding,
    };
    match db.schema().await {
        Ok(Schema { missing, unknown }) if missing.is_empty() => match unknown.last() {
            None => Finding::ok("up to date"),
            Some(newest) => Finding::ok(format!(
                "up to date; a newer version has added to it (`{newest}`), with which this one, {VERSION}, gets on"
            )),
        },
        Ok(Schema { missing, unknown }) if unknown.is_empty() => Finding::failed(
            format!("{} missing: {}", counted(missing.len(), "migration"), missing.join(", ")),
            "`longshore migrate` applies them; so does the next start of `longshore up` or `serve`",
        ),
        Ok(Schema { missing, unknown }) => Finding::failed(
            format!(
                "{} missing ({}), though another version has been here ({})",
                counted(missing.len(), "migration"),
                missing.join(", "),
                unknown.join(", ")
            ),
            format!(
                "run a version of longshore that knows both (this is {VERSION}), or restore the database from before it"
            ),
        ),
        Err(error) => Finding::failed(format!("cannot be read: {error}"), remedy(&error)),
    }
}

/// Commits a change that changes nothing: it takes the lock, the room and the sync of a real one.
pub async fn writes(database: &Opened<Db>, has_schema: bool) -> Finding {
    let db = match database.for_check("database") {
        Ok(db) => db,
        Err(finding) => return finding,
    };
    if !has_schema {
        return Finding::skipped("the schema is not up to date");
    }
    let begun = tokio::time::Instant::now();
    let written: Result<(), DbErr> = db
        .intake(|tx| {
            Box::pin(async move {
                tx.execute_unprepared("UPDATE installation SET id = id").await.map(|_| ())
            })
        })
        .await;
    match written {
        Ok(()) if begun.elapsed() > SLOW_COMMIT => Finding::warning(
            format!("a commit took {} ms", begun.elapsed().as_millis()),
            "every upload waits for one: see what keeps the disk or the database busy",
        ),
        Ok(()) => Finding::ok("a commit was written and synced"),
        Err(error) => Finding::failed(format!("a commit failed: {error}"), remedy(&error)),
    }
}

/// What to do about an error of the database, as far as it can be told.
pub fn remedy(error: &DbErr) -> String {
    if is_disk_full(error) {
        return "free some room on the database's disk".to_owned();
    }
    let text = error.to_string();
    let says = |part: &str| text.contains(part);
    let remedy = if says("Connection refused") {
        "start PostgreSQL, or correct host and port in `database.url`"
    } else if says("failed to lookup address") {
        "correct the host in `database.url`, or see why its name is not found"
    } else if says("password authentication failed") || says("no password") {
        "correct user and password in `database.url`"
    } else if says("certificate") {
        "name the server in `database.url` as its certificate does, and its authority by `sslrootcert`"
    } else if says("does not exist") {
        "make it with `createdb` or `createuser`, or correct `database.url`"
    } else if says("too many clients") || says("remaining connection slots") {
        "raise `max_connections` of PostgreSQL, or lower `database.max_connections`: each process takes as many"
    } else if says("read-only") || says("readonly") {
        "it takes no writes: name the primary server in `database.url`, or give the user that runs longshore the \
         right to write"
    } else if says("not a database") || says("malformed") {
        "it is damaged, or the file of something else: correct `database.url`, or restore a copy"
    } else if says("locked") {
        "another process holds it: end that, or wait"
    } else if says("unable to open database file") || says("ermission denied") {
        "give the user that runs longshore the right to read and write the file and its folder"
    } else {
        "check `database.url`, and the log of the database"
    };
    remedy.to_owned()
}

async fn exists(file: &Path) -> std::io::Result<bool> {
    tokio::fs::try_exists(file).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_often_goes_wrong_has_a_remedy_of_its_own() {
        let remedy = |text: &str| remedy(&DbErr::Custom(text.to_owned()));
        let general = remedy("something");
        for text in [
            "Connection refused (os error 111)",
            "password authentication failed for user \"x\"",
            "database \"x\" does not exist",
            "attempt to write a readonly database",
            "file is not a database",
            "database is locked",
        ] {
            assert_ne!(remedy(text), general, "{text}");
        }
    }
}
