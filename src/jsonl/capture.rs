//! The few strings of a line whose content matters: keys, to be recognised, and the `custom_id`.

use super::custom_id::CustomId;

/// The longest key that means something: `custom_id`.
const LONGEST_KEY: usize = 9;

/// Takes in the decoded content of the string being read, as far as anybody asked for it.
#[derive(Default)]
pub(super) struct Capture {
    target: Target,
    pub(super) key: Key,
    pub(super) custom_id: CustomId,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Target {
    #[default]
    Nothing,
    Key,
    CustomId,
}

impl Capture {
    /// The next string is of no interest.
    pub(super) fn nothing(&mut self) {
        self.target = Target::Nothing;
    }

    /// The next string goes to [`Capture::key`].
    pub(super) fn key(&mut self) {
        self.target = Target::Key;
        self.key.length = 0;
    }

    /// The next string goes to [`Capture::custom_id`].
    pub(super) fn custom_id(&mut self) {
        self.target = Target::CustomId;
        self.custom_id.clear();
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.target != Target::Nothing
    }

    /// The string is complete.
    pub(super) fn end(&mut self) {
        if let Target::Key = self.target {
            self.key.end();
        }
    }

    #[inline]
    pub(super) fn push(&mut self, decoded: &[u8]) {
        match self.target {
            Target::Nothing => {}
            Target::Key => self.key.push(decoded),
            Target::CustomId => self.custom_id.push(decoded),
        }
    }
}

/// The keys that mean something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Name {
    CustomId,
    Method,
    Url,
    Body,
    Model,
    #[default]
    Other,
}

impl Name {
    pub(super) fn of(key: &[u8]) -> Self {
        match key {
            b"custom_id" => Self::CustomId,
            b"method" => Self::Method,
            b"url" => Self::Url,
            b"body" => Self::Body,
            b"model" => Self::Model,
            _ => Self::Other,
        }
    }
}

/// A key, kept only while it may still be one of the known ones.
#[derive(Default)]
pub(super) struct Key {
    /// Once the key has been read.
    pub(super) name: Name,
    bytes: [u8; LONGEST_KEY],
    /// One more than fits once the key is too long to be known.
    length: usize,
}

impl Key {
    fn end(&mut self) {
        // Empty, hence unknown, if it is too long.
        self.name = Name::of(self.bytes.get(..self.length).unwrap_or_default());
    }

    fn push(&mut self, decoded: &[u8]) {
        let end = self.length + decoded.len();
        match self.bytes.get_mut(self.length..end) {
            Some(free) => {
                free.copy_from_slice(decoded);
                self.length = end;
            }
            None => self.length = LONGEST_KEY + 1,
        }
    }
}
