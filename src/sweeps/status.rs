//! The states of a sweep.

use crate::words::words;

words! {
    /// Where a sweep is in its life.
    SweepStatus, "a status of a sweep" {
        Queued = "queued",
        Running = "running",
        /// Every file of it is gone at every provider.
        Succeeded = "succeeded",
        /// It is over, and something of it may be left: some file's delete was given up, or it could not go on.
        Failed = "failed",
        /// It takes no more files; those that it took are deleted all the same.
        Cancelled = "cancelled",
    }
}

impl SweepStatus {
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}
