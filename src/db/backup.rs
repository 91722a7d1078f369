//! Copying a SQLite database while it is in use.

use std::path::Path;
use std::time::Duration;

use rusqlite::OpenFlags;
use rusqlite::backup::StepResult;

/// How often, and after which waits, a copy that another process keeps from beginning is tried.
const TRIES: u32 = 100;
const WAIT: Duration = Duration::from_millis(100);

/// `PRAGMA user_version` of a copy. Whoever starts on one knows by it that it was restored; `0` otherwise.
pub const COPIED: i64 = 1;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the database cannot be copied")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database is locked by another process")]
    Locked,
    #[error("the copy is damaged, and so may be the database: {0}")]
    Damaged(String),
}

/// Writes `to`, a file without content, as the database `from` is at one moment. It is checked, is whole without any other
/// file, and is not synced yet.
///
/// All pages are copied in one read transaction: writers go on meanwhile, and none of their commits makes it begin anew.
/// Only their log grows until it is done.
///
/// # Errors
///
/// When either file cannot be used, or the copy is damaged.
pub fn copy(from: &Path, to: &Path) -> Result<(), CopyError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = rusqlite::Connection::open_with_flags(from, flags)?;
    let mut target = rusqlite::Connection::open_with_flags(to, flags)?;
    let backup = rusqlite::backup::Backup::new(&source, &mut target)?;
    let mut tries = 0;
    while !matches!(backup.step(-1)?, StepResult::Done) {
        tries += 1;
        if tries == TRIES {
            return Err(CopyError::Locked);
        }
        std::thread::sleep(WAIT);
    }
    drop(backup);
    target
        .execute_batch(&format!("PRAGMA journal_mode = DELETE; PRAGMA user_version = {COPIED};"))?;
    let verdict: String = target.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(CopyError::Damaged(verdict)) }
}
