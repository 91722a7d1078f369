//! The states of a mapping and the moves between them.
#![warn(clippy::wildcard_enum_match_arm)]

use crate::words::words;

words! {
    /// Where a file's copy at one deployment is in its life.
    MappingStatus, "a mapping status" {
        Pending = "pending",
        /// The intent to upload is on disk; bytes may have left.
        Uploading = "uploading",
        Ready = "ready",
        Failed = "failed",
        /// The provider's own time limit passed.
        Expired = "expired",
        /// The provider no longer has it.
        Lost = "lost",
        Deleting = "deleting",
        Deleted = "deleted",
        /// The provider cannot delete.
        Undeletable = "undeletable",
    }
}

impl MappingStatus {
    /// Where a mapping may go from here. `Failed` leads back only by hand: `retry`.
    pub const fn successors(self) -> &'static [Self] {
        match self {
            Self::Pending => &[Self::Uploading, Self::Failed, Self::Deleting],
            Self::Uploading => {
                &[Self::Pending, Self::Uploading, Self::Ready, Self::Failed, Self::Deleting]
            }
            Self::Ready => &[Self::Expired, Self::Lost, Self::Deleting],
            Self::Failed => &[Self::Pending, Self::Deleting],
            Self::Expired | Self::Lost => &[Self::Deleting],
            Self::Deleting => &[Self::Deleted, Self::Undeletable],
            Self::Undeletable => &[Self::Deleting],
            Self::Deleted => &[],
        }
    }

    /// Whether the file is still on its way to this deployment.
    pub const fn is_working(self) -> bool {
        matches!(self, Self::Pending | Self::Uploading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back() {
        for status in MappingStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }

    #[test]
    fn every_status_can_end_as_deleted() {
        for status in MappingStatus::ALL {
            let mut reached = vec![status];
            let mut next = 0;
            while let Some(here) = reached.get(next).copied() {
                next += 1;
                let unseen: Vec<_> =
                    here.successors().iter().filter(|to| !reached.contains(to)).copied().collect();
                reached.extend(unseen);
            }
            assert!(reached.contains(&MappingStatus::Deleted), "{status} can never be deleted");
        }
    }
}
