//! Waits until something at the server has come to its end, and shows how it goes there.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::anyhow;
use indicatif::ProgressBar;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::client::Answer;
use super::client::Client;
use super::client::Failure;
use super::client::MAX_WAIT;
use super::client::Repeats;
use super::interrupt::Interrupt;
use super::interrupt::Interrupted;
use super::output::plain;
use super::progress::Progress;

/// How long the server holds its answer back when a person watches: states in between are worth seeing.
const WATCHED_WAIT: Duration = Duration::from_secs(2);
/// About a minute of pauses: a server that restarts meanwhile does not end the wait.
const REPEATS: Repeats = Repeats(6);
/// What an answer may take past the time limit before it is given up.
const GRACE: Duration = Duration::from_secs(5);
/// Longer than anybody waits, and short enough for every clock.
const LONGEST_WAIT: Duration = Duration::from_hours(24 * 365);
/// More lines than that push each other off the screen.
const MAX_LINES: usize = 20;

/// A thing of the API that `?wait=` waits for.
pub trait Watched: DeserializeOwned {
    fn is_over(&self) -> bool;
}

/// One wait.
pub struct Watch<'a> {
    pub client: &'a Client,
    pub progress: &'a Progress,
    /// Where the thing is.
    pub path: &'a [&'a str],
    pub deadline: Instant,
    /// What becomes of the thing when the wait ends before it, and how to go on.
    pub goes_on: &'a str,
}

impl Watch<'_> {
    /// Waits until the thing is over or the deadline has come, and gives its last known state. `show` gets
    /// each state as it comes.
    pub async fn until_over<T: Watched>(
        &self,
        interrupt: &mut Interrupt,
        mut show: impl FnMut(&T),
    ) -> anyhow::Result<Answer<T>> {
        let Self { client, progress, path, deadline, goes_on } = *self;
        let slice = if progress.is_watched() { WATCHED_WAIT } else { MAX_WAIT };
        let mut last = None;
        let watching = async {
            loop {
                let started = Instant::now();
                let look = async || {
                    // Up to the full second, or the last look would come too early.
                    let left = deadline.saturating_duration_since(Instant::now())
                        + Duration::from_millis(999);
                    client.look::<T>(path, left.min(slice)).await
                };
                let thing = client.repeating(REPEATS, progress, look).await?;
                show(&thing.value);
                let is_over = thing.value.is_over() || Instant::now() >= deadline;
                last = Some(thing);
                if is_over {
                    return Ok::<(), Failure>(());
                }
                // A server that does not hold its answers back is not asked without a pause.
                tokio::time::sleep_until(deadline.min(started + client.unit())).await;
            }
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout_at(deadline + GRACE, watching) => ended,
            () = interrupt.happened() => return Err(Interrupted(goes_on.to_owned()).into()),
        };
        match ended {
            Ok(Err(
                failure @ (Failure::Refused(_)
                | Failure::NoServer { .. }
                | Failure::Unreachable { .. }),
            )) if last.is_none() => return Err(failure.into()),
            Ok(Err(failure)) => return Err(anyhow!("{failure}; {goes_on}")),
            Ok(Ok(())) | Err(_) => {}
        }
        last.ok_or_else(|| {
            let thing = path.join("/");
            anyhow!("the server did not say in time how far `{thing}` is; {goes_on}")
        })
    }
}

/// The moment when a wait that starts now is over.
pub fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST_WAIT)
}

/// What `--wait` is given: seconds, or a duration with a unit.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|_| {
            "it should be a number of seconds, or a duration such as `10m`".to_owned()
        }),
    }
}

/// One line for each part of the thing, by the part's key.
pub struct Lines<'a> {
    progress: &'a Progress,
    bars: HashMap<String, ProgressBar>,
    /// What was said of each where no bars are drawn.
    told: HashMap<String, String>,
}

impl<'a> Lines<'a> {
    pub fn new(progress: &'a Progress) -> Self {
        Self { progress, bars: HashMap::new(), told: HashMap::new() }
    }

    pub fn show<'p>(&mut self, parts: impl IntoIterator<Item = (&'p str, String)>) {
        for (key, text) in parts.into_iter().take(MAX_LINES) {
            match self.bars.get(key) {
                Some(bar) => bar.set_message(plain(&text).into_owned()),
                None => {
                    self.bars.insert(key.to_owned(), self.progress.state(&text));
                }
            }
        }
    }

    /// Says what has changed, where no bars can be drawn.
    pub fn tell<'p>(&mut self, parts: impl IntoIterator<Item = (&'p str, String)>) {
        if !self.progress.is_told() {
            return;
        }
        for (key, text) in parts.into_iter().take(MAX_LINES) {
            if self.told.get(key) != Some(&text) {
                self.progress.note(&text);
                self.told.insert(key.to_owned(), text);
            }
        }
    }

    pub fn clear(&self) {
        for bar in self.bars.values() {
            bar.finish_and_clear();
        }
    }
}
