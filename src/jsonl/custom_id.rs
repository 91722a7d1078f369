//! The `custom_id` of a line, and those of all lines before it.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
};

use sha2::{Digest, Sha256};

/// How much of a `custom_id` is kept for the error that quotes it, in bytes.
const QUOTED_BYTES: usize = 128;

/// A `custom_id`, as a digest of its decoded value: ids of any length take the same room, and
/// `"a"` and `"\u0061"` are one id.
#[derive(Default)]
pub(super) struct CustomId {
    sha256: Sha256,
    beginning: Vec<u8>,
    is_longer: bool,
}

impl CustomId {
    pub(super) fn is_empty(&self) -> bool {
        self.beginning.is_empty()
    }

    /// Half of the SHA-256: nobody finds two ids with the same.
    pub(super) fn digest(&mut self) -> u128 {
        let digest = self.sha256.finalize_reset();
        let half = digest.first_chunk().expect("a SHA-256 has 32 bytes");
        u128::from_be_bytes(*half)
    }

    /// The id as an error message quotes it: cut, valid UTF-8, without control characters.
    pub(super) fn quoted(&self) -> String {
        let text = String::from_utf8_lossy(&self.beginning);
        let whole = if self.is_longer {
            // The cut may have split a character.
            text.trim_end_matches(char::REPLACEMENT_CHARACTER)
        } else {
            &text
        };
        let mut quoted = String::with_capacity(whole.len() + 3);
        for character in whole.chars() {
            if character.is_control() {
                quoted.extend(character.escape_default());
            } else {
                quoted.push(character);
            }
        }
        if self.is_longer {
            quoted.push('…');
        }
        quoted
    }

    pub(super) fn clear(&mut self) {
        Digest::reset(&mut self.sha256);
        self.beginning.clear();
        self.is_longer = false;
    }

    pub(super) fn push(&mut self, decoded: &[u8]) {
        self.sha256.update(decoded);
        let free = QUOTED_BYTES - self.beginning.len();
        match decoded.split_at_checked(free) {
            Some((fits, rest)) => {
                self.beginning.extend_from_slice(fits);
                self.is_longer |= !rest.is_empty();
            }
            None => self.beginning.extend_from_slice(decoded),
        }
    }
}

/// The ids of a file, as their digests.
///
/// They lie in many sets, because a set that grows is in memory twice while it does, the new one
/// being twice as big: with two million ids in a single set that is 107 MB for a moment. In many,
/// which grow one after another, it is never more than the 71 MB they take in the end.
pub(super) struct CustomIds {
    sets: Vec<HashSet<u128, BuildHasherDefault<Uniform>>>,
}

/// Takes a digest for its own hash: it is as good as random already, and nobody can choose it.
#[derive(Default)]
struct Uniform(u64);

impl Hasher for Uniform {
    fn write_u128(&mut self, digest: u128) {
        // The lowest bits have chosen the set.
        self.0 = (digest >> 64) as u64;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a digest is hashed as one number")
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

const SETS: u128 = 64;

impl CustomIds {
    pub(super) fn new() -> Self {
        Self { sets: (0..SETS).map(|_| HashSet::default()).collect() }
    }

    /// Returns `false` if the id was there already.
    pub(super) fn insert(&mut self, digest: u128) -> bool {
        self.sets[(digest % SETS) as usize].insert(digest)
    }
}
