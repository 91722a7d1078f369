//! What of the line being read matters: the four fields of a request, and where the model is.

use std::mem;

use super::{
    capture::{Capture, Name},
    custom_id::CustomIds,
    edits::{Mark, Recorder},
    fault::FaultKind,
};

/// Containers up to this many deep are reported: the line's object is 1, `body` is 2.
pub(super) const WATCHED_DEPTH: usize = 2;

/// What a line has to be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rules {
    /// A request with a `custom_id` of its own.
    Batch { max_lines: Option<u64> },
    /// Anything: only what has a `body` object is rewritten.
    FineTune,
}

/// The first byte tells what a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Object,
    Other,
}

/// Follows the scanner through a line. What it keeps over lines is the edits and the ids.
///
/// `depth` is the number of containers around a key or value.
pub(super) struct Line {
    rules: Rules,
    lines: u64,
    custom_ids: CustomIds,
    pub(super) edits: Recorder,
    /// What the edits were when the line began.
    start: Mark,
    pub(super) capture: Capture,
    seen: Seen,
    /// The key whose value is being read, directly in the line's object.
    field: Option<Field>,
    body: Option<Body>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    CustomId,
    Method,
    Url,
    Body,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    custom_id: bool,
    method: bool,
    url: bool,
    body: bool,
}

/// The `body` object being read.
struct Body {
    /// Where its first key would go, in bytes from the start of the file.
    start: u64,
    is_empty: bool,
    has_model: bool,
    /// Whether the value being read is that of `model`.
    at_model: bool,
    model_start: u64,
}

impl Body {
    fn key(&mut self, name: Name) {
        self.at_model = name == Name::Model;
        self.has_model |= self.at_model;
    }
}

impl Line {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            lines: 0,
            custom_ids: CustomIds::new(),
            edits: Recorder::default(),
            start: Mark::default(),
            capture: Capture::default(),
            seen: Seen::default(),
            field: None,
            body: None,
        }
    }

    /// Lines so far that were not blank.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// Something other than whitespace is on the line.
    #[inline]
    pub(super) fn begin(&mut self) -> Result<(), FaultKind> {
        self.seen = Seen::default();
        self.field = None;
        self.body = None;
        if let Rules::Batch { max_lines: Some(limit) } = self.rules
            && self.lines >= limit
        {
            return Err(FaultKind::TooManyLines { limit });
        }
        self.lines += 1;
        Ok(())
    }

    /// The line is complete.
    #[inline]
    pub(super) fn end(&mut self) -> Result<(), FaultKind> {
        let Seen { custom_id, method, url, body } = self.seen;
        let fields = [(custom_id, "custom_id"), (method, "method"), (url, "url"), (body, "body")];
        if let Rules::Batch { .. } = self.rules
            && let Some((_, name)) = fields.into_iter().find(|(seen, _)| !seen)
        {
            return Err(FaultKind::MissingField(name));
        }
        self.start = self.edits.mark();
        Ok(())
    }

    /// The line is broken: it stays as it is.
    pub(super) fn discard(&mut self) {
        self.edits.back_to(self.start);
    }

    /// A key begins.
    pub(super) fn key_begins(&mut self, depth: usize) {
        match (depth, &mut self.body) {
            (1, _) => self.capture.key(),
            (2, Some(body)) => {
                body.is_empty = false;
                self.capture.key();
            }
            _ => self.capture.nothing(),
        }
    }

    /// The key is in `capture`, if it was asked for.
    pub(super) fn key_ends(&mut self, depth: usize) -> Result<(), FaultKind> {
        match (depth, &mut self.body) {
            (1, _) => self.field_begins(self.capture.key.name),
            (2, Some(body)) => {
                body.key(self.capture.key.name);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A key begins and ends. It is recognised where it lies in the chunk: to copy it first makes the processor
    /// wait for its own writes.
    #[inline]
    pub(super) fn key(&mut self, depth: usize, key: &[u8]) -> Result<(), FaultKind> {
        match (depth, &mut self.body) {
            (1, _) => self.field_begins(Name::of(key)),
            (2, Some(body)) => {
                body.is_empty = false;
                body.key(Name::of(key));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn field_begins(&mut self, name: Name) -> Result<(), FaultKind> {
        let (field, seen) = match name {
            Name::CustomId => (Field::CustomId, &mut self.seen.custom_id),
            Name::Method => (Field::Method, &mut self.seen.method),
            Name::Url => (Field::Url, &mut self.seen.url),
            Name::Body => (Field::Body, &mut self.seen.body),
            Name::Model | Name::Other => {
                self.field = None;
                return Ok(());
            }
        };
        self.field = Some(field);
        let is_repeated = mem::replace(seen, true);
        match (self.rules, field) {
            // Whose results are they, if readers disagree on which of the two counts?
            (Rules::Batch { .. }, Field::CustomId) if is_repeated => {
                Err(FaultKind::DuplicateKey("custom_id"))
            }
            _ => Ok(()),
        }
    }

    /// A value begins at the byte `at` of the file.
    #[inline]
    pub(super) fn value_begins(
        &mut self,
        depth: usize,
        kind: Kind,
        at: u64,
    ) -> Result<(), FaultKind> {
        self.capture.nothing();
        match (depth, self.field) {
            (0, _) if kind != Kind::Object => Err(FaultKind::NotAnObject),
            (1, Some(field)) => self.field_value_begins(field, kind, at),
            (2, _) => {
                if let Some(body) = &mut self.body {
                    body.model_start = at;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn field_value_begins(&mut self, field: Field, kind: Kind, at: u64) -> Result<(), FaultKind> {
        let (field, expected) = match (field, kind) {
            (Field::Body, Kind::Object) => {
                self.body = Some(Body {
                    start: at + 1,
                    is_empty: true,
                    has_model: false,
                    at_model: false,
                    model_start: 0,
                });
                return Ok(());
            }
            (Field::CustomId, Kind::Text) => {
                self.capture.custom_id();
                return Ok(());
            }
            (Field::Method | Field::Url, Kind::Text) => return Ok(()),
            (Field::Body, _) => ("body", "an object"),
            (Field::CustomId, _) => ("custom_id", "a string"),
            (Field::Method, _) => ("method", "a string"),
            (Field::Url, _) => ("url", "a string"),
        };
        match self.rules {
            Rules::Batch { .. } => Err(FaultKind::WrongType { field, expected }),
            Rules::FineTune => Ok(()),
        }
    }

    /// The value that began last at this depth ends before the byte `at` of the file.
    #[inline]
    pub(super) fn value_ends(&mut self, depth: usize, at: u64) -> Result<(), FaultKind> {
        match (depth, self.field, &mut self.body) {
            (1, Some(Field::CustomId), _) => self.custom_id_ends(),
            (1, Some(Field::Body), body) => match body.take() {
                Some(Body { has_model: false, is_empty: true, start, .. }) => {
                    self.edits.insert_alone(start)
                }
                Some(Body { has_model: false, start, .. }) => {
                    self.edits.insert_before_others(start)
                }
                _ => Ok(()),
            },
            (2, _, Some(Body { at_model: true, model_start, .. })) => {
                self.edits.replace(*model_start..at)
            }
            _ => Ok(()),
        }
    }

    fn custom_id_ends(&mut self) -> Result<(), FaultKind> {
        if matches!(self.rules, Rules::FineTune) {
            return Ok(());
        }
        if self.capture.custom_id.is_empty() {
            return Err(FaultKind::EmptyCustomId);
        }
        // The set is as bounded as the edits: a line without a `body`, hence without an edit, is
        // a fault.
        if !self.custom_ids.insert(self.capture.custom_id.digest()) {
            return Err(FaultKind::DuplicateCustomId(self.capture.custom_id.quoted()));
        }
        Ok(())
    }
}
