//! Sweeps: the deletion of many files, as one durable job that goes on where it stopped.
//!
//! A sweep takes its files from their client a chunk at a time, in one transaction each, and then queues
//! the deletes of their copies, never more than a few at once: the queue of a million would stand in the
//! way of everybody else's work.

mod filter;
pub mod status;
pub mod store;

use std::collections::HashSet;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

pub use self::filter::Filter;
pub use self::filter::Selection;
pub use self::status::SweepStatus;
use self::store::Found;
use self::store::Sweep;
use self::store::SweepLane;
use self::store::Taken;
use crate::batches;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::files;
use crate::files::Deletion;
use crate::files::deletion::Order;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::SweepId;
use crate::jobs;
use crate::jobs::Failure;
use crate::jobs::Lane;
use crate::jobs::NewJob;
use crate::jobs::Work;

/// Deletes of one sweep at one provider that are queued at the same time.
const MAX_QUEUED: i64 = 500;
/// Deletes that one transaction queues.
const AT_ONCE: u32 = 100;

/// A sweep to be written.
#[derive(Clone, Debug)]
pub struct NewSweep {
    pub id: SweepId,
    pub owner: String,
    pub selection: Selection,
    pub is_dry_run: bool,
    pub max_attempts: u32,
    pub request_id: Option<String>,
}

/// Writes a sweep and its job, and answers it as stored.
///
/// # Errors
///
/// What the database says.
pub async fn create(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    new: &NewSweep,
) -> Result<Sweep, Error> {
    let job = NewJob {
        id: JobId::mint(),
        work: Work::Sweep(jobs::Sweep { sweep_id: new.id }),
        lane: Lane::sweeps(),
        owner: new.owner.clone(),
        max_attempts: new.max_attempts,
        delay: std::time::Duration::ZERO,
        file_id: None,
        batch_id: None,
        model: None,
        request_id: new.request_id.clone(),
    };
    store::insert(tx, now, new, job.id).await?;
    if let Selection::Files(files) = &new.selection {
        store::insert_files(tx, new.id, files).await?;
    }
    jobs::store::enqueue(tx, now, &[job]).await?;
    let sweep = store::find(tx, new.id).await?;
    sweep.ok_or_else(|| Error::Internal(anyhow::anyhow!("sweep `{}` was not stored", new.id)))
}

/// Deletes the files that were found. A dry run only counts them. `false` when the sweep takes no more: it was
/// cancelled meanwhile, and the caller undoes what this wrote.
///
/// # Errors
///
/// What the database says.
pub async fn take(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    sweep: &Sweep,
    found: &Found,
) -> Result<bool, DbErr> {
    let taken = if sweep.is_dry_run {
        let skipped = in_use(tx, &found.files).await?;
        Taken { matched: found.files.len(), done: 0, skipped }
    } else {
        let buried = files::deletion::delete(tx, now, &found.files, &order(sweep)).await?;
        // Held by now: none of them can come into use any more.
        let skipped = in_use(tx, &found.files).await?;
        let done = buried.iter().filter(|file| file.deletion == Deletion::Done).count();
        Taken { matched: buried.len() + skipped, done, skipped }
    };
    if !store::took(tx, now, sweep.id, &taken, found).await? {
        return Ok(false);
    }
    if !sweep.is_dry_run {
        store::open_lanes(tx, sweep.id, &found.files).await?;
    }
    if found.is_last {
        store::forget_files(tx, sweep.id).await?;
        settle(tx, now, sweep.id, 0, 0).await?;
    }
    Ok(true)
}

/// How many of these files an unfinished batch runs on.
async fn in_use(tx: &impl ConnectionTrait, files: &[FileId]) -> Result<usize, DbErr> {
    let open = batches::store::open_on(tx, files).await?;
    let used: HashSet<FileId> = open.into_iter().map(|(file, _, _)| file).collect();
    Ok(used.len())
}

fn order(sweep: &Sweep) -> Order {
    let (sweep_id, request_id) = (Some(sweep.id), sweep.request_id.clone());
    Order { sweep_id, request_id, is_background: true, even_in_use: false }
}

/// Queues the next deletes at one provider, if it has room for them. Answers how many.
///
/// # Errors
///
/// What the database says.
pub async fn queue(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    sweep: &Sweep,
    provider: &str,
) -> Result<u32, DbErr> {
    let lane = store::lock_lane(tx, sweep.id, provider).await?;
    let Some(lane) = lane.filter(SweepLane::has_room) else { return Ok(0) };
    let (last, count) =
        files::deletion::queue(tx, now, provider, lane.queued_to, AT_ONCE, &order(sweep)).await?;
    store::queued(tx, sweep.id, provider, last, count, count < AT_ONCE).await?;
    Ok(count)
}

/// The deletion of a swept file has come to something else than it was.
///
/// # Errors
///
/// What the database says.
pub async fn moved(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: SweepId,
    before: Deletion,
    after: Deletion,
) -> Result<(), DbErr> {
    let count = |state| i64::from(after == state) - i64::from(before == state);
    settle(tx, now, id, count(Deletion::Done), count(Deletion::Failed)).await
}

/// Counts files that moved, and announces the end that this may be.
async fn settle(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: SweepId,
    deleted: i64,
    failed: i64,
) -> Result<(), DbErr> {
    if let Some(owner) = store::settle(tx, now, id, deleted, failed).await? {
        let event = Event { kind: EventKind::SweepCompleted, owner, subject: id.0 };
        events::append(tx, now, &[event]).await?;
    }
    Ok(())
}

/// Ends a sweep whose job is a dead letter.
///
/// # Errors
///
/// What the database says.
pub async fn fail(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: SweepId,
    failure: &Failure,
) -> Result<(), DbErr> {
    if let Some(owner) = store::fail(tx, now, id, failure).await? {
        let event = Event { kind: EventKind::SweepCompleted, owner, subject: id.0 };
        events::append(tx, now, &[event]).await?;
    }
    Ok(())
}

/// Stops taking files. What was taken is deleted all the same.
///
/// # Errors
///
/// When the sweep has ended.
pub async fn cancel(tx: &impl ConnectionTrait, now: Timestamp, sweep: &Sweep) -> Result<(), Error> {
    if !store::cancel(tx, now, sweep.id).await? {
        return Err(Error::Conflict {
            code: "sweep_ended",
            message: "the sweep has already ended: there is nothing left to cancel".to_owned(),
            retry_after: None,
        });
    }
    let event =
        Event { kind: EventKind::SweepCompleted, owner: sweep.owner.clone(), subject: sweep.id.0 };
    events::append(tx, now, &[event]).await?;
    Ok(())
}
