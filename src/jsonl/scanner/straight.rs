//! The short way through a line: one token after another in straight code, while each is here whole and
//! spelled as programs spell it.

use super::Container;
use super::Literal;
use super::Scanner;
use super::State;
use crate::jsonl::fault::FaultKind;
use crate::jsonl::line::Kind;
use crate::jsonl::line::Line;
use crate::jsonl::line::WATCHED_DEPTH;
use crate::jsonl::number::Number;
use crate::jsonl::text::Read;
use crate::jsonl::text::plain_text;

/// What of a chunk is yet to be read.
#[derive(Clone, Copy)]
pub(super) struct Ahead<'c> {
    pub(super) rest: &'c [u8],
    /// Where the chunk ends, in bytes from the start of the file.
    pub(super) end: u64,
}

impl<'c> Ahead<'c> {
    /// Where `rest` begins, in bytes from the start of the file.
    #[inline]
    pub(super) fn at(&self) -> u64 {
        self.end - self.rest.len() as u64
    }

    #[inline]
    pub(super) fn skip(&mut self, count: usize) {
        self.rest = &self.rest[count..];
    }

    /// Takes a colon or a comma, and the space that often comes with it.
    #[inline]
    fn skip_with_space(&mut self) {
        let [_, b' ', rest @ ..] = self.rest else { return self.skip(1) };
        self.rest = rest;
    }

    /// Takes a key up to its closing quote, if it is here whole and without an escape.
    #[inline]
    fn key(&mut self) -> Option<&'c [u8]> {
        let key = plain_text(self.rest.strip_prefix(b"\"")?)?;
        self.skip(key.len() + 2);
        Some(key)
    }
}

impl Scanner {
    /// Reads on from where a key may be, up to what it does not know: other whitespace, a key with an escape,
    /// a token that the chunk cuts, nearly all that is wrong. There `state` is what [`Scanner::scan`] needs to
    /// go on a byte at a time, and whatever is taken here would have been taken there.
    ///
    /// Where in the grammar the scan is, the place in this code says: `state` is written, and never asked.
    pub(super) fn go_straight<'c>(
        &mut self,
        mut ahead: Ahead<'c>,
        line: &mut Line,
    ) -> Result<Ahead<'c>, FaultKind> {
        'key: while let Some(key) = ahead.key() {
            if self.nesting.depth <= WATCHED_DEPTH {
                line.key(self.nesting.depth, key)?;
            }
            self.state = State::Colon;
            let [b':', ..] = ahead.rest else { break };
            ahead.skip_with_space();
            self.state = State::Value;
            'value: loop {
                let at = ahead.at();
                match *ahead.rest {
                    [b'{', ..] => {
                        self.object_begins(at, line)?;
                        ahead.skip(1);
                        continue 'key;
                    }
                    [b'[', ..] => {
                        self.array_begins(at, line)?;
                        ahead.skip(1);
                        continue 'value;
                    }
                    [b'"', ..] => {
                        self.begins(State::ValueText, Kind::Text, at, line)?;
                        ahead.skip(1);
                        match self.read_fresh_text(ahead, line)? {
                            Read::Closed(length) => ahead.skip(length),
                            Read::Open => return Ok(Ahead { rest: &[], ..ahead }),
                        }
                    }
                    [b'-' | b'0'..=b'9', ..] => {
                        let Some(length) = Number::whole_length(ahead.rest) else { break 'key };
                        self.begins(State::Number, Kind::Other, at, line)?;
                        ahead.skip(length);
                    }
                    [byte @ (b't' | b'f' | b'n'), ..] => {
                        let literal = Literal::begin(byte).text();
                        let Some(rest) = ahead.rest.strip_prefix(literal) else { break 'key };
                        self.begins(State::Literal, Kind::Other, at, line)?;
                        ahead.rest = rest;
                    }
                    _ => break 'key,
                }
                self.value_ends(ahead.at(), line)?;
                loop {
                    match (ahead.rest, self.nesting.innermost()) {
                        ([b',', ..], Some(Container::Object)) => {
                            self.state = State::NextKey;
                            ahead.skip_with_space();
                            continue 'key;
                        }
                        ([b',', ..], Some(Container::Array)) => {
                            self.state = State::Value;
                            ahead.skip_with_space();
                            continue 'value;
                        }
                        ([b'}', ..], Some(Container::Object))
                        | ([b']', ..], Some(Container::Array)) => {
                            self.nesting.leave();
                            ahead.skip(1);
                            self.value_ends(ahead.at(), line)?;
                        }
                        _ => break 'key,
                    }
                }
            }
        }
        Ok(ahead)
    }

    /// Reads a string from its opening quote on. Most are plain to their end.
    #[inline]
    fn read_fresh_text(&mut self, ahead: Ahead<'_>, line: &mut Line) -> Result<Read, FaultKind> {
        let Some(text) = plain_text(ahead.rest) else { return self.read_text(ahead, line) };
        line.capture.push(text);
        Ok(Read::Closed(text.len() + 1))
    }
}
