//! Deleting files: the tombstone, the jobs that delete the copies, and how far that is.
//!
//! One commit takes a file from its client, calls its uploads off, and promises that nothing of it is
//! left at a provider in the end. From then on its id is known as deleted for good, and whatever comes
//! late (an upload that was under way, a copy that nobody knew of) finds the tombstone.

pub mod receipts;
pub mod store;

use std::collections::HashMap;
use std::collections::HashSet;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

use crate::batches;
use crate::clock::Timestamp;
use crate::events;
use crate::events::Event;
use crate::events::EventKind;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::SweepId;
use crate::jobs;
use crate::jobs::DeleteFile;
use crate::jobs::Lane;
use crate::jobs::NewJob;
use crate::jobs::Work;
use crate::mappings;
use crate::mappings::MappingStatus;
use crate::mappings::deletion::Doomed;
use crate::sweeps;
use crate::words::words;

/// Deletes are given up by age, not by a number of attempts.
const MAX_ATTEMPTS: u32 = u32::MAX;
/// The end of an upload makes the delete of its copy due. This is for an end that nobody saw.
const WHILE_UPLOADING: Duration = Duration::from_secs(60);
/// Files that one statement names.
const CHUNK: usize = 500;

words! {
    /// How far the copies of a deleted file are gone.
    Deletion, "a state of a deletion" {
        Pending = "pending",
        /// Nothing of it is left at any provider.
        Done = "done",
        /// Nothing is tried any more, and some copy may be left.
        Failed = "failed",
    }
}

impl Deletion {
    /// From the mappings of a file that is deleted.
    pub fn of_mappings(mappings: impl IntoIterator<Item = MappingStatus>) -> Self {
        let mut deletion = Self::Done;
        for mapping in mappings {
            match mapping {
                MappingStatus::Deleted => {}
                MappingStatus::Undeletable => deletion = Self::Failed,
                _ => return Self::Pending,
            }
        }
        deletion
    }
}

/// What files are deleted for.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// A sweep queues the jobs of its files itself, a few at a time: see [`queue`].
    pub sweep_id: Option<SweepId>,
    pub request_id: Option<String>,
    /// Nobody waits for it in particular.
    pub is_background: bool,
    /// Also what an unfinished batch runs on, which was cancelled before. Otherwise that is passed over.
    pub even_in_use: bool,
}

/// A file that was deleted just now.
#[derive(Clone, Debug)]
pub struct Buried {
    pub id: FileId,
    pub owner: String,
    pub deletion: Deletion,
}

/// Deletes these files; those that are deleted already, or that an unfinished batch runs on, are passed over.
/// Answers what it deleted.
///
/// # Errors
///
/// What the database says.
pub async fn delete(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    ids: &[FileId],
    order: &Order,
) -> Result<Vec<Buried>, DbErr> {
    let mut buried = Vec::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        buried.extend(delete_chunk(tx, now, chunk, order).await?);
    }
    Ok(buried)
}

async fn delete_chunk(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    ids: &[FileId],
    order: &Order,
) -> Result<Vec<Buried>, DbErr> {
    // In the order in which the end of an upload takes them, so that the two never wait for each other.
    mappings::deletion::lock(tx, ids).await?;
    let mut ids = ids.to_vec();
    if !order.even_in_use {
        let used = batches::store::open_on(tx, &ids).await?;
        ids.retain(|id| !used.iter().any(|(file, _, _)| file == id));
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut buried = store::bury(tx, now, &ids, order.sweep_id).await?;
    if buried.is_empty() {
        return Ok(buried);
    }
    let ids: Vec<FileId> = buried.iter().map(|file| file.id).collect();
    let (cancelled, stopping) = jobs::store::cancel_uploads(tx, now, &ids).await?;
    let doomed = mappings::deletion::of_files(tx, &ids).await?;

    let stopping: HashSet<JobId> = stopping.into_iter().collect();
    let mut gone = Vec::new();
    let (mut deletes, mut later, mut under_way) = (Vec::new(), Vec::new(), Vec::new());
    for mapping in doomed {
        match fate(&mapping, stopping.contains(&mapping.job_id)) {
            Fate::Nothing => gone.push(mapping.id),
            Fate::Delete => deletes.push(mapping),
            Fate::AfterUpload => later.push(mapping),
            Fate::UnderWay => under_way.push(mapping.file_id),
            Fate::Over => {}
        }
    }
    mappings::deletion::never_there(tx, now, &gone).await?;
    mappings::deletion::begin(tx, now, &deletes, false).await?;
    mappings::deletion::begin(tx, now, &later, true).await?;
    if order.sweep_id.is_none() {
        let owners = buried.iter().map(|file| (file.id, file.owner.clone())).collect();
        enqueue(tx, now, &deletes, &owners, Duration::ZERO, order).await?;
        enqueue(tx, now, &later, &owners, WHILE_UPLOADING, order).await?;
    }
    let at_work: HashSet<FileId> =
        deletes.iter().chain(&later).map(|mapping| mapping.file_id).chain(under_way).collect();
    let mut done = Vec::new();
    for file in &mut buried {
        if !at_work.contains(&file.id) {
            file.deletion = Deletion::Done;
            done.push(file.id);
        }
    }
    store::set_deletion(tx, &done, Deletion::Done).await?;
    announce(tx, now, &buried, &cancelled).await?;
    Ok(buried)
}

async fn announce(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    buried: &[Buried],
    cancelled: &[JobId],
) -> Result<(), DbErr> {
    let mut said = Vec::with_capacity(buried.len());
    for file in buried {
        said.push(Event::of_file(EventKind::FileDeleted, &file.owner, file.id));
        if file.deletion == Deletion::Done {
            said.push(Event::of_file(EventKind::FilePurged, &file.owner, file.id));
        }
    }
    for chunk in said.chunks(CHUNK) {
        events::append(tx, now, chunk).await?;
    }
    for chunk in cancelled.chunks(CHUNK) {
        let owners = jobs::store::owners(tx, chunk).await?;
        let said: Vec<_> = owners
            .iter()
            .map(|(job, owner)| Event::of_job(EventKind::JobCancelled, owner, *job))
            .collect();
        events::append(tx, now, &said).await?;
    }
    Ok(())
}

/// What is to be done about a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It never took effect, and what was begun is called off.
    Nothing,
    Delete,
    /// Its upload runs, and is told to stop. What it left is clear when it has ended.
    AfterUpload,
    /// It was let go before, and its delete goes on.
    UnderWay,
    /// It was let go before, and is gone.
    Over,
}

fn fate(mapping: &Doomed, is_uploading: bool) -> Fate {
    match mapping.status {
        MappingStatus::Pending | MappingStatus::Uploading if is_uploading => Fate::AfterUpload,
        MappingStatus::Pending | MappingStatus::Failed if mapping.unknown_since.is_none() => {
            Fate::Nothing
        }
        MappingStatus::Deleting => Fate::UnderWay,
        MappingStatus::Deleted => Fate::Over,
        MappingStatus::Pending
        | MappingStatus::Uploading
        | MappingStatus::Ready
        | MappingStatus::Failed
        | MappingStatus::Expired
        | MappingStatus::Lost
        | MappingStatus::Undeletable => Fate::Delete,
    }
}

/// Deletes copies that their providers need not hold any more, of files that stay. The caller holds the files (see
/// [`mappings::deletion::lock`]).
///
/// # Errors
///
/// What the database says.
pub async fn let_go(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    copies: &[Doomed],
    owner: &str,
) -> Result<(), DbErr> {
    let held = [MappingStatus::Ready, MappingStatus::Expired, MappingStatus::Lost];
    let copies: Vec<_> =
        copies.iter().filter(|copy| held.contains(&copy.status)).cloned().collect();
    let owners = copies.iter().map(|copy| (copy.file_id, owner.to_owned())).collect();
    mappings::deletion::begin(tx, now, &copies, false).await?;
    let order = Order { is_background: true, ..Order::default() };
    enqueue(tx, now, &copies, &owners, Duration::ZERO, &order).await
}

/// Queues the deletes of swept files' copies at one provider, from the file `from` on, of at most `limit`
/// copies. Answers the last one's file, and how many there were.
///
/// # Errors
///
/// What the database says.
pub async fn queue(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    provider: &str,
    from: Option<FileId>,
    limit: u32,
    order: &Order,
) -> Result<(Option<FileId>, u32), DbErr> {
    let Some(sweep_id) = order.sweep_id else { return Ok((None, 0)) };
    let waiting = mappings::deletion::unqueued(tx, sweep_id, provider, from, limit).await?;
    let last = waiting.last().map(|(mapping, _)| mapping.file_id);
    let owners = waiting.iter().map(|(mapping, owner)| (mapping.file_id, owner.clone())).collect();
    let mappings: Vec<_> = waiting.into_iter().map(|(mapping, _)| mapping).collect();
    enqueue(tx, now, &mappings, &owners, Duration::ZERO, order).await?;
    Ok((last, u32::try_from(mappings.len()).unwrap_or(limit)))
}

async fn enqueue(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    mappings: &[Doomed],
    owners: &HashMap<FileId, String>,
    delay: Duration,
    order: &Order,
) -> Result<(), DbErr> {
    let mut new = Vec::with_capacity(mappings.len());
    for mapping in mappings {
        let job = NewJob {
            id: JobId::mint(),
            work: Work::DeleteFile(DeleteFile {
                mapping_id: mapping.id,
                is_background: order.is_background,
            }),
            lane: Lane::of_provider(&mapping.provider),
            owner: owners.get(&mapping.file_id).cloned().unwrap_or_default(),
            max_attempts: MAX_ATTEMPTS,
            delay,
            file_id: Some(mapping.file_id),
            batch_id: None,
            model: Some(mapping.model.clone()),
            request_id: order.request_id.clone(),
        };
        mappings::deletion::set_job(tx, mapping.id, job.id).await?;
        new.push(job);
    }
    jobs::store::enqueue(tx, now, &new).await
}

/// Derives from the mappings how far the deletion of a file is, and announces it when it is over. Answers the
/// sweep that it is part of.
///
/// # Errors
///
/// What the database says.
pub async fn settle(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    file_id: FileId,
    owner: &str,
) -> Result<Option<SweepId>, DbErr> {
    // Locked: two copies that go at once must see each other.
    let Some((before, sweep)) = store::lock_deletion(tx, file_id).await? else { return Ok(None) };
    let deletion = Deletion::of_mappings(mappings::deletion::statuses(tx, file_id).await?);
    // Also where nothing moves, so that all take the sweep before what is counted of it.
    if let Some(sweep) = sweep {
        sweeps::moved(tx, now, sweep, before, deletion).await?;
    }
    if deletion != before {
        store::set_deletion(tx, &[file_id], deletion).await?;
        if deletion != Deletion::Pending {
            let event = Event::of_file(EventKind::FilePurged, owner, file_id);
            events::append(tx, now, &[event]).await?;
        }
    }
    Ok(sweep)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::MappingId;

    fn doomed(status: MappingStatus, unknown_since: Option<Timestamp>) -> Doomed {
        Doomed {
            id: MappingId::mint(),
            file_id: FileId::mint(),
            status,
            provider: "p".to_owned(),
            model: "m".to_owned(),
            unknown_since,
            job_id: JobId::mint(),
            delete_job_id: None,
        }
    }

    #[test]
    fn only_what_cannot_have_reached_the_provider_is_not_deleted_there() {
        for status in MappingStatus::ALL {
            let (known, unknown) = match status {
                MappingStatus::Pending | MappingStatus::Failed => (Fate::Nothing, Fate::Delete),
                MappingStatus::Deleting => (Fate::UnderWay, Fate::UnderWay),
                MappingStatus::Deleted => (Fate::Over, Fate::Over),
                _ => (Fate::Delete, Fate::Delete),
            };
            assert_eq!(fate(&doomed(status, None), false), known, "{status}");
            assert_eq!(fate(&doomed(status, Some(Timestamp(1))), false), unknown, "{status}");
        }
    }

    #[test]
    fn a_deletion_is_over_when_no_copy_is_worked_on() {
        use MappingStatus::{Deleted, Deleting, Undeletable};
        assert_eq!(Deletion::of_mappings([]), Deletion::Done);
        assert_eq!(Deletion::of_mappings([Deleted, Deleting, Undeletable]), Deletion::Pending);
        assert_eq!(Deletion::of_mappings([Deleted, Undeletable]), Deletion::Failed);
        assert_eq!(Deletion::of_mappings([Deleted, Deleted]), Deletion::Done);
    }
}
