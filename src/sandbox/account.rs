//! One provider account: its settings, files, faults and ledger, and who waits for what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::faults::{Fault, FaultRule, Faults, InvalidFault};
use super::files::{Files, NewFile, Page, PageQuery, StoredFile};
use super::ledger::{Call, Ledger, Operation, Stats};
use super::purpose::Purpose;
use super::settings::Settings;

/// Accounts that clients can make come into being by calling them.
const MAX_ACCOUNTS: usize = 1000;

/// All accounts of a sandbox.
pub(super) struct Accounts {
    by_name: RwLock<HashMap<String, Arc<Account>>>,
    started: Instant,
}

impl Accounts {
    pub(super) fn new() -> Self {
        Self { by_name: RwLock::default(), started: Instant::now() }
    }

    /// The time since the sandbox started.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The account of this name, new if need be.
    pub(super) fn named(&self, name: &str) -> Arc<Account> {
        self.find(name).unwrap_or_else(|| self.create(name))
    }

    /// As [`named`](Self::named), but none where there are too many for another one.
    pub(super) fn named_by_client(&self, name: &str) -> Option<Arc<Account>> {
        self.find(name).or_else(|| {
            let count = self.by_name.read().unwrap_or_else(PoisonError::into_inner).len();
            (count < MAX_ACCOUNTS).then(|| self.create(name))
        })
    }

    fn find(&self, name: &str) -> Option<Arc<Account>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn create(&self, name: &str) -> Arc<Account> {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        let account =
            by_name.entry(name.to_owned()).or_insert_with(|| Arc::new(Account::new(self.started)));
        Arc::clone(account)
    }
}

/// An account.
pub(super) struct Account {
    state: Mutex<State>,
    started: Instant,
    arrivals: Notify,
    /// Counts the releases.
    releases: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    settings: Settings,
    files: Files,
    faults: Faults,
    ledger: Ledger,
}

impl Account {
    fn new(started: Instant) -> Self {
        Self {
            state: Mutex::default(),
            started,
            arrivals: Notify::new(),
            releases: watch::Sender::new(0),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        self.lock().settings.clone()
    }

    pub(super) fn configure(&self, settings: Settings) {
        self.lock().settings = settings;
    }

    pub(super) fn add_fault(&self, rule: FaultRule) -> Result<(), InvalidFault> {
        self.lock().faults.add(rule)
    }

    pub(super) fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    pub(super) fn wants_filename(&self, operation: Operation) -> bool {
        self.lock().faults.want_filename(operation)
    }

    /// The fault that meets the call `seq`, written down with it.
    pub(super) fn choose_fault(
        &self,
        seq: u64,
        operation: Operation,
        filename: Option<&str>,
    ) -> Option<Fault> {
        let mut state = self.lock();
        let fault = state.faults.choose(operation, filename)?;
        if let Some(call) = state.ledger.call(seq) {
            call.fault = Some(fault.kind().to_owned());
        }
        Some(fault)
    }

    pub(super) fn release(&self) {
        self.releases.send_modify(|count| *count += 1);
    }

    /// Sees every release from now on; its present value is how many there were.
    pub(super) fn releases(&self) -> watch::Receiver<u64> {
        self.releases.subscribe()
    }

    /// The time since the sandbox started.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Writes down a call that has arrived, gives it its `seq` and wakes those who waited for it.
    pub(super) fn arrive(&self, call: Call) -> u64 {
        let seq = self.lock().ledger.arrive(call);
        self.arrivals.notify_waiters();
        seq
    }

    pub(super) async fn reached(&self, operation: Operation, count: u64) {
        loop {
            // Made before looking, so that an arrival in between wakes it.
            let arrival = self.arrivals.notified();
            if self.lock().ledger.count(operation) >= count {
                return;
            }
            arrival.await;
        }
    }

    /// Changes the ledger.
    pub(super) fn note(&self, change: impl FnOnce(&mut Ledger)) {
        change(&mut self.lock().ledger);
    }

    /// Stores an uploaded file; none where the account is full.
    pub(super) fn store(&self, new: NewFile) -> Option<Arc<StoredFile>> {
        let mut state = self.lock();
        if state.files.is_full() {
            return None;
        }
        let lag = Duration::from_millis(state.settings.list_lag_ms);
        let now = Instant::now();
        // A lag beyond what the clock can tell never ends; a century will do.
        let century = Duration::from_hours(24 * 36_525);
        let visible_at = now + lag.min(century);
        let keep_total_bytes = state.settings.keep_total_bytes;
        Some(state.files.insert(new, unix_now(), visible_at, keep_total_bytes))
    }

    pub(super) fn plant(&self, filename: &str, purpose: Purpose, bytes: Bytes) -> StoredFile {
        let new = NewFile {
            filename: filename.to_owned(),
            purpose,
            bytes: bytes.len() as u64,
            sha256: HEXLOWER.encode(&Sha256::digest(&bytes)),
            content_type: None,
            expires_after_seconds: None,
            content: Some(bytes),
        };
        let file = self.lock().files.insert(new, unix_now(), Instant::now(), u64::MAX);
        Arc::unwrap_or_clone(file)
    }

    pub(super) fn delete(&self, id: &str) -> bool {
        self.lock().files.delete(id)
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<StoredFile>> {
        self.lock().files.get(id, Instant::now())
    }

    pub(super) fn content(&self, id: &str) -> Option<(Arc<StoredFile>, Option<Bytes>)> {
        self.lock().files.content(id, Instant::now())
    }

    pub(super) fn filename(&self, id: &str) -> Option<String> {
        self.lock().files.filename(id)
    }

    /// The place of a file in the list.
    pub(super) fn sequence(&self, id: &str) -> Option<u64> {
        self.lock().files.sequence(id, Instant::now())
    }

    pub(super) fn page(&self, query: &PageQuery) -> Page {
        self.lock().files.page(query, Instant::now())
    }

    pub(super) fn files(&self) -> Vec<StoredFile> {
        self.lock().files.all()
    }

    pub(super) fn live_files(&self) -> Vec<StoredFile> {
        self.lock().files.live()
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.lock().ledger.calls()
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.lock();
        let totals = state.files.totals();
        Stats {
            files_created: totals.created,
            files_deleted: totals.deleted,
            files_live: totals.live,
            bytes_created: totals.created_bytes,
            faults_queued: state.faults.len() as u64,
            ..state.ledger.stats()
        }
    }

    /// No change is left half done by a panic, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the sandbox plays a foreign provider, whose clock is its own"
)]
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since_epoch| since_epoch.as_secs())
}
