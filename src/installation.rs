//! The installation's id: what marks our objects at the providers.
//!
//! It lies in the database and in the blob store. When the two differ, one of them was restored or
//! cloned, and what the database says of the providers may be old: then nothing is sent or deleted there. A copy that
//! `longshore backup` has made says by itself that it is one, since its id is the same.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::Blobs;
use crate::clock::Timestamp;
use crate::db::Db;
use crate::db::backup;
use crate::db::statement;
use crate::error::Error;
use crate::files;
use crate::mappings;
use crate::mappings::INSTALLATION_LENGTH;
use crate::runs;

const MOST_CLAIMS: u32 = 20;
const BETWEEN_CLAIMS: Duration = Duration::from_millis(200);

/// Who this is.
#[derive(Clone, Debug)]
pub struct Installation {
    pub id: Arc<str>,
    /// Whether database and blob store belong together, as they are. If not, nothing is
    /// sent to providers, and nothing deleted there.
    pub is_trusted: bool,
}

#[derive(FromQueryResult)]
struct Row {
    id: String,
}

/// Reads the installation's id, making it at the first start.
///
/// # Errors
///
/// When the database or the blob store cannot be reached.
pub async fn ensure(db: &Db, blobs: &Blobs, now: Timestamp) -> Result<Installation, Error> {
    let id = ensure_in_database(db, now).await?;
    let in_store = match in_store(blobs).await? {
        Some(in_store) => in_store,
        // A database with files belongs to a store with an id: this one is another, as for a clone.
        None if files::store::is_any(db.read()).await? => "none".to_owned(),
        None => claim(blobs, &id).await?,
    };
    let is_restored = is_restored(db).await?;
    if is_restored {
        tracing::error!(
            "the database was restored from a backup: nothing is deleted at providers, no blob is, and nothing is sent \
             to providers until `longshore doctor --adopt` says that it may be"
        );
    }
    let is_same = in_store == id;
    if !is_same {
        tracing::error!(
            database = %id,
            blob_store = %in_store,
            "the database and the blob store belong to different installations, as after a restore or a clone; \
             nothing is deleted at providers or sent there until they agree; `longshore doctor` says what to do"
        );
    }
    Ok(Installation { id: id.into(), is_trusted: is_same && !is_restored })
}

/// Puts the id into a store that has none. Another database may be at its first start on the same store: one of the two
/// comes first, and its id is answered.
async fn claim(blobs: &Blobs, id: &str) -> Result<String, Error> {
    for attempt in 0..MOST_CLAIMS {
        if attempt > 0 {
            tokio::time::sleep(BETWEEN_CLAIMS).await;
        }
        blobs.create_small(&BlobKey::Installation, id.to_owned().into()).await?;
        if let Some(in_store) = in_store(blobs).await? {
            return Ok(in_store);
        }
        // S3 refuses the one of two that comes while the other is under way, and has nothing yet.
    }
    let source = anyhow::anyhow!("it neither takes an installation's id nor has one");
    Err(Error::Unavailable { what: "the blob store", source })
}

/// The id in the database; none where there was no start yet.
///
/// # Errors
///
/// When the database cannot be asked, or has no such table.
pub async fn in_database(db: &impl ConnectionTrait) -> Result<Option<String>, DbErr> {
    let row =
        Row::find_by_statement(statement(db, "SELECT id FROM installation", [])).one(db).await?;
    Ok(row.map(|row| row.id))
}

/// The id in the blob store; none where there was no start yet.
///
/// # Errors
///
/// When the store fails.
pub async fn in_store(blobs: &Blobs) -> Result<Option<String>, BlobError> {
    let bytes = blobs.read_small(&BlobKey::Installation).await?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

#[derive(FromQueryResult)]
struct Mark {
    mark: i64,
}

/// Whether the database is a backup that was put back and that nobody has adopted since. It can be told of SQLite
/// alone.
///
/// # Errors
///
/// When the database cannot be asked.
pub async fn is_restored(db: &Db) -> Result<bool, DbErr> {
    if db.is_postgres() {
        return Ok(false);
    }
    let sql = "SELECT user_version AS mark FROM pragma_user_version";
    let mark = Mark::find_by_statement(statement(db.read(), sql, [])).one(db.read()).await?;
    Ok(mark.is_some_and(|row| row.mark == backup::COPIED))
}

/// Makes the two agree, by hand: the blob store takes the database's id, since what lies at the
/// providers is marked with that. Answers the id. Who runs already learns of it at the next start.
///
/// What the database takes for not sent may have been sent since it was copied: each provider's list is asked for it
/// first, as after an answer that was lost.
///
/// # Errors
///
/// When the database or the blob store cannot be reached.
pub async fn adopt(db: &Db, blobs: &Blobs, now: Timestamp) -> Result<String, Error> {
    let id = ensure_in_database(db, now).await?;
    write(blobs, &id).await?;
    let is_restored = is_restored(db).await?;
    let doubted: Result<(), DbErr> = db
        .intake(move |tx| {
            Box::pin(async move {
                mappings::store::doubt_all(tx, now).await?;
                runs::store::doubt_all(tx).await?;
                if is_restored {
                    tx.execute_unprepared("PRAGMA user_version = 0").await?;
                }
                Ok(())
            })
        })
        .await;
    doubted?;
    Ok(id)
}

async fn write(blobs: &Blobs, id: &str) -> Result<(), BlobError> {
    blobs.write_small(&BlobKey::Installation, id.to_owned().into()).await
}

async fn ensure_in_database(db: &Db, now: Timestamp) -> Result<String, Error> {
    let minted = mappings::random(INSTALLATION_LENGTH);
    let id: Result<String, DbErr> = db
        .intake(move |tx| {
            let minted = minted.clone();
            Box::pin(async move {
                let sql = "INSERT INTO installation (one, id, created_at) VALUES (1, $1, $2) ON CONFLICT DO NOTHING";
                let values: [Value; 2] = [minted.into(), now.0.into()];
                tx.execute_raw(statement(tx, sql, values)).await?;
                let id = in_database(tx).await?;
                id.ok_or_else(|| DbErr::RecordNotFound("the installation".to_owned()))
            })
        })
        .await;
    Ok(id?)
}
