//! Whose job is next: owners take turns, and uploads go before looks.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::ids::MappingId;
use longshore::jobs::DeleteFile;
use longshore::jobs::NewJob;
use longshore::jobs::Work;
use longshore::jobs::WorkerId;

use super::on_both;
use super::plans::Recorded;
use crate::support::Database;
use crate::support::Queue;
use crate::support::queue::UNLIMITED;
use crate::support::queue::claim;

on_both!(
    an_owner_with_a_hundred_thousand_jobs_does_not_delay_another_with_ten,
    a_thousand_owners_cost_a_claim_no_more_than_one_and_all_have_their_turn,
    owners_take_turns,
    a_claim_of_several_jobs_goes_on_where_the_last_one_ended,
    an_odd_slot_goes_round_too,
    an_owner_gets_the_slots_that_others_leave,
    owners_whose_jobs_all_rest_do_not_keep_others_from_their_turn,
    owners_with_jobs_of_a_newer_version_do_not_keep_others_from_their_turn,
    uploads_go_before_looks,
    an_owners_uploads_do_not_keep_anothers_background_deletes_for_ever,
    the_owners_of_what_goes_behind_uploads_take_turns_too,
    what_goes_behind_uploads_moves_nobodys_turn_at_uploads,
    an_owners_jobs_go_in_the_order_in_which_they_are_due,
);

/// The owners of the next claims of `slots` each, in the order of the claims.
async fn turns(queue: &Queue, claims: usize, slots: usize) -> Vec<String> {
    let mut owners = Vec::new();
    for _ in 0..claims {
        let mut claimed: Vec<_> =
            queue.claim_within(UNLIMITED, slots).await.into_iter().map(|job| job.owner).collect();
        claimed.sort();
        owners.push(claimed.concat());
    }
    owners
}

/// `each` uploads of every owner, the owners one after another.
async fn enqueue(queue: &Queue, owners: &[&str], each: usize) {
    let jobs: Vec<_> =
        owners.iter().flat_map(|owner| (0..each).map(|_| queue.upload(owner))).collect();
    queue.enqueue(jobs).await;
}

async fn an_owner_with_a_hundred_thousand_jobs_does_not_delay_another_with_ten(queue: Queue) {
    enqueue(&queue, &["many"], 1).await;
    let (id, series) = if queue.db.is_postgres() {
        ("gen_random_uuid()", "generate_series(2, 100000)")
    } else {
        (
            "randomblob(16)",
            "(WITH RECURSIVE s(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM s WHERE n < 100000) \
          SELECT n FROM s)",
        )
    };
    let more = format!(
        "INSERT INTO jobs (id, kind, lane, rank, owner, status, payload, max_attempts, run_at, created_at) \
         SELECT {id}, kind, lane, rank, owner, status, payload, 30, run_at, 1 FROM jobs, {series} AS series"
    );
    queue.sql(&more).await;
    assert_eq!(queue.count("SELECT count(*) FROM jobs").await, 100_000);
    enqueue(&queue, &["few"], 10).await;
    let mut few = 0;
    for _ in 0..5 {
        let claims = queue.claim_within(UNLIMITED, 4).await;
        few += claims.iter().filter(|claim| claim.owner == "few").count();
    }
    assert_eq!(few, 10);
}

async fn a_thousand_owners_cost_a_claim_no_more_than_one_and_all_have_their_turn(queue: Queue) {
    const SLOTS: usize = 8;
    const ROUNDS: usize = 20;
    let claim = async |queue: &Queue| {
        let (lane, worker) = (queue.lane.clone(), WorkerId::new());
        queue
            .write(move |tx| {
                let (lane, worker) = (lane.clone(), worker.clone());
                Box::pin(async move {
                    let recorded = Recorded::new(tx);
                    let claims = claim(&recorded, &worker, &lane, &UNLIMITED, SLOTS).await?;
                    Ok((claims, recorded.count()))
                })
            })
            .await
    };
    let owners: Vec<_> = (0..1000).map(|number| format!("owner-{number:04}")).collect();
    let names: Vec<_> = owners.iter().map(String::as_str).collect();
    enqueue(&queue, &names, 3).await;
    let mut served = BTreeMap::<String, usize>::new();
    for round in 0..ROUNDS {
        let (claims, statements) = claim(&queue).await;
        assert_eq!(claims.len(), SLOTS, "round {round}");
        // The lane, the owners, of each its next job, and what is taken.
        assert!(statements <= SLOTS + 12, "{statements} statements in round {round}");
        for claim in claims {
            *served.entry(claim.owner).or_default() += 1;
        }
    }
    assert_eq!(served.len(), ROUNDS * SLOTS, "somebody had a second turn before others had one");
}

async fn owners_take_turns(queue: Queue) {
    enqueue(&queue, &["c", "a", "b"], 3).await;
    assert_eq!(turns(&queue, 9, 1).await, ["a", "b", "c", "a", "b", "c", "a", "b", "c"]);
}

async fn a_claim_of_several_jobs_goes_on_where_the_last_one_ended(queue: Queue) {
    // The oldest jobs are those of the last owners, so that no order of rows is the order of turns.
    enqueue(&queue, &["e", "d", "c", "b", "a"], 2).await;
    assert_eq!(turns(&queue, 5, 2).await, ["ab", "cd", "ae", "bc", "de"]);
}

async fn an_odd_slot_goes_round_too(queue: Queue) {
    enqueue(&queue, &["a", "b"], 6).await;
    assert_eq!(turns(&queue, 4, 3).await, ["aab", "abb", "aab", "abb"]);
}

async fn an_owner_gets_the_slots_that_others_leave(queue: Queue) {
    enqueue(&queue, &["a", "c"], 1).await;
    enqueue(&queue, &["b"], 10).await;
    assert_eq!(turns(&queue, 1, 9).await, ["abbbbbbbc"]);
}

async fn owners_whose_jobs_all_rest_do_not_keep_others_from_their_turn(queue: Queue) {
    let resting: Vec<_> = (0..50)
        .map(|number| NewJob {
            delay: Duration::from_secs(3600),
            ..queue.upload(&format!("a{number:02}"))
        })
        .collect();
    queue.enqueue(resting).await;
    enqueue(&queue, &["b"], 1).await;
    assert_eq!(turns(&queue, 1, 1).await, ["b"]);
}

async fn owners_with_jobs_of_a_newer_version_do_not_keep_others_from_their_turn(queue: Queue) {
    let newer: Vec<_> = (0..50).map(|number| queue.upload(&format!("a{number:02}"))).collect();
    queue.enqueue(newer).await;
    queue.sql("UPDATE jobs SET kind = 'of_a_newer_version'").await;
    enqueue(&queue, &["b"], 1).await;
    assert_eq!(turns(&queue, 1, 1).await, ["b"]);
}

async fn uploads_go_before_looks(queue: Queue) {
    let looks = [queue.look("alice"), queue.look("bob")];
    queue.enqueue(looks).await;
    enqueue(&queue, &["alice", "bob"], 2).await;
    let kinds: Vec<_> =
        queue.claim_within(UNLIMITED, 5).await.into_iter().map(|claim| claim.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "upload_file").count(), 4);
    assert_eq!(queue.claim_within(UNLIMITED, 5).await.len(), 1);
}

/// A background delete of `owner`.
fn background_delete(queue: &Queue, owner: &str) -> NewJob {
    let payload = DeleteFile { mapping_id: MappingId::mint(), is_background: true };
    NewJob { work: Work::DeleteFile(payload), ..queue.upload(owner) }
}

/// The owners of the next claims of one slot each, and whether each was of an upload.
async fn kinds_and_turns(queue: &Queue, claims: usize) -> Vec<(bool, String)> {
    let mut turns = Vec::new();
    for _ in 0..claims {
        let claimed = queue.claim_within(UNLIMITED, 1).await.into_iter();
        turns.extend(claimed.map(|claim| (claim.kind == "upload_file", claim.owner)));
    }
    turns
}

async fn an_owners_uploads_do_not_keep_anothers_background_deletes_for_ever(queue: Queue) {
    enqueue(&queue, &["many"], 2000).await;
    let deletes: Vec<_> = (0..10).map(|_| background_delete(&queue, "few")).collect();
    queue.enqueue(deletes).await;
    let turns = kinds_and_turns(&queue, 40).await;
    let uploads = turns.iter().filter(|(is_upload, _)| *is_upload).count();
    assert_eq!((turns.len(), uploads), (40, 30), "uploads still go first");
}

async fn the_owners_of_what_goes_behind_uploads_take_turns_too(queue: Queue) {
    enqueue(&queue, &["many"], 200).await;
    let owners: Vec<_> = (0..10).map(|number| format!("o{number}")).collect();
    let deletes = owners.iter().flat_map(|owner| vec![owner; if owner == "o0" { 500 } else { 2 }]);
    let deletes: Vec<_> = deletes.map(|owner| background_delete(&queue, owner)).collect();
    queue.enqueue(deletes).await;
    let claimed = kinds_and_turns(&queue, 80).await;
    let served: Vec<_> = claimed
        .into_iter()
        .filter_map(|(is_upload, owner)| (!is_upload).then_some(owner))
        .collect();
    assert_eq!(served, [owners.clone(), owners].concat());
    // Also where there are no uploads in front of them.
    queue.sql("DELETE FROM jobs WHERE kind = 'upload_file'").await;
    queue.enqueue([background_delete(&queue, "o5"), queue.look("o7")]).await;
    assert_eq!(turns(&queue, 4, 1).await, ["o0", "o5", "o7", "o0"]);
}

async fn what_goes_behind_uploads_moves_nobodys_turn_at_uploads(queue: Queue) {
    enqueue(&queue, &["a", "b", "c"], 4).await;
    queue.enqueue(vec![queue.look("b"), queue.look("b"), queue.look("z")]).await;
    let turns = kinds_and_turns(&queue, 15).await;
    let uploads: Vec<_> =
        turns.iter().filter(|(is_upload, _)| *is_upload).map(|(_, owner)| owner.as_str()).collect();
    assert_eq!(uploads, ["a", "b", "c"].repeat(4));
    assert_eq!(turns.len(), 15);
}

async fn an_owners_jobs_go_in_the_order_in_which_they_are_due(queue: Queue) {
    let jobs = [queue.upload("alice"), queue.upload("alice"), queue.upload("alice")];
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    queue.enqueue(jobs).await;
    let uuid = ids[2].0.simple();
    let id = if queue.db.is_postgres() { format!("'{uuid}'") } else { format!("x'{uuid}'") };
    queue.sql(&format!("UPDATE jobs SET run_at = run_at - 1000 WHERE id = {id}")).await;
    for expected in [ids[2], ids[0], ids[1]] {
        assert_eq!(queue.claim_within(UNLIMITED, 1).await[0].id, expected);
    }
}

/// PostgreSQL sorts text by the database's collation, and most of those put `a` before `B`.
#[tokio::test]
async fn owners_take_turns_whatever_the_database_sorts_by() {
    let options = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'";
    let database = Database::postgres_with(options).await;
    let queue = Queue::of(database, tempfile::tempdir().unwrap()).await;
    enqueue(&queue, &["alice", "Bob", "carol"], 2).await;
    assert_eq!(turns(&queue, 4, 1).await, ["alice", "Bob", "carol", "alice"]);
    assert_eq!(turns(&queue, 1, 2).await, ["Bobcarol"]);
    enqueue(&queue, &["alice", "Bob", "alice"], 1).await;
    assert_eq!(turns(&queue, 4, 1).await, ["alice", "Bob", "alice", ""]);
}
