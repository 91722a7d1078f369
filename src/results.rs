//! The results of a run, line by line: what each says, where it lies, and what is to be thought of it.
//!
//! What a line says beside that stays in the blob store, in the file that the provider wrote: see
//! [`store::Entry`] for where.

mod body;
mod custom_id;
mod id;
mod index;
mod line;
mod merge;
pub mod page;
mod reader;
pub mod store;
mod tally;

pub use self::body::Presented;
pub use self::body::present;
pub use self::custom_id::Digest;
pub use self::custom_id::Digests;
pub use self::custom_id::stored;
pub use self::id::ResultId;
pub use self::index::Ids;
pub use self::index::Indexed;
pub use self::index::Indexer;
pub use self::line::Line;
pub use self::merge::Merged;
pub use self::reader::Lines;
pub use self::reader::RawLine;
pub use self::tally::Tally;
use crate::words::words;

words! {
    /// The file that a line is in. Which one says nothing of whether it succeeded.
    Source, "a file of results" {
        Output = "output",
        Error = "error",
    }
}

words! {
    /// What a line is.
    LineOutcome, "an outcome of a line" {
        /// The provider answered the request, with a status of 2xx and no error.
        Succeeded = "succeeded",
        Failed = "failed",
        /// It is no result: no JSON object, or one that does not say of which request.
        Broken = "broken",
    }
}

words! {
    /// Why a line is not counted.
    Problem, "a problem of a line" {
        /// Another line before it is the result of the same request.
        Duplicate = "duplicate",
        /// The input has no such request.
        Stranger = "stranger",
    }
}
