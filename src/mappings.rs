//! Mappings: a file's copy at one deployment, from the intent to upload it to its end.

pub mod deletion;
pub mod outcome;
pub mod receipt;
pub mod status;
pub mod store;

use data_encoding::BASE32_NOPAD;
use rand::RngExt as _;
pub use status::MappingStatus;

/// The mark by which a copy at a provider is known as ours: the installation's id and the mapping's
/// random token, 80 bits together, in base32.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Marker(pub String);

/// The installation's share of a marker, and so the length of its id: 30 bits.
pub const INSTALLATION_LENGTH: usize = 6;
const MARKER_LENGTH: usize = 16;
/// What follows a dot and is longer is no extension.
const MAX_EXTENSION: usize = 16;
/// A filename with its marker stays below what providers and filesystems take.
const MAX_FILENAME: usize = 240;

impl Marker {
    /// A new marker of this installation.
    pub fn mint(installation_id: &str) -> Self {
        Self(format!("{installation_id}{}", random(MARKER_LENGTH - INSTALLATION_LENGTH)))
    }

    /// The client's filename with the marker before its extension: `in.jsonl` → `in.k3f9….jsonl`.
    pub fn mark(&self, filename: &str) -> String {
        let (stem, extension) = match filename.rsplit_once('.') {
            Some((stem, extension)) if !stem.is_empty() && extension.len() <= MAX_EXTENSION => {
                (stem, Some(extension))
            }
            _ => (filename, None),
        };
        let room = MAX_FILENAME - MARKER_LENGTH - 2 - extension.map_or(0, str::len);
        let stem = &stem[..stem.floor_char_boundary(room)];
        match extension {
            Some(extension) => format!("{stem}.{}.{extension}", self.0),
            None => format!("{stem}.{}", self.0),
        }
    }

    /// The marker that [`Marker::mark`] has put into a filename, of whatever installation. The client's own
    /// part of the name may look like one: only the place tells, and it tells for certain.
    pub fn of(filename: &str) -> Option<Self> {
        let (rest, last) = filename.rsplit_once('.')?;
        let before = rest.rsplit_once('.').filter(|(stem, part)| {
            !stem.is_empty() && is_marker(part) && last.len() <= MAX_EXTENSION
        });
        let marker = match before {
            Some((_, part)) => part,
            None => Some(last).filter(|last| is_marker(last))?,
        };
        Some(Self(marker.to_owned()))
    }

    /// Whether it was minted by this installation.
    pub fn is_of(&self, installation_id: &str) -> bool {
        self.0.starts_with(installation_id)
    }
}

fn is_marker(part: &str) -> bool {
    part.len() == MARKER_LENGTH
        && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'))
}

/// `length` random characters of the base32 alphabet, in lower case.
pub fn random(length: usize) -> String {
    let mut bytes = [0; 20];
    rand::rng().fill(&mut bytes);
    let mut text = BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_marker_stands_before_the_extension() {
        let marker = Marker("abcdefghijklmnop".to_owned());
        assert_eq!(marker.mark("in.jsonl"), "in.abcdefghijklmnop.jsonl");
        assert_eq!(marker.mark("in"), "in.abcdefghijklmnop");
        assert_eq!(marker.mark(".env"), ".env.abcdefghijklmnop");
        assert_eq!(marker.mark("a.tar.gz"), "a.tar.abcdefghijklmnop.gz");
    }

    proptest! {
        #[test]
        fn a_marked_name_tells_its_marker(name in ".{0,300}") {
            let marker = Marker::mint("aaaaaa");
            let marked = marker.mark(&name);
            prop_assert!(marked.len() <= MAX_FILENAME);
            prop_assert_eq!(Marker::of(&marked), Some(marker));
        }

        #[test]
        fn a_name_that_holds_other_markers_is_found_by_its_own(
            parts in prop::collection::vec(prop_oneof!["[a-z2-7]{16}", "[a-z]{0,3}", "[a-z2-7]{17}"], 0..5),
        ) {
            let marker = Marker::mint("aaaaaa");
            prop_assert_eq!(Marker::of(&marker.mark(&parts.join("."))), Some(marker));
        }
    }

    #[test]
    fn markers_have_eighty_bits_and_begin_with_the_installation() {
        let marker = Marker::mint(&random(INSTALLATION_LENGTH));
        assert_eq!(marker.0.len(), MARKER_LENGTH);
        assert!(marker.0.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
    }
}
