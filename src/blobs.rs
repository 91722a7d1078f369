//! The blob store: the bytes of files, in a folder or an object store. It holds no fact that the
//! database lacks.

mod folder;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::TryStreamExt as _;
use futures_util::stream::BoxStream;
use object_store::ObjectStore;
use object_store::ObjectStoreExt as _;
use object_store::PutMode;
use object_store::PutPayload;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::traces::Description;
use crate::traces::Span;

/// Bytes on their way: from the store, or from a socket.
pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// What is written to the store at once. Files up to this size go in one piece.
const PART: usize = 1024 * 1024;
/// How long less than that waits to be written, at the next bytes.
const LONGEST_PENDING: Duration = Duration::from_secs(60);

/// The name of an object in the store. Nobody else builds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobKey {
    /// What a client uploaded: a folder for each hour, so that none grows without bound.
    Upload { at: Timestamp, id: Uuid },
    /// What a batch produced, likewise.
    Output { at: Timestamp, id: Uuid },
    /// The installation's id, so that a store is recognised beside a database that is not its own.
    Installation,
    /// Written now and then, to read the store's clock.
    Clock,
    /// Written, read and deleted to see that the store works.
    Probe(Uuid),
    /// A key as it was stored with the file.
    Stored(String),
}

impl BlobKey {
    /// How the keys of uploads begin.
    pub const UPLOADS: &'static str = "uploads/";

    pub fn path(&self) -> String {
        match self {
            Self::Upload { at, id } => in_folder_of_hour("uploads", *at, *id),
            Self::Output { at, id } => in_folder_of_hour("outputs", *at, *id),
            Self::Installation => "installation".to_owned(),
            Self::Clock => "clock".to_owned(),
            Self::Probe(id) => format!("probe-{}", id.simple()),
            Self::Stored(path) => path.clone(),
        }
    }

    /// Where the keys of uploads that were made at `at` or later begin, in the order of their texts.
    pub fn first_of(at: Timestamp) -> String {
        Self::Upload { at, id: Uuid::nil() }.path()
    }

    fn object(&self) -> Path {
        Path::from(self.path())
    }
}

fn in_folder_of_hour(folder: &str, at: Timestamp, id: Uuid) -> String {
    let hour = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default();
    format!("{folder}/{}/{}", hour.strftime("%Y-%m-%d/%H"), id.simple())
}

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the blob store is full")]
    Full(#[source] anyhow::Error),
    #[error("the blob store has no object `{0}`")]
    Missing(String),
    #[error("the blob store failed")]
    Store(#[source] anyhow::Error),
}

impl From<object_store::Error> for BlobError {
    fn from(error: object_store::Error) -> Self {
        if let object_store::Error::NotFound { path, .. } = &error {
            return Self::Missing(path.clone());
        }
        if is_full(&error) { Self::Full(error.into()) } else { Self::Store(error.into()) }
    }
}

impl From<std::io::Error> for BlobError {
    fn from(error: std::io::Error) -> Self {
        if is_full(&error) { Self::Full(error.into()) } else { Self::Store(error.into()) }
    }
}

/// Whether an I/O error somewhere below says that no room is left.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.filter_map(|error| error.downcast_ref::<std::io::Error>()).any(|error| {
        matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    })
}

/// The store.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    folder: Arc<std::path::Path>,
    folders: folder::Folders,
}

impl Blobs {
    /// Opens a folder as a store, creating it. What is written is synced to disk.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made.
    pub fn open(folder: &std::path::Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(folder).map_err(|error| {
            BlobError::Store(anyhow::anyhow!(
                "cannot create the folder `{}`: {error}",
                folder.display()
            ))
        })?;
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        let folders = folder::Folders::default();
        Ok(Self { store: Arc::new(store), folder: folder.into(), folders })
    }

    /// Begins to write an object under a key that is new. Dropped before [`BlobWriter::finish`], it leaves nothing.
    pub fn writer(&self, key: &BlobKey) -> BlobWriter {
        let writer = folder::Writer::new(self.folder.join(key.path()), self.folders.clone());
        BlobWriter { writer, pending: Vec::new(), pending_bytes: 0, written_at: Instant::now() }
    }

    /// Reads `range` of an object.
    ///
    /// # Errors
    ///
    /// [`BlobError::Missing`] when there is no such object.
    pub async fn read(&self, key: &BlobKey, range: Range<u64>) -> Result<ByteStream, BlobError> {
        folder::read(self.folder.join(key.path()), range).await
    }

    /// Reads a small object whole. `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn read_small(&self, key: &BlobKey) -> Result<Option<Bytes>, BlobError> {
        match self.store.get(&key.object()).await {
            Ok(result) => Ok(Some(result.bytes().await?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes a small object whole, in place of what was there: who reads it finds the one or the other.
    ///
    /// # Errors
    ///
    /// When the store fails or is full.
    pub async fn write_small(&self, key: &BlobKey, bytes: Bytes) -> Result<(), BlobError> {
        self.store.put(&key.object(), PutPayload::from_bytes(bytes)).await?;
        Ok(())
    }

    /// Writes a small object whole, unless there is one: then that stays.
    ///
    /// # Errors
    ///
    /// When the store fails or is full.
    pub async fn create_small(&self, key: &BlobKey, bytes: Bytes) -> Result<(), BlobError> {
        let payload = PutPayload::from_bytes(bytes);
        match self.store.put_opts(&key.object(), payload, PutMode::Create.into()).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an object; one that is gone already is no error.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn delete(&self, key: &BlobKey) -> Result<(), BlobError> {
        match self.store.delete(&key.object()).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Uploads and outputs that were last written before `before`, a few at a time: what no row names is an orphan.
    pub fn contents_before(&self, before: Timestamp) -> BoxStream<'_, Result<String, BlobError>> {
        let [uploads, outputs] =
            ["uploads", "outputs"].map(|folder| self.store.list(Some(&Path::from(folder))));
        uploads
            .chain(outputs)
            .map_err(BlobError::from)
            .try_filter_map(move |meta| async move {
                let old = meta.last_modified.timestamp_millis() < before.0;
                Ok(old.then(|| meta.location.to_string()))
            })
            .boxed()
    }

    /// The store's own clock: when it says that something was written just now.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn now(&self) -> Result<Timestamp, BlobError> {
        let key = BlobKey::Clock.object();
        self.store.put(&key, PutPayload::from_static(b"")).await?;
        let written = self.store.head(&key).await?.last_modified;
        Ok(Timestamp(written.timestamp_millis()))
    }

    /// Answers when the store does.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn ping(&self) -> Result<(), BlobError> {
        match self.store.head(&BlobKey::Installation.object()).await {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// An object that is being written. Memory holds one part of it at most, and none for long: what nobody writes to for
/// an hour is swept as an orphan.
pub struct BlobWriter {
    writer: folder::Writer,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    written_at: Instant,
}

impl BlobWriter {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// When the store fails or is full.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.pending_bytes += bytes.len();
        self.pending.push(bytes);
        if self.pending_bytes >= PART || self.written_at.elapsed() >= LONGEST_PENDING {
            self.written_at = Instant::now();
            self.pending_bytes = 0;
            self.writer.write(std::mem::take(&mut self.pending)).await?;
        }
        Ok(())
    }

    /// Makes the object whole, synced to disk.
    ///
    /// # Errors
    ///
    /// When the store fails or is full; then there is no object.
    pub async fn finish(self) -> Result<(), BlobError> {
        let _span = Span::child(|| Description::internal("finish blob"));
        Ok(self.writer.finish(self.pending).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn blobs() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        (folder, blobs)
    }

    async fn read(blobs: &Blobs, key: &BlobKey, range: Range<u64>) -> Vec<u8> {
        let chunks: Vec<Bytes> = blobs.read(key, range).await.unwrap().try_collect().await.unwrap();
        chunks.concat()
    }

    #[tokio::test]
    async fn what_was_written_in_pieces_is_read_back_by_range() {
        let (_folder, blobs) = blobs().await;
        for size in [0usize, 1, PART - 1, PART, PART + 1, 3 * PART + 17] {
            let key = BlobKey::Upload { at: Timestamp(0), id: Uuid::now_v7() };
            let content: Vec<u8> = (0..size).map(|place| (place % 251) as u8).collect();
            let mut writer = blobs.writer(&key);
            for piece in content.chunks(100_000) {
                writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            writer.finish().await.unwrap();
            assert_eq!(read(&blobs, &key, 0..size as u64).await, content);
            if size > 10 {
                assert_eq!(read(&blobs, &key, 3..7).await, content[3..7]);
            }
        }
    }

    #[tokio::test]
    async fn a_deleted_object_is_missing_and_can_be_deleted_again() {
        let (_folder, blobs) = blobs().await;
        let key = BlobKey::Upload { at: Timestamp(0), id: Uuid::now_v7() };
        blobs.writer(&key).finish().await.unwrap();
        blobs.delete(&key).await.unwrap();
        blobs.delete(&key).await.unwrap();
        assert!(matches!(blobs.read(&key, 0..1).await, Err(BlobError::Missing(_))));
    }

    #[test]
    fn uploads_lie_in_a_folder_for_each_hour() {
        let key = BlobKey::Upload { at: Timestamp(1_795_392_000_000), id: Uuid::nil() };
        assert_eq!(key.path(), "uploads/2026-11-23/00/00000000000000000000000000000000");
    }
}
