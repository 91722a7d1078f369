//! The states of a run and the moves between them.
#![warn(clippy::wildcard_enum_match_arm)]

use crate::providers::RemoteBatchState;
use crate::words::words;

words! {
    /// Where a batch at one deployment is in its life.
    RunStatus, "a run status" {
        /// Not at the provider yet, or being looked at there.
        Validating = "validating",
        InProgress = "in_progress",
        /// The provider writes its results, or we fetch them.
        Finalizing = "finalizing",
        Completed = "completed",
        Failed = "failed",
        Expired = "expired",
        Cancelling = "cancelling",
        Cancelled = "cancelled",
        /// Nobody here can find out whether the provider has it: a person decides.
        NeedsAttention = "needs_attention",
    }
}

words! {
    /// How a batch ended at its provider.
    Outcome, "an outcome of a run" {
        Completed = "completed",
        Failed = "failed",
        Expired = "expired",
        Cancelled = "cancelled",
    }
}

impl RunStatus {
    /// Where a run may go from here. A provider may refuse, for want of room, a batch that it took before: then
    /// the run is `Validating` again. `NeedsAttention` leads on by hand, or by an answer that comes very late.
    pub const fn successors(self) -> &'static [Self] {
        match self {
            Self::Validating => &[
                Self::InProgress,
                Self::Finalizing,
                Self::Cancelling,
                Self::Completed,
                Self::Failed,
                Self::Expired,
                Self::Cancelled,
                Self::NeedsAttention,
            ],
            Self::InProgress => &[
                Self::Validating,
                Self::Finalizing,
                Self::Cancelling,
                Self::Completed,
                Self::Failed,
                Self::Expired,
                Self::Cancelled,
            ],
            // A provider may end a batch before it sees our cancel request.
            Self::Cancelling => &[
                Self::Finalizing,
                Self::Completed,
                Self::Failed,
                Self::Expired,
                Self::Cancelled,
                Self::NeedsAttention,
            ],
            Self::Finalizing => &[
                Self::Validating,
                Self::Cancelling,
                Self::Completed,
                Self::Failed,
                Self::Expired,
                Self::Cancelled,
            ],
            Self::NeedsAttention => &[
                Self::Validating,
                Self::InProgress,
                Self::Finalizing,
                Self::Cancelling,
                Self::Completed,
                Self::Failed,
                Self::Expired,
                Self::Cancelled,
            ],
            Self::Completed | Self::Failed | Self::Expired | Self::Cancelled => &[],
        }
    }

    pub const fn is_final(self) -> bool {
        self.successors().is_empty()
    }

    /// The status of a run whose provider shows this; `None` where that says nothing of it. A run that is to be
    /// cancelled stays so until it has ended, and none goes back because a list was old.
    pub fn seen(self, state: RemoteBatchState) -> Option<Self> {
        let shown = match state {
            RemoteBatchState::Validating => Self::Validating,
            RemoteBatchState::InProgress => Self::InProgress,
            RemoteBatchState::Finalizing => Self::Finalizing,
            RemoteBatchState::Cancelling => Self::Cancelling,
            RemoteBatchState::Completed
            | RemoteBatchState::Failed
            | RemoteBatchState::Expired
            | RemoteBatchState::Cancelled
            | RemoteBatchState::Unknown => return None,
        };
        (shown.stage() > self.stage()).then_some(shown)
    }

    const fn stage(self) -> u8 {
        match self {
            Self::Validating | Self::NeedsAttention => 0,
            Self::InProgress => 1,
            Self::Finalizing => 2,
            Self::Cancelling => 3,
            Self::Completed | Self::Failed | Self::Expired | Self::Cancelled => 4,
        }
    }
}

impl Outcome {
    /// How a batch ended whose provider shows this; `None` while it has not.
    pub const fn of(state: RemoteBatchState) -> Option<Self> {
        match state {
            RemoteBatchState::Completed => Some(Self::Completed),
            RemoteBatchState::Failed => Some(Self::Failed),
            RemoteBatchState::Expired => Some(Self::Expired),
            RemoteBatchState::Cancelled => Some(Self::Cancelled),
            RemoteBatchState::Validating
            | RemoteBatchState::InProgress
            | RemoteBatchState::Finalizing
            | RemoteBatchState::Cancelling
            | RemoteBatchState::Unknown => None,
        }
    }

    /// What the run is once its results are here.
    pub const fn status(self) -> RunStatus {
        match self {
            Self::Completed => RunStatus::Completed,
            Self::Failed => RunStatus::Failed,
            Self::Expired => RunStatus::Expired,
            Self::Cancelled => RunStatus::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_can_end() {
        for status in RunStatus::ALL {
            let can_end = status.successors().iter().any(|to| to.is_final());
            assert!(status.is_final() || can_end, "{status} can never end");
        }
    }

    #[test]
    fn what_a_provider_shows_never_leads_back() {
        use RemoteBatchState as Remote;
        let looks = [
            (RunStatus::Validating, Remote::InProgress, Some(RunStatus::InProgress)),
            (RunStatus::InProgress, Remote::Validating, None),
            (RunStatus::InProgress, Remote::InProgress, None),
            (RunStatus::Finalizing, Remote::InProgress, None),
            (RunStatus::Cancelling, Remote::InProgress, None),
            (RunStatus::InProgress, Remote::Cancelling, Some(RunStatus::Cancelling)),
            (RunStatus::InProgress, Remote::Unknown, None),
            (RunStatus::Completed, Remote::Cancelling, None),
        ];
        for (status, state, expected) in looks {
            assert_eq!(status.seen(state), expected, "{status} {state:?}");
            assert!(expected.is_none_or(|to| status.successors().contains(&to)));
        }
    }
}
