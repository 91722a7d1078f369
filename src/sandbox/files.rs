//! The files of one account, in the order of their creation.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use rand::distr::{Alphanumeric, SampleString};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::purpose::Purpose;

/// Deleted files the ledger remembers.
const KEPT_DELETED: usize = 100_000;

/// Live files an account holds before it refuses more, so that memory has an end.
const MAX_LIVE: usize = 2_000_000;

/// Random characters of a file id.
const ID_LENGTH: usize = 24;

/// What the ledger knows of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    pub id: String,
    pub filename: String,
    pub purpose: Purpose,
    pub bytes: u64,
    /// Of the contents, in lower-case hex.
    pub sha256: String,
    /// What the file part of the upload claimed.
    pub content_type: Option<String>,
    /// In Unix seconds; never earlier than that of a file created before.
    pub created_at: u64,
    pub deleted: bool,
    pub expires_after_seconds: Option<u64>,
}

/// A file that was received whole and is about to be stored.
pub(super) struct NewFile {
    pub(super) filename: String,
    pub(super) purpose: Purpose,
    pub(super) bytes: u64,
    pub(super) sha256: String,
    pub(super) content_type: Option<String>,
    pub(super) expires_after_seconds: Option<u64>,
    /// None where the file was too large to keep.
    pub(super) content: Option<Bytes>,
}

impl NewFile {
    /// A file that nobody uploaded.
    pub(super) fn of_bytes(filename: String, purpose: Purpose, content: Bytes) -> Self {
        Self {
            filename,
            purpose,
            bytes: content.len() as u64,
            sha256: HEXLOWER.encode(&Sha256::digest(&content)),
            content_type: None,
            expires_after_seconds: None,
            content: Some(content),
        }
    }
}

/// The files of an account.
///
/// Their sequence numbers order them by creation, and `created_at` never runs against it, so that
/// a page is one range of an ordered map.
#[derive(Default)]
pub(super) struct Files {
    live: BTreeMap<u64, Shelved>,
    by_purpose: BTreeSet<(Purpose, u64)>,
    sequence_of: HashMap<String, u64>,
    deleted: VecDeque<(u64, StoredFile)>,
    next_sequence: u64,
    last_created_at: u64,
    kept_bytes: u64,
    created: u64,
    created_bytes: u64,
    deleted_total: u64,
}

struct Shelved {
    file: Arc<StoredFile>,
    content: Option<Bytes>,
    visible_at: Instant,
}

/// Which page of the list is wanted.
pub(super) struct PageQuery {
    /// The sequence number after which the page starts, seen in its direction.
    pub(super) after: Option<u64>,
    pub(super) is_ascending: bool,
    pub(super) limit: usize,
    pub(super) purpose: Option<Purpose>,
}

/// A page of the list.
pub(super) struct Page {
    pub(super) files: Vec<Arc<StoredFile>>,
    pub(super) has_more: bool,
}

/// Exact counts over the life of the account.
pub(super) struct Totals {
    pub(super) created: u64,
    pub(super) created_bytes: u64,
    pub(super) deleted: u64,
    pub(super) live: u64,
}

impl Files {
    /// Whether uploads are to be refused.
    pub(super) fn is_full(&self) -> bool {
        self.live.len() >= MAX_LIVE
    }

    /// Stores a file under a new id.
    ///
    /// `created_at` is in Unix seconds. Until `visible_at` the file can only be deleted.
    pub(super) fn insert(
        &mut self,
        new: NewFile,
        created_at: u64,
        visible_at: Instant,
        keep_total_bytes: u64,
    ) -> Arc<StoredFile> {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.last_created_at = self.last_created_at.max(created_at);
        self.created += 1;
        self.created_bytes += new.bytes;

        let content = new
            .content
            .filter(|content| self.kept_bytes + content.len() as u64 <= keep_total_bytes);
        self.kept_bytes += content.as_ref().map_or(0, |content| content.len() as u64);

        let file = Arc::new(StoredFile {
            id: self.unused_id(),
            filename: new.filename,
            purpose: new.purpose,
            bytes: new.bytes,
            sha256: new.sha256,
            content_type: new.content_type,
            created_at: self.last_created_at,
            deleted: false,
            expires_after_seconds: new.expires_after_seconds,
        });
        self.sequence_of.insert(file.id.clone(), sequence);
        self.by_purpose.insert((file.purpose, sequence));
        self.live.insert(sequence, Shelved { file: Arc::clone(&file), content, visible_at });
        file
    }

    /// Puts the content of `new` into a live file, which keeps its id and its name.
    pub(super) fn replace(&mut self, id: &str, new: NewFile) {
        let shelved = self.sequence_of.get(id).and_then(|sequence| self.live.get_mut(sequence));
        let Some(shelved) = shelved else { return };
        let file = Arc::make_mut(&mut shelved.file);
        file.bytes = new.bytes;
        file.sha256 = new.sha256;
        let size = |content: &Option<Bytes>| content.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.kept_bytes = self.kept_bytes - size(&shelved.content) + size(&new.content);
        shelved.content = new.content;
    }

    /// Deletes a live file; `false` where there is none of that id.
    pub(super) fn delete(&mut self, id: &str) -> bool {
        let Some(sequence) = self.sequence_of.remove(id) else {
            return false;
        };
        let Some(shelved) = self.live.remove(&sequence) else {
            return false;
        };
        self.by_purpose.remove(&(shelved.file.purpose, sequence));
        self.kept_bytes -= shelved.content.map_or(0, |content| content.len() as u64);
        self.deleted_total += 1;
        if self.deleted.len() == KEPT_DELETED {
            self.deleted.pop_front();
        }
        let file = StoredFile { deleted: true, ..Arc::unwrap_or_clone(shelved.file) };
        self.deleted.push_back((sequence, file));
        true
    }

    /// The live file of this id, if it shows at `now`.
    pub(super) fn get(&self, id: &str, now: Instant) -> Option<Arc<StoredFile>> {
        self.visible(id, now).map(|shelved| Arc::clone(&shelved.file))
    }

    /// A file that shows at `now`, and its contents if they were kept.
    pub(super) fn content(
        &self,
        id: &str,
        now: Instant,
    ) -> Option<(Arc<StoredFile>, Option<Bytes>)> {
        self.visible(id, now).map(|shelved| (Arc::clone(&shelved.file), shelved.content.clone()))
    }

    /// The name of a live file, whether it shows yet or not.
    pub(super) fn filename(&self, id: &str) -> Option<String> {
        let sequence = self.sequence_of.get(id)?;
        self.live.get(sequence).map(|shelved| shelved.file.filename.clone())
    }

    /// The place of a file in the list, if it shows at `now`.
    pub(super) fn sequence(&self, id: &str, now: Instant) -> Option<u64> {
        self.visible(id, now)?;
        self.sequence_of.get(id).copied()
    }

    pub(super) fn page(&self, query: &PageQuery, now: Instant) -> Page {
        let (from, until) = match (query.after, query.is_ascending) {
            (Some(after), true) => (after + 1, u64::MAX),
            (Some(after), false) => (0, after),
            (None, _) => (0, u64::MAX),
        };
        let in_range: Box<dyn DoubleEndedIterator<Item = &Shelved>> = match query.purpose {
            Some(purpose) => Box::new(
                self.by_purpose
                    .range((purpose, from)..(purpose, until))
                    .filter_map(|(_, sequence)| self.live.get(sequence)),
            ),
            None => Box::new(self.live.range(from..until).map(|(_, shelved)| shelved)),
        };
        let in_order: Box<dyn Iterator<Item = &Shelved>> =
            if query.is_ascending { Box::new(in_range) } else { Box::new(in_range.rev()) };

        let mut shown = in_order.filter(|shelved| shelved.visible_at <= now);
        let files =
            shown.by_ref().take(query.limit).map(|shelved| Arc::clone(&shelved.file)).collect();
        Page { files, has_more: shown.next().is_some() }
    }

    pub(super) fn live(&self) -> Vec<StoredFile> {
        self.live.values().map(|shelved| (*shelved.file).clone()).collect()
    }

    /// The live files and the remembered deleted ones, oldest first.
    pub(super) fn all(&self) -> Vec<StoredFile> {
        let live = self.live.iter().map(|(sequence, shelved)| (*sequence, &*shelved.file));
        let deleted = self.deleted.iter().map(|(sequence, file)| (*sequence, file));
        let mut all: Vec<_> = live.chain(deleted).collect();
        all.sort_unstable_by_key(|(sequence, _)| *sequence);
        all.into_iter().map(|(_, file)| file.clone()).collect()
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            created: self.created,
            created_bytes: self.created_bytes,
            deleted: self.deleted_total,
            live: self.live.len() as u64,
        }
    }

    fn visible(&self, id: &str, now: Instant) -> Option<&Shelved> {
        let sequence = self.sequence_of.get(id)?;
        self.live.get(sequence).filter(|shelved| shelved.visible_at <= now)
    }

    fn unused_id(&self) -> String {
        loop {
            let mut id = String::with_capacity("file-".len() + ID_LENGTH);
            id.push_str("file-");
            Alphanumeric.append_string(&mut rand::rng(), &mut id, ID_LENGTH);
            if !self.sequence_of.contains_key(&id) {
                return id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn new_file(purpose: Purpose, content: &'static [u8]) -> NewFile {
        NewFile {
            filename: "a.jsonl".to_owned(),
            purpose,
            bytes: content.len() as u64,
            sha256: String::new(),
            content_type: None,
            expires_after_seconds: None,
            content: Some(Bytes::from_static(content)),
        }
    }

    proptest! {
        /// Following `after` yields every live file of the purpose once, in order, whatever the
        /// page size, the direction and the gaps that deletions left.
        #[test]
        fn pages_laid_end_to_end_are_the_whole_list(
            made in prop::collection::vec((prop::bool::ANY, prop::bool::ANY), 0..40),
            limit in 1_usize..7,
            is_ascending: bool,
            only_batch: bool,
        ) {
            let now = Instant::now();
            let mut files = Files::default();
            let mut expected = Vec::new();
            for (is_batch, is_deleted) in made {
                let purpose = if is_batch { Purpose::Batch } else { Purpose::Evals };
                let file = files.insert(new_file(purpose, b""), 1, now, 0);
                if is_deleted {
                    prop_assert!(files.delete(&file.id));
                } else if is_batch || !only_batch {
                    expected.push(file.id.clone());
                }
            }
            if !is_ascending {
                expected.reverse();
            }

            let purpose = only_batch.then_some(Purpose::Batch);
            let mut seen = Vec::new();
            let mut after = None;
            loop {
                let page = files.page(&PageQuery { after, is_ascending, limit, purpose }, now);
                prop_assert!(page.files.len() <= limit);
                prop_assert!(!page.has_more || page.files.len() == limit);
                seen.extend(page.files.iter().map(|file| file.id.clone()));
                // Pages that repeat would otherwise never end.
                prop_assert!(seen.len() <= expected.len());
                if !page.has_more {
                    break;
                }
                after = files.sequence(seen.last().unwrap(), now);
            }
            prop_assert_eq!(seen, expected);
        }
    }

    #[test]
    fn contents_are_kept_up_to_the_total_and_deleting_makes_room() {
        let now = Instant::now();
        let mut files = Files::default();
        let first = files.insert(new_file(Purpose::Batch, b"12345"), 1, now, 8);
        let second = files.insert(new_file(Purpose::Batch, b"12345"), 1, now, 8);
        assert!(files.content(&second.id, now).unwrap().1.is_none());

        assert!(files.delete(&first.id));
        let third = files.insert(new_file(Purpose::Batch, b"12345"), 1, now, 8);
        assert_eq!(files.content(&third.id, now).unwrap().1.unwrap(), "12345");
    }

    #[test]
    fn creation_times_do_not_run_backwards_when_the_clock_does() {
        let now = Instant::now();
        let mut files = Files::default();
        files.insert(new_file(Purpose::Batch, b""), 50, now, 0);
        assert_eq!(files.insert(new_file(Purpose::Batch, b""), 40, now, 0).created_at, 50);
    }
}
