//! The record of what was called, and how often.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

/// Calls kept word for word; the counters go on beyond.
const KEPT_CALLS: usize = 100_000;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `POST /files`
    Upload,
    /// `GET /files`
    List,
    /// `GET /files/{id}`
    Get,
    /// `GET /files/{id}/content`
    Content,
    /// `DELETE /files/{id}`
    Delete,
    /// `POST /batches`
    CreateBatch,
    /// `GET /batches`
    ListBatches,
    /// `GET /batches/{id}`
    GetBatch,
    /// `POST /batches/{id}/cancel`
    CancelBatch,
    /// Anything the API does not have; answered with 404.
    Other,
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Upload => "upload",
            Self::List => "list",
            Self::Get => "get",
            Self::Content => "content",
            Self::Delete => "delete",
            Self::CreateBatch => "create_batch",
            Self::ListBatches => "list_batches",
            Self::GetBatch => "get_batch",
            Self::CancelBatch => "cancel_batch",
            Self::Other => "other",
        })
    }
}

/// One call, written when its head has arrived and completed while it proceeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Counts the account's calls from 1.
    pub seq: u64,
    pub operation: Operation,
    /// Milliseconds from the start of the sandbox to the call's arrival.
    pub at_ms: u64,
    /// Microseconds from the start of the sandbox to the first byte of an upload's body.
    #[serde(default)]
    pub first_byte_at_us: Option<u64>,
    /// The id in the path, or of the file that the upload made.
    pub file_id: Option<String>,
    /// The id in the path, or of the batch that the call made.
    #[serde(default)]
    pub batch_id: Option<String>,
    /// The name of the uploaded file, where it was read.
    pub filename: Option<String>,
    /// The size of the uploaded file, where it was read to its end.
    pub bytes: Option<u64>,
    /// What was answered; none where there was no answer, or not yet.
    pub status: Option<u16>,
    /// Whether the bearer token was one the account accepts.
    pub authorization_ok: bool,
    /// The request's `Content-Length`; none for a chunked body.
    pub content_length: Option<u64>,
    /// The `kind` of the fault that met the call.
    pub fault: Option<String>,
}

/// An account's counters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Calls that arrived, by operation; an operation nobody called is absent.
    pub calls: BTreeMap<Operation, u64>,
    /// Files ever made, planted ones included.
    pub files_created: u64,
    pub files_deleted: u64,
    pub files_live: u64,
    /// The sizes of all files ever made.
    pub bytes_created: u64,
    /// Uploads that have arrived and are neither answered nor closed.
    pub in_flight: u64,
    /// The most there ever was of `in_flight`.
    pub max_in_flight: u64,
    /// Calls that a `hold` or `hang` keeps waiting now.
    pub held: u64,
    /// Milliseconds from the start of the sandbox to the first byte of the first upload's body.
    pub first_byte_at_ms: Option<u64>,
    /// Batches ever made, planted ones included.
    pub batches_created: u64,
    /// Batches that have not ended.
    pub batches_open: u64,
    /// Events that the webhook took, and that it did not.
    pub events_taken: u64,
    pub events_refused: u64,
    /// Fault rules that still have something to do.
    pub faults_queued: u64,
}

/// An account's calls and the counters over them.
#[derive(Default)]
pub(super) struct Ledger {
    calls: VecDeque<Call>,
    counts: BTreeMap<Operation, u64>,
    arrived: u64,
    in_flight: u64,
    max_in_flight: u64,
    events_taken: u64,
    events_refused: u64,
    pub(super) held: u64,
    pub(super) first_byte_at_ms: Option<u64>,
}

impl Ledger {
    /// Writes down a call and gives it its `seq`.
    pub(super) fn arrive(&mut self, mut call: Call) -> u64 {
        self.arrived += 1;
        call.seq = self.arrived;
        *self.counts.entry(call.operation).or_default() += 1;
        if call.operation == Operation::Upload {
            self.in_flight += 1;
            self.max_in_flight = self.max_in_flight.max(self.in_flight);
        }
        if self.calls.len() == KEPT_CALLS {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
        self.arrived
    }

    /// Counts an attempt to tell the webhook something.
    pub(super) fn event(&mut self, is_taken: bool) {
        match is_taken {
            true => self.events_taken += 1,
            false => self.events_refused += 1,
        }
    }

    /// Notes the end of a call, answered or not.
    pub(super) fn end(&mut self, operation: Operation) {
        if operation == Operation::Upload {
            self.in_flight -= 1;
        }
    }

    /// The call with this `seq`, unless it is no longer kept.
    pub(super) fn call(&mut self, seq: u64) -> Option<&mut Call> {
        let first = self.calls.front()?.seq;
        let index = usize::try_from(seq.checked_sub(first)?).ok()?;
        self.calls.get_mut(index)
    }

    pub(super) fn count(&self, operation: Operation) -> u64 {
        self.counts.get(&operation).copied().unwrap_or_default()
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.calls.iter().cloned().collect()
    }

    /// The counters it keeps itself; those about files, batches and faults are left at zero.
    pub(super) fn stats(&self) -> Stats {
        Stats {
            calls: self.counts.clone(),
            files_created: 0,
            files_deleted: 0,
            files_live: 0,
            bytes_created: 0,
            in_flight: self.in_flight,
            max_in_flight: self.max_in_flight,
            held: self.held,
            first_byte_at_ms: self.first_byte_at_ms,
            batches_created: 0,
            batches_open: 0,
            events_taken: self.events_taken,
            events_refused: self.events_refused,
            faults_queued: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(operation: Operation) -> Call {
        Call {
            seq: 0,
            operation,
            at_ms: 0,
            first_byte_at_us: None,
            file_id: None,
            batch_id: None,
            filename: None,
            bytes: None,
            status: None,
            authorization_ok: true,
            content_length: None,
            fault: None,
        }
    }

    #[test]
    fn old_calls_are_let_go_while_the_counters_stay_exact() {
        let mut ledger = Ledger::default();
        for _ in 0..KEPT_CALLS + 7 {
            ledger.arrive(call(Operation::Get));
        }

        assert_eq!(ledger.count(Operation::Get), KEPT_CALLS as u64 + 7);
        assert_eq!(ledger.calls().len(), KEPT_CALLS);
        assert!(ledger.call(7).is_none());
        assert_eq!(ledger.call(8).unwrap().seq, 8);
        assert_eq!(ledger.call(KEPT_CALLS as u64 + 7).unwrap().seq, KEPT_CALLS as u64 + 7);
        assert!(ledger.call(KEPT_CALLS as u64 + 8).is_none());
    }

    #[test]
    fn only_uploads_count_as_in_flight() {
        let mut ledger = Ledger::default();
        ledger.arrive(call(Operation::Upload));
        ledger.arrive(call(Operation::Upload));
        ledger.arrive(call(Operation::List));
        ledger.end(Operation::Upload);
        ledger.end(Operation::List);

        let stats = ledger.stats();
        assert_eq!((stats.in_flight, stats.max_in_flight), (1, 2));
    }
}
