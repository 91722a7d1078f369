//! The blob store: whether it takes, gives and deletes an object, has room, and holds the files' bytes.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use super::Finding;
use super::Name;
use super::Opened;
use super::Part;
use super::timed;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::Blobs;
use crate::cli::output::bytes;
use crate::config::BlobsUrl;
use crate::config::Bucket;
use crate::config::Config;
use crate::config::DatabaseKind;
use crate::db::Db;
use crate::files;

/// Less than this is as good as none.
const NO_ROOM: u64 = 100 << 20;
/// How many files are looked for.
const SAMPLE: u32 = 20;
const PROBE: &[u8] = b"longshore doctor was here";

/// Opens the store, without making one where there is none.
pub async fn open(config: &Config, limit: Duration) -> Opened<Blobs> {
    match &config.blobs.url {
        BlobsUrl::Folder(folder) => open_folder(config, folder, limit).await,
        BlobsUrl::Bucket(bucket) => open_bucket(config, bucket, limit).await,
    }
}

async fn open_folder(config: &Config, folder: &Path, limit: Duration) -> Opened<Blobs> {
    let mut part = Part::Broken;
    let shown = folder.display().to_string();
    let finding = async {
        match tokio::fs::metadata(folder).await {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                return Finding::failed(
                    format!("`{shown}` is not a folder"),
                    "name a folder in `blobs.url`",
                );
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                part = Part::Missing;
                return Finding::warning(
                    format!("there is no folder `{shown}` yet"),
                    "`longshore up` makes it; where there was one, check that its disk is mounted, the working \
                     directory, and `blobs.url`",
                );
            }
            Err(error) => {
                return Finding::failed(
                    format!("cannot look at `{shown}`: {error}"),
                    "give the user that runs longshore access to this folder",
                );
            }
        }
        let (finding, blobs) = try_out(config, &shown).await;
        part = blobs;
        if config.database.url.kind() == DatabaseKind::Postgres && finding.is_good() {
            let message = format!(
                "{}; other machines, if there are any, have to see the same folder",
                finding.message
            );
            return Finding { message, ..finding };
        }
        finding
    };
    let mut checks = vec![timed(limit, Name::Blobs, None, finding).await];
    if let Part::There(_) = part {
        let much = config.server.max_file_bytes.0.saturating_mul(4);
        let room = room(folder.to_path_buf(), much);
        checks.push(timed(limit, Name::BlobsRoom, None, room).await);
    }
    Opened { part, checks }
}

async fn open_bucket(config: &Config, bucket: &Bucket, limit: Duration) -> Opened<Blobs> {
    let mut part = Part::Broken;
    let finding = async {
        let (finding, blobs) = try_out(config, &bucket.to_string()).await;
        // What cannot even be written to answers none of the other questions.
        if finding.is_good() {
            part = blobs;
        }
        finding
    };
    let checks = vec![timed(limit, Name::Blobs, None, finding).await];
    Opened { part, checks }
}

/// Opens the store, and uses it.
async fn try_out(config: &Config, shown: &str) -> (Finding, Part<Blobs>) {
    let mut part = Part::Broken;
    let tried = async {
        let blobs = Blobs::open(&config.blobs)?;
        let probed = probe(&blobs).await;
        part = Part::There(blobs);
        probed
    };
    let finding = match tried.await {
        Ok(true) => Finding::ok(format!("`{shown}`: an object was written, read and deleted")),
        Ok(false) => Finding::failed(
            format!("`{shown}` gave back other bytes than were written"),
            "see whether its disk is damaged; take it out of use until then",
        ),
        Err(error) => {
            let remedy = remedy(&error, &config.blobs.url);
            let error = format!("{:#}", anyhow::Error::from(error));
            Finding::failed(format!("`{shown}`: {error}"), remedy)
        }
    };
    (finding, part)
}

/// Whether what is written is read back.
async fn probe(blobs: &Blobs) -> Result<bool, BlobError> {
    let key = BlobKey::Probe(Uuid::now_v7());
    let mut writer = blobs.writer(&key);
    writer.write(PROBE.into()).await?;
    writer.finish().await?;
    let read = blobs.read_small(&key).await;
    // Whatever the reading said, nothing is left behind.
    blobs.delete(&key).await?;
    Ok(read?.is_some_and(|read| read == PROBE))
}

fn remedy(error: &BlobError, url: &BlobsUrl) -> &'static str {
    match (error, url) {
        (BlobError::Full(_), _) => "free some room there",
        (BlobError::NoBucket(_), _) => {
            "make the bucket, or correct `blobs.url`; where `blobs.endpoint` is set, see that it is the right one"
        }
        (BlobError::Refused(_), _) => {
            "see that `blobs.access_key_id` and `blobs.secret_access_key`, or the cloud's own variables, are right, that \
             they may get, put, list and delete objects there, that `blobs.region` is the bucket's, and that this machine's \
             clock is right: signatures of one that is 15 minutes off are refused"
        }
        (
            BlobError::Missing(_) | BlobError::NoBuffer | BlobError::Store(_),
            BlobsUrl::Bucket(_),
        ) => {
            "see that `blobs.endpoint` and `blobs.region` are right, and that this machine can reach them"
        }
        (
            BlobError::Missing(_) | BlobError::NoBuffer | BlobError::Store(_),
            BlobsUrl::Folder(_),
        ) => {
            "give the user that runs longshore the right to read and write there, and see that the disk is mounted \
             for writing"
        }
    }
}

/// How much room the disk of a folder has, where less than `much` is a warning.
pub async fn room(folder: PathBuf, much: u64) -> Finding {
    let shown = folder.display().to_string();
    let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&folder));
    let disk = match asked.await {
        Ok(Ok(disk)) => disk,
        Ok(Err(error)) => {
            return Finding::warning(
                format!("the room in `{shown}` cannot be told: {error}"),
                "look by hand, with `df`",
            );
        }
        Err(error) => return Finding::failed(error.to_string(), "report this: it is a defect"),
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let message = format!("{} of {} free in `{shown}`", bytes(free), bytes(total));
    // File systems that make inodes as they go count none.
    if disk.f_files > 0 && disk.f_favail < 1000 {
        let message = format!("{message}, but only {} inodes", disk.f_favail);
        return Finding::failed(message, "delete small files there, or use a larger disk");
    }
    let remedy =
        "free some room, or use a larger disk: when it is full, uploads are refused with 507";
    if free < NO_ROOM {
        Finding::failed(message, remedy)
    } else if free < much {
        Finding::warning(message, remedy)
    } else {
        Finding::ok(message)
    }
}

/// Whether the store has the bytes of the newest files.
pub async fn files(
    config: &Config,
    database: &Opened<Db>,
    store: &Opened<Blobs>,
    has_schema: bool,
) -> Finding {
    let (db, blobs) = match (database.for_check("database"), store.for_check("blob store")) {
        (Ok(db), Ok(blobs)) => (db, blobs),
        (Err(finding), _) | (_, Err(finding)) => return finding,
    };
    if !has_schema {
        return Finding::skipped("the schema is not up to date");
    }
    let keys = match files::store::newest_blobs(db.read(), SAMPLE).await {
        Ok(keys) => keys,
        Err(error) => {
            let remedy = super::database::remedy(&error);
            return Finding::failed(format!("cannot be listed: {error}"), remedy);
        }
    };
    let total = keys.len();
    let mut missing = 0;
    for key in keys {
        match blobs.read(&BlobKey::Stored(key), 0..0).await {
            Ok(_) => {}
            Err(BlobError::Missing(_)) => missing += 1,
            Err(error) => {
                let remedy = remedy(&error, &config.blobs.url);
                let error = format!("{:#}", anyhow::Error::from(error));
                return Finding::failed(format!("cannot be looked for: {error}"), remedy);
            }
        }
    }
    match (missing, total) {
        (0, 0) => Finding::ok("there are none yet"),
        (0, total) => Finding::ok(format!("the bytes of the newest {total} are there")),
        (missing, total) => Finding::failed(
            format!("the bytes of {missing} of the newest {total} are not in the blob store"),
            "check `blobs.url`, and that its disk is mounted; or restore the blob store that goes with this database",
        ),
    }
}
