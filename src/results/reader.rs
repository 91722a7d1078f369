//! Lines of a file that streams by, with where each begins.

use memchr::memchr;

/// A longer line is not looked into.
const LONGEST: usize = 64 * 1024 * 1024;
/// What a line that was longer than most leaves of its memory.
const KEPT: usize = 1024 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line that is not blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawLine<'b> {
    /// Its first byte's place in the file.
    pub begins_at: u64,
    /// Without what ends the line.
    pub length: u64,
    /// Where the next line begins.
    pub next_at: u64,
    /// None where it is too long to be looked into.
    pub text: Option<&'b [u8]>,
}

/// Cuts what it is fed into lines. It holds what is there of one line at most.
#[derive(Debug)]
pub struct Lines {
    longest: usize,
    /// Where the line begins.
    begins_at: u64,
    pending: Vec<u8>,
    /// What is passed over of a line that is too long.
    passed_over: u64,
}

impl Lines {
    /// Begins at a place in the file, where a line begins.
    pub fn starting_at(begins_at: u64) -> Self {
        Self { longest: LONGEST, begins_at, pending: Vec::new(), passed_over: 0 }
    }

    /// Takes the next bytes, and hands on the lines that end in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(RawLine<'_>)) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (text, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.passed_over == 0 && self.pending.is_empty() {
                self.end(text, 1, &mut take);
                continue;
            }
            self.hold(text);
            self.end_held(1, &mut take);
        }
        self.hold(bytes);
    }

    /// The file has ended, whether its last line is ended or not.
    pub fn finish(mut self, mut take: impl FnMut(RawLine<'_>)) {
        self.end_held(0, &mut take);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.passed_over > 0 || self.pending.len() + bytes.len() > self.longest {
            self.passed_over += (self.pending.len() + bytes.len()) as u64;
            self.pending = Vec::new();
        } else {
            self.pending.extend_from_slice(bytes);
        }
    }

    fn end_held(&mut self, line_end: u64, take: &mut impl FnMut(RawLine<'_>)) {
        if self.passed_over > 0 {
            let length = std::mem::take(&mut self.passed_over);
            let next_at = self.begins_at + length + line_end;
            take(RawLine { begins_at: self.begins_at, length, next_at, text: None });
            self.begins_at = next_at;
            return;
        }
        let mut held = std::mem::take(&mut self.pending);
        self.end(&held, line_end, take);
        if held.capacity() <= KEPT {
            held.clear();
            self.pending = held;
        }
    }

    fn end(&mut self, bytes: &[u8], line_end: u64, take: &mut impl FnMut(RawLine<'_>)) {
        let begins_at = self.begins_at;
        let next_at = begins_at + bytes.len() as u64 + line_end;
        self.begins_at = next_at;
        let mark = if begins_at == 0 && bytes.starts_with(BYTE_ORDER_MARK) {
            BYTE_ORDER_MARK.len()
        } else {
            0
        };
        let text = bytes[mark..].strip_suffix(b"\r").unwrap_or(&bytes[mark..]);
        if !text.trim_ascii().is_empty() {
            let (begins_at, length) = (begins_at + mark as u64, text.len() as u64);
            take(RawLine { begins_at, length, next_at, text: Some(text) });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The place, length and text of each line, when the file is fed in pieces of these sizes.
    fn lines(
        file: &[u8],
        from: usize,
        sizes: &[usize],
        longest: usize,
    ) -> Vec<(u64, u64, Option<Vec<u8>>)> {
        let mut found = Vec::new();
        let mut take = |line: RawLine<'_>| {
            found.push((line.begins_at, line.length, line.text.map(<[u8]>::to_vec)));
        };
        let mut lines = Lines { longest, ..Lines::starting_at(from as u64) };
        let (mut rest, mut sizes) = (&file[from..], sizes.iter().cycle());
        while !rest.is_empty() {
            let size = sizes.next().map_or(1, |size| (*size).clamp(1, rest.len()));
            lines.feed(&rest[..size], &mut take);
            rest = &rest[size..];
        }
        lines.finish(&mut take);
        found
    }

    #[test]
    fn lines_end_in_either_way_and_blank_ones_are_passed_over() {
        let file = b"one\r\n\n \t\r\ntwo\n\xff\r\nthree";
        let texts: Vec<_> = lines(file, 0, &[4], LONGEST);
        let expected: Vec<(u64, u64, Option<Vec<u8>>)> = vec![
            (0, 3, Some(b"one".to_vec())),
            (10, 3, Some(b"two".to_vec())),
            (14, 1, Some(b"\xff".to_vec())),
            (17, 5, Some(b"three".to_vec())),
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_line() {
        assert_eq!(lines(b"\xef\xbb\xbf{}\n", 0, &[1], LONGEST), [(3, 2, Some(b"{}".to_vec()))]);
    }

    #[test]
    fn a_line_that_is_too_long_is_counted_and_not_kept() {
        let file = b"abc\n0123456789\nde\n0123456789";
        let expected = [
            (0, 3, Some(b"abc".to_vec())),
            (4, 10, None),
            (15, 2, Some(b"de".to_vec())),
            (18, 10, None),
        ];
        for size in [1, 3, 5, 100] {
            // What comes whole in one piece costs nothing to look into.
            let found = lines(file, 0, &[size], 5);
            let kept: Vec<_> = found.iter().map(|line| (line.0, line.1)).collect();
            assert_eq!(kept, expected.iter().map(|line| (line.0, line.1)).collect::<Vec<_>>());
            if size < 10 {
                assert_eq!(found, expected);
            }
        }
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_where_the_pieces_end(
            file in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b' '), any::<u8>()], 0..200),
            sizes in prop::collection::vec(1usize..20, 1..8),
        ) {
            prop_assert_eq!(lines(&file, 0, &sizes, LONGEST), lines(&file, 0, &[usize::MAX], LONGEST));
        }

        #[test]
        fn whoever_begins_at_the_end_of_a_line_finds_the_rest(
            file in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..200),
        ) {
            let all = lines(&file, 0, &[7], LONGEST);
            let mut ends = Vec::new();
            let mut reader = Lines::starting_at(0);
            reader.feed(&file, |line| ends.push(line.next_at));
            reader.finish(|line| ends.push(line.next_at));
            for (read, from) in ends.into_iter().enumerate() {
                let rest = lines(&file, from as usize, &[7], LONGEST);
                prop_assert_eq!(&rest[..], &all[read + 1..]);
            }
        }
    }
}
