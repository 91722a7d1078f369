//! One page of a batch's results: run after run, of each first its output file and then its error file.

use std::collections::HashMap;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use super::LineOutcome;
use super::ResultId;
use super::Source;
use super::body::SHOWN;
use super::store;
use super::store::Entry;
use super::store::Filter;
use crate::ids::RunId;
use crate::runs::store::Run;

/// Bodies of one page; it ends early rather than be larger, but for its first line.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// Which results are asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub filter: Filter,
    /// The last line of the page before.
    pub after: Option<ResultId>,
    pub limit: usize,
}

/// A line, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    pub id: ResultId,
    pub model: String,
    pub blob_key: String,
    pub entry: Entry,
}

impl Located {
    /// How much of it is read.
    pub fn bytes(&self) -> u64 {
        let length = self.entry.length.unsigned_abs();
        if self.entry.outcome == LineOutcome::Broken { length.min(SHOWN) } else { length }
    }
}

/// A page, and whether there is more behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub lines: Vec<Located>,
    pub has_more: bool,
}

/// The lines of these runs that are asked for, as far as they are indexed.
///
/// # Errors
///
/// What the database says.
pub async fn page(db: &impl ConnectionTrait, runs: &[Run], asked: &Asked) -> Result<Page, DbErr> {
    let mut lines: Vec<Located> = Vec::new();
    for (run, source, after) in segments(runs, asked.after) {
        let missing = asked.limit + 1 - lines.len();
        if missing == 0 {
            break;
        }
        let limit = u32::try_from(missing).unwrap_or(u32::MAX);
        let found = store::list(db, run.id, source, &asked.filter, after, limit).await?;
        if found.is_empty() {
            continue;
        }
        let keys: HashMap<Source, String> = store::outputs(db, run.id)
            .await?
            .into_iter()
            .filter_map(|output| Some((output.source, output.stored?.blob_key)))
            .collect();
        let Some(blob_key) = keys.get(&source) else { continue };
        lines.extend(found.into_iter().map(|entry| Located {
            id: ResultId { run: run.id, source, line: entry.line },
            model: run.model.clone(),
            blob_key: blob_key.clone(),
            entry,
        }));
    }
    Ok(cut(lines, asked.limit))
}

/// The files of the runs that a page may be of, each with the line behind which it begins.
fn segments(runs: &[Run], after: Option<ResultId>) -> Vec<(&Run, Source, i64)> {
    let all = runs.iter().flat_map(|run| Source::ALL.map(|source| (run, source, 0)));
    let Some(after) = after else { return all.collect() };
    let is_before = |run: RunId, source: Source| (run, source) != (after.run, after.source);
    let mut rest: Vec<_> = all.skip_while(|(run, source, _)| is_before(run.id, *source)).collect();
    if let Some((_, _, line)) = rest.first_mut() {
        *line = after.line;
    }
    rest
}

fn cut(mut lines: Vec<Located>, limit: usize) -> Page {
    let mut bytes = 0u64;
    let fits = lines.iter().take(limit).enumerate().take_while(|(place, line)| {
        bytes += line.bytes();
        *place == 0 || bytes <= MOST_BYTES
    });
    let count = fits.count();
    let has_more = lines.len() > count;
    lines.truncate(count);
    Page { lines, has_more }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: i64, length: u64) -> Located {
        let run = RunId(uuid::Uuid::nil());
        let entry = Entry {
            source: Source::Output,
            line: number,
            outcome: LineOutcome::Succeeded,
            problem: None,
            begins_at: 0,
            length: i64::try_from(length).unwrap(),
        };
        Located {
            id: ResultId { run, source: Source::Output, line: number },
            model: "m".to_owned(),
            blob_key: "k".to_owned(),
            entry,
        }
    }

    fn cut_of(lengths: &[u64], limit: usize) -> (usize, bool) {
        let lines = (1..).zip(lengths).map(|(number, length)| line(number, *length)).collect();
        let page = cut(lines, limit);
        (page.lines.len(), page.has_more)
    }

    #[test]
    fn a_page_ends_with_its_limit_or_its_bytes() {
        assert_eq!(cut_of(&[], 2), (0, false));
        assert_eq!(cut_of(&[1, 1], 2), (2, false));
        assert_eq!(cut_of(&[1, 1, 1], 2), (2, true));
        assert_eq!(cut_of(&[MOST_BYTES - 1, 1, 1], 20), (2, true));
        assert_eq!(cut_of(&[MOST_BYTES * 2, 1], 20), (1, true));
    }

    #[test]
    fn of_a_broken_line_only_the_beginning_counts() {
        let mut broken = line(1, MOST_BYTES * 4);
        broken.entry.outcome = LineOutcome::Broken;
        assert_eq!(broken.bytes(), SHOWN);
    }
}
