//! Checks a file as it arrives, and collects where a model name goes.

use super::{
    Fault, FaultKind, Scanned,
    line::{Line, Rules},
    scanner::{Progress, Scanner},
};

/// A check in progress. Feed it the file, then finish it.
///
/// Lines end with a line feed; a carriage return before it is whitespace. The last line may lack
/// it. A UTF-8 byte order mark at the start and blank lines anywhere are accepted. Memory does not
/// grow with the length of a line, only with the number of lines: 3 to 5 bytes each, and for a
/// batch about 20 to 40 more for its `custom_id`. Two million lines are the most there can be.
pub struct Check {
    rules: Rules,
    scanner: Scanner,
    line: Line,
    /// The number of the line being read, from 1.
    number: u64,
    /// Bytes read so far.
    offset: u64,
    /// Whether the rest of the line is of no interest.
    is_skipping: bool,
    fault: Option<Fault>,
}

impl Check {
    /// For a batch: every line that is not blank is a JSON object with a `custom_id` (a non-empty
    /// string, unique in the file), `method` and `url` (strings) and `body` (an object). There is
    /// at least one, and at most `max_lines`.
    pub fn batch(max_lines: Option<u64>) -> Self {
        Self::new(Rules::Batch { max_lines })
    }

    /// For fine-tuning: any content is accepted, unless it has too many edits. A line that is not
    /// a JSON object (or is one nested too deeply), or has no `body` object, has no edits.
    pub fn fine_tune() -> Self {
        Self::new(Rules::FineTune)
    }

    fn new(rules: Rules) -> Self {
        Self {
            rules,
            scanner: Scanner::new(),
            line: Line::new(rules),
            number: 1,
            offset: 0,
            is_skipping: false,
            fault: None,
        }
    }

    /// Reads the next bytes of the file; where chunks begin and end makes no difference.
    ///
    /// A fault is final: every later call returns it again.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        self.fault.clone().map_or(Ok(()), Err)?;
        let mut rest = chunk;
        while !rest.is_empty() {
            let progress = if self.is_skipping {
                Ok(skip(rest))
            } else {
                self.scanner.scan(rest, self.offset, &mut self.line)
            };
            match progress {
                Ok(Progress::LineEnded(taken)) => {
                    rest = &rest[taken..];
                    self.offset += taken as u64;
                    self.number += 1;
                    self.is_skipping = false;
                    self.scanner.begin_line(self.offset);
                }
                Ok(Progress::Open) => {
                    self.offset += rest.len() as u64;
                    rest = &[];
                }
                // The skipping starts at the same byte, which may be the line feed.
                Err(kind) => self.reject(kind)?,
            }
        }
        Ok(())
    }

    /// The file is complete.
    pub fn finish(mut self) -> Result<Scanned, Fault> {
        self.fault.clone().map_or(Ok(()), Err)?;
        if !self.is_skipping
            && let Err(kind) = self.scanner.end_line(self.offset, &mut self.line)
        {
            self.reject(kind)?;
        }
        let lines = self.line.lines();
        if lines == 0 && matches!(self.rules, Rules::Batch { .. }) {
            self.reject(FaultKind::EmptyFile)?;
        }
        Ok(Scanned { lines, edits: self.line.edits.into_edits() })
    }

    /// Either the file is at fault, or the line has to stay as it is.
    fn reject(&mut self, kind: FaultKind) -> Result<(), Fault> {
        match (self.rules, kind) {
            (Rules::Batch { .. }, kind) | (Rules::FineTune, kind @ FaultKind::TooManyEdits) => {
                let fault = Fault { line: self.number, kind };
                self.fault = Some(fault.clone());
                Err(fault)
            }
            (Rules::FineTune, _) => {
                self.line.discard();
                self.is_skipping = true;
                Ok(())
            }
        }
    }
}

fn skip(bytes: &[u8]) -> Progress {
    match memchr::memchr(b'\n', bytes) {
        Some(index) => Progress::LineEnded(index + 1),
        None => Progress::Open,
    }
}
