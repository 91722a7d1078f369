//! The states of a job and the moves between them.
#![warn(clippy::wildcard_enum_match_arm)]

use std::fmt;
use std::str::FromStr;

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobStatus {
    Queued,
    Running,
    /// Between two attempts.
    Retrying,
    Succeeded,
    /// The dead letter: it stays, and can be retried by hand.
    Failed,
    Cancelled,
}

impl JobStatus {
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Retrying,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Where a job may go from here. The last three lead back only by hand: `retry`.
    pub const fn successors(self) -> &'static [Self] {
        match self {
            Self::Queued | Self::Retrying => &[Self::Running, Self::Failed, Self::Cancelled],
            Self::Running => &[Self::Retrying, Self::Succeeded, Self::Failed, Self::Cancelled],
            Self::Failed | Self::Cancelled => &[Self::Queued],
            Self::Succeeded => &[],
        }
    }

    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|status| format!("`{status}`")).collect();
            format!("`{text}` is not a job status; there are {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back() {
        for status in JobStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("done".parse::<JobStatus>().is_err());
    }

    #[test]
    fn no_live_status_is_a_trap() {
        for status in JobStatus::ALL.into_iter().filter(|status| !status.is_final()) {
            let mut reached = vec![status];
            let mut next = 0;
            while let Some(here) = reached.get(next).copied() {
                next += 1;
                let unseen: Vec<_> =
                    here.successors().iter().filter(|to| !reached.contains(to)).copied().collect();
                reached.extend(unseen);
            }
            assert!(reached.contains(&JobStatus::Succeeded), "{status} never succeeds");
            assert!(reached.contains(&JobStatus::Cancelled), "{status} cannot be cancelled");
        }
    }
}
