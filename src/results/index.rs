//! What is written of each line of a run's files, as they stream by.

use super::Digest;
use super::Digests;
use super::Line;
use super::LineOutcome;
use super::Lines;
use super::Problem;
use super::RawLine;
use crate::runs::Usage;

/// A line as it is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexed {
    /// Which one of the file's it is, from 1; blank lines are none.
    pub line: i64,
    pub begins_at: i64,
    pub length: i64,
    /// Where the next line begins.
    pub next_at: i64,
    /// As it is stored; none for a broken line.
    pub custom_id: Option<String>,
    pub outcome: LineOutcome,
    pub problem: Option<Problem>,
    pub status_code: Option<i32>,
    pub usage: Option<Usage>,
}

/// The requests of a run, by the digests of their `custom_id`s as they are stored: those of its input, and those with
/// a result. Of a million requests that is 16 MB where the input is known.
#[derive(Debug, Default)]
pub struct Ids {
    /// None where the input is not known, or not all of it.
    asked: Option<Asked>,
    has_unread: bool,
    /// Where it is not known what was asked.
    answered: Digests,
}

#[derive(Debug, Default)]
struct Asked {
    /// In their order, once all are here.
    digests: Vec<Digest>,
    is_sorted: bool,
    /// Whether each has a result.
    answered: Vec<bool>,
}

impl Ids {
    /// Notes a request of the input; all of them come before the first result. One that is too long to be looked into
    /// may be any: then nothing is a stranger.
    pub fn ask(&mut self, line: RawLine<'_>) {
        let Some(text) = line.text else {
            (self.asked, self.has_unread) = (None, true);
            return;
        };
        if !self.has_unread
            && let Some(line) = Line::read(text)
        {
            let asked = self.asked.get_or_insert_default();
            asked.digests.push(Digest::of(&line.custom_id));
            asked.is_sorted = false;
        }
    }

    /// Notes a result, and tells what is wrong with it.
    pub fn answer(&mut self, custom_id: &str) -> Option<Problem> {
        let digest = Digest::of(custom_id);
        let Some(asked) = &mut self.asked else {
            return (!self.answered.insert(digest)).then_some(Problem::Duplicate);
        };
        match asked.answered(digest) {
            None => Some(Problem::Stranger),
            Some(answered) => std::mem::replace(answered, true).then_some(Problem::Duplicate),
        }
    }
}

impl Asked {
    fn answered(&mut self, digest: Digest) -> Option<&mut bool> {
        if !self.is_sorted {
            self.digests.sort_unstable();
            self.digests.dedup();
            self.answered = vec![false; self.digests.len()];
            self.is_sorted = true;
        }
        let place = self.digests.binary_search(&digest).ok()?;
        self.answered.get_mut(place)
    }
}

/// Makes rows of one file's lines.
#[derive(Debug)]
pub struct Indexer {
    lines: Lines,
    next_line: i64,
}

impl Indexer {
    /// Goes on behind `lines` lines, where the next one begins at `begins_at`.
    pub fn behind(lines: i64, begins_at: u64) -> Self {
        Self { lines: Lines::starting_at(begins_at), next_line: lines + 1 }
    }

    /// The lines that end in the next bytes.
    pub fn feed(&mut self, bytes: &[u8], ids: &mut Ids, rows: &mut Vec<Indexed>) {
        let next_line = &mut self.next_line;
        self.lines.feed(bytes, |line| rows.push(indexed(line, next_line, ids)));
    }

    /// The last line, if nothing ended it.
    pub fn finish(mut self, ids: &mut Ids, rows: &mut Vec<Indexed>) {
        let next_line = &mut self.next_line;
        self.lines.finish(|line| rows.push(indexed(line, next_line, ids)));
    }
}

fn indexed(raw: RawLine<'_>, next_line: &mut i64, ids: &mut Ids) -> Indexed {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let row = Indexed {
        line: *next_line,
        begins_at: signed(raw.begins_at),
        length: signed(raw.length),
        next_at: signed(raw.next_at),
        custom_id: None,
        outcome: LineOutcome::Broken,
        problem: None,
        status_code: None,
        usage: None,
    };
    *next_line += 1;
    let Some(line) = raw.text.and_then(Line::read) else { return row };
    let outcome = if line.has_succeeded { LineOutcome::Succeeded } else { LineOutcome::Failed };
    let custom_id = line.custom_id;
    Indexed {
        problem: ids.answer(&custom_id),
        custom_id: Some(custom_id.into_owned()),
        outcome,
        status_code: line.status_code,
        usage: line.usage,
        ..row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Tally;

    const FILE: &[u8] =
        br#"{"custom_id":"a","response":{"status_code":200,"body":{"usage":{"prompt_tokens":3}}}}
{"custom_id":"b","response":{"status_code":500,"body":null},"error":null}

not JSON
{"custom_id":"a","response":{"status_code":200,"body":{"usage":{"prompt_tokens":5}}}}
{"custom_id":"x","response":{"status_code":200,"body":{"usage":{"prompt_tokens":7}}}}
{"custom_id":"c","response":{"status_code":200,"body":{"usage":{"prompt_tokens":9}}}}"#;

    fn asked() -> Ids {
        let mut ids = Ids::default();
        let input = ["a", "b", "c", "d"].map(|id| format!("{{\"custom_id\":\"{id}\"}}\n")).concat();
        Lines::starting_at(0).feed(input.as_bytes(), |line| ids.ask(line));
        ids
    }

    fn index(ids: &mut Ids, from: usize, behind: i64, size: usize) -> Vec<Indexed> {
        let mut rows = Vec::new();
        let mut indexer = Indexer::behind(behind, from as u64);
        for piece in FILE[from..].chunks(size) {
            indexer.feed(piece, ids, &mut rows);
        }
        indexer.finish(ids, &mut rows);
        rows
    }

    fn tally(rows: &[Indexed]) -> Tally {
        let mut tally = Tally::default();
        rows.iter().for_each(|row| tally.add(row));
        tally
    }

    #[test]
    fn lines_are_judged_and_counted() {
        let rows = index(&mut asked(), 0, 0, 1000);
        let problems: Vec<_> = rows.iter().map(|row| (row.outcome, row.problem)).collect();
        let expected = [
            (LineOutcome::Succeeded, None),
            (LineOutcome::Failed, None),
            (LineOutcome::Broken, None),
            (LineOutcome::Succeeded, Some(Problem::Duplicate)),
            (LineOutcome::Succeeded, Some(Problem::Stranger)),
            (LineOutcome::Succeeded, None),
        ];
        assert_eq!(problems, expected);
        let usage = Usage { input_tokens: 12, total_tokens: 12, ..Usage::default() };
        let expected = Tally {
            lines: 6,
            succeeded: 2,
            failed: 1,
            broken: 1,
            duplicates: 1,
            strangers: 1,
            usage: Some(usage),
        };
        assert_eq!(tally(&rows), expected);
    }

    #[test]
    fn where_the_input_is_not_known_nothing_is_a_stranger() {
        let rows = index(&mut Ids::default(), 0, 0, 1000);
        assert_eq!((tally(&rows).strangers, tally(&rows).succeeded), (0, 3));
    }

    #[test]
    fn where_a_request_was_too_long_to_be_read_nothing_is_a_stranger() {
        let mut ids = asked();
        ids.ask(RawLine { begins_at: 0, length: 1 << 30, next_at: 1 << 30, text: None });
        ids.ask(RawLine {
            begins_at: 0,
            length: 0,
            next_at: 1,
            text: Some(b"{\"custom_id\":\"e\"}"),
        });
        assert_eq!(tally(&index(&mut ids, 0, 0, 1000)).strangers, 0);
    }

    #[test]
    fn each_row_says_where_its_line_lies() {
        for row in index(&mut asked(), 0, 0, 7) {
            let (begins_at, length) = (row.begins_at as usize, row.length as usize);
            let line = Line::read(&FILE[begins_at..begins_at + length]);
            let custom_id = line.map(|line| line.custom_id.into_owned());
            assert_eq!(custom_id, row.custom_id);
        }
    }

    #[test]
    fn whoever_goes_on_behind_any_line_finds_the_same() {
        let all = index(&mut asked(), 0, 0, 1000);
        for done in 0..all.len() {
            let mut ids = asked();
            for row in &all[..done] {
                row.custom_id.as_deref().map(|custom_id| ids.answer(custom_id));
            }
            let from = done.checked_sub(1).map_or(0, |last| all[last].next_at);
            let rest = index(&mut ids, from as usize, done as i64, 13);
            assert_eq!(rest, all[done..]);
        }
    }
}
