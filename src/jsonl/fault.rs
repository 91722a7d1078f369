//! What can be wrong with a file, said so that its author can put it right.

use std::fmt;

/// The most places for a model name that one file may have: a bound on memory, at 3 to 5 bytes each.
pub(super) const MAX_EDITS: u64 = 2_000_000;

/// The first thing wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, counted from 1; blank lines count. For [`FaultKind::EmptyFile`] the last line.
    pub line: u64,
    pub kind: FaultKind,
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            FaultKind::EmptyFile => self.kind.fmt(formatter),
            _ => write!(formatter, "line {}: {}", self.line, self.kind),
        }
    }
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// `column` is the offending byte, counted in bytes from 1.
    #[error("not valid JSON at column {column}: {what}")]
    InvalidJson { what: &'static str, column: u64 },
    #[error("must be a JSON object with `custom_id`, `method`, `url` and `body`")]
    NotAnObject,
    #[error("`{0}` is missing; a line has `custom_id`, `method`, `url` and `body`")]
    MissingField(&'static str),
    #[error("`{field}` must be {expected}")]
    WrongType { field: &'static str, expected: &'static str },
    #[error("`custom_id` is empty; it must be a non-empty string")]
    EmptyCustomId,
    /// The id is cut to its first 128 bytes and has its control characters escaped.
    #[error("`custom_id` `{0}` was already used on an earlier line; each must be unique")]
    DuplicateCustomId(String),
    #[error("the key `{0}` occurs twice; a line has it once")]
    DuplicateKey(&'static str),
    #[error("the file has no requests; it must have at least one line")]
    EmptyFile,
    #[error("the file has more than {limit} requests; split it into smaller files")]
    TooManyLines { limit: u64 },
    #[error(
        "the file has more than {MAX_EDITS} places for a model name; split it into smaller files"
    )]
    TooManyEdits,
}
