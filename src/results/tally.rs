//! Lines, counted.

use super::Indexed;
use super::LineOutcome;
use super::Problem;
use crate::runs::Usage;

/// What lines come to. A broken one is no result, and one with a problem does not count as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub lines: i64,
    pub succeeded: i64,
    pub failed: i64,
    pub broken: i64,
    pub duplicates: i64,
    pub strangers: i64,
    /// Of those that count.
    pub usage: Option<Usage>,
}

impl Tally {
    pub fn add(&mut self, line: &Indexed) {
        self.lines += 1;
        match (line.problem, line.outcome) {
            (_, LineOutcome::Broken) => self.broken += 1,
            (Some(Problem::Duplicate), _) => self.duplicates += 1,
            (Some(Problem::Stranger), _) => self.strangers += 1,
            (None, LineOutcome::Succeeded) => self.succeeded += 1,
            (None, LineOutcome::Failed) => self.failed += 1,
        }
        if let (None, Some(usage)) = (line.problem, line.usage) {
            *self.usage.get_or_insert_default() += usage;
        }
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.lines += other.lines;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        self.broken += other.broken;
        self.duplicates += other.duplicates;
        self.strangers += other.strangers;
        if let Some(usage) = other.usage {
            *self.usage.get_or_insert_default() += usage;
        }
    }
}
