//! The batches of one account, in the order of their creation.

use std::collections::BTreeMap;
use std::collections::HashMap;

use data_encoding::HEXLOWER;
use tokio::time::Instant;

use super::Batch;
use super::BatchSettings;
use super::NewBatch;
use super::StoredBatch;

/// Batches an account has before it refuses more, so that memory has an end.
const MAX_BATCHES: usize = 100_000;

/// The batches of an account.
#[derive(Default)]
pub(in crate::sandbox) struct Batches {
    all: BTreeMap<u64, Batch>,
    sequence_of: HashMap<String, u64>,
}

/// A page of the list.
pub(in crate::sandbox) struct BatchPage {
    pub(super) batches: Vec<StoredBatch>,
    pub(super) has_more: bool,
}

impl Batches {
    /// Whether more are to be refused.
    pub(in crate::sandbox) fn is_full(&self) -> bool {
        self.all.len() >= MAX_BATCHES
    }

    /// Adds a batch under a new id. It is listed from `visible_at` on.
    pub(in crate::sandbox) fn insert(
        &mut self,
        new: NewBatch,
        settings: BatchSettings,
        is_over_limit: bool,
        created_at: u64,
        now: Instant,
        visible_at: Instant,
    ) -> &Batch {
        let id = format!("batch_{}", HEXLOWER.encode(&rand::random::<[u8; 16]>()));
        let sequence = self.all.len() as u64;
        self.sequence_of.insert(id.clone(), sequence);
        let batch = Batch::new(id, new, settings, is_over_limit, created_at, now, visible_at);
        self.all.entry(sequence).or_insert(batch)
    }

    pub(in crate::sandbox) fn get(&self, id: &str) -> Option<&Batch> {
        self.all.get(self.sequence_of.get(id)?)
    }

    pub(in crate::sandbox) fn get_mut(&mut self, id: &str) -> Option<&mut Batch> {
        self.all.get_mut(self.sequence_of.get(id)?)
    }

    pub(in crate::sandbox) fn each_mut(&mut self) -> impl Iterator<Item = &mut Batch> {
        self.all.values_mut()
    }

    /// Oldest first, whether the lag shows them yet or not.
    pub(in crate::sandbox) fn all(&self, now: Instant) -> Vec<StoredBatch> {
        self.all.values().map(|batch| batch.show(now)).collect()
    }

    pub(in crate::sandbox) fn len(&self) -> u64 {
        self.all.len() as u64
    }

    /// How many have not ended.
    pub(in crate::sandbox) fn open(&self) -> u64 {
        self.all.values().filter(|batch| !batch.state().is_terminal()).count() as u64
    }

    /// Newest first, those created before `after`; none where there is no such batch.
    pub(in crate::sandbox) fn page(
        &self,
        after: Option<&str>,
        limit: usize,
        now: Instant,
    ) -> Option<BatchPage> {
        let until = match after {
            Some(id) => *self.sequence_of.get(id)?,
            None => u64::MAX,
        };
        let in_order = self.all.range(..until).rev().map(|(_, batch)| batch);
        let mut shown = in_order.filter(|batch| batch.visible_at <= now);
        let batches = shown.by_ref().take(limit).map(|batch| batch.show(now)).collect();
        Some(BatchPage { batches, has_more: shown.next().is_some() })
    }
}
