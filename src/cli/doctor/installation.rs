//! Whether database and blob store belong together, and `--adopt`.

use super::Finding;
use super::Opened;
use super::Part;
use super::now;
use crate::blobs::Blobs;
use crate::db::Db;
use crate::files;
use crate::installation;

/// Compares the two ids; with `adopt`, lets the store take the database's.
pub async fn check(
    database: &Opened<Db>,
    store: &Opened<Blobs>,
    has_schema: bool,
    adopt: bool,
) -> Finding {
    match compare(database, store, has_schema, adopt).await {
        Ok(finding) => finding,
        Err(error) => Finding::failed(
            format!("cannot be compared: {error:#}"),
            "see to the database and the blob store first",
        ),
    }
}

async fn compare(
    database: &Opened<Db>,
    store: &Opened<Blobs>,
    has_schema: bool,
    adopt: bool,
) -> anyhow::Result<Finding> {
    let db = match &database.part {
        Part::There(db) if has_schema => Some(db),
        Part::There(_) => return Ok(Finding::skipped("the schema is not up to date")),
        Part::Missing => None,
        Part::Broken => return Ok(Finding::skipped("the database cannot be reached")),
    };
    let blobs = match &store.part {
        Part::There(blobs) => Some(blobs),
        Part::Missing => None,
        Part::Broken => return Ok(Finding::skipped("the blob store cannot be reached")),
    };
    let in_database = match db {
        Some(db) => installation::in_database(db.read()).await?,
        None => None,
    };
    let in_store = match blobs {
        Some(blobs) => installation::in_store(blobs).await?,
        None => None,
    };
    let is_used = match db {
        Some(db) => !files::store::newest_blobs(db.read(), 1).await?.is_empty(),
        None => false,
    };
    let is_restored = match db {
        Some(db) => installation::is_restored(db).await?,
        None => false,
    };
    if let (true, Some(db), Some(blobs)) = (adopt, db, blobs)
        && (in_database != in_store || is_restored)
    {
        let id = installation::adopt(db, blobs, now()).await?;
        let before = in_store.map_or_else(|| "none".to_owned(), |id| format!("`{id}`"));
        return Ok(Finding::ok(format!(
            "adopted: the blob store is now of installation `{id}`, as the database is (before: {before}); \
             restart the servers and workers that run, they learn of it at their start"
        )));
    }
    Ok(match (in_database, in_store) {
        (Some(id), Some(same)) if id == same && is_restored => Finding::failed(
            format!(
                "`{id}`, in the database and in the blob store, but the database was restored from a backup: nothing is \
                 deleted at providers, and no blob"
            ),
            "if this is the newest that there is, `longshore doctor --adopt` says so; the bytes of files that it does not \
             know are deleted then. But not while the installation that this is a copy of goes on with the same provider \
             accounts",
        ),
        (Some(id), Some(same)) if id == same && adopt => Finding::ok(format!(
            "`{id}`, in the database and in the blob store: there was nothing to adopt"
        )),
        (Some(id), Some(same)) if id == same => {
            Finding::ok(format!("`{id}`, in the database and in the blob store"))
        }
        (Some(id), Some(other)) => Finding::failed(
            format!(
                "the database is of installation `{id}`, the blob store of `{other}`: nothing is deleted at providers"
            ),
            "correct `database.url` or `blobs.url` if one of them is the wrong one. If both are right, as after a \
             restore, `longshore doctor --adopt` says so; but not while the installation that this is a copy of goes on \
             with the same provider accounts",
        ),
        (Some(id), None) if is_used => Finding::failed(
            format!(
                "the database is of installation `{id}` and has files, but the blob store is none's"
            ),
            "correct `blobs.url`, and see that its disk is mounted; if it is the right one, `longshore doctor --adopt`",
        ),
        (None, Some(other)) => Finding::failed(
            format!("the blob store is of installation `{other}`, but the database is none's"),
            "correct `database.url`, or restore the database; to begin anew with this blob store, run `longshore \
             migrate` and then `longshore doctor --adopt`",
        ),
        (Some(id), None) => {
            Finding::ok(format!("`{id}`; the blob store learns of it at the next start"))
        }
        (None, None) => Finding::skipped("it is made at the first start"),
    })
}
