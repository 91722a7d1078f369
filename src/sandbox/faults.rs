//! The script of an account: which calls go wrong, and how.

use std::collections::{BTreeMap, VecDeque};

use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ledger::Operation;

/// Rules an account queues before it refuses more.
const MAX_RULES: usize = 10_000;

/// Headers one fault may set.
const MAX_HEADERS: usize = 50;

/// A fault and the calls it is meant for.
///
/// The rules of an operation form a queue, and the first one that matches a call decides it alone:
/// while a rule still lets calls through because of `skip`, the rules behind it wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    pub on: Operation,
    /// How many calls it meets; 0 for all until the faults are cleared.
    #[serde(default = "once")]
    pub times: u64,
    /// How many matching calls go through unharmed first.
    #[serde(default)]
    pub skip: u64,
    /// Meets only calls about a file whose name contains this, or about a batch with such an input. An upload's name is known when its
    /// file part begins, so that such a fault cannot strike before that.
    #[serde(default)]
    pub filename_contains: Option<String>,
    pub fault: Fault,
}

fn once() -> u64 {
    1
}

impl FaultRule {
    /// Meets the next call of `operation`, once.
    pub fn new(operation: Operation, fault: Fault) -> Self {
        Self { on: operation, times: once(), skip: 0, filename_contains: None, fault }
    }
}

/// What goes wrong with a call.
///
/// A scripted `body` is sent as it is where it is a string, as nothing where it is null and as
/// JSON otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// Answers without executing the call.
    Status {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: Value,
        /// Whether to read the request's body to its end first.
        #[serde(default = "yes")]
        drain: bool,
    },
    /// Executes the call and then answers this instead of the outcome.
    AfterEffect {
        status: u16,
        #[serde(default)]
        headers: BTreeMap<String, String>,
        #[serde(default)]
        body: Value,
    },
    /// Closes the connection after the request's head, without executing or answering.
    DropBefore,
    /// Executes the call and closes the connection without an answer.
    LostAnswer,
    /// Closes the connection once this many bytes of the request's body were read, or all of a
    /// shorter one; the call is not executed.
    CutBody { after_bytes: u64 },
    /// Executes the call and closes the connection within the answer's body. At least one byte is
    /// missing, and no more than `after_bytes` are sent.
    CutAnswer { after_bytes: u64 },
    /// Executes the call and sends this many bytes of the answer's body as if they were all, without a length that
    /// would tell.
    ShortAnswer { bytes: u64 },
    /// Answers 200 with this body.
    Garbage {
        content_type: String,
        body: String,
        /// Whether the call is executed.
        executed: bool,
    },
    /// Does not answer until released: then with the outcome if the call was executed, else by
    /// closing the connection.
    Hang {
        /// Whether the call is executed.
        executed: bool,
    },
    /// Executes the call and sends the answer's body one byte per interval.
    Drip { interval_ms: u64 },
    /// Waits to be released and goes on as if nothing had happened.
    Hold {
        /// Waits before the call is executed, rather than between that and the answer.
        hold_before: bool,
    },
}

fn yes() -> bool {
    true
}

impl Fault {
    /// Answers `status` with `body` without executing the call, once the request was read.
    pub fn status(status: u16, body: Value) -> Self {
        Self::Status { status, headers: BTreeMap::new(), body, drain: true }
    }

    /// Whether the call is not executed at all.
    pub(super) const fn prevents_execution(&self) -> bool {
        match self {
            Self::Status { .. } | Self::DropBefore | Self::CutBody { .. } => true,
            Self::Garbage { executed, .. } | Self::Hang { executed } => !*executed,
            Self::AfterEffect { .. }
            | Self::LostAnswer
            | Self::CutAnswer { .. }
            | Self::ShortAnswer { .. }
            | Self::Drip { .. }
            | Self::Hold { .. } => false,
        }
    }

    /// The `kind` in JSON and in the ledger.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::AfterEffect { .. } => "after_effect",
            Self::DropBefore => "drop_before",
            Self::LostAnswer => "lost_answer",
            Self::CutBody { .. } => "cut_body",
            Self::CutAnswer { .. } => "cut_answer",
            Self::ShortAnswer { .. } => "short_answer",
            Self::Garbage { .. } => "garbage",
            Self::Hang { .. } => "hang",
            Self::Drip { .. } => "drip",
            Self::Hold { .. } => "hold",
        }
    }
}

/// A fault that could never happen as it was written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFault {
    #[error("`status` is `{0}`, it must be 200 to 599")]
    Status(u16),
    #[error("`{0}` cannot be sent as a header, give a valid name and value")]
    Header(String),
    #[error("`{0}` follows from the body, leave it out of `headers`")]
    FramingHeader(String),
    #[error("`headers` has `{0}` entries, leave it at {MAX_HEADERS}")]
    TooManyHeaders(usize),
    #[error("a `{0}` call does not name a file, leave `filename_contains` out")]
    NoFilename(Operation),
    #[error("`{MAX_RULES}` faults are queued already, clear them first")]
    TooMany,
}

/// The queues of an account's rules, one per operation.
#[derive(Default)]
pub(super) struct Faults {
    queues: BTreeMap<Operation, VecDeque<FaultRule>>,
    len: usize,
}

impl Faults {
    pub(super) fn add(&mut self, rule: FaultRule) -> Result<(), InvalidFault> {
        check(&rule)?;
        if self.len >= MAX_RULES {
            return Err(InvalidFault::TooMany);
        }
        self.len += 1;
        self.queues.entry(rule.on).or_default().push_back(rule);
        Ok(())
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether a choice for this operation needs the name of the file.
    pub(super) fn want_filename(&self, operation: Operation) -> bool {
        self.queues
            .get(&operation)
            .is_some_and(|queue| queue.iter().any(|rule| rule.filename_contains.is_some()))
    }

    /// The fault that meets a call, counted as done.
    pub(super) fn choose(&mut self, operation: Operation, filename: Option<&str>) -> Option<Fault> {
        let queue = self.queues.get_mut(&operation)?;
        let index = queue.iter().position(|rule| rule.matches(filename))?;
        let rule = &mut queue[index];
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        let fault = rule.fault.clone();
        match rule.times {
            // For ever.
            0 => {}
            1 => {
                queue.remove(index);
                self.len -= 1;
            }
            _ => rule.times -= 1,
        }
        Some(fault)
    }
}

impl FaultRule {
    fn matches(&self, filename: Option<&str>) -> bool {
        self.filename_contains
            .as_deref()
            .is_none_or(|part| filename.is_some_and(|name| name.contains(part)))
    }
}

fn check(rule: &FaultRule) -> Result<(), InvalidFault> {
    let is_about_a_file = match rule.on {
        Operation::Upload
        | Operation::Get
        | Operation::Content
        | Operation::Delete
        | Operation::GetBatch
        | Operation::CancelBatch => true,
        Operation::List | Operation::CreateBatch | Operation::ListBatches | Operation::Other => {
            false
        }
    };
    if rule.filename_contains.is_some() && !is_about_a_file {
        return Err(InvalidFault::NoFilename(rule.on));
    }
    match &rule.fault {
        Fault::Status { status, headers, .. } | Fault::AfterEffect { status, headers, .. } => {
            if !(200..=599).contains(status) || StatusCode::from_u16(*status).is_err() {
                return Err(InvalidFault::Status(*status));
            }
            if headers.len() > MAX_HEADERS {
                return Err(InvalidFault::TooManyHeaders(headers.len()));
            }
            headers.iter().try_for_each(|(name, value)| check_header(name, value))
        }
        Fault::Garbage { content_type, .. } => check_header("content-type", content_type),
        Fault::DropBefore
        | Fault::LostAnswer
        | Fault::CutBody { .. }
        | Fault::CutAnswer { .. }
        | Fault::ShortAnswer { .. }
        | Fault::Hang { .. }
        | Fault::Drip { .. }
        | Fault::Hold { .. } => Ok(()),
    }
}

fn check_header(name: &str, value: &str) -> Result<(), InvalidFault> {
    let Ok(parsed) = HeaderName::try_from(name) else {
        return Err(InvalidFault::Header(name.to_owned()));
    };
    if HeaderValue::try_from(value).is_err() {
        return Err(InvalidFault::Header(format!("{name}: {value}")));
    }
    if parsed == CONTENT_LENGTH || parsed == TRANSFER_ENCODING {
        return Err(InvalidFault::FramingHeader(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds(faults: &mut Faults, names: &[&str]) -> Vec<Option<&'static str>> {
        names
            .iter()
            .map(|name| faults.choose(Operation::Get, Some(name)).map(|fault| fault.kind()))
            .collect()
    }

    #[test]
    fn rules_are_used_up_in_the_order_they_were_queued() {
        let mut faults = Faults::default();
        let first = FaultRule::new(Operation::Get, Fault::DropBefore);
        faults.add(FaultRule { skip: 1, times: 2, ..first }).unwrap();
        faults.add(FaultRule::new(Operation::Get, Fault::LostAnswer)).unwrap();

        assert!(faults.choose(Operation::List, None).is_none());
        assert_eq!(
            kinds(&mut faults, &["a"; 5]),
            [None, Some("drop_before"), Some("drop_before"), Some("lost_answer"), None]
        );
        assert_eq!(faults.len(), 0);
    }

    #[test]
    fn a_rule_for_a_name_lets_other_names_past_to_the_next_rule() {
        let mut faults = Faults::default();
        let named = FaultRule::new(Operation::Get, Fault::DropBefore);
        faults
            .add(FaultRule { times: 0, filename_contains: Some("bad".to_owned()), ..named })
            .unwrap();
        faults.add(FaultRule::new(Operation::Get, Fault::LostAnswer)).unwrap();

        assert_eq!(
            kinds(&mut faults, &["bad.jsonl", "good", "good", "a-bad"]),
            [Some("drop_before"), Some("lost_answer"), None, Some("drop_before")]
        );
        faults.clear();
        assert_eq!(kinds(&mut faults, &["bad"]), [None]);
    }

    #[test]
    fn a_rule_says_only_what_differs_from_the_defaults() {
        let rule: FaultRule =
            serde_json::from_value(json!({"on": "upload", "fault": {"kind": "drop_before"}}))
                .unwrap();
        assert_eq!(rule, FaultRule::new(Operation::Upload, Fault::DropBefore));

        let rule: FaultRule = serde_json::from_value(
            json!({"on": "get", "fault": {"kind": "status", "status": 503}}),
        )
        .unwrap();
        assert_eq!(rule.fault, Fault::status(503, Value::Null));
    }

    #[test]
    fn every_kind_is_written_as_the_ledger_calls_it() {
        for fault in [
            Fault::status(500, json!({})),
            Fault::AfterEffect { status: 500, headers: BTreeMap::new(), body: Value::Null },
            Fault::DropBefore,
            Fault::LostAnswer,
            Fault::CutBody { after_bytes: 1 },
            Fault::CutAnswer { after_bytes: 1 },
            Fault::ShortAnswer { bytes: 1 },
            Fault::Garbage { content_type: String::new(), body: String::new(), executed: true },
            Fault::Hang { executed: true },
            Fault::Drip { interval_ms: 1 },
            Fault::Hold { hold_before: true },
        ] {
            let json = serde_json::to_value(&fault).unwrap();
            assert_eq!(json["kind"], fault.kind());
            assert_eq!(serde_json::from_value::<Fault>(json).unwrap(), fault);
        }
    }

    #[test]
    fn a_fault_that_cannot_happen_is_refused() {
        let mut faults = Faults::default();
        let status = |status| FaultRule::new(Operation::Get, Fault::status(status, Value::Null));
        assert_eq!(faults.add(status(101)), Err(InvalidFault::Status(101)));

        let headers = BTreeMap::from([("Content-Length".to_owned(), "3".to_owned())]);
        let framing = Fault::AfterEffect { status: 500, headers, body: Value::Null };
        assert_eq!(
            faults.add(FaultRule::new(Operation::Get, framing)),
            Err(InvalidFault::FramingHeader("Content-Length".to_owned()))
        );

        let named = FaultRule::new(Operation::List, Fault::DropBefore);
        assert_eq!(
            faults.add(FaultRule { filename_contains: Some("a".to_owned()), ..named }),
            Err(InvalidFault::NoFilename(Operation::List))
        );

        for kind in ["no_such_kind", "drip"] {
            let rule = json!({"on": "get", "fault": {"kind": kind}});
            assert!(serde_json::from_value::<FaultRule>(rule).is_err());
        }
        let unknown_key = json!({"on": "get", "fault": {"kind": "hang", "executed": true, "x": 1}});
        assert!(serde_json::from_value::<FaultRule>(unknown_key).is_err());
    }
}
