//! The names of objects in the store.

use object_store::path::Path;
use uuid::Uuid;

use crate::clock::Timestamp;

/// The name of an object in the store. Nobody else builds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobKey {
    /// What a client uploaded: a folder for each hour, so that none grows without bound.
    Upload { at: Timestamp, id: Uuid },
    /// What a batch produced, likewise.
    Output { at: Timestamp, id: Uuid },
    /// The installation's id, so that a store is recognised beside a database that is not its own.
    Installation,
    /// Written now and then, to read the store's clock.
    Clock,
    /// Written, read and deleted to see that the store works.
    Probe(Uuid),
    /// A key as it was stored with the file.
    Stored(String),
}

impl BlobKey {
    /// How the keys of uploads begin.
    pub const UPLOADS: &'static str = "uploads/";
    /// What holds the bytes of files.
    pub(super) const FOLDERS: [&'static str; 2] = ["uploads", "outputs"];

    pub fn path(&self) -> String {
        match self {
            Self::Upload { at, id } => in_folder_of_hour("uploads", *at, *id),
            Self::Output { at, id } => in_folder_of_hour("outputs", *at, *id),
            Self::Installation => "installation".to_owned(),
            Self::Clock => "clock".to_owned(),
            Self::Probe(id) => format!("probe-{}", id.simple()),
            Self::Stored(path) => path.clone(),
        }
    }

    /// Where the keys of uploads that were made at `at` or later begin, in the order of their texts.
    pub fn first_of(at: Timestamp) -> String {
        Self::Upload { at, id: Uuid::nil() }.path()
    }

    /// Whether a key is one that was made here, of the bytes of a file: in a bucket that is shared with
    /// others, what is theirs may lie in a folder of the same name.
    pub(super) fn is_of_file(path: &str) -> bool {
        let is_shaped = |text: &str, shape: &str| {
            text.len() == shape.len()
                && text.bytes().zip(shape.bytes()).all(|(byte, shape)| match shape {
                    b'0' => byte.is_ascii_digit(),
                    b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
                    _ => byte == shape,
                })
        };
        Self::FOLDERS.iter().any(|folder| {
            path.strip_prefix(folder).is_some_and(|rest| {
                is_shaped(rest, "/0000-00-00/00/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx")
            })
        })
    }

    pub(super) fn object(&self) -> Path {
        Path::from(self.path())
    }
}

fn in_folder_of_hour(folder: &str, at: Timestamp, id: Uuid) -> String {
    let hour = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default();
    format!("{folder}/{}/{}", hour.strftime("%Y-%m-%d/%H"), id.simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_lie_in_a_folder_for_each_hour() {
        let key = BlobKey::Upload { at: Timestamp(1_795_392_000_000), id: Uuid::nil() };
        assert_eq!(key.path(), "uploads/2026-11-23/00/00000000000000000000000000000000");
    }

    #[test]
    fn what_others_put_into_a_folder_of_that_name_is_not_of_a_file() {
        for (at, id) in
            [(Timestamp(0), Uuid::now_v7()), (Timestamp(1_795_392_000_000), Uuid::nil())]
        {
            assert!(BlobKey::is_of_file(&BlobKey::Upload { at, id }.path()));
            assert!(BlobKey::is_of_file(&BlobKey::Output { at, id }.path()));
        }
        for other in ["uploads/photo.jpg", "uploads/2026-11-23/00/report", "clock", "outputs/"] {
            assert!(!BlobKey::is_of_file(other), "{other}");
        }
    }
}
