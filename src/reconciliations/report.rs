//! What a reconciliation has found and done.

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// Objects that are named in a report, of each kind.
const MOST_SAMPLES: usize = 100;

/// What a reconciliation has found and done. Counts are of objects at the provider, the last three of
/// mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ReconciliationReport)]
pub struct Report {
    /// All that the provider listed.
    pub listed: u64,
    /// Copies that their mappings hold.
    pub held: u64,
    /// Ours, and seen to by something else: an upload, a delete, or a person.
    pub left: u64,
    /// Ours, and of no mapping that the database knows. They are never deleted.
    pub unknown: u64,
    /// Not ours: without a marker of this installation.
    pub foreign: u64,
    /// Deleted or superseded here, and still there.
    pub superfluous: u64,
    /// Deleted now: of those, and of what was noted before and not deleted.
    pub deleted: u64,
    /// What the provider refused to delete.
    pub failed: u64,
    /// Copies that should be there.
    pub expected: u64,
    /// Of those, such as the list did not show.
    pub missing: u64,
    /// Of those, such as the provider, asked twice, does not have. Their mappings are `lost` now.
    pub lost: u64,
    /// Why missing copies were not looked into, or why nothing was deleted.
    pub stopped: Option<String>,
    /// The first of what is unknown, superfluous, refused or lost.
    pub samples: Vec<Sample>,
}

/// An object that a report names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ReconciliationSample)]
pub struct Sample {
    /// `unknown`, `superfluous`, `failed` or `lost`.
    pub kind: String,
    pub provider_file_id: String,
    /// As the provider has it.
    pub filename: Option<String>,
    /// Why it must go.
    pub reason: Option<String>,
}

impl Report {
    /// Names an object, unless enough of its kind are named.
    pub fn name(&mut self, sample: Sample) {
        let named = self.samples.iter().filter(|other| other.kind == sample.kind).count();
        if named < MOST_SAMPLES {
            self.samples.push(sample);
        }
    }
}
