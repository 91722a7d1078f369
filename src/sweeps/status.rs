//! The states of a sweep.

use std::fmt;
use std::str::FromStr;

/// Where a sweep is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepStatus {
    Queued,
    Running,
    /// Every file of it is gone at every provider.
    Succeeded,
    /// It is over, and something of it may be left: some file's delete was given up, or it could not go on.
    Failed,
    /// It takes no more files; those that it took are deleted all the same.
    Cancelled,
}

impl SweepStatus {
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Cancelled];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for SweepStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SweepStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let status = Self::ALL.into_iter().find(|status| status.as_str() == text);
        status.ok_or_else(|| format!("`{text}` is not a status of a sweep"))
    }
}
