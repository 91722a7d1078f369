//! Reconciliation: a provider's own list compared with the mappings.
//!
//! What a crash left at a provider, or a proxy delivered late, is found here and deleted, if it is certain
//! whose it is: it carries a marker of this installation, and the database knows that marker as that of a
//! copy that was deleted or superseded. Everything else is left, and counted: strangers, other
//! installations, and markers of ours that the database does not know, as after a restore.

mod report;
pub mod store;

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;

pub use self::report::Report;
pub use self::report::Sample;
use self::store::Known;
use self::store::Reconciliation;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::ids::JobId;
use crate::ids::ReconciliationId;
use crate::jobs;
use crate::jobs::Lane;
use crate::jobs::NewJob;
use crate::jobs::Work;
use crate::mappings::MappingStatus;
use crate::mappings::Marker;
use crate::owners;

/// How long after a reconciliation that failed the next one begins, at the latest.
const AFTER_FAILURE: Duration = Duration::from_secs(3600);
/// Beyond this share of a provider's copies, missing ones are not believed: a wrong account looks the same.
const MOST_LOST: u64 = 100;

/// Whether so many of a provider's copies may be missing at once.
pub const fn is_plausible(missing: u64, copies: u64) -> bool {
    missing.saturating_mul(MOST_LOST) <= copies
}

/// What is to be done about an object at a provider that carries a marker of this installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the copy that its mapping holds.
    Held,
    /// Something else sees to it: an upload that may adopt it, a delete, or a person.
    Left,
    /// It must go. The reason is kept with it.
    Superfluous(&'static str),
    /// The database does not know its marker.
    Unknown,
}

/// The marker of an object, if it is one of this installation's.
pub fn ours(filename: &str, installation_id: &str) -> Option<Marker> {
    Marker::of(filename).filter(|marker| marker.is_of(installation_id))
}

/// Judges an object by the mapping of its marker, if there is one.
pub fn judge(mapping: Option<&Known>, provider: &str, object: &str) -> Verdict {
    let Some(mapping) = mapping else { return Verdict::Unknown };
    // Another name for the same account, perhaps. Its own reconciliation sees to it.
    if mapping.provider != provider {
        return Verdict::Left;
    }
    let is_its_own = mapping.provider_file_id.as_deref() == Some(object);
    match mapping.status {
        MappingStatus::Ready | MappingStatus::Expired | MappingStatus::Lost if is_its_own => {
            Verdict::Held
        }
        MappingStatus::Ready | MappingStatus::Expired | MappingStatus::Lost => {
            Verdict::Superfluous("its mapping holds another copy")
        }
        MappingStatus::Deleted => Verdict::Superfluous("its file is deleted"),
        MappingStatus::Deleting | MappingStatus::Undeletable if !is_its_own => {
            Verdict::Superfluous("its file is deleted")
        }
        MappingStatus::Deleting
        | MappingStatus::Undeletable
        | MappingStatus::Pending
        | MappingStatus::Uploading
        | MappingStatus::Failed => Verdict::Left,
    }
}

/// Writes a reconciliation of a provider and its job. One of the same sort that is not over yet is answered
/// instead: two at the same time would find the same.
///
/// # Errors
///
/// What the database says.
pub async fn create(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    provider: &str,
    is_dry_run: bool,
    max_attempts: u32,
    request_id: Option<String>,
) -> Result<Reconciliation, Error> {
    // The lane is held, so that of two requests one is first.
    let lane = Lane::of_provider(provider);
    jobs::lanes::ensure(tx, &lane).await?;
    jobs::lanes::enter(tx, &lane).await?;
    if let Some(running) = store::running(tx, provider, is_dry_run).await? {
        return Ok(running);
    }
    let id = ReconciliationId::mint();
    let job = NewJob {
        id: JobId::mint(),
        work: Work::Reconcile(jobs::Reconcile { reconciliation_id: id }),
        lane,
        owner: owners::ADMIN.to_owned(),
        max_attempts,
        delay: Duration::ZERO,
        file_id: None,
        batch_id: None,
        model: None,
        request_id,
    };
    store::insert(tx, now, id, provider, job.id, is_dry_run).await?;
    jobs::store::enqueue(tx, now, &[job]).await?;
    let written = store::find(tx, id).await?;
    written.ok_or_else(|| Error::Internal(anyhow::anyhow!("reconciliation `{id}` was not stored")))
}

/// Writes the next reconciliation of a provider, if `every` has passed since the last one, or since the
/// installation was made.
///
/// # Errors
///
/// What the database says.
pub async fn schedule(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    provider: &str,
    every: Duration,
    max_attempts: u32,
) -> Result<bool, Error> {
    // The lane is held, so that of two processes one is first.
    let lane = Lane::of_provider(provider);
    jobs::lanes::ensure(tx, &lane).await?;
    jobs::lanes::enter(tx, &lane).await?;
    let last = store::last(tx, provider).await?;
    // One that failed is not made up for a whole day later.
    let every = if last.has_failed { every.min(AFTER_FAILURE) } else { every };
    if last.is_running || now.since(last.at) < every {
        return Ok(false);
    }
    create(tx, now, provider, false, max_attempts, None).await.map(|_| true)
}

/// Ends a reconciliation.
///
/// # Errors
///
/// What the database says.
pub async fn finish(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: ReconciliationId,
    outcome: Result<&Report, &jobs::Failure>,
) -> Result<(), DbErr> {
    store::finish(tx, now, id, outcome).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::MappingId;

    fn any_known() -> impl Strategy<Value = Known> {
        let status = prop::sample::select(MappingStatus::ALL.to_vec());
        (status, prop::option::of("[ab]"), "[pq]").prop_map(
            |(status, provider_file_id, provider)| Known {
                id: MappingId::mint(),
                marker: "m".to_owned(),
                status,
                provider,
                provider_file_id,
            },
        )
    }

    proptest! {
        #[test]
        fn only_what_is_known_as_deleted_or_superseded_goes(
            known in prop::option::of(any_known()),
            object in "[ab]",
        ) {
            let verdict = judge(known.as_ref(), "p", &object);
            let Verdict::Superfluous(_) = verdict else { return Ok(()) };
            let known = known.expect("a marker that nobody knows is left");
            prop_assert_eq!(&known.provider, "p");
            prop_assert!(!known.status.is_working() && known.status != MappingStatus::Failed);
            let holds = known.provider_file_id.as_deref() == Some(object.as_str());
            prop_assert!(!holds || known.status == MappingStatus::Deleted);
        }
    }

    /// An object in an account that several share.
    #[derive(Clone, Debug)]
    enum Origin {
        /// Uploaded for one of the mappings, which holds this very object or not.
        Ours {
            mapping: usize,
            is_held: bool,
        },
        /// Uploaded by us after the backup that the database was restored from: nobody here knows it.
        OursAfterTheBackup,
        OtherInstallations,
        Strangers,
    }

    fn any_origin() -> impl Strategy<Value = Origin> {
        prop_oneof![
            (0usize..6, any::<bool>())
                .prop_map(|(mapping, is_held)| Origin::Ours { mapping, is_held }),
            Just(Origin::OursAfterTheBackup),
            Just(Origin::OtherInstallations),
            Just(Origin::Strangers),
        ]
    }

    proptest! {
        /// Whoever uploaded it may have given it any name, also one with a marker of ours in it.
        #[test]
        fn in_a_shared_account_nothing_goes_but_what_we_uploaded_and_know_as_over(
            statuses in prop::collection::vec(prop::sample::select(MappingStatus::ALL.to_vec()), 6),
            objects in prop::collection::vec((any_origin(), "[a-z]{0,4}", 0usize..6), 0..40),
        ) {
            let markers: Vec<Marker> = (0..6).map(|_| Marker::mint("aaaaaa")).collect();
            let known: Vec<Known> = markers
                .iter()
                .zip(&statuses)
                .enumerate()
                .map(|(number, (marker, status))| Known {
                    id: MappingId::mint(),
                    marker: marker.0.clone(),
                    status: *status,
                    provider: "p".to_owned(),
                    provider_file_id: (!status.is_working() && *status != MappingStatus::Failed)
                        .then(|| format!("held-{number}")),
                })
                .collect();
            for (number, (origin, word, other)) in objects.into_iter().enumerate() {
                // The client's own name, with somebody's marker where a client can put it.
                let name = format!("{word}.{}.x{word}", markers[other].0);
                let mut id = format!("object-{number}");
                let filename = match origin {
                    Origin::Ours { mapping, is_held } => {
                        if is_held {
                            id = format!("held-{mapping}");
                        }
                        markers[mapping].mark(&name)
                    }
                    Origin::OursAfterTheBackup => Marker::mint("aaaaaa").mark(&name),
                    Origin::OtherInstallations => Marker::mint("bbbbbb").mark(&name),
                    Origin::Strangers => format!("{name}.{word}.a longer extension"),
                };
                let marker = ours(&filename, "aaaaaa");
                let mapping = marker.and_then(|marker| known.iter().find(|known| known.marker == marker.0));
                let verdict = judge(mapping, "p", &id);
                if let Verdict::Superfluous(_) = verdict {
                    let Origin::Ours { mapping, is_held } = origin else {
                        return Err(TestCaseError::fail(format!("{origin:?} goes: {filename}")));
                    };
                    let status = statuses[mapping];
                    prop_assert!(!status.is_working() && status != MappingStatus::Failed);
                    prop_assert!(!is_held || status == MappingStatus::Deleted);
                }
            }
        }
    }

    #[test]
    fn a_few_missing_copies_are_believed_and_many_are_not() {
        assert!(is_plausible(0, 0));
        assert!(is_plausible(1, 100));
        assert!(!is_plausible(1, 99));
        assert!(!is_plausible(100_000, 100_000));
    }
}
