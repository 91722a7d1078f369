//! Bars that show how far something is at each model.

use indicatif::MultiProgress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use crate::cli::progress::counted;

/// How far a bar is, and what stands beside it.
pub struct Step {
    pub done: u64,
    pub all: u64,
    pub says: String,
}

/// A bar for each model.
pub struct Bars(Vec<ProgressBar>);

impl Bars {
    pub fn new<'a>(models: impl Iterator<Item = &'a str>) -> Self {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix:>8} {bar:24} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bars = models.map(|model| {
            let bar = all.add(ProgressBar::no_length().with_style(style.clone()));
            bar.set_prefix(model.to_owned());
            bar
        });
        Self(bars.collect())
    }

    pub fn show(&self, steps: impl Iterator<Item = Step>) {
        for (bar, Step { done, all, says }) in self.0.iter().zip(steps) {
            counted(bar, done, all);
            bar.set_message(says);
        }
    }

    /// Leaves them on the screen.
    pub fn finish(&self) {
        for bar in &self.0 {
            bar.abandon();
        }
    }
}
