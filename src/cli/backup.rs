//! `longshore backup`: a copy of the SQLite database, made while it is in use.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use tempfile::NamedTempFile;

use super::Failed;
use super::Start;
use super::output::bytes;
use crate::db::backup;
use crate::db::sqlite_file;
use crate::webhooks::vault::KeyPlace;

/// A running server goes on meanwhile. The bytes of files are not in it: back up the blob store afterwards, never before.
#[derive(Debug, Args)]
pub struct Backup {
    /// The copy, which must not be there yet. The key that secrets are encrypted with, if it is a file, is put
    /// beside it, with `.key` at its end
    file: PathBuf,
}

impl Backup {
    pub async fn run(self, start: &Start) -> Result<ExitCode, Failed> {
        start.start_logging("warn")?;
        let config = start.load()?.config;
        let Some(database) = sqlite_file(config.database.url.expose()) else {
            return Err(Failed::Misconfigured(
                "`database.url` is PostgreSQL, which has its own means: `pg_dump --format custom`, or continuous \
                 archiving; the README says more"
                    .to_owned(),
            ));
        };
        let key = match KeyPlace::of(&config) {
            KeyPlace::File(path) => Some(path),
            KeyPlace::Configuration | KeyPlace::Nowhere => None,
        };
        let blobs = config.blobs.url;
        let file = self.file.clone();
        let size = tokio::task::spawn_blocking(move || take(&database, key.as_deref(), &file));
        println!("{}: {}", self.file.display(), bytes(size.await??));
        eprintln!("the bytes of files are not in it: back up {blobs} now, after it");
        Ok(ExitCode::SUCCESS)
    }
}

/// Makes the copy, and answers its size in bytes. What there is under its name is whole, and has its key.
fn take(database: &Path, key: Option<&Path>, to: &Path) -> anyhow::Result<u64> {
    anyhow::ensure!(
        database.try_exists()?,
        "there is no database `{}`; check the working directory and `database.url`",
        database.display()
    );
    let exists = || format!("`{}` is there already; name another file", to.display());
    anyhow::ensure!(to.symlink_metadata().is_err(), "{}", exists());
    let folder = match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // For its owner alone, and gone where nothing comes of it.
    let copy = begin(folder)?;
    backup::copy(database, copy.path())?;
    copy.as_file().sync_all()?;
    let size = copy.as_file().metadata()?.len();
    // After the database: a secret that is in it was sealed with a key that is there by now.
    if let Some(key) = key
        && key.try_exists()?
    {
        keep_key(key, to, folder)?;
    }
    copy.persist_noclobber(to).map_err(|error| match error.error.kind() {
        std::io::ErrorKind::AlreadyExists => anyhow::anyhow!("{}", exists()),
        _ => anyhow::Error::from(error.error).context(format!("cannot make `{}`", to.display())),
    })?;
    File::open(folder)?.sync_all()?;
    Ok(size)
}

fn begin(folder: &Path) -> anyhow::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".longshore-backup-")
        .tempfile_in(folder)
        .with_context(|| format!("cannot write to the folder `{}`", folder.display()))
}

/// Puts the key beside the copy, unless it is there.
fn keep_key(key: &Path, copy: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut to = copy.to_owned();
    to.as_mut_os_string().push(".key");
    let content = std::fs::read(key).with_context(|| format!("cannot read `{}`", key.display()))?;
    if std::fs::read(&to).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let mut file = begin(folder)?;
    file.write_all(&content)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(&to)
        .map_err(|error| error.error)
        .with_context(|| format!("cannot make `{}`", to.display()))?;
    Ok(())
}
