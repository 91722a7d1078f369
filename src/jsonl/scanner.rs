//! The grammar of JSON, pushed along by chunks of any size: RFC 8259 and nothing more.

mod straight;

use self::straight::Ahead;
use super::{
    fault::FaultKind,
    line::{Kind, Line, WATCHED_DEPTH},
    number::Number,
    text::{Read, Text},
};

/// The deepest nesting that is accepted.
const MAX_DEPTH: usize = 512;

const TOO_DEEP: &str = "nested deeper than 512 levels";

/// Validates one line after another and tells [`Line`] what happens near its top.
pub(super) struct Scanner {
    state: State,
    nesting: Nesting,
    text: Text,
    number: Number,
    literal: Literal,
    /// Bytes read of the literal or the byte order mark.
    seen: usize,
    /// Where the line begins, in bytes from the start of the file.
    line_start: u64,
}

/// What was read last, or what has to come.
#[derive(Clone, Copy, Debug)]
enum State {
    LineStart,
    /// Inside the byte order mark, which only the start of a file may have.
    ByteOrderMark,
    Value,
    /// After `[`.
    FirstItem,
    /// After `{`.
    FirstKey,
    /// After a comma in an object.
    NextKey,
    KeyText,
    Colon,
    ValueText,
    Number,
    Literal,
    AfterValue,
}

#[derive(Clone, Copy, Debug)]
enum Literal {
    True,
    False,
    Null,
}

impl Literal {
    /// The literal that begins with `byte`, one of `t`, `f` and `n`.
    fn begin(byte: u8) -> Self {
        match byte {
            b't' => Self::True,
            b'f' => Self::False,
            _ => Self::Null,
        }
    }

    fn text(self) -> &'static [u8] {
        match self {
            Self::True => b"true",
            Self::False => b"false",
            Self::Null => b"null",
        }
    }
}

/// How far a scan came.
pub(super) enum Progress {
    /// This many bytes were taken, the last of them a line feed.
    LineEnded(usize),
    /// All bytes were taken and the line goes on.
    Open,
}

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];

impl Scanner {
    pub(super) fn new() -> Self {
        Self {
            state: State::LineStart,
            nesting: Nesting::default(),
            text: Text::default(),
            number: Number::Minus,
            literal: Literal::Null,
            seen: 0,
            line_start: 0,
        }
    }

    /// Forgets the line before; the next byte is the byte `at` of the file.
    pub(super) fn begin_line(&mut self, at: u64) {
        *self = Self { line_start: at, ..Self::new() };
    }

    /// Reads `bytes`, the first of which is the byte `start` of the file, up to the end of the
    /// line. After an error only [`Self::begin_line`] may follow.
    pub(super) fn scan(
        &mut self,
        bytes: &[u8],
        start: u64,
        line: &mut Line,
    ) -> Result<Progress, FaultKind> {
        let mut ahead = Ahead { rest: bytes, end: start + bytes.len() as u64 };
        loop {
            // Nearly all of a typical file is read here, and the rest of the loop sees what remains.
            if let State::FirstKey | State::NextKey = self.state {
                ahead = self.go_straight(ahead, line)?;
            }
            let [byte, ..] = *ahead.rest else { return Ok(Progress::Open) };
            let at = ahead.at();
            match self.state {
                State::KeyText | State::ValueText => {
                    match self.read_text(ahead, line)? {
                        Read::Closed(length) => ahead.skip(length),
                        Read::Open => return Ok(Progress::Open),
                    }
                    self.text_ends(ahead.at(), line)?;
                    continue;
                }
                State::Number => match self.number.then(byte) {
                    Some(number) => self.number = number,
                    // The byte is not part of the number, and is looked at again.
                    None if self.number.is_complete() => {
                        self.value_ends(at, line)?;
                        continue;
                    }
                    None => return Err(self.invalid("a digit must follow", at)),
                },
                State::Literal => self.literal_goes_on(byte, at, line)?,
                State::ByteOrderMark => self.byte_order_mark_goes_on(byte, at, line)?,
                _ => match byte {
                    b' ' | b'\t' | b'\r' => {}
                    b'\n' => {
                        self.end_line(at, line)?;
                        return Ok(Progress::LineEnded(bytes.len() - ahead.rest.len() + 1));
                    }
                    _ => self.structure(byte, at, line)?,
                },
            }
            ahead.skip(1);
        }
    }

    /// The line ends before the byte `at` of the file.
    pub(super) fn end_line(&mut self, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        match self.state {
            State::LineStart => Ok(()),
            State::AfterValue if self.nesting.depth == 0 => line.end(),
            State::KeyText | State::ValueText => {
                Err(self.invalid("the line ends inside a string", at))
            }
            _ => Err(self.invalid("the line ends before its object is complete", at)),
        }
    }

    /// Takes a byte between strings, numbers and literals, or their first.
    fn structure(&mut self, byte: u8, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        match (self.state, byte) {
            (State::LineStart, 0xEF) if at == 0 => {
                self.state = State::ByteOrderMark;
                self.seen = 1;
                Ok(())
            }
            (State::LineStart, _) => {
                line.begin()?;
                self.value_begins(byte, at, line)
            }
            (State::FirstItem, b']') | (State::FirstKey, b'}') => {
                self.nesting.leave();
                self.value_ends(at + 1, line)
            }
            (State::FirstItem | State::Value, _) => self.value_begins(byte, at, line),
            (State::FirstKey | State::NextKey, b'"') => {
                if self.nesting.depth <= WATCHED_DEPTH {
                    line.key_begins(self.nesting.depth);
                }
                self.state = State::KeyText;
                Ok(())
            }
            (State::Colon, b':') => {
                self.state = State::Value;
                Ok(())
            }
            (State::AfterValue, _) => self.after_value(byte, at, line),
            (state, _) => Err(self.invalid(expectation(state), at)),
        }
    }

    /// Reads on in a string.
    #[inline]
    fn read_text(&mut self, ahead: Ahead<'_>, line: &mut Line) -> Result<Read, FaultKind> {
        self.text
            .read(ahead.rest, &mut line.capture)
            .map_err(|misfit| self.invalid(misfit.what, ahead.at() + misfit.index as u64))
    }

    fn value_begins(&mut self, byte: u8, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        match byte {
            b'"' => self.begins(State::ValueText, Kind::Text, at, line),
            b'{' => self.object_begins(at, line),
            b'[' => self.array_begins(at, line),
            b'-' | b'0'..=b'9' => {
                self.number = Number::begin(byte);
                self.begins(State::Number, Kind::Other, at, line)
            }
            b't' | b'f' | b'n' => {
                (self.literal, self.seen) = (Literal::begin(byte), 1);
                self.begins(State::Literal, Kind::Other, at, line)
            }
            _ => Err(self.invalid(expectation(State::Value), at)),
        }
    }

    #[inline]
    fn object_begins(&mut self, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        self.begins(State::FirstKey, Kind::Object, at, line)?;
        self.nesting.enter(Container::Object).ok_or_else(|| self.invalid(TOO_DEEP, at))
    }

    #[inline]
    fn array_begins(&mut self, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        self.begins(State::FirstItem, Kind::Other, at, line)?;
        self.nesting.enter(Container::Array).ok_or_else(|| self.invalid(TOO_DEEP, at))
    }

    /// A value begins, after which the scan is in `state`.
    #[inline]
    fn begins(
        &mut self,
        state: State,
        kind: Kind,
        at: u64,
        line: &mut Line,
    ) -> Result<(), FaultKind> {
        self.state = state;
        if self.nesting.depth <= WATCHED_DEPTH {
            line.value_begins(self.nesting.depth, kind, at)?;
        }
        Ok(())
    }

    fn literal_goes_on(&mut self, byte: u8, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        let text = self.literal.text();
        if text[self.seen] != byte {
            return Err(self.invalid("expected `true`, `false` or `null`", at));
        }
        self.seen += 1;
        if self.seen == text.len() {
            self.value_ends(at + 1, line)?;
        }
        Ok(())
    }

    fn byte_order_mark_goes_on(
        &mut self,
        byte: u8,
        at: u64,
        line: &mut Line,
    ) -> Result<(), FaultKind> {
        if BYTE_ORDER_MARK[self.seen] != byte {
            line.begin()?;
            return Err(self.invalid("expected a UTF-8 byte order mark", at));
        }
        self.seen += 1;
        if self.seen == BYTE_ORDER_MARK.len() {
            self.state = State::LineStart;
        }
        Ok(())
    }

    #[inline]
    fn value_ends(&mut self, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        self.state = State::AfterValue;
        if self.nesting.depth <= WATCHED_DEPTH {
            line.value_ends(self.nesting.depth, at)?;
        }
        Ok(())
    }

    fn after_value(&mut self, byte: u8, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        match (self.nesting.innermost(), byte) {
            (Some(Container::Object), b'}') | (Some(Container::Array), b']') => {
                self.nesting.leave();
                return self.value_ends(at + 1, line);
            }
            (Some(Container::Object), b',') => self.state = State::NextKey,
            (Some(Container::Array), b',') => self.state = State::Value,
            (Some(Container::Object), _) => return Err(self.invalid("expected `,` or `}`", at)),
            (Some(Container::Array), _) => return Err(self.invalid("expected `,` or `]`", at)),
            (None, _) => return Err(self.invalid("expected nothing after the object", at)),
        }
        Ok(())
    }

    fn text_ends(&mut self, at: u64, line: &mut Line) -> Result<(), FaultKind> {
        if let State::ValueText = self.state {
            return self.value_ends(at, line);
        }
        self.state = State::Colon;
        if self.nesting.depth <= WATCHED_DEPTH {
            line.key_ends(self.nesting.depth)?;
        }
        Ok(())
    }

    fn invalid(&self, what: &'static str, at: u64) -> FaultKind {
        FaultKind::InvalidJson { what, column: at - self.line_start + 1 }
    }
}

fn expectation(state: State) -> &'static str {
    match state {
        State::FirstKey => "expected a key in quotes or `}`",
        State::NextKey => "expected a key in quotes",
        State::Colon => "expected `:`",
        _ => "expected a value",
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Object,
    Array,
}

/// The containers around the current byte, a bit each.
#[derive(Default)]
struct Nesting {
    depth: usize,
    /// Set where the container of that depth, from 0, is an object.
    objects: [u64; MAX_DEPTH / 64],
}

impl Nesting {
    /// Goes one deeper; `None` if that is too deep.
    #[inline]
    fn enter(&mut self, container: Container) -> Option<()> {
        let word = self.objects.get_mut(self.depth / 64)?;
        let bit = 1 << (self.depth % 64);
        match container {
            Container::Object => *word |= bit,
            Container::Array => *word &= !bit,
        }
        self.depth += 1;
        Some(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
    }

    fn innermost(&self) -> Option<Container> {
        let index = self.depth.checked_sub(1)?;
        match self.objects[index / 64] >> (index % 64) & 1 {
            0 => Some(Container::Array),
            _ => Some(Container::Object),
        }
    }
}
