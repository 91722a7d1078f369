//! The inside of a string: escapes, UTF-8, and what must not be in it.

use super::capture::Capture;

/// Where in a string the reader is.
#[derive(Debug, Default)]
pub(super) struct Text {
    state: State,
    /// An escaped high surrogate that has yet to meet its other half. Only kept for a capture.
    high_surrogate: Option<u16>,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    Plain,
    /// After a backslash.
    Escape,
    /// After `\u` and `digits` of its four digits.
    Hexadecimal { value: u16, digits: u8 },
    /// Inside a character of several bytes: the next must lie in `low..=high`, the later ones are
    /// any continuation bytes.
    Utf8 { remaining: u8, low: u8, high: u8 },
}

/// How far a read came.
pub(super) enum Read {
    /// The string closed; this many bytes were taken, with the closing quote.
    Closed(usize),
    /// All bytes were taken and the string goes on.
    Open,
}

/// The byte that no string can have here.
pub(super) struct Misfit {
    pub(super) index: usize,
    pub(super) what: &'static str,
}

const INVALID_UTF8: &str = "the text is not UTF-8";
const LINE_ENDS: &str = "the line ends inside a string";
const CONTROL: &str = "a control character in a string must be escaped";
const ESCAPE: &str =
    r#"a backslash must be followed by one of `"`, `\`, `/`, `b`, `f`, `n`, `r`, `t`, `u`"#;
const HEXADECIMAL: &str = r"`\u` must be followed by four hexadecimal digits";

impl Text {
    /// Reads on in a string whose opening quote has been read, from the start of `bytes`.
    pub(super) fn read(&mut self, bytes: &[u8], capture: &mut Capture) -> Result<Read, Misfit> {
        let mut at = 0;
        // Where the bytes begin that stand for themselves and are not captured yet.
        let mut literal = 0;
        loop {
            match self.state {
                State::Plain => at += literal_length(&bytes[at..]),
                State::Utf8 { .. } => {}
                State::Escape | State::Hexadecimal { .. } => literal = at + 1,
            }
            let Some(&byte) = bytes.get(at) else { break };
            let misfit = |what| Misfit { index: at, what };
            self.state = match self.state {
                State::Plain => match byte {
                    b'"' => {
                        self.literal(&bytes[literal..at], capture);
                        self.flush_surrogate(capture);
                        capture.end();
                        return Ok(Read::Closed(at + 1));
                    }
                    b'\\' => {
                        self.literal(&bytes[literal..at], capture);
                        State::Escape
                    }
                    b'\n' => return Err(misfit(LINE_ENDS)),
                    0..0x20 => return Err(misfit(CONTROL)),
                    _ => lead(byte).ok_or(misfit(INVALID_UTF8))?,
                },
                State::Utf8 { remaining, low, high } => match byte {
                    _ if !(low..=high).contains(&byte) => return Err(misfit(INVALID_UTF8)),
                    _ if remaining == 1 => State::Plain,
                    _ => State::Utf8 { remaining: remaining - 1, low: 0x80, high: 0xBF },
                },
                State::Escape if byte == b'u' => State::Hexadecimal { value: 0, digits: 0 },
                State::Escape => {
                    let character = unescaped(byte).ok_or(misfit(ESCAPE))?;
                    self.literal(&[character], capture);
                    State::Plain
                }
                State::Hexadecimal { value, digits } => {
                    let digit = char::from(byte).to_digit(16).ok_or(misfit(HEXADECIMAL))?;
                    let value = value << 4 | digit as u16;
                    if digits == 3 {
                        self.code_unit(value, capture);
                        State::Plain
                    } else {
                        State::Hexadecimal { value, digits: digits + 1 }
                    }
                }
            };
            at += 1;
        }
        self.literal(bytes.get(literal..).unwrap_or_default(), capture);
        Ok(Read::Open)
    }

    fn literal(&mut self, bytes: &[u8], capture: &mut Capture) {
        if capture.is_wanted() && !bytes.is_empty() {
            self.flush_surrogate(capture);
            capture.push(bytes);
        }
    }

    /// Takes in what `\u` and four digits stand for.
    fn code_unit(&mut self, unit: u16, capture: &mut Capture) {
        if !capture.is_wanted() {
            return;
        }
        if let (Some(high), 0xDC00..0xE000) = (self.high_surrogate, unit) {
            self.high_surrogate = None;
            let value = 0x1_0000 + (u32::from(high & 0x3FF) << 10 | u32::from(unit & 0x3FF));
            let character = char::from_u32(value).expect("a surrogate pair is a character");
            capture.push(character.encode_utf8(&mut [0; 4]).as_bytes());
            return;
        }
        self.flush_surrogate(capture);
        match char::from_u32(u32::from(unit)) {
            Some(character) => capture.push(character.encode_utf8(&mut [0; 4]).as_bytes()),
            None if unit < 0xDC00 => self.high_surrogate = Some(unit),
            None => capture.push(&lone_surrogate(unit)),
        }
    }

    fn flush_surrogate(&mut self, capture: &mut Capture) {
        if let Some(high) = self.high_surrogate.take() {
            capture.push(&lone_surrogate(high));
        }
    }
}

/// The three bytes a surrogate would have in UTF-8 if it could be there. No valid text has them,
/// so different strings stay different.
fn lone_surrogate(unit: u16) -> [u8; 3] {
    [0xE0 | (unit >> 12) as u8, 0x80 | (unit >> 6 & 0x3F) as u8, 0x80 | (unit & 0x3F) as u8]
}

/// What a character of several bytes goes on with after its first (Unicode, table 3-7).
fn lead(byte: u8) -> Option<State> {
    let (remaining, low, high) = match byte {
        0xC2..=0xDF => (1, 0x80, 0xBF),
        0xE0 => (2, 0xA0, 0xBF),
        0xED => (2, 0x80, 0x9F),
        0xE1..=0xEF => (2, 0x80, 0xBF),
        0xF0 => (3, 0x90, 0xBF),
        0xF1..=0xF3 => (3, 0x80, 0xBF),
        0xF4 => (3, 0x80, 0x8F),
        _ => return None,
    };
    Some(State::Utf8 { remaining, low, high })
}

fn unescaped(byte: u8) -> Option<u8> {
    match byte {
        b'"' | b'\\' | b'/' => Some(byte),
        b'b' => Some(0x08),
        b'f' => Some(0x0C),
        b'n' => Some(b'\n'),
        b'r' => Some(b'\r'),
        b't' => Some(b'\t'),
        _ => None,
    }
}

/// The string whose opening quote has been read, if it is all here and every byte stands for itself.
#[inline]
pub(super) fn plain_text(bytes: &[u8]) -> Option<&[u8]> {
    let (text, rest) = bytes.split_at(plain_length(bytes));
    (rest.first() == Some(&b'"')).then_some(text)
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..0x80) && byte != b'"' && byte != b'\\'
}

/// How many bytes at the start stand for themselves: no quote, backslash or control, and no
/// character that is invalid or not all here.
fn literal_length(bytes: &[u8]) -> usize {
    let mut length = plain_length(bytes);
    loop {
        let character = character_length(&bytes[length..]);
        if character == 0 {
            return length;
        }
        length += character;
        // Texts in many languages have one such character after another.
        if bytes.get(length).is_some_and(u8::is_ascii) {
            length += plain_length(&bytes[length..]);
        }
    }
}

/// The length of the valid character of several bytes at the start; 0 if there is none, or not
/// all of it.
fn character_length(bytes: &[u8]) -> usize {
    match bytes {
        [0xC2..=0xDF, 0x80..=0xBF, ..] => 2,
        [0xE1..=0xEC | 0xEE | 0xEF, 0x80..=0xBF, 0x80..=0xBF, ..]
        | [0xE0, 0xA0..=0xBF, 0x80..=0xBF, ..]
        | [0xED, 0x80..=0x9F, 0x80..=0xBF, ..] => 3,
        [0xF1..=0xF3, 0x80..=0xBF, 0x80..=0xBF, 0x80..=0xBF, ..]
        | [0xF0, 0x90..=0xBF, 0x80..=0xBF, 0x80..=0xBF, ..]
        | [0xF4, 0x80..=0x8F, 0x80..=0xBF, 0x80..=0xBF, ..] => 4,
        _ => 0,
    }
}

/// How many bytes at the start are ASCII that stands for itself: no quote, backslash or control.
///
/// Most of a file passes through here, hence eight bytes at a time. In `special` the top bit of
/// a byte is set where it is not plain; a borrow can set it wrongly, but only above (that is,
/// after) a byte where it is set rightly, and the first one is all that is asked for.
#[inline]
fn plain_length(bytes: &[u8]) -> usize {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let control = word.wrapping_sub(EACH * 0x20);
        let quote = (word ^ (EACH * u64::from(b'"'))).wrapping_sub(EACH);
        let backslash = (word ^ (EACH * u64::from(b'\\'))).wrapping_sub(EACH);
        let special = (word | control | quote | backslash) & (EACH << 7);
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    words.len() * 8 + tail.iter().take_while(|byte| is_plain(**byte)).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn interesting() -> impl Strategy<Value = u8> {
        prop_oneof![
            8 => 0x20..0x80u8,
            1 => prop::sample::select(vec![0, 0x1F, 0x20, 0x21, 0x22, 0x23, 0x5B, 0x5C, 0x5D, 0x7F]),
            1 => any::<u8>(),
        ]
    }

    proptest! {
        #[test]
        fn the_plain_length_is_that_of_a_byte_by_byte_search(
            bytes in prop::collection::vec(interesting(), 0..40)
        ) {
            let slow = bytes.iter().take_while(|byte| is_plain(**byte)).count();
            prop_assert_eq!(plain_length(&bytes), slow);
        }
    }

    /// Whether `content` and a quote are the rest of a string, when read in pieces of `size` bytes.
    fn closes(content: &[u8], size: usize) -> bool {
        let mut text = Text::default();
        let mut last = None;
        for piece in content.chunks(size).chain([&b"\""[..]]) {
            last = Some(text.read(piece, &mut Capture::default()));
            if let Some(Err(_)) = last {
                return false;
            }
        }
        matches!(last, Some(Ok(Read::Closed(1))))
    }

    #[test]
    fn utf8_is_what_the_standard_library_says_it_is() {
        // Either side of every limit in the table of well-formed sequences.
        let limits = [
            0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC,
            0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF,
        ];
        let count = limits.len();
        for number in 0..count.pow(4) {
            let bytes: [u8; 4] =
                std::array::from_fn(|place| limits[number / count.pow(place as u32) % count]);
            let expected = str::from_utf8(&bytes).is_ok();
            assert_eq!(closes(&bytes, 4), expected, "{bytes:x?} whole");
            assert_eq!(closes(&bytes, 1), expected, "{bytes:x?} byte by byte");
        }
    }
}
