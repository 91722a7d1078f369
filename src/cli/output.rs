//! Results on standard output: tables for people, one JSON document for scripts.

mod human;

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

use comfy_table::{Cell, Color, Table, presets};
use serde_json::Value;

use super::progress::Progress;
pub use human::{bytes, time};

/// Where the results of one command go, and in which form.
pub struct Output {
    /// Whether a script reads: one JSON document, and no progress.
    pub json: bool,
    /// Whether a person looks at standard output.
    pub is_terminal: bool,
    /// What goes to standard error while the command runs.
    pub progress: Progress,
    sink: Box<dyn Write + Send>,
}

/// Whoever read standard output has gone away (`longshore files ls | head -1`).
#[derive(Debug, thiserror::Error)]
#[error("standard output was closed")]
pub struct Closed;

/// Ends a command whose reader has gone away without a word; everything else stays as it is.
pub fn unless_closed(result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    match result {
        Err(error) if error.is::<Closed>() => Ok(ExitCode::SUCCESS),
        result => result,
    }
}

/// Reports a wrong usage that only shows when all arguments are known, as the argument parser does.
pub fn wrong_usage(message: &str) -> ExitCode {
    // Standard error may be closed; the exit code tells it too.
    let _ = writeln!(io::stderr(), "error: {message}");
    ExitCode::from(2)
}

impl Output {
    /// The process's own standard output and standard error.
    pub fn standard(json: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self { json, is_terminal, progress: Progress::standard(json), sink: Box::new(io::stdout()) }
    }

    /// An output that is kept for a test to look at.
    #[cfg(test)]
    pub(crate) fn kept(json: bool, sink: impl Write + Send + 'static) -> Self {
        Self { json, is_terminal: false, progress: Progress::hidden(), sink: Box::new(sink) }
    }

    /// Writes bytes as they are. Fails with [`Closed`] when nobody reads them any more.
    pub fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.sink.write_all(bytes).map_err(closed)
    }

    /// Hands on what was written so far.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.sink.flush().map_err(closed)
    }

    /// Writes one line of text.
    pub fn line(&mut self, text: &str) -> anyhow::Result<()> {
        self.raw(format!("{text}\n").as_bytes())?;
        self.flush()
    }

    /// Writes a JSON document, indented.
    pub fn document(&mut self, json: &Value) -> anyhow::Result<()> {
        self.line(&format!("{json:#}"))
    }

    /// Writes a JSON document in one line, where a script reads one after another.
    pub fn json_line(&mut self, json: &Value) -> anyhow::Result<()> {
        self.line(&json.to_string())
    }

    /// Writes a table. One without rows writes nothing.
    pub fn table(&mut self, headings: &[&str], rows: Vec<Vec<Cell>>) -> anyhow::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        // No lines and no wrapping: a managed id stays in one piece, to be pasted, and a table can be
        // read by `awk`.
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if self.is_terminal {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !headings.is_empty() {
            table.set_header(headings.iter().map(Cell::new));
        }
        table.add_rows(rows);
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.line(&table.trim_fmt())
    }
}

fn closed(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Closed.into(),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    }
}

/// Text from elsewhere without what a terminal would obey: control characters and marks that turn the
/// direction of writing are shown by their number.
pub fn plain(text: &str) -> Cow<'_, str> {
    let is_obeyed = |character: char| {
        character.is_control()
            || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_obeyed(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// A cell with text from elsewhere.
pub fn cell(text: &str) -> Cell {
    Cell::new(plain(text))
}

/// A cell with text that may be missing.
pub fn optional(text: Option<&str>) -> Cell {
    cell(text.unwrap_or("-"))
}

/// A cell with a status, in the colour of what it means for a person.
pub fn status(status: &str) -> Cell {
    let color = match status {
        "processed" | "ready" | "succeeded" | "completed" | "deleted" | "ok" => Color::Green,
        "error" | "failed" | "lost" | "undeletable" | "expired" | "needs_attention" => Color::Red,
        "uploaded" | "uploading" | "pending" | "queued" | "running" | "retrying" | "deleting"
        | "validating" | "in_progress" | "finalizing" | "cancelling" | "warning" => Color::Yellow,
        _ => Color::Reset,
    };
    cell(status).fg(color)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cli::scripted::Kept;

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_ends_the_command_quietly() {
        let result = Output::kept(false, Gone).line("lost").map(|()| ExitCode::FAILURE);
        assert_eq!(unless_closed(result).unwrap(), ExitCode::SUCCESS);
        assert!(unless_closed(Err(anyhow::anyhow!("something else"))).is_err());
    }

    #[test]
    fn a_table_keeps_a_long_id_in_one_piece_at_the_end_of_its_line_and_has_no_colours_in_a_pipe() {
        let kept = Kept::default();
        let id = "i".repeat(400);
        let rows = vec![vec![status("ready"), cell("ümlaut.jsonl"), cell(&id)]];
        Output::kept(false, kept.clone()).table(&["STATUS", "NAME", "ID"], rows).unwrap();
        assert_eq!(kept.text(), format!("STATUS  NAME          ID\nready   ümlaut.jsonl  {id}\n"));
    }

    #[test]
    fn a_terminal_gets_colours() {
        let kept = Kept::default();
        let mut output = Output { is_terminal: true, ..Output::kept(false, kept.clone()) };
        output.table(&["STATUS"], vec![vec![status("ready")]]).unwrap();
        assert!(kept.text().contains('\u{1b}'), "{}", kept.text());
    }

    #[test]
    fn a_filename_cannot_command_the_terminal() {
        assert_eq!(plain("a\u{1b}[2J\n\u{202e}b"), "a\\u{1b}[2J\\u{a}\\u{202e}b");
    }

    proptest! {
        #[test]
        fn shown_text_has_no_control_character(text in any::<String>()) {
            prop_assert!(!plain(&text).chars().any(char::is_control));
        }
    }
}
