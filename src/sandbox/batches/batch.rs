//! One batch on its way: by itself as time passes, unless it is held, cancelled or ended by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::BatchCounts;
use super::BatchEnd;
use super::BatchError;
use super::BatchErrors;
use super::BatchFile;
use super::BatchSettings;
use super::BatchState;
use super::Ending;
use super::Input;
use super::Results;
use super::StoredBatch;
use super::output;
use crate::sandbox::files::NewFile;

/// The only completion window there is: 24 hours.
const WINDOW_SECONDS: u64 = 86_400;
/// How long the files of a batch live that does not say it: 30 days.
const OUTPUT_LIFE_SECONDS: u64 = 2_592_000;

/// A batch that is about to be created.
pub(in crate::sandbox) struct NewBatch {
    pub(in crate::sandbox) input_file_id: String,
    pub(in crate::sandbox) input: Input,
    pub(in crate::sandbox) endpoint: String,
    pub(in crate::sandbox) metadata: Option<BTreeMap<String, String>>,
    pub(in crate::sandbox) output_life_seconds: Option<u64>,
}

/// When a batch is to be looked at next.
pub(in crate::sandbox) enum Next {
    At(Instant),
    /// When it was released, cancelled or ended.
    Steered,
    /// It has ended.
    Never,
}

pub(in crate::sandbox) struct Batch {
    /// But for what changes by itself.
    object: StoredBatch,
    state: BatchState,
    since: Instant,
    pub(super) visible_at: Instant,
    input: Arc<Input>,
    settings: Arc<BatchSettings>,
    is_released: bool,
    is_over_limit: bool,
    word: Option<String>,
    done_when_cancelled: usize,
    output_life_seconds: u64,
    /// Takes the place of the output file, and of the error file.
    given: [Option<NewFile>; 2],
}

impl Batch {
    pub(super) fn new(
        id: String,
        new: NewBatch,
        settings: BatchSettings,
        is_over_limit: bool,
        created_at: u64,
        now: Instant,
        visible_at: Instant,
    ) -> Self {
        let model = Some(new.input.model.clone()).filter(|model| !model.is_empty());
        let object = StoredBatch {
            id,
            object: "batch".to_owned(),
            endpoint: new.endpoint,
            model,
            errors: None,
            input_file_id: new.input_file_id,
            completion_window: "24h".to_owned(),
            status: String::new(),
            output_file_id: None,
            error_file_id: None,
            created_at,
            in_progress_at: None,
            expires_at: Some(created_at + WINDOW_SECONDS),
            finalizing_at: None,
            completed_at: None,
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            request_counts: BatchCounts::default(),
            usage: None,
            metadata: new.metadata,
        };
        Self {
            object,
            state: BatchState::Validating,
            since: now,
            visible_at,
            input: Arc::new(new.input),
            is_released: false,
            is_over_limit,
            word: settings.status_word.clone(),
            settings: Arc::new(settings),
            done_when_cancelled: 0,
            output_life_seconds: new.output_life_seconds.unwrap_or(OUTPUT_LIFE_SECONDS),
            given: [None, None],
        }
    }

    /// As it is seen at `now`.
    pub(in crate::sandbox) fn show(&self, now: Instant) -> StoredBatch {
        let status = self.word.clone().unwrap_or_else(|| self.state.as_str().to_owned());
        let request_counts = match self.state {
            BatchState::Validating => BatchCounts::default(),
            state if state.is_terminal() => self.object.request_counts,
            _ => output::counts(&self.input, &self.settings, self.done(now)),
        };
        StoredBatch { status, request_counts, ..self.object.clone() }
    }

    pub(in crate::sandbox) fn input_file_id(&self) -> &str {
        &self.object.input_file_id
    }

    pub(in crate::sandbox) fn state(&self) -> BatchState {
        self.state
    }

    pub(in crate::sandbox) fn next(&self) -> Next {
        if self.state.is_terminal() {
            Next::Never
        } else if self.is_held() {
            Next::Steered
        } else {
            Next::At(self.since + self.settings.phase())
        }
    }

    /// Goes on to the next phase where it is time. Where that is the end, it says which, and is as it
    /// was until [`finish`](Self::finish).
    pub(in crate::sandbox) fn step(&mut self, now: Instant, at: u64) -> Option<Ending> {
        if !matches!(self.next(), Next::At(due) if due <= now) {
            return None;
        }
        let total = self.input.lines.len();
        match self.state {
            BatchState::Validating => {
                if let Some(code) = self.failure() {
                    return Some(self.ending(BatchEnd::failed(&code), 0));
                }
                if let end @ BatchEnd::Failed { .. } = &self.settings.end {
                    return Some(self.ending(end.clone(), 0));
                }
                self.object.in_progress_at = Some(at);
                self.enter(BatchState::InProgress, now);
                None
            }
            BatchState::InProgress => match &self.settings.end {
                end @ (BatchEnd::Expired { .. } | BatchEnd::Cancelled { .. }) => {
                    Some(self.ending(end.clone(), end.done(total)))
                }
                BatchEnd::Completed | BatchEnd::CompletedWithoutFiles | BatchEnd::Failed { .. } => {
                    self.object.finalizing_at = Some(at);
                    self.enter(BatchState::Finalizing, now);
                    None
                }
            },
            BatchState::Finalizing => Some(self.ending(self.settings.end.clone(), total)),
            BatchState::Cancelling => {
                let end = BatchEnd::Cancelled { done_percent: 0 };
                Some(self.ending(end, self.done_when_cancelled))
            }
            BatchState::Completed
            | BatchState::Failed
            | BatchState::Expired
            | BatchState::Cancelled => None,
        }
    }

    /// What ends it at once, as it was asked for.
    pub(in crate::sandbox) fn end(&self, end: BatchEnd) -> Option<Ending> {
        let done = end.done(self.input.lines.len());
        (!self.state.is_terminal()).then(|| self.ending(end, done))
    }

    /// Begins to stop; `false` where it has ended.
    pub(in crate::sandbox) fn cancel(&mut self, now: Instant, at: u64) -> bool {
        if !self.state.is_terminal() && self.state != BatchState::Cancelling {
            self.done_when_cancelled = self.done(now);
            self.object.cancelling_at = Some(at);
            self.enter(BatchState::Cancelling, now);
        }
        !self.state.is_terminal()
    }

    /// Goes on by itself from now on, for as long as each phase lasts.
    pub(in crate::sandbox) fn release(&mut self, now: Instant) {
        if self.is_held() {
            self.since = now;
        }
        self.is_released = true;
    }

    /// Shows this in place of its status; none: its status.
    pub(in crate::sandbox) fn set_word(&mut self, word: Option<String>) {
        self.word = word;
    }

    /// The end, with the ids under which its files were stored; at `at`, in Unix seconds.
    pub(in crate::sandbox) fn finish(
        &mut self,
        end: &BatchEnd,
        results: &Results,
        [output_file_id, error_file_id]: [Option<String>; 2],
        at: u64,
    ) {
        let object = &mut self.object;
        object.output_file_id = output_file_id;
        object.error_file_id = error_file_id;
        object.request_counts = results.counts;
        object.usage = results.usage;
        if !matches!(end, BatchEnd::Failed { .. }) {
            object.in_progress_at.get_or_insert(at);
        }
        match end {
            BatchEnd::Completed | BatchEnd::CompletedWithoutFiles => {
                object.finalizing_at.get_or_insert(at);
                object.completed_at = Some(at);
            }
            BatchEnd::Failed { code, message, line } => {
                object.failed_at = Some(at);
                object.errors = Some(errors(code, message.as_deref(), *line, &self.input));
            }
            BatchEnd::Expired { .. } => object.expired_at = Some(at),
            BatchEnd::Cancelled { .. } => {
                object.cancelling_at.get_or_insert(at);
                object.cancelled_at = Some(at);
            }
        }
        self.state = end.state();
        // All that was to be said of the lines is said.
        self.input = Arc::default();
    }

    /// Content that a file of it shall have when it ends. For one that has ended: the file's id.
    pub(in crate::sandbox) fn give(&mut self, file: BatchFile, content: NewFile) -> Given {
        let given = match file {
            BatchFile::Output => (&mut self.given[0], &self.object.output_file_id),
            BatchFile::Error => (&mut self.given[1], &self.object.error_file_id),
        };
        match given {
            (slot, _) if !self.state.is_terminal() => {
                *slot = Some(content);
                Given::Kept
            }
            (_, Some(id)) => Given::Replaces(id.clone(), content),
            (_, None) => Given::IsNew(content),
        }
    }

    pub(in crate::sandbox) fn take_given(&mut self) -> [Option<NewFile>; 2] {
        std::mem::take(&mut self.given)
    }

    /// Puts a file to a batch that ended without.
    pub(in crate::sandbox) fn attach(&mut self, file: BatchFile, id: String) {
        match file {
            BatchFile::Output => self.object.output_file_id = Some(id),
            BatchFile::Error => self.object.error_file_id = Some(id),
        }
    }

    /// `content` as a file of this batch.
    pub(in crate::sandbox) fn file(&self, file: BatchFile) -> impl Fn(Bytes) -> NewFile + use<> {
        let (id, life) = (self.object.id.clone(), self.output_life_seconds);
        move |content| output::file(&id, file, life, content)
    }

    fn is_held(&self) -> bool {
        !self.is_released && self.settings.hold_at == Some(self.state)
    }

    fn enter(&mut self, state: BatchState, now: Instant) {
        self.state = state;
        self.since = now;
    }

    fn ending(&self, end: BatchEnd, done: usize) -> Ending {
        Ending {
            batch_id: self.object.id.clone(),
            endpoint: self.object.endpoint.clone(),
            created_at: self.object.created_at,
            input: Arc::clone(&self.input),
            settings: Arc::clone(&self.settings),
            end,
            done,
            output_life_seconds: self.output_life_seconds,
        }
    }

    /// The code of why it cannot go on after its validation.
    fn failure(&self) -> Option<String> {
        if self.is_over_limit {
            return Some("token_limit_exceeded".to_owned());
        }
        self.input.errors.first().map(|error| error.code.clone())
    }

    /// How many lines are answered at `now`.
    fn done(&self, now: Instant) -> usize {
        let total = self.input.lines.len();
        match self.state {
            BatchState::Validating => 0,
            BatchState::InProgress if self.is_held() => total / 2,
            BatchState::InProgress => {
                let share = now.saturating_duration_since(self.since).as_secs_f64()
                    / self.settings.phase().as_secs_f64().max(f64::MIN_POSITIVE);
                (total as f64 * share.min(1.0)) as usize
            }
            BatchState::Cancelling => self.done_when_cancelled,
            BatchState::Finalizing
            | BatchState::Completed
            | BatchState::Failed
            | BatchState::Expired
            | BatchState::Cancelled => total,
        }
    }
}

/// Where content goes that was given by hand.
pub(in crate::sandbox) enum Given {
    Kept,
    Replaces(String, NewFile),
    IsNew(NewFile),
}

/// The input's own errors where they are why, else the one that was asked for.
fn errors(code: &str, message: Option<&str>, line: Option<u64>, input: &Input) -> BatchErrors {
    let data = match input.errors.first() {
        Some(first) if first.code == code => input.errors.clone(),
        _ => {
            let message = message.map_or_else(|| told(code, &input.model), str::to_owned);
            vec![BatchError { code: code.to_owned(), message, param: None, line }]
        }
    };
    BatchErrors { object: "list".to_owned(), data }
}

fn told(code: &str, model: &str) -> String {
    match code {
        "token_limit_exceeded" => format!("Enqueued token limit reached for {model}."),
        _ => format!("The sandbox was asked to fail this batch with {code}."),
    }
}
