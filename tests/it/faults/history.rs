//! What the clients were told, and what they found that should not be.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

/// Violations that are kept word for word; more of them tell nothing new.
const KEPT_VIOLATIONS: usize = 100;

/// What has become of something that a client asked to be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Kept,
    /// Its delete was sent and not answered: it may be there or not.
    Going,
    /// Its delete was accepted: it may be there yet, and has to go.
    Promised,
    Gone,
}

/// A file that was answered with an id.
#[derive(Clone, Debug)]
pub struct File {
    pub id: String,
    pub filename: String,
    pub content: Arc<[u8]>,
    /// Of a file that batches run on: its requests. 0 of others.
    pub requests: usize,
    pub models: &'static [&'static str],
    pub fate: Fate,
}

/// A batch that was answered with an id.
#[derive(Clone, Debug)]
pub struct Batch {
    pub id: String,
    /// The name of its input.
    pub input: String,
    pub is_cancelled: bool,
    /// Its end, once one was seen: it is for ever.
    pub end: Option<String>,
}

/// How the tries of an operation ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// With an answer that was looked at.
    pub checked: u64,
    /// "Not now": 503, 429, 409 with a time, 408, or another 5xx.
    pub put_off: u64,
    /// Without an answer.
    pub lost: u64,
}

#[derive(Default)]
struct Known {
    files: BTreeMap<String, File>,
    batches: BTreeMap<String, Batch>,
    tallies: BTreeMap<&'static str, Tally>,
    faults: BTreeMap<String, u64>,
    /// Types and subjects of the events that the stream has told.
    events: BTreeMap<(String, String), u64>,
    violations: Vec<String>,
    violations_counted: u64,
}

/// All of it, shared by everybody.
#[derive(Clone)]
pub struct History {
    begun: Instant,
    known: Arc<Mutex<Known>>,
}

impl Default for History {
    fn default() -> Self {
        Self { begun: Instant::now(), known: Arc::default() }
    }
}

impl History {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what must not be.
    pub fn violation(&self, what: impl std::fmt::Display) {
        let at = self.begun.elapsed().as_secs_f64();
        println!("VIOLATION at {at:.3} s: {what}");
        let mut known = self.lock();
        known.violations_counted += 1;
        if known.violations.len() < KEPT_VIOLATIONS {
            known.violations.push(format!("at {at:.3} s: {what}"));
        }
    }

    pub fn fault(&self, kind: &str) {
        self.faults(kind, 1);
    }

    pub fn faults(&self, kind: &str, count: u64) {
        if count > 0 {
            *self.lock().faults.entry(kind.to_owned()).or_default() += count;
        }
    }

    pub fn tally(&self, operation: &'static str, change: impl FnOnce(&mut Tally)) {
        change(self.lock().tallies.entry(operation).or_default());
    }

    pub fn checked(&self, operation: &'static str) {
        self.tally(operation, |tally| tally.checked += 1);
    }

    pub fn add_file(&self, file: File) {
        let mut known = self.lock();
        let twice = known.files.insert(file.filename.clone(), file.clone());
        drop(known);
        if let Some(before) = twice.filter(|before| before.id != file.id) {
            self.violation(format!("`{}` is {} and {}", file.filename, before.id, file.id));
        }
    }

    pub fn file(&self, filename: &str) -> Option<File> {
        self.lock().files.get(filename).cloned()
    }

    pub fn files(&self) -> Vec<File> {
        self.lock().files.values().cloned().collect()
    }

    /// One of the files that `is_so`, as `pick` chooses of so many.
    pub fn pick_file(
        &self,
        is_so: impl Fn(&File) -> bool,
        pick: impl FnOnce(usize) -> usize,
    ) -> Option<File> {
        let known = self.lock();
        let found: Vec<&File> = known.files.values().filter(|file| is_so(file)).collect();
        if found.is_empty() {
            return None;
        }
        Some(found[pick(found.len())].clone())
    }

    /// Takes a file to have it deleted; `false` where somebody else has. So it is known who asked.
    pub fn take(&self, filename: &str) -> bool {
        let mut known = self.lock();
        let file = known.files.get_mut(filename).filter(|file| file.fate == Fate::Kept);
        file.map(|file| file.fate = Fate::Going).is_some()
    }

    /// A file's fate only goes on, never back.
    pub fn decide(&self, filename: &str, fate: Fate) {
        if let Some(file) = self.lock().files.get_mut(filename) {
            file.fate = file.fate.max(fate);
        }
    }

    /// A delete was refused, for good: the file stays.
    pub fn spare(&self, filename: &str) {
        if let Some(file) = self.lock().files.get_mut(filename)
            && file.fate == Fate::Going
        {
            file.fate = Fate::Kept;
        }
    }

    pub fn add_batch(&self, batch: Batch) {
        self.lock().batches.insert(batch.id.clone(), batch);
    }

    pub fn batches(&self) -> Vec<Batch> {
        self.lock().batches.values().cloned().collect()
    }

    pub fn pick_batch(
        &self,
        is_so: impl Fn(&Batch) -> bool,
        pick: impl FnOnce(usize) -> usize,
    ) -> Option<Batch> {
        let known = self.lock();
        let found: Vec<&Batch> = known.batches.values().filter(|batch| is_so(batch)).collect();
        if found.is_empty() {
            return None;
        }
        Some(found[pick(found.len())].clone())
    }

    pub fn change_batch(&self, id: &str, change: impl FnOnce(&mut Batch)) {
        if let Some(batch) = self.lock().batches.get_mut(id) {
            change(batch);
        }
    }

    pub fn heard(&self, kind: &str, subject: &str) {
        *self.lock().events.entry((kind.to_owned(), subject.to_owned())).or_default() += 1;
    }

    pub fn has_heard(&self, kind: &str, subject: &str) -> bool {
        self.lock().events.contains_key(&(kind.to_owned(), subject.to_owned()))
    }

    /// Faults injected, operations checked, violations found.
    pub fn sums(&self) -> (u64, u64, u64) {
        let known = self.lock();
        let checked = known.tallies.values().map(|tally| tally.checked).sum();
        (known.faults.values().sum(), checked, known.violations_counted)
    }

    /// For people.
    pub fn report(&self) -> String {
        let (faults, operations, violations) = self.sums();
        let known = self.lock();
        let mut text = format!("faults injected: {faults}\n");
        for (kind, count) in &known.faults {
            writeln!(text, "  {count:>7}  {kind}").unwrap();
        }
        writeln!(text, "operations checked: {operations}").unwrap();
        for (operation, tally) in &known.tallies {
            let Tally { checked, put_off, lost } = tally;
            writeln!(
                text,
                "  {checked:>7}  {operation} ({put_off} put off, {lost} without an answer)"
            )
            .unwrap();
        }
        writeln!(text, "violations: {violations}").unwrap();
        for violation in &known.violations {
            writeln!(text, "  {violation}").unwrap();
        }
        text
    }
}
