//! Where model names go in a file: found once, used for every deployment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;

use tokio::sync::OnceCell;

use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::Blobs;
use crate::ids::FileId;
use crate::jsonl::Check;
use crate::jsonl::Edits;
use crate::jsonl::ScanError;
use crate::jsonl::Scanned;
use crate::jsonl::scan;

/// Files whose edits are kept. The edits of one take a few bytes a line.
const CAPACITY: usize = 16;

/// The edits of the last files, so that the jobs of one file scan it once between them, and not at
/// all where the intake that checked it is in the same process.
#[derive(Clone, Debug, Default)]
pub struct EditsCache {
    entries: Arc<Mutex<VecDeque<Entry>>>,
}

/// A file, and its edits once somebody has found them.
type Entry = (FileId, Arc<OnceCell<Edits>>);

impl EditsCache {
    /// Remembers what the intake found.
    pub fn put(&self, file: FileId, edits: Edits) {
        let cell = self.cell(file);
        // Set already means that a worker was faster; it found the same.
        drop(cell.set(edits));
    }

    /// The edits of a stored file, from memory or by scanning it.
    ///
    /// # Errors
    ///
    /// When the blob cannot be read.
    pub async fn get(
        &self,
        blobs: &Blobs,
        file: FileId,
        key: &BlobKey,
        bytes: u64,
    ) -> Result<Edits, ScanFailed> {
        let cell = self.cell(file);
        let edits = cell
            .get_or_try_init(|| async {
                let content = blobs.read(key, 0..bytes).await?;
                // The intake has judged the lines already; here only the places matter.
                let Scanned { edits, .. } = scan(content, Check::fine_tune()).await?;
                Ok::<_, ScanFailed>(edits)
            })
            .await?;
        Ok(edits.clone())
    }

    fn cell(&self, file: FileId) -> Arc<OnceCell<Edits>> {
        let mut entries = self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, cell)) = entries.iter().find(|(id, _)| *id == file) {
            return Arc::clone(cell);
        }
        let cell = Arc::<OnceCell<Edits>>::default();
        entries.push_back((file, Arc::clone(&cell)));
        if entries.len() > CAPACITY {
            entries.pop_front();
        }
        cell
    }
}

/// Why a stored file could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanFailed {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Scan(#[from] ScanError),
}
