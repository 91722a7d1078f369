//! The states of a mapping and the moves between them.
#![warn(clippy::wildcard_enum_match_arm)]

use std::fmt;
use std::str::FromStr;

/// Where a file's copy at one deployment is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingStatus {
    Pending,
    /// The intent to upload is on disk; bytes may have left.
    Uploading,
    Ready,
    Failed,
    /// The provider's own time limit passed.
    Expired,
    /// The provider no longer has it.
    Lost,
    Deleting,
    Deleted,
    /// The provider cannot delete.
    Undeletable,
}

impl MappingStatus {
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Uploading,
        Self::Ready,
        Self::Failed,
        Self::Expired,
        Self::Lost,
        Self::Deleting,
        Self::Deleted,
        Self::Undeletable,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Uploading => "uploading",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
            Self::Undeletable => "undeletable",
        }
    }

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

impl fmt::Display for MappingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for MappingStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let status = Self::ALL.into_iter().find(|status| status.as_str() == text);
        status.ok_or_else(|| format!("`{text}` is not a mapping status"))
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
