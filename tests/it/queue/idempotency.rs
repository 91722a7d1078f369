//! Records of creating requests. The time is handed in, so it is moved here.

use std::time::Duration;

use longshore::clock::Timestamp;
use longshore::idempotency;
use longshore::idempotency::Begun;
use longshore::idempotency::HOLD;
use longshore::idempotency::KEPT;
use longshore::idempotency::KEPT_WITHOUT_KEY;
use longshore::idempotency::RecordId;
use longshore::idempotency::Request;

use super::on_both;
use crate::support::Queue;

on_both!(
    the_first_request_runs_and_the_others_hear_so_until_it_is_answered,
    a_key_means_nothing_outside_its_owner_and_path,
    one_of_fifty_requests_at_once_runs,
    a_request_whose_process_died_is_taken_over_and_cannot_complete,
    a_held_request_is_not_taken_over,
    one_of_several_takes_an_abandoned_request_over,
    an_answer_is_forgotten_after_a_day,
    a_request_that_made_nothing_is_forgotten,
    an_answer_without_a_key_is_kept_until_it_was_sent_or_is_old,
    pruning_leaves_what_is_young_or_held,
);

const NOW: Timestamp = Timestamp(1_000_000_000_000);
const MS: Duration = Duration::from_millis(1);
const ALICE: Request<'static> = Request { owner: "alice", path: "/v1/files" };

async fn begin_of(
    queue: &Queue,
    now: Timestamp,
    request: Request<'static>,
    holder: &'static str,
) -> Begun {
    queue
        .write(move |tx| {
            let request = request.clone();
            Box::pin(async move { idempotency::begin(tx, now, &request, "key", holder).await })
        })
        .await
}

async fn begin(queue: &Queue, now: Timestamp, holder: &'static str) -> Begun {
    begin_of(queue, now, ALICE, holder).await
}

async fn fresh(queue: &Queue, now: Timestamp, holder: &'static str) -> RecordId {
    match begin(queue, now, holder).await {
        Begun::Fresh(id) => id,
        other => panic!("{other:?}"),
    }
}

async fn complete(queue: &Queue, id: RecordId, holder: &'static str) -> bool {
    queue.write(move |tx| Box::pin(idempotency::complete(tx, id, holder, b"print", "answer"))).await
}

fn answered() -> Begun {
    Begun::Answered { fingerprint: b"print".to_vec(), response: "answer".to_owned() }
}

async fn the_first_request_runs_and_the_others_hear_so_until_it_is_answered(queue: Queue) {
    let id = fresh(&queue, NOW, "one").await;
    assert_eq!(begin(&queue, NOW, "two").await, Begun::Running);
    assert!(!complete(&queue, id, "two").await);
    assert!(complete(&queue, id, "one").await);
    assert!(!complete(&queue, id, "one").await);
    assert_eq!(begin(&queue, NOW, "two").await, answered());
}

async fn a_key_means_nothing_outside_its_owner_and_path(queue: Queue) {
    fresh(&queue, NOW, "one").await;
    for request in [Request { owner: "bob", ..ALICE }, Request { path: "/v1/batches", ..ALICE }] {
        assert!(matches!(begin_of(&queue, NOW, request, "one").await, Begun::Fresh(_)));
    }
}

async fn one_of_fifty_requests_at_once_runs(queue: Queue) {
    let process = queue.elsewhere().await;
    let requests = (0..50).map(|number| {
        let at = if number % 2 == 0 { &queue } else { &process };
        begin(at, NOW, "one")
    });
    let begun = futures_util::future::join_all(requests).await;
    assert_eq!(begun.iter().filter(|begun| matches!(begun, Begun::Fresh(_))).count(), 1);
    assert_eq!(begun.iter().filter(|begun| **begun == Begun::Running).count(), 49);
}

async fn a_request_whose_process_died_is_taken_over_and_cannot_complete(queue: Queue) {
    let id = fresh(&queue, NOW, "dead").await;
    assert_eq!(begin(&queue, NOW.after(HOLD), "two").await, Begun::Running);
    assert_eq!(fresh(&queue, NOW.after(HOLD + MS), "two").await, id);
    assert!(!complete(&queue, id, "dead").await);
    assert!(complete(&queue, id, "two").await);
}

async fn a_held_request_is_not_taken_over(queue: Queue) {
    let id = fresh(&queue, NOW, "slow").await;
    let half = NOW.after(HOLD / 2);
    queue
        .write(move |tx| Box::pin(async move { idempotency::renew(tx, half, "slow", &[id]).await }))
        .await;
    assert_eq!(begin(&queue, NOW.after(HOLD + MS), "two").await, Begun::Running);
}

async fn one_of_several_takes_an_abandoned_request_over(queue: Queue) {
    fresh(&queue, NOW, "dead").await;
    let processes = [queue.elsewhere().await, queue.elsewhere().await];
    let requests = (0..20).map(|number| begin(&processes[number % 2], NOW.after(HOLD * 2), "new"));
    let begun = futures_util::future::join_all(requests).await;
    assert_eq!(begun.iter().filter(|begun| matches!(begun, Begun::Fresh(_))).count(), 1);
}

async fn an_answer_is_forgotten_after_a_day(queue: Queue) {
    let id = fresh(&queue, NOW, "one").await;
    assert!(complete(&queue, id, "one").await);
    assert_eq!(begin(&queue, NOW.after(KEPT), "two").await, answered());
    assert!(matches!(begin(&queue, NOW.after(KEPT + MS), "two").await, Begun::Fresh(_)));
}

async fn a_request_that_made_nothing_is_forgotten(queue: Queue) {
    let id = fresh(&queue, NOW, "one").await;
    queue.write(move |tx| Box::pin(idempotency::release(tx, id, "two"))).await;
    assert_eq!(begin(&queue, NOW, "two").await, Begun::Running);
    queue.write(move |tx| Box::pin(idempotency::release(tx, id, "one"))).await;
    assert_ne!(fresh(&queue, NOW, "two").await, id);
}

async fn an_answer_without_a_key_is_kept_until_it_was_sent_or_is_old(queue: Queue) {
    let id = RecordId(uuid::Uuid::now_v7());
    queue
        .write(move |tx| Box::pin(idempotency::keep(tx, NOW, &ALICE, id, b"print", "answer")))
        .await;
    let found = async |now: Timestamp, print: &[u8]| {
        idempotency::unanswered(queue.db.read(), now, &ALICE, print).await.unwrap()
    };
    assert_eq!(found(NOW.after(KEPT_WITHOUT_KEY), b"print").await.as_deref(), Some("answer"));
    assert_eq!(found(NOW.after(KEPT_WITHOUT_KEY + MS), b"print").await, None);
    assert_eq!(found(NOW, b"another").await, None);
    queue.write(move |tx| Box::pin(async move { idempotency::sent(tx, &[id]).await })).await;
    assert_eq!(found(NOW, b"print").await, None);
}

async fn pruning_leaves_what_is_young_or_held(queue: Queue) {
    let prune = async |now: Timestamp| {
        queue.write(move |tx| Box::pin(idempotency::prune(tx, now, 10))).await
    };
    let id = fresh(&queue, NOW, "one").await;
    let later = NOW.after(KEPT + MS);
    queue
        .write(move |tx| Box::pin(async move { idempotency::renew(tx, later, "one", &[id]).await }))
        .await;
    assert_eq!(prune(later).await, 0);
    assert!(complete(&queue, id, "one").await);
    assert_eq!(prune(NOW.after(KEPT)).await, 0);
    assert_eq!(prune(later).await, 1);
}
