//! What becomes of an account's batches.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::BatchState;

/// How an account treats the batches that are created from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchSettings {
    /// Milliseconds that a batch spends in each of `validating`, `in_progress`, `finalizing` and `cancelling`.
    pub phase_ms: u64,
    /// The phase that a batch does not leave until it is released or ended. Half of a batch that is
    /// held in progress is done.
    pub hold_at: Option<BatchState>,
    /// What a batch comes to that nobody cancels, and whose input is good.
    pub end: BatchEnd,
    /// Shown in place of the true status, also after the end.
    pub status_word: Option<String>,
    /// How many of a hundred lines fail, spread evenly.
    pub failing_percent: u8,
    /// What a failing line is answered with; 0 for a failure without an HTTP answer.
    pub failing_status: u16,
    /// The lines of these `custom_id`s fail with these statuses, whatever the percentage.
    pub failing: BTreeMap<String, u16>,
    /// Failed lines stand in the output file, among the others.
    pub failures_in_output: bool,
    /// The least size of each answer's text in bytes.
    pub answer_bytes: usize,
    /// The size that the first answer's text has in addition.
    pub long_answer_bytes: usize,
    /// What is wrong with the output file, and with the error file.
    pub oddities: Vec<Oddity>,
    /// Requests that a batch may have.
    pub max_requests: usize,
    /// Batches that may be under way at a time.
    pub max_open_batches: Option<u64>,
    /// What becomes of a batch beyond these.
    pub over_limit: OverLimit,
}

impl Default for BatchSettings {
    fn default() -> Self {
        Self {
            phase_ms: 200,
            hold_at: None,
            end: BatchEnd::Completed,
            status_word: None,
            failing_percent: 0,
            failing_status: 400,
            failing: BTreeMap::new(),
            failures_in_output: false,
            answer_bytes: 0,
            long_answer_bytes: 0,
            oddities: Vec::new(),
            max_requests: 50_000,
            max_open_batches: None,
            over_limit: OverLimit::default(),
        }
    }
}

impl BatchSettings {
    pub(super) fn phase(&self) -> Duration {
        // Longer than any test, and short enough for every clock.
        Duration::from_millis(self.phase_ms).min(Duration::from_hours(24 * 365))
    }

    /// The status that the line of this number, from 0 on, is answered with if it fails.
    pub(super) fn failure(&self, number: usize, custom_id: &str) -> Option<u16> {
        if let Some(status) = self.failing.get(custom_id) {
            return Some(*status);
        }
        let percent = usize::from(self.failing_percent.min(100));
        let fails = (number + 1) * percent / 100 > number * percent / 100;
        fails.then_some(self.failing_status)
    }
}

/// How a batch ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum BatchEnd {
    /// Every line was answered, well or badly.
    Completed,
    /// The same, but there is neither an output nor an error file.
    CompletedWithoutFiles,
    /// Nothing was done.
    Failed {
        code: String,
        #[serde(default)]
        message: Option<String>,
        /// Of the input file; the first is 1.
        #[serde(default)]
        line: Option<u64>,
    },
    /// The rest of the lines is in the error file, as `batch_expired`.
    Expired { done_percent: u8 },
    /// The rest of the lines is nowhere.
    Cancelled { done_percent: u8 },
}

impl BatchEnd {
    pub fn failed(code: &str) -> Self {
        Self::Failed { code: code.to_owned(), message: None, line: None }
    }

    pub(super) fn state(&self) -> BatchState {
        match self {
            Self::Completed | Self::CompletedWithoutFiles => BatchState::Completed,
            Self::Failed { .. } => BatchState::Failed,
            Self::Expired { .. } => BatchState::Expired,
            Self::Cancelled { .. } => BatchState::Cancelled,
        }
    }

    /// How many of `total` lines were answered.
    pub(super) fn done(&self, total: usize) -> usize {
        match self {
            Self::Completed | Self::CompletedWithoutFiles => total,
            Self::Failed { .. } => 0,
            Self::Expired { done_percent } | Self::Cancelled { done_percent } => {
                total * usize::from(*done_percent).min(100) / 100
            }
        }
    }
}

/// Something about a result file that a reader must bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oddity {
    /// Lines end with CR LF.
    Crlf,
    NoFinalNewline,
    /// The second line is cut off.
    BrokenLine,
    /// The second line is empty.
    BlankLine,
    /// The first line comes again at the end.
    DuplicateCustomId,
    /// The second line answers what nobody asked.
    UnknownCustomId,
}

/// What becomes of a batch when too many are under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OverLimit {
    /// It is not created: 429 without `retry-after`.
    Refuse {
        #[serde(default)]
        code: Option<String>,
    },
    /// It is created, and fails with `token_limit_exceeded`.
    Fail,
}

impl Default for OverLimit {
    fn default() -> Self {
        Self::Refuse { code: Some("batch_enqueued_limit_reached".to_owned()) }
    }
}

/// One of the files that a batch makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchFile {
    Output,
    Error,
}

impl BatchFile {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Error => "error",
        }
    }
}
