//! The states of a file. They follow from its mappings'.
#![warn(clippy::wildcard_enum_match_arm)]

use crate::mappings::MappingStatus;
use crate::words::words;

words! {
    /// Where a file is in its life.
    FileStatus, "a file status" {
        /// It is here, and on its way to some model.
        Uploaded = "uploaded",
        /// Every model has it.
        Processed = "processed",
        /// No model is still to get it, and at least one never will.
        Error = "error",
        /// A tombstone.
        Deleted = "deleted",
    }
}

impl FileStatus {
    /// Whether somebody who waits for the file is told.
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Uploaded)
    }

    /// The status of a file that is not deleted, from those of its mappings.
    pub fn of_mappings(mappings: impl IntoIterator<Item = MappingStatus>) -> Self {
        let mut status = Self::Processed;
        for mapping in mappings {
            match mapping {
                MappingStatus::Pending | MappingStatus::Uploading => return Self::Uploaded,
                MappingStatus::Failed => status = Self::Error,
                // It was ready once; what became of the copy since is told by the mapping itself.
                MappingStatus::Ready
                | MappingStatus::Expired
                | MappingStatus::Lost
                | MappingStatus::Deleting
                | MappingStatus::Deleted
                | MappingStatus::Undeletable => {}
            }
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_mapping() -> impl Strategy<Value = MappingStatus> {
        prop::sample::select(MappingStatus::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn the_order_of_the_mappings_does_not_matter(mut mappings in prop::collection::vec(any_mapping(), 0..8)) {
            let status = FileStatus::of_mappings(mappings.iter().copied());
            mappings.reverse();
            prop_assert_eq!(FileStatus::of_mappings(mappings), status);
        }

        #[test]
        fn a_file_is_final_exactly_when_no_mapping_works(mappings in prop::collection::vec(any_mapping(), 0..8)) {
            let works = mappings.iter().any(|mapping| mapping.is_working());
            prop_assert_eq!(FileStatus::of_mappings(mappings).is_final(), !works);
        }
    }

    #[test]
    fn every_status_reads_back() {
        for status in FileStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
    }
}
