//! Writing objects to a folder, and reading them from it.
//!
//! object_store stages every object under another name and renames it, which costs a second commit of
//! the file system's journal, and so half the speed. Here an object is written in place: nobody reads it
//! before a row names it, and what a crash leaves of it is an orphan like any other.

use std::collections::HashSet;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bytes::Bytes;
use bytes::BytesMut;
use futures_util::StreamExt as _;

use super::BlobError;
use super::ByteStream;

/// What is read of a file at once.
const READ: usize = 256 * 1024;

/// An object that is being written. Dropped before [`Writer::finish`] has answered, it is removed.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    is_done: bool,
}

/// What is shared with the thread that writes: it goes on when whoever waited for it is gone.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    folders: Folders,
}

/// The folders whose names this process knows to be on disk, with those of all above them.
#[derive(Clone, Debug, Default)]
pub struct Folders(Arc<Mutex<HashSet<PathBuf>>>);

impl Folders {
    /// A folder for each hour comes up; long before that it is cheaper to forget them all.
    const MOST: usize = 10_000;

    /// Syncs the names of a folder and of those above it, once. Whoever made it may not have come to
    /// that, or may have died before.
    fn sync(&self, folder: &Path) -> io::Result<()> {
        if self.lock().contains(folder) {
            return Ok(());
        }
        for folder in folder.ancestors().filter(|folder| !folder.as_os_str().is_empty()) {
            sync_folder(folder)?;
        }
        let mut known = self.lock();
        if known.len() >= Self::MOST {
            known.clear();
        }
        known.insert(folder.to_owned());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum State {
    /// There is no file yet.
    New,
    Open(File),
    Whole,
    /// It was given up, and is to be neither written nor made.
    Over,
}

impl Writer {
    pub fn new(path: PathBuf, folders: Folders) -> Self {
        let shared = Shared { path, state: Mutex::new(State::New), folders };
        Self { shared: Arc::new(shared), is_done: false }
    }

    /// Writes the next bytes.
    pub async fn write(&mut self, chunks: Vec<Bytes>) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.write(&chunks)).await
    }

    /// Writes the last bytes. When this returns, the object and its name are on disk.
    pub async fn finish(mut self, chunks: Vec<Bytes>) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        blocking(move || shared.finish(&chunks)).await?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_done
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // A client hung up in mid-upload, or sent something that was refused.
            let shared = Arc::clone(&self.shared);
            runtime.spawn_blocking(move || shared.give_up());
        }
    }
}

impl Shared {
    fn write(&self, chunks: &[Bytes]) -> io::Result<()> {
        let mut state = self.lock();
        if matches!(*state, State::New) {
            *state = State::Open(create(&self.path)?);
        }
        match &mut *state {
            State::Open(file) => chunks.iter().try_for_each(|chunk| file.write_all(chunk)),
            State::New | State::Whole | State::Over => {
                Err(io::Error::other("the write was given up"))
            }
        }
    }

    fn finish(&self, chunks: &[Bytes]) -> io::Result<()> {
        self.write(chunks)?;
        let mut state = self.lock();
        if let State::Open(file) = &*state {
            file.sync_all()?;
            sync_folder(&self.path)?;
            self.folders.sync(self.path.parent().unwrap_or(&self.path))?;
            // Nobody wrote to it for so long that it was swept as an orphan.
            if file.metadata()?.nlink() == 0 {
                return Err(io::Error::other("the object was removed while it was written"));
            }
            *state = State::Whole;
        }
        Ok(())
    }

    fn give_up(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Open(_) | State::Whole)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(error = %error, "an unfinished blob stays; it is swept as an orphan");
        }
        *state = State::Over;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn create(path: &Path) -> io::Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            create()
        }
        created => created,
    }
}

/// Syncs the folder that holds `path`, and so its name.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Reads `range` of a file: the first piece at once with its opening, which is all of a small one.
pub async fn read(path: PathBuf, range: Range<u64>) -> Result<ByteStream, BlobError> {
    let name = path.display().to_string();
    let (start, end) = (range.start, range.end);
    let opened = blocking(move || {
        let file = File::open(path)?;
        let first = read_piece(&file, start, end)?;
        Ok((file, first))
    });
    let (file, first) = opened.await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BlobError::Missing(name),
        _ => BlobError::from(error),
    })?;
    let at = start + first.len() as u64;
    let rest = futures_util::stream::try_unfold((file, at), move |(file, at)| async move {
        if at >= end {
            return Ok(None);
        }
        let (file, piece) = blocking(move || {
            let piece = read_piece(&file, at, end)?;
            Ok((file, piece))
        })
        .await?;
        let at = at + piece.len() as u64;
        Ok(Some((piece, (file, at))))
    });
    Ok(futures_util::stream::once(async move { Ok(first) }).chain(rest).boxed())
}

fn read_piece(file: &File, at: u64, end: u64) -> io::Result<Bytes> {
    let length = usize::try_from(end.saturating_sub(at)).unwrap_or(READ).min(READ);
    let mut buffer = BytesMut::zeroed(length);
    file.read_exact_at(&mut buffer, at)?;
    Ok(buffer.freeze())
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_that_is_given_up_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/down/object");
        let mut writer = Writer::new(path.clone(), Folders::default());
        writer.write(vec![Bytes::from_static(b"half")]).await.unwrap();
        assert!(path.exists());
        let shared = Arc::clone(&writer.shared);
        drop(writer);
        while Arc::strong_count(&shared) > 1 {
            tokio::task::yield_now().await;
        }
        assert!(!path.exists());
        // A write that was still on its way to its thread makes it not anew.
        assert!(shared.write(&[Bytes::from_static(b"late")]).is_err());
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_object_is_never_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        Writer::new(path.clone(), Folders::default())
            .finish(vec![Bytes::from_static(b"first")])
            .await
            .unwrap();
        let second = Writer::new(path.clone(), Folders::default())
            .finish(vec![Bytes::from_static(b"second")])
            .await;
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
    }
}
