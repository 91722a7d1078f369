//! The blob store: the bytes of files, in a folder or an object store. It holds no fact that the
//! database lacks.

mod bucket;
mod error;
mod folder;
mod key;

use std::ops::Range;
use std::path::Path;
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

use self::bucket::Bucket;
pub use self::error::BlobError;
pub use self::key::BlobKey;
use crate::clock::Timestamp;
use crate::config;
use crate::config::BlobsUrl;
use crate::traces::Description;
use crate::traces::Span;

/// Bytes on their way: from the store, or from a socket.
pub type ByteStream = BoxStream<'static, std::io::Result<Bytes>>;

/// What an object is cut into on its way to an object store, in bytes: the least that S3 takes. Smaller objects go in one
/// piece.
pub const PART: u64 = 5 * 1024 * 1024;
/// What is written to a file at once.
const PIECE: usize = 1024 * 1024;
/// How long less than that waits to be written, at the next bytes.
const LONGEST_PENDING: Duration = Duration::from_secs(60);

/// The store.
#[derive(Clone, Debug)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Folder { folder: Arc<Path>, folders: folder::Folders },
    Bucket(Bucket),
}

impl Blobs {
    /// Opens the store that the configuration names. A folder is made; an object store is not called yet.
    ///
    /// # Errors
    ///
    /// When the folder cannot be made, or nothing could come of the settings.
    pub fn open(settings: &config::Blobs) -> Result<Self, BlobError> {
        match &settings.url {
            BlobsUrl::Folder(folder) => Self::in_folder(folder),
            BlobsUrl::Bucket(bucket) => {
                let bucket = Bucket::open(settings, bucket)?;
                Ok(Self { store: bucket.store(), place: Place::Bucket(bucket) })
            }
        }
    }

    /// What is written to a folder is synced to disk.
    fn in_folder(folder: &Path) -> Result<Self, BlobError> {
        std::fs::create_dir_all(folder).map_err(|error| {
            BlobError::Store(anyhow::anyhow!(
                "cannot create the folder `{}`: {error}",
                folder.display()
            ))
        })?;
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        let (folder, folders) = (folder.into(), folder::Folders::default());
        Ok(Self { store: Arc::new(store), place: Place::Folder { folder, folders } })
    }

    /// Begins to write an object under a key that is new. Dropped before [`BlobWriter::finish`], it leaves nothing.
    pub fn writer(&self, key: &BlobKey) -> BlobWriter {
        let writing = match &self.place {
            Place::Folder { folder, folders } => Writing::Folder {
                writer: folder::Writer::new(folder.join(key.path()), folders.clone()),
                pending: Vec::new(),
                pending_bytes: 0,
                written_at: Instant::now(),
            },
            Place::Bucket(bucket) => Writing::Bucket(bucket.writer(key)),
        };
        BlobWriter { writing }
    }

    /// Reads `range` of an object.
    ///
    /// # Errors
    ///
    /// [`BlobError::Missing`] when there is no such object.
    pub async fn read(&self, key: &BlobKey, range: Range<u64>) -> Result<ByteStream, BlobError> {
        match &self.place {
            Place::Folder { folder, .. } => folder::read(folder.join(key.path()), range).await,
            Place::Bucket(bucket) => bucket.read(key, range).await,
        }
    }

    /// Calls off writes that whoever began them will not end: to which nothing was added for `quiet`, by the store's
    /// clock. Answers how many. In a folder they are objects like any other.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn abort_abandoned(&self, quiet: Duration) -> Result<u64, BlobError> {
        match &self.place {
            Place::Folder { .. } => Ok(0),
            Place::Bucket(bucket) => bucket.abort_abandoned(self.now().await?.before(quiet)).await,
        }
    }

    /// Reads a small object whole. `None` when there is none.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn read_small(&self, key: &BlobKey) -> Result<Option<Bytes>, BlobError> {
        match self.store.get(&key.object()).await.map_err(BlobError::from) {
            Ok(result) => Ok(Some(result.bytes().await?)),
            Err(BlobError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
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
        match self.store.delete(&key.object()).await.map_err(BlobError::from) {
            Ok(()) | Err(BlobError::Missing(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether [`Blobs::contents_before`] goes by the last write to a blob. S3 goes by when its upload began.
    pub fn tells_last_write(&self) -> bool {
        matches!(self.place, Place::Folder { .. })
    }

    /// Uploads and outputs that were written before `before`, a few at a time: what no row names may be an orphan.
    pub fn contents_before(&self, before: Timestamp) -> BoxStream<'_, Result<String, BlobError>> {
        let [uploads, outputs] =
            BlobKey::FOLDERS.map(|folder| self.store.list(Some(&folder.into())));
        uploads
            .chain(outputs)
            .map_err(BlobError::from)
            .try_filter_map(move |meta| async move {
                let old = meta.last_modified.timestamp_millis() < before.0;
                let path = meta.location.to_string();
                Ok((old && BlobKey::is_of_file(&path)).then_some(path))
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
        // Not by a `HEAD`, whose answer does not tell a missing bucket from a missing object.
        self.read_small(&BlobKey::Installation).await?;
        Ok(())
    }
}

/// An object that is being written. Memory holds a part or two of it at most.
pub struct BlobWriter {
    writing: Writing,
}

enum Writing {
    /// Nothing is held for long: what nobody writes to for an hour is swept as an orphan.
    Folder {
        writer: folder::Writer,
        pending: Vec<Bytes>,
        pending_bytes: usize,
        written_at: Instant,
    },
    Bucket(bucket::Writer),
}

impl BlobWriter {
    /// Takes the next bytes.
    ///
    /// # Errors
    ///
    /// When the store fails or is full.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        match &mut self.writing {
            Writing::Folder { writer, pending, pending_bytes, written_at } => {
                *pending_bytes += bytes.len();
                pending.push(bytes);
                if *pending_bytes >= PIECE || written_at.elapsed() >= LONGEST_PENDING {
                    *written_at = Instant::now();
                    *pending_bytes = 0;
                    writer.write(std::mem::take(pending)).await?;
                }
                Ok(())
            }
            Writing::Bucket(writer) => writer.write(bytes).await,
        }
    }

    /// Makes the object whole, as durable as the store makes it: in a folder, synced to disk.
    ///
    /// # Errors
    ///
    /// When the store fails or is full; then there is no object.
    pub async fn finish(self) -> Result<(), BlobError> {
        let _span = Span::child(|| Description::internal("finish blob"));
        match self.writing {
            Writing::Folder { writer, pending, .. } => Ok(writer.finish(pending).await?),
            Writing::Bucket(writer) => writer.finish().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    async fn blobs() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::in_folder(folder.path()).unwrap();
        (folder, blobs)
    }

    async fn read(blobs: &Blobs, key: &BlobKey, range: Range<u64>) -> Vec<u8> {
        let chunks: Vec<Bytes> = blobs.read(key, range).await.unwrap().try_collect().await.unwrap();
        chunks.concat()
    }

    #[tokio::test]
    async fn what_was_written_in_pieces_is_read_back_by_range() {
        let (_folder, blobs) = blobs().await;
        for size in [0usize, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 17] {
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
}
