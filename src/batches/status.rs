//! The states of a batch. They follow from its runs'.
#![warn(clippy::wildcard_enum_match_arm)]

use crate::events::EventKind;
use crate::runs::RunStatus;
use crate::words::words;

words! {
    /// Where a batch is in its life, in OpenAI's words.
    BatchStatus, "a batch status" {
        /// It waits for its file to reach the provider, or for the provider to look at it.
        Validating = "validating",
        InProgress = "in_progress",
        /// The results are being written: by the provider, and then by us.
        Finalizing = "finalizing",
        Completed = "completed",
        Failed = "failed",
        Expired = "expired",
        Cancelling = "cancelling",
        Cancelled = "cancelled",
    }
}

impl BatchStatus {
    pub const fn is_final(self) -> bool {
        match self {
            Self::Completed | Self::Failed | Self::Expired | Self::Cancelled => true,
            Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling => false,
        }
    }

    /// The status of a batch from those of its runs. When all have ended it is the best that one of them ended as.
    pub fn of_runs(runs: &[RunStatus], is_cancelling: bool) -> Self {
        let any = |status| runs.contains(&status);
        if runs.iter().all(|run| run.is_final()) {
            return [
                (RunStatus::Completed, Self::Completed),
                (RunStatus::Expired, Self::Expired),
                (RunStatus::Cancelled, Self::Cancelled),
            ]
            .into_iter()
            .find_map(|(run, batch)| any(run).then_some(batch))
            .unwrap_or(Self::Failed);
        }
        let mut open = runs.iter().filter(|run| !run.is_final());
        if open.all(|run| *run == RunStatus::Finalizing) {
            return Self::Finalizing;
        }
        if is_cancelling {
            return Self::Cancelling;
        }
        let has_begun =
            |run: &RunStatus| !matches!(run, RunStatus::Validating | RunStatus::NeedsAttention);
        if runs.iter().any(has_begun) { Self::InProgress } else { Self::Validating }
    }

    /// What is announced when a batch comes to be so.
    pub const fn event(self) -> EventKind {
        match self {
            Self::Validating => EventKind::BatchCreated,
            Self::InProgress => EventKind::BatchInProgress,
            Self::Finalizing => EventKind::BatchFinalizing,
            Self::Completed => EventKind::BatchCompleted,
            Self::Failed => EventKind::BatchFailed,
            Self::Expired => EventKind::BatchExpired,
            Self::Cancelling => EventKind::BatchCancelling,
            Self::Cancelled => EventKind::BatchCancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_run() -> impl Strategy<Value = RunStatus> {
        prop::sample::select(RunStatus::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn a_batch_has_ended_exactly_when_all_its_runs_have(
            runs in prop::collection::vec(any_run(), 1..6),
            is_cancelling: bool,
        ) {
            let ended = runs.iter().all(|run| run.is_final());
            prop_assert_eq!(BatchStatus::of_runs(&runs, is_cancelling).is_final(), ended);
        }

        #[test]
        fn the_order_of_the_runs_does_not_matter(mut runs in prop::collection::vec(any_run(), 1..6), is_cancelling: bool) {
            let status = BatchStatus::of_runs(&runs, is_cancelling);
            runs.reverse();
            prop_assert_eq!(BatchStatus::of_runs(&runs, is_cancelling), status);
        }
    }

    #[test]
    fn a_batch_ends_as_the_best_of_its_runs() {
        use RunStatus::{Cancelled, Completed, Expired, Failed};
        let ends = [
            (vec![Failed, Completed, Cancelled, Expired], BatchStatus::Completed),
            (vec![Failed, Cancelled, Expired], BatchStatus::Expired),
            (vec![Failed, Cancelled], BatchStatus::Cancelled),
            (vec![Failed, Failed], BatchStatus::Failed),
        ];
        for (runs, expected) in ends {
            assert_eq!(BatchStatus::of_runs(&runs, true), expected, "{runs:?}");
        }
    }

    #[test]
    fn a_batch_shows_how_far_its_open_runs_are() {
        use RunStatus::{
            Cancelling, Completed, Finalizing, InProgress, NeedsAttention, Validating,
        };
        let states = [
            (vec![Validating, NeedsAttention], false, BatchStatus::Validating),
            (vec![Validating, InProgress], false, BatchStatus::InProgress),
            (vec![Completed, Validating], false, BatchStatus::InProgress),
            (vec![Completed, Finalizing], false, BatchStatus::Finalizing),
            (vec![Cancelling, InProgress], true, BatchStatus::Cancelling),
            (vec![Finalizing, Finalizing], true, BatchStatus::Finalizing),
        ];
        for (runs, is_cancelling, expected) in states {
            assert_eq!(BatchStatus::of_runs(&runs, is_cancelling), expected, "{runs:?}");
        }
    }
}
