//! The states of a job and the moves between them.
#![warn(clippy::wildcard_enum_match_arm)]

use crate::words::words;

words! {
    /// Where a job is in its life.
    JobStatus, "a job status" {
        Queued = "queued",
        Running = "running",
        /// Between two attempts.
        Retrying = "retrying",
        Succeeded = "succeeded",
        /// The dead letter: it stays, and can be retried by hand.
        Failed = "failed",
        Cancelled = "cancelled",
    }
}

impl JobStatus {
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
