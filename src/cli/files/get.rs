//! Downloads a file's content to standard output, or whole or not at all to a file.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use reqwest::Response;
use serde_json::Value;
use tempfile::TempPath;

use crate::cli::{
    client::Client,
    id::GivenId,
    output::{Output, bytes},
};

/// How much of the first chunk is searched for signs of a binary file.
const PROBE_BYTES: usize = 4096;

/// `longshore files get`. `target` is a path, `-` for standard output whatever it is, or nothing for
/// standard output with a guard before a terminal.
pub async fn run(
    client: &Client,
    output: &mut Output,
    id: &GivenId,
    target: Option<&Path>,
    force: bool,
) -> anyhow::Result<()> {
    match target {
        None => to_output(client, output, id, output.is_terminal).await,
        Some(path) if path == Path::new("-") => to_output(client, output, id, false).await,
        Some(path) => to_file(client, output, id, path, force).await,
    }
}

async fn to_output(
    client: &Client,
    output: &mut Output,
    id: &GivenId,
    guarded: bool,
) -> anyhow::Result<()> {
    let mut response = client.download(&["files", id.as_str(), "content"]).await?;
    // A bar on a terminal would be drawn into the content.
    let bar = if output.is_terminal { ProgressBar::hidden() } else { bar(output, id, &response) };
    let mut is_first = true;
    while let Some(chunk) = client.chunk(&mut response).await? {
        if is_first && guarded {
            let probe = &chunk[..chunk.len().min(PROBE_BYTES)];
            ensure!(
                !is_binary(probe),
                "the content is binary and would garble the terminal: use `--output FILE`, or `--output -` to print it all the same"
            );
        }
        is_first = false;
        output.raw(&chunk)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    output.flush()
}

async fn to_file(
    client: &Client,
    output: &mut Output,
    id: &GivenId,
    path: &Path,
    force: bool,
) -> anyhow::Result<()> {
    let target = Target::claim(path, force)?;
    let object = match output.json {
        true => Some(client.get::<Value>(&["files", id.as_str()], &[]).await?.json),
        false => None,
    };
    let mut response = client.download(&["files", id.as_str(), "content"]).await?;
    let bar = bar(output, id, &response);
    let mut total = 0;
    while let Some(chunk) = client.chunk(&mut response).await? {
        (&target.file).write_all(&chunk).with_context(|| target.cannot_write())?;
        total += chunk.len() as u64;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    target.keep()?;
    match object {
        Some(object) => output.document(&object),
        None => {
            output.progress.note(&format!("wrote {} to `{}`", bytes(total), path.display()));
            Ok(())
        }
    }
}

fn bar(output: &Output, id: &GivenId, response: &Response) -> ProgressBar {
    let short: String = id.as_str().chars().take(16).collect();
    output.progress.transfer(&format!("{short}…"), response.content_length())
}

/// Content with a NUL byte, or that is not UTF-8 but for a character that the probe's end cuts.
fn is_binary(probe: &[u8]) -> bool {
    let cut = match std::str::from_utf8(probe) {
        Ok(_) => false,
        Err(error) => error.error_len().is_some(),
    };
    // An escape sequence is a command to the terminal just as well.
    cut || probe.iter().any(|byte| matches!(byte, 0 | 0x1b))
}

/// A file that does not exist under its name before it is complete.
struct Target<'a> {
    path: &'a Path,
    force: bool,
    /// `FILE.part`, gone when this is dropped.
    part: TempPath,
    file: File,
}

impl<'a> Target<'a> {
    /// Makes `FILE.part`, or takes over one that a killed download left.
    fn claim(path: &'a Path, force: bool) -> anyhow::Result<Self> {
        let shown = path.display();
        match path.metadata() {
            Ok(metadata) if !metadata.is_file() => {
                bail!(
                    "cannot write to `{shown}`: it is not a regular file; `--output -` writes to standard output"
                )
            }
            Ok(_) => ensure!(force, "`{shown}` exists: `--force` overwrites it"),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot write to `{shown}`")),
        }
        let name = path.file_name().with_context(|| format!("`{shown}` names no file"))?;
        let mut part_name = name.to_owned();
        part_name.push(".part");
        let part: PathBuf = path.with_file_name(part_name);
        let unwritable = || format!("cannot write to `{}`", part.display());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .with_context(unwritable)?;
        // Emptied only under the lock: two downloads into one file would make a third thing.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another download is writing to `{}`", part.display())
            }
            // A file system without locks.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error).with_context(unwritable),
        }
        // A download that ended between the two steps above has given this very file its final name.
        let is_ours = match (file.metadata(), part.metadata()) {
            (Ok(locked), Ok(named)) => (locked.dev(), locked.ino()) == (named.dev(), named.ino()),
            _ => false,
        };
        ensure!(is_ours, "another download was writing to `{}` just now", part.display());
        file.set_len(0).with_context(unwritable)?;
        let part = TempPath::try_from_path(part)?;
        Ok(Self { path, force, part, file })
    }

    /// Gives the complete file its name, once its bytes are on disk.
    fn keep(self) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| self.cannot_write())?;
        let shown = self.path.display();
        let kept = if self.force {
            self.part.persist(self.path)
        } else {
            // Somebody may have made a file of that name since the download began.
            self.part.persist_noclobber(self.path)
        };
        match kept {
            Ok(()) => Ok(()),
            Err(failed) if failed.error.kind() == ErrorKind::AlreadyExists => {
                bail!("`{shown}` came to exist during the download: `--force` overwrites it")
            }
            Err(failed) => Err(failed.error).with_context(|| format!("cannot write to `{shown}`")),
        }
    }

    fn cannot_write(&self) -> String {
        format!("cannot write to `{}`", self.part.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_may_be_cut_in_a_character_and_is_still_text() {
        assert!(!is_binary("grün".as_bytes()));
        assert!(!is_binary(&"grü".as_bytes()[..3]));
        assert!(!is_binary(b"{\"a\": 1}\r\n\t"));
    }

    #[test]
    fn what_a_terminal_cannot_show_is_binary() {
        assert!(is_binary(b"%PDF\xff\xfe"));
        assert!(is_binary(b"a\0b"));
        assert!(is_binary(b"\x1b[2J"));
    }
}
