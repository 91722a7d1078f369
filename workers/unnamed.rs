//! Blobs of a bucket that no row named when they were last looked at.
//!
//! A folder tells when something was last written to a blob. A bucket may tell when its upload began, which for a slow
//! one is long ago when its row is just being written: so what is no orphan yet is told by a second look.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

/// Between the first look and the one that makes an orphan. No row is written so long after its blob.
const BETWEEN_LOOKS: Duration = Duration::from_secs(30 * 60);
/// What is remembered. The rest is seen for the first time at a later look.
const MOST: usize = 100_000;

/// What is remembered of them, in the memory of this process.
#[derive(Debug, Default)]
pub struct Unnamed {
    blobs: HashMap<String, Seen>,
    looks: u64,
}

#[derive(Debug)]
struct Seen {
    first: Instant,
    /// The last look that saw it.
    look: u64,
}

impl Unnamed {
    /// Begins a look at all blobs.
    pub fn look(&mut self) {
        self.looks += 1;
    }

    /// Notes that no row names a blob. `true` when that was so long ago, too: then it is an orphan.
    pub fn is_orphan(&mut self, key: &str, now: Instant) -> bool {
        if let Some(seen) = self.blobs.get_mut(key) {
            seen.look = self.looks;
            return now.saturating_duration_since(seen.first) >= BETWEEN_LOOKS;
        }
        if self.blobs.len() < MOST {
            self.blobs.insert(key.to_owned(), Seen { first: now, look: self.looks });
        }
        false
    }

    /// Ends a look that has come to all blobs: what it did not see has a name by now, or is gone.
    pub fn looked(&mut self) {
        self.blobs.retain(|_, seen| seen.look == self.looks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_an_orphan_when_no_row_names_it_at_two_looks_half_an_hour_apart() {
        let (mut unnamed, start) = (Unnamed::default(), Instant::now());
        unnamed.look();
        assert!(!unnamed.is_orphan("a", start));
        assert!(!unnamed.is_orphan("b", start));
        unnamed.looked();
        unnamed.look();
        assert!(!unnamed.is_orphan("a", start + BETWEEN_LOOKS / 2));
        unnamed.looked();
        // One that had a name meanwhile begins anew.
        unnamed.look();
        assert!(unnamed.is_orphan("a", start + BETWEEN_LOOKS));
        assert!(!unnamed.is_orphan("b", start + BETWEEN_LOOKS));
        // A look that broke off forgets nothing.
        unnamed.look();
        unnamed.look();
        assert!(unnamed.is_orphan("b", start + 2 * BETWEEN_LOOKS));
        unnamed.looked();
        // What was deleted is not remembered.
        assert_eq!(unnamed.blobs.len(), 1);
    }

    #[test]
    fn what_there_is_no_room_for_is_seen_later() {
        let (mut unnamed, start) = (Unnamed::default(), Instant::now());
        unnamed.look();
        for place in 0..MOST {
            assert!(!unnamed.is_orphan(&place.to_string(), start));
        }
        assert!(!unnamed.is_orphan("more", start));
        unnamed.looked();
        assert_eq!(unnamed.blobs.len(), MOST);
        let mut now = start + BETWEEN_LOOKS;
        unnamed.look();
        assert!(unnamed.is_orphan("0", now));
        assert!(!unnamed.is_orphan("more", now));
        unnamed.looked();
        now += BETWEEN_LOOKS;
        unnamed.look();
        assert!(!unnamed.is_orphan("more", now));
        unnamed.looked();
        now += BETWEEN_LOOKS;
        unnamed.look();
        assert!(unnamed.is_orphan("more", now));
    }
}
