//! One provider account: its settings, files, batches, faults and ledger, and who waits for what.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::StatusCode;
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::Answer;
use super::batches::{
    self, Batch, BatchEnd, BatchFile, BatchPage, BatchState, Batches, Ending, Given, NewBatch,
    Next, OverLimit, Results, StoredBatch,
};
use super::faults::{Fault, FaultRule, Faults, InvalidFault};
use super::files::{Files, NewFile, Page, PageQuery, StoredFile};
use super::ledger::{Call, Ledger, Operation, Stats};
use super::purpose::Purpose;
use super::settings::Settings;
use super::webhook;

/// Accounts that clients can make come into being by calling them.
const MAX_ACCOUNTS: usize = 1000;

/// All accounts of a sandbox.
pub(super) struct Accounts {
    by_name: RwLock<HashMap<String, Arc<Account>>>,
    started: Instant,
    background: Background,
}

/// Where work goes on beside the calls, until the sandbox stops.
#[derive(Clone)]
pub(super) struct Background {
    pub(super) runtime: Handle,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

impl Background {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopped = self.stop.clone().cancelled_owned();
        let work = async move {
            tokio::select! {
                () = work => {}
                () = stopped => {}
            }
        };
        self.tasks.spawn_on(work, &self.runtime);
    }
}

impl Accounts {
    pub(super) fn new(background: Background) -> Self {
        Self { by_name: RwLock::default(), started: Instant::now(), background }
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
        let account = by_name
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Account::new(self.started, self.background.clone())));
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
    /// Whenever a batch may have something else before it than it had.
    steering: Notify,
    background: Background,
}

#[derive(Default)]
struct State {
    settings: Settings,
    files: Files,
    batches: Batches,
    faults: Faults,
    ledger: Ledger,
}

impl Account {
    fn new(started: Instant, background: Background) -> Self {
        Self {
            state: Mutex::default(),
            started,
            arrivals: Notify::new(),
            releases: watch::Sender::new(0),
            steering: Notify::new(),
            background,
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
        let visible_at = state.visible_at(Instant::now());
        let keep_total_bytes = state.settings.keep_total_bytes;
        Some(state.files.insert(new, unix_now(), visible_at, keep_total_bytes))
    }

    pub(super) fn plant(&self, filename: &str, purpose: Purpose, bytes: Bytes) -> StoredFile {
        let new = NewFile::of_bytes(filename.to_owned(), purpose, bytes);
        Arc::unwrap_or_clone(self.lock().made(new))
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
            batches_created: state.batches.len(),
            batches_open: state.batches.open(),
            faults_queued: state.faults.len() as u64,
            ..state.ledger.stats()
        }
    }

    /// Creates a batch, or tells why not.
    pub(super) fn create_batch(self: &Arc<Self>, new: NewBatch) -> Result<StoredBatch, Answer> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.batches.is_full() {
            let message = "the account has too many batches, take another one";
            return Err(Answer::refusal(StatusCode::BAD_REQUEST, message, None, None));
        }
        let settings = &state.settings.batches;
        let is_over_limit =
            settings.max_open_batches.is_some_and(|most| state.batches.open() >= most);
        if let (true, OverLimit::Refuse { code }) = (is_over_limit, &settings.over_limit) {
            return Err(Answer::too_many_batches(code.as_deref()));
        }
        let visible_at = state.visible_at(now);
        Ok(self.add_batch(&mut state, new, is_over_limit, visible_at))
    }

    /// Puts a batch into the account that came through no call.
    pub(super) fn plant_batch(self: &Arc<Self>, new: NewBatch) -> StoredBatch {
        self.add_batch(&mut self.lock(), new, false, Instant::now())
    }

    fn add_batch(
        self: &Arc<Self>,
        state: &mut State,
        new: NewBatch,
        is_over_limit: bool,
        visible_at: Instant,
    ) -> StoredBatch {
        let now = Instant::now();
        let settings = state.settings.batches.clone();
        let batches = &mut state.batches;
        let batch =
            batches.insert(new, settings, is_over_limit, unix_now(), now, visible_at).show(now);
        self.background.spawn(batches::follow(Arc::clone(self), batch.id.clone()));
        batch
    }

    pub(super) fn batch(&self, id: &str) -> Option<StoredBatch> {
        self.lock().batches.get(id).map(|batch| batch.show(Instant::now()))
    }

    /// How far it is, whatever word is shown.
    pub(super) fn batch_state(&self, id: &str) -> Option<BatchState> {
        self.lock().batches.get(id).map(Batch::state)
    }

    pub(super) fn batches(&self) -> Vec<StoredBatch> {
        self.lock().batches.all(Instant::now())
    }

    /// None where there is no batch `after`.
    pub(super) fn batch_page(&self, after: Option<&str>, limit: usize) -> Option<BatchPage> {
        self.lock().batches.page(after, limit, Instant::now())
    }

    /// The name of a batch's input file.
    pub(super) fn input_filename(&self, id: &str) -> Option<String> {
        let state = self.lock();
        state.files.filename(state.batches.get(id)?.input_file_id())
    }

    /// What a batch is after it was told to stop, and whether it had not ended before.
    pub(super) fn cancel_batch(&self, id: &str) -> Option<(StoredBatch, bool)> {
        let now = Instant::now();
        let cancelled = {
            let mut state = self.lock();
            let batch = state.batches.get_mut(id)?;
            let is_cancelled = batch.cancel(now, unix_now());
            (batch.show(now), is_cancelled)
        };
        self.steering.notify_waiters();
        Some(cancelled)
    }

    /// Lets every batch go on by itself that is held now or would be held later on.
    pub(super) fn release_batches(&self) {
        let now = Instant::now();
        self.lock().batches.each_mut().for_each(|batch| batch.release(now));
        self.steering.notify_waiters();
    }

    /// Ends a batch at once, unless it has ended.
    pub(super) fn end_batch(&self, id: &str, end: BatchEnd) -> Option<StoredBatch> {
        // Written outside of the lock, since that takes as long as the files are large.
        let ending = self.lock().batches.get(id)?.end(end);
        if let Some(ending) = ending {
            let results = ending.write();
            self.finish_batch(id, &ending.end, results);
        }
        self.batch(id)
    }

    pub(super) fn set_batch_status(&self, id: &str, word: Option<String>) -> Option<StoredBatch> {
        self.lock().batches.get_mut(id)?.set_word(word);
        self.batch(id)
    }

    /// Puts `content` in the place of what a batch writes, or has written.
    pub(super) fn set_batch_output(
        &self,
        id: &str,
        file: BatchFile,
        content: Bytes,
    ) -> Option<StoredBatch> {
        let make = self.lock().batches.get(id)?.file(file);
        let content = make(content);
        {
            let mut state = self.lock();
            match state.batches.get_mut(id)?.give(file, content) {
                Given::Kept => {}
                Given::Replaces(file_id, content) => state.files.replace(&file_id, content),
                Given::IsNew(content) => {
                    let file_id = state.made(content).id.clone();
                    state.batches.get_mut(id)?.attach(file, file_id);
                }
            }
        }
        self.batch(id)
    }

    /// Sends the event of a batch's end once more.
    pub(super) fn tell_again(self: &Arc<Self>, id: &str) -> Option<StoredBatch> {
        let batch = self.batch(id)?;
        let (account, id) = (Arc::clone(self), id.to_owned());
        self.background.spawn(async move { webhook::tell(&account, &id).await });
        Some(batch)
    }

    /// Wakes with the next [`steering`](Self::steering).
    pub(super) fn steered(&self) -> Notified<'_> {
        self.steering.notified()
    }

    pub(super) fn next_step(&self, id: &str) -> Next {
        self.lock().batches.get(id).map_or(Next::Never, Batch::next)
    }

    /// Moves a batch on where it is time; to its end, it is taken by the caller.
    pub(super) fn step(&self, id: &str) -> Option<Ending> {
        self.lock().batches.get_mut(id)?.step(Instant::now(), unix_now())
    }

    /// Stores what a batch has made, and shows its end; nothing where it has ended meanwhile.
    pub(super) fn finish_batch(&self, id: &str, end: &BatchEnd, mut results: Results) {
        {
            let mut state = self.lock();
            let Some(batch) = state.batches.get_mut(id) else { return };
            if batch.state().is_terminal() {
                return;
            }
            let [output, error] = batch.take_given();
            let files = [output.or(results.output.take()), error.or(results.error.take())];
            let ids = files.map(|file| file.map(|file| state.made(file).id.clone()));
            if let Some(batch) = state.batches.get_mut(id) {
                batch.finish(end, &results, ids, unix_now());
            }
        }
        self.steering.notify_waiters();
    }

    /// No change is left half done by a panic, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Since when something shows in lists that is created at `now`.
    fn visible_at(&self, now: Instant) -> Instant {
        // A lag beyond what the clock can tell never ends; a century will do.
        let century = Duration::from_hours(24 * 36_525);
        now + Duration::from_millis(self.settings.list_lag_ms).min(century)
    }

    /// Stores a file that nobody uploaded: it shows at once, and its content is kept.
    fn made(&mut self, new: NewFile) -> Arc<StoredFile> {
        self.files.insert(new, unix_now(), Instant::now(), u64::MAX)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the sandbox plays a foreign provider, whose clock is its own"
)]
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since_epoch| since_epoch.as_secs())
}
