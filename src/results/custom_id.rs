//! By what a line names its request: how it is compared, and how it is stored.

use std::borrow::Cow;
use std::collections::HashSet;

use sha2::Digest as _;
use sha2::Sha256;

/// The longest `custom_id` that is stored whole. An index of PostgreSQL takes no more than 2.7 KB.
const LONGEST: usize = 512;
/// What is stored of the beginning of a longer one.
const BEGINNING: usize = 400;

/// Half of the SHA-256 of a `custom_id` as it is stored: nobody finds two with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(u128);

impl Digest {
    pub fn of(stored: &str) -> Self {
        Self(half(stored.as_bytes()))
    }
}

/// Digests of many.
///
/// They lie in many sets, which grow one after another: one that grows is in memory twice while it does.
#[derive(Debug)]
pub struct Digests(Vec<HashSet<Digest>>);

impl Digests {
    const SETS: u128 = 64;

    /// `false` if it was there already.
    pub fn insert(&mut self, digest: Digest) -> bool {
        self.0[Self::place(digest)].insert(digest)
    }

    pub fn contains(&self, digest: Digest) -> bool {
        self.0[Self::place(digest)].contains(&digest)
    }

    fn place(digest: Digest) -> usize {
        (digest.0 % Self::SETS) as usize
    }
}

impl Default for Digests {
    fn default() -> Self {
        Self((0..Self::SETS).map(|_| HashSet::new()).collect())
    }
}

fn half(bytes: &[u8]) -> u128 {
    let digest = Sha256::digest(bytes);
    digest[..16].iter().fold(0, |value, byte| value << 8 | u128::from(*byte))
}

/// A decoded `custom_id` as the database has it, to be found by: as it is, unless it is long, or has what PostgreSQL
/// cannot store (a NUL, half of a surrogate pair). Then it is what can be stored of it, with a digest of all behind.
pub fn stored(custom_id: &[u8]) -> Cow<'_, str> {
    if custom_id.len() <= LONGEST
        && memchr::memchr(0, custom_id).is_none()
        && let Ok(text) = str::from_utf8(custom_id)
    {
        return Cow::Borrowed(text);
    }
    let beginning = &custom_id[..custom_id.len().min(BEGINNING)];
    let mut stored = String::from_utf8_lossy(beginning).replace('\0', "\u{fffd}");
    stored.truncate(stored.floor_char_boundary(BEGINNING));
    stored.push_str(&format!("…{:032x}", half(custom_id)));
    Cow::Owned(stored)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_ordinary_id_is_stored_as_it_is() {
        assert_eq!(stored("row-1 å".as_bytes()), "row-1 å");
    }

    #[test]
    fn what_no_database_takes_is_replaced() {
        assert!(stored(b"a\0b").starts_with("a\u{fffd}b…"));
        assert!(stored(b"half \xed\xa0\x80").starts_with("half \u{fffd}"));
        assert_ne!(stored(b"\xed\xa0\x80"), stored(b"\xed\xa0\x81"));
    }

    proptest! {
        #[test]
        fn whatever_is_stored_fits_an_index(id in prop::collection::vec(any::<u8>(), 0..3000)) {
            let stored = stored(&id);
            prop_assert!(stored.len() <= LONGEST);
            prop_assert!(!stored.contains('\0'));
        }

        #[test]
        fn long_ids_that_begin_alike_are_told_apart(beginning in "[a-zå]{600}", one in "[a-z]{3}", other in "[a-z]{3}") {
            prop_assume!(one != other);
            let stored = |end: &str| super::stored(format!("{beginning}{end}").as_bytes()).into_owned();
            prop_assert_ne!(stored(&one), stored(&other));
        }
    }
}
