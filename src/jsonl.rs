//! JSON Lines, read as they stream by: batch input is checked, and `body.model` is replaced in place.
//!
//! One pass over a file finds the places where a model name goes. They are the same for every
//! model, so they are kept as a compact list ([`Edits`]) and spliced into the bytes once per
//! deployment. No line is ever held in memory, and no line is serialised anew.
//!
//! The grammar is RFC 8259's to the letter, which leaves two things to say: an escaped surrogate
//! without its other half (`"\ud800"`) is accepted, and so is a number of any size. Nesting is
//! limited to 512 levels.

mod capture;
mod check;
mod custom_id;
mod edits;
mod fault;
mod line;
mod number;
mod scanner;
mod splice;
mod text;

#[cfg(test)]
mod tests;

use std::io;

use bytes::Bytes;
use futures_util::{TryStreamExt, stream::BoxStream};

pub use self::{
    check::Check,
    edits::Edits,
    fault::{Fault, FaultKind},
};

/// A file on its way: chunks of any size, in order. It ends after its first error.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// What one pass over a file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Lines that are not blank: the requests of a batch file, the examples of a fine-tuning file.
    pub lines: u64,
    /// Where a model name goes.
    pub edits: Edits,
}

/// Why a file could not be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The content breaks a rule; another attempt finds the same.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The content could not be read.
    #[error("the file could not be read")]
    Io(#[from] io::Error),
}

/// Reads `stream` to its end, or to its first fault.
pub async fn scan(mut stream: ByteStream, mut check: Check) -> Result<Scanned, ScanError> {
    while let Some(chunk) = stream.try_next().await? {
        check.feed(&chunk)?;
    }
    Ok(check.finish()?)
}
