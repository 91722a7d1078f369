//! How many jobs of one owner may wait. Past it, what would queue more is refused before it is accepted; what was
//! accepted, and what it brings with it, never is.
//!
//! Nobody counts a million rows for each upload: a process remembers what it counted last, and adds what it let in
//! since. It counts again after `TRUSTED_FOR`, when what it let in since is more than a sixteenth of the room that
//! there was, and before it refuses; but never for more than a twentieth of the time. So one intake alone refuses at
//! the limit, and several go past it by what they let in between two counts: a sixteenth of the room for each of them
//! but 16 together, at least `GRAIN`, and by requests that are under way during a count. Jobs that end meanwhile are seen at the next count, which comes before a
//! refusal.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use sea_orm::DbErr;

use crate::db::Db;
use crate::error::Error;
use crate::jobs;

/// How long a count holds for an owner who is far from the limit.
const TRUSTED_FOR: Duration = Duration::from_secs(10);
/// Before a refusal it is counted anew, but not more often than this.
const COUNTED_AGAIN: Duration = Duration::from_secs(1);
/// Counting takes no more than one part in so many of the time.
const SHARE_OF_TIME: u32 = 20;
/// Jobs that are let in without a new count, whatever the room.
const GRAIN: u64 = 64;
/// How soon who is refused may come again.
const COME_AGAIN: Duration = Duration::from_secs(30);
const MAX_OWNERS: usize = 10_000;

/// What is known of the backlogs of owners. Cloned freely.
#[derive(Clone, Debug)]
pub struct Backlogs {
    most: Option<u64>,
    owners: Arc<Mutex<HashMap<String, Arc<Owner>>>>,
}

/// An owner has more jobs waiting than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    pub most: u64,
}

impl From<Full> for Error {
    fn from(Full { most }: Full) -> Self {
        Self::Limited {
            code: "too_many_pending_jobs",
            message: format!(
                "this owner has {most} jobs waiting already, or would have more with these, and it may have no more \
                 (`limits.max_pending_jobs_per_owner`); come again when some of them are done (`GET /v1/jobs`)"
            ),
            retry_after: COME_AGAIN,
        }
    }
}

#[derive(Debug, Default)]
struct Owner {
    known: Mutex<Known>,
    /// Held by who counts.
    counting: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    counted: Option<Counted>,
    /// Jobs that were let in since then.
    added: u64,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    waiting: u64,
    at: Instant,
    took: Duration,
}

/// What is known says of more jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Room { is_old: bool },
    None { is_old: bool },
}

impl Backlogs {
    /// `most` jobs of each owner, 0 for any number.
    pub fn new(most: u64) -> Self {
        Self { most: Some(most).filter(|most| *most > 0), owners: Arc::default() }
    }

    /// Whether an owner may have so many more jobs waiting. What may be is counted as let in.
    ///
    /// # Errors
    ///
    /// When it has to be counted, and the database cannot be asked.
    pub async fn admit(&self, db: &Db, owner: &str, jobs: usize) -> Result<Option<Full>, DbErr> {
        let Some(most) = self.most else { return Ok(None) };
        let (this, jobs) = (self.owner(owner), jobs as u64);
        match this.admit(most, jobs) {
            Answer::Room { is_old: false } => return Ok(None),
            Answer::Room { is_old: true } => {
                this.count_beside(db, owner, most);
                return Ok(None);
            }
            Answer::None { is_old: false } => return Ok(Some(Full { most })),
            Answer::None { is_old: true } => {}
        }
        let counting = this.counting.lock().await;
        // Another may have counted meanwhile.
        let mut answer = this.admit(most, jobs);
        if answer == (Answer::None { is_old: true }) {
            this.count(db, owner, most).await?;
            answer = this.admit(most, jobs);
        }
        drop(counting);
        match answer {
            Answer::Room { .. } => Ok(None),
            Answer::None { .. } => Ok(Some(Full { most })),
        }
    }

    fn owner(&self, name: &str) -> Arc<Owner> {
        let mut owners = lock(&self.owners);
        if let Some(owner) = owners.get(name) {
            return Arc::clone(owner);
        }
        if owners.len() >= MAX_OWNERS {
            owners.clear();
        }
        Arc::clone(owners.entry(name.to_owned()).or_default())
    }
}

impl Owner {
    fn admit(&self, most: u64, jobs: u64) -> Answer {
        let mut known = lock(&self.known);
        let answer = known.answer(most, jobs, Instant::now());
        if let Answer::Room { .. } = answer {
            known.added += jobs;
        }
        answer
    }

    async fn count(&self, db: &Db, name: &str, most: u64) -> Result<(), DbErr> {
        let begun = Instant::now();
        // What is let in meanwhile may be in the count or not: it is added all the same.
        let before = lock(&self.known).added;
        let waiting = jobs::backlog::waiting(db.scan(), name, most).await?;
        let mut known = lock(&self.known);
        known.added = known.added.saturating_sub(before);
        known.counted = Some(Counted { waiting, at: begun, took: begun.elapsed() });
        Ok(())
    }

    /// Counts, while requests go on by what is known; one at a time.
    fn count_beside(self: &Arc<Self>, db: &Db, name: &str, most: u64) {
        let (this, db, name) = (Arc::clone(self), db.clone(), name.to_owned());
        tokio::spawn(async move {
            let Ok(_counting) = this.counting.try_lock() else { return };
            if let Err(error) = this.count(&db, &name, most).await {
                tracing::debug!(error = %error, "could not count the waiting jobs of an owner");
            }
        });
    }
}

impl Known {
    fn answer(&self, most: u64, jobs: u64, now: Instant) -> Answer {
        let Some(counted) = self.counted else { return Answer::None { is_old: true } };
        let age = now.saturating_duration_since(counted.at);
        let may_count = age >= counted.took * SHARE_OF_TIME;
        let waiting = counted.waiting.saturating_add(self.added);
        // Asked before it is known how many there will be, it is for one more.
        if waiting.saturating_add(jobs.max(1)) > most {
            return Answer::None { is_old: may_count && age >= COUNTED_AGAIN };
        }
        let room = most.saturating_sub(counted.waiting);
        let is_much = self.added + jobs > (room / 16).max(GRAIN);
        Answer::Room { is_old: may_count && (is_much || age >= TRUSTED_FOR) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(waiting: u64, added: u64, age: u64, took: u64) -> Answer {
        let (now, second) = (Instant::now() + Duration::from_secs(1000), Duration::from_secs);
        let counted = Counted { waiting, at: now - second(age), took: second(took) };
        Known { counted: Some(counted), added }.answer(1000, 3, now)
    }

    #[test]
    fn what_fits_is_let_in_and_counted_anew_only_when_it_is_old_or_much_was_added() {
        assert_eq!(known(0, 0, 0, 0), Answer::Room { is_old: false });
        assert_eq!(known(0, 61, 0, 0), Answer::Room { is_old: false });
        assert_eq!(known(0, 62, 0, 0), Answer::Room { is_old: true });
        assert_eq!(known(0, 0, 10, 0), Answer::Room { is_old: true });
        assert_eq!(known(0, 0, 10, 1), Answer::Room { is_old: false }, "counting takes its time");
        assert_eq!(known(997, 0, 0, 0), Answer::Room { is_old: false });
    }

    #[test]
    fn nobody_is_refused_by_an_old_count() {
        assert_eq!(known(998, 0, 0, 0), Answer::None { is_old: false });
        assert_eq!(known(0, 998, 1, 0), Answer::None { is_old: true });
        assert_eq!(known(1001, 0, 19, 1), Answer::None { is_old: false });
        assert_eq!(known(1001, 0, 20, 1), Answer::None { is_old: true });
        assert_eq!(Known::default().answer(1000, 1, Instant::now()), Answer::None { is_old: true });
    }
}
