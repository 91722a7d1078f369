//! Lines of several runs in one file: each says of which model it is.

use std::mem;
use std::ops::Range;

use super::Line;
use super::RawLine;

/// A part of a merged file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// A line that is too long to be looked into: it is copied from its file as it is, before the text.
    pub copied: Option<Range<u64>>,
    pub text: Vec<u8>,
}

/// The lines of one run, as they are to be written.
#[derive(Debug)]
pub struct Merged {
    /// `{"model":"…",`
    beginning: Vec<u8>,
    pieces: Vec<Piece>,
    lines: i64,
}

impl Merged {
    pub fn of_model(model: &str) -> Self {
        let beginning = format!("{{\"model\":{},", serde_json::Value::from(model)).into_bytes();
        Self { beginning, pieces: Vec::new(), lines: 0 }
    }

    /// Lines so far.
    pub fn lines(&self) -> i64 {
        self.lines
    }

    /// Adds a line. One that is broken stays as it is.
    pub fn add(&mut self, line: RawLine<'_>) {
        self.lines += 1;
        let Some(text) = line.text else {
            let copied = Some(line.begins_at..line.begins_at + line.length);
            self.pieces.push(Piece { copied, text: b"\n".to_vec() });
            return;
        };
        if self.pieces.is_empty() {
            self.pieces.push(Piece::default());
        }
        let Some(piece) = self.pieces.last_mut() else { return };
        match text.trim_ascii_start().strip_prefix(b"{").filter(|_| Line::read(text).is_some()) {
            // It has a `custom_id`, and so something behind the comma.
            Some(rest) => {
                piece.text.extend_from_slice(&self.beginning);
                piece.text.extend_from_slice(rest);
            }
            None => piece.text.extend_from_slice(text),
        }
        piece.text.push(b'\n');
    }

    /// What is to be written by now.
    pub fn take(&mut self) -> Vec<Piece> {
        mem::take(&mut self.pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Lines;

    fn merged(file: &[u8], model: &str) -> Vec<u8> {
        let (mut lines, mut merged) = (Lines::starting_at(0), Merged::of_model(model));
        lines.feed(file, |line| merged.add(line));
        lines.finish(|line| merged.add(line));
        merged.take().into_iter().flat_map(|piece| piece.text).collect()
    }

    #[test]
    fn each_line_says_its_model_and_ends() {
        let file = b"{\"custom_id\":\"a\"}\r\n\n  { \"custom_id\":\"b\"}";
        let expected = "{\"model\":\"a \\\"b\\\"\",\"custom_id\":\"a\"}\n{\"model\":\"a \\\"b\\\"\", \"custom_id\":\"b\"}\n";
        assert_eq!(String::from_utf8(merged(file, "a \"b\"")).unwrap(), expected);
    }

    #[test]
    fn broken_lines_stay_as_they_are() {
        assert_eq!(
            merged(b"{}\n{\"custom_id\":\nnot JSON \xff", "m"),
            b"{}\n{\"custom_id\":\nnot JSON \xff\n"
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_copied() {
        let mut merged = Merged::of_model("m");
        let line = |begins_at, text| RawLine { begins_at, length: 4, next_at: begins_at + 5, text };
        merged.add(line(0, Some(b"abcd")));
        merged.add(line(5, None));
        merged.add(line(10, Some(b"efgh")));
        let pieces = [
            Piece { copied: None, text: b"abcd\n".to_vec() },
            Piece { copied: Some(5..9), text: b"\nefgh\n".to_vec() },
        ];
        assert_eq!(merged.take(), pieces);
        assert_eq!(merged.lines(), 3);
    }
}
