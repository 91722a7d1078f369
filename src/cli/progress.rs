//! Progress on standard error, for a person at a terminal.

use std::{
    borrow::Cow,
    io::{self, Write},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::plain;

const TRANSFER: &str = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const TRANSFER_OF_UNKNOWN_SIZE: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";
const COUNT: &str = "{msg} {bar:30} {pos}/{len}";
const STATE: &str = "{spinner} {msg}";

/// Bars and notes of one command. Without a terminal, or with `--json`, there are only the notes.
#[derive(Clone, Debug)]
pub struct Progress {
    bars: MultiProgress,
    /// Whether a script reads, which wants no news.
    is_quiet: bool,
}

impl Progress {
    /// Draws on standard error where that is a terminal, but not for a script.
    pub fn standard(json: bool) -> Self {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { bars: MultiProgress::with_draw_target(target), is_quiet: json }
    }

    /// Draws nothing.
    #[cfg(test)]
    pub fn hidden() -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        Self { bars, is_quiet: true }
    }

    /// Whether somebody watches, so that it is worth asking the server more often.
    pub fn is_watched(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// Whether progress is told in lines now and then: to a log, where bars cannot be drawn.
    pub fn is_told(&self) -> bool {
        !self.is_quiet && !self.is_watched()
    }

    /// Takes the bars from the screen, for what is said last.
    pub fn clear(&self) {
        // A terminal that went away shows nothing anyway.
        drop(self.bars.clear());
    }

    /// A bar for a transfer of so many bytes, or of a number that is not known.
    pub fn transfer(&self, name: &str, bytes: Option<u64>) -> ProgressBar {
        let (bar, template) = match bytes {
            Some(bytes) => (ProgressBar::new(bytes), TRANSFER),
            None => (ProgressBar::no_length(), TRANSFER_OF_UNKNOWN_SIZE),
        };
        self.shown(bar, template, plain(name).into_owned())
    }

    /// A bar for how many of a number of things are done: see [`counted`].
    pub fn count(&self, name: &str) -> ProgressBar {
        self.shown(ProgressBar::no_length(), COUNT, plain(name).into_owned())
    }

    /// A line that says in which state something is.
    pub fn state(&self, text: &str) -> ProgressBar {
        let bar = self.shown(ProgressBar::no_length(), STATE, plain(text).into_owned());
        if self.is_watched() {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        bar
    }

    /// Says something on standard error, above the bars.
    pub fn note(&self, text: &str) {
        let text = plain(text);
        // A terminal that went away must not end the work.
        let shown = self.is_watched() && self.bars.println(&text).is_ok();
        if !shown {
            // Not `eprintln!`, which panics when standard error is closed.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    fn shown(
        &self,
        bar: ProgressBar,
        template: &str,
        text: impl Into<Cow<'static, str>>,
    ) -> ProgressBar {
        let style =
            ProgressStyle::with_template(template).expect("the templates above are well formed");
        let bar = self.bars.add(bar.with_style(style));
        bar.set_message(text);
        bar
    }
}

/// Moves a bar of [`Progress::count`]. Both numbers may still grow.
pub fn counted(bar: &ProgressBar, done: u64, all: u64) {
    // A bar of nothing would be drawn full.
    if all > 0 {
        bar.set_length(all);
    }
    bar.set_position(done);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_has_a_template_that_can_be_read() {
        let progress = Progress::hidden();
        progress.transfer("a", Some(1)).inc(1);
        progress.transfer("a", None).inc(1);
        counted(&progress.count("a"), 1, 2);
        progress.state("a").tick();
        assert!(!progress.is_watched());
    }
}
