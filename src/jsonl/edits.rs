//! The places in a file where a model name goes, as a compact list.

use std::ops::Range;

use bytes::{Buf, Bytes};

use super::fault::{FaultKind, MAX_EDITS};

/// Where a model name goes in one particular file. The same list serves every model, takes 3 to 5
/// bytes an edit, and is cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    list: Bytes,
    tally: Tally,
}

/// What all edits together do to the length of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    edits: u64,
    /// Bytes of the replaced values.
    removed: u64,
    /// Bytes of the keys and commas that come with inserted names.
    added: u64,
}

impl Edits {
    /// How many times the model name will be in the rewritten file because of these edits.
    pub fn len(&self) -> u64 {
        self.tally.edits
    }

    /// Whether the rewritten file is the file as it is.
    pub fn is_empty(&self) -> bool {
        self.tally.edits == 0
    }

    /// The exact length in bytes of the rewritten file, where `original_len` is that of the file
    /// that was scanned.
    pub fn rewritten_len(&self, original_len: u64, model: &str) -> u64 {
        let Tally { edits, removed, added } = self.tally;
        original_len.saturating_sub(removed) + added + edits * Replacement::new(model).name_length()
    }

    /// The edits in the order of the file.
    pub(super) fn iter(&self) -> impl Iterator<Item = Edit> + Send + use<> {
        let mut list = self.list.clone();
        std::iter::from_fn(move || {
            list.has_remaining().then(|| {
                let gap = read_varint(&mut list);
                let action = match read_varint(&mut list) {
                    INSERT_BEFORE_OTHERS => Action::InsertBeforeOthers,
                    INSERT_ALONE => Action::InsertAlone,
                    length => Action::Replace { length: length - REPLACE },
                };
                Edit { gap, action }
            })
        })
    }
}

/// One edit: pass `gap` bytes on after the end of the one before, then act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edit {
    pub(super) gap: u64,
    pub(super) action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// The next `length` bytes are a value; the name takes its place.
    Replace { length: u64 },
    /// The key, the name and a comma go in front of an object's first key.
    InsertBeforeOthers,
    /// The key and the name go into an empty object.
    InsertAlone,
}

// The second number of an edit; a replaced value of `length` bytes is `REPLACE + length`.
const INSERT_BEFORE_OTHERS: u64 = 0;
const INSERT_ALONE: u64 = 1;
const REPLACE: u64 = 1;

/// The bytes that one model's name puts into a file.
pub(super) struct Replacement {
    name: String,
    alone: String,
    before_others: String,
}

const INSERTED_KEY: &str = r#""model":"#;

impl Replacement {
    pub(super) fn new(model: &str) -> Self {
        let name = serde_json::to_string(model).expect("a string can always be written as JSON");
        Self {
            alone: format!("{INSERTED_KEY}{name}"),
            before_others: format!("{INSERTED_KEY}{name},"),
            name,
        }
    }

    pub(super) fn of(&self, action: Action) -> &[u8] {
        match action {
            Action::Replace { .. } => self.name.as_bytes(),
            Action::InsertAlone => self.alone.as_bytes(),
            Action::InsertBeforeOthers => self.before_others.as_bytes(),
        }
    }

    fn name_length(&self) -> u64 {
        self.name.len() as u64
    }
}

/// Writes the list while the file passes by. Edits come in the order of the file.
#[derive(Default)]
pub(super) struct Recorder {
    list: Vec<u8>,
    tally: Tally,
    /// Where in the file the last edit ended.
    end: u64,
}

/// A moment of a [`Recorder`] to which it can go back.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    list_length: usize,
    tally: Tally,
    end: u64,
}

impl Recorder {
    pub(super) fn replace(&mut self, value: Range<u64>) -> Result<(), FaultKind> {
        let length = value.end - value.start;
        self.record(value.start, REPLACE + length)?;
        self.end = value.end;
        self.tally.removed += length;
        Ok(())
    }

    pub(super) fn insert_before_others(&mut self, at: u64) -> Result<(), FaultKind> {
        self.record(at, INSERT_BEFORE_OTHERS)?;
        self.tally.added += INSERTED_KEY.len() as u64 + 1;
        Ok(())
    }

    pub(super) fn insert_alone(&mut self, at: u64) -> Result<(), FaultKind> {
        self.record(at, INSERT_ALONE)?;
        self.tally.added += INSERTED_KEY.len() as u64;
        Ok(())
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { list_length: self.list.len(), tally: self.tally, end: self.end }
    }

    /// Forgets what was recorded since `mark`.
    pub(super) fn back_to(&mut self, mark: Mark) {
        self.list.truncate(mark.list_length);
        self.tally = mark.tally;
        self.end = mark.end;
    }

    pub(super) fn into_edits(mut self) -> Edits {
        self.list.shrink_to_fit();
        Edits { list: self.list.into(), tally: self.tally }
    }

    fn record(&mut self, at: u64, action: u64) -> Result<(), FaultKind> {
        if self.tally.edits == MAX_EDITS {
            return Err(FaultKind::TooManyEdits);
        }
        write_varint(&mut self.list, at - self.end);
        write_varint(&mut self.list, action);
        self.tally.edits += 1;
        self.end = at;
        Ok(())
    }
}

/// Seven bits a byte, lowest first; the top bit says that more follow.
fn write_varint(list: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        list.push(value as u8 | 0x80);
        value >>= 7;
    }
    list.push(value as u8);
}

fn read_varint(list: &mut Bytes) -> u64 {
    let mut value = 0;
    let mut shift = 0;
    loop {
        let byte = list.get_u8();
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return value;
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reading_a_number_undoes_writing_it(value: u64, bits in 0..64u32) {
            let value = value >> bits;
            let mut list = Vec::new();
            write_varint(&mut list, value);
            let mut list = Bytes::from(list);
            prop_assert_eq!(read_varint(&mut list), value);
            prop_assert!(list.is_empty());
        }
    }

    #[test]
    fn the_list_gives_back_what_was_recorded() {
        let mut recorder = Recorder::default();
        recorder.replace(5..9).unwrap();
        recorder.insert_alone(20).unwrap();
        let mark = recorder.mark();
        recorder.replace(1000..2000).unwrap();
        recorder.back_to(mark);
        recorder.insert_before_others(20_000_000_000).unwrap();

        let edits = recorder.into_edits();
        assert_eq!(
            edits.iter().collect::<Vec<_>>(),
            [
                Edit { gap: 5, action: Action::Replace { length: 4 } },
                Edit { gap: 11, action: Action::InsertAlone },
                Edit { gap: 19_999_999_980, action: Action::InsertBeforeOthers },
            ]
        );
        assert_eq!(edits.len(), 3);
    }

    #[test]
    fn a_typical_edit_takes_three_bytes() {
        let mut recorder = Recorder::default();
        for line in 1..=1000 {
            recorder.replace(line * 900..line * 900 + 13).unwrap();
        }
        assert_eq!(recorder.into_edits().list.len(), 3000);
    }

    #[test]
    fn the_number_of_edits_is_limited() {
        let mut recorder = Recorder::default();
        for at in 0..MAX_EDITS {
            recorder.insert_alone(at).unwrap();
        }
        assert_eq!(recorder.insert_alone(MAX_EDITS), Err(FaultKind::TooManyEdits));
    }
}
