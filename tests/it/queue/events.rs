//! Events are read in an order in which none can be skipped, and wake those who wait.

use std::sync::Arc;
use std::time::Duration;

use longshore::events;
use longshore::events::Cursor;
use longshore::events::Event;
use longshore::events::EventKind;
use longshore::events::Happened;
use longshore::ids::JobId;
use longshore::notices::Hint;
use longshore::notices::Notices;
use longshore::owners::Scope;
use sea_orm::TransactionTrait;
use uuid::Uuid;

use super::on_both;
use crate::support::Kind;
use crate::support::Queue;
use crate::support::eventually;
use crate::support::queue::UNLIMITED;

on_both!(
    events_are_read_once_in_their_order,
    a_reader_that_begins_at_the_end_reads_what_comes_after,
    old_events_are_pruned,
    a_change_wakes_those_who_wait_for_its_subject,
    a_change_of_another_process_is_noticed_without_a_hint,
);

fn event(job: JobId) -> Event {
    Event::of_job(EventKind::JobSucceeded, "alice", job)
}

async fn append(queue: &Queue, jobs: &[JobId]) {
    let (events, now): (Arc<[Event]>, _) =
        (jobs.iter().map(|job| event(*job)).collect(), queue.now().await);
    queue
        .write(move |tx| {
            let events = Arc::clone(&events);
            Box::pin(async move { events::append(tx, now, &events).await })
        })
        .await;
}

async fn behind(queue: &Queue, cursor: Cursor, limit: u64) -> Vec<Happened> {
    events::behind(queue.db.read(), &Scope::Everything, cursor, limit).await.unwrap()
}

/// Reads on until these subjects have come, and says where.
async fn read(queue: &Queue, mut cursor: Cursor, expected: &[JobId]) -> Cursor {
    let expected: Vec<Uuid> = expected.iter().map(|job| job.0).collect();
    let mut seen = Vec::new();
    // A transaction of another test may hold back what can be read.
    eventually(Duration::from_secs(30), async || {
        let read = behind(queue, cursor, 2).await;
        cursor = read.last().map_or(cursor, Happened::cursor);
        seen.extend(read.into_iter().map(|event| event.subject));
        (seen.len() >= expected.len()).then_some(())
    })
    .await;
    assert_eq!(seen, expected);
    cursor
}

async fn events_are_read_once_in_their_order(queue: Queue) {
    let jobs: Vec<_> = (0..5).map(|_| JobId::mint()).collect();
    append(&queue, &jobs[..3]).await;
    append(&queue, &jobs[3..]).await;
    let cursor = read(&queue, Cursor::default(), &jobs).await;
    assert_eq!(behind(&queue, cursor, 10).await, []);
}

async fn a_reader_that_begins_at_the_end_reads_what_comes_after(queue: Queue) {
    let (before, after) = (JobId::mint(), JobId::mint());
    append(&queue, &[before]).await;
    read(&queue, Cursor::default(), &[before]).await;
    let tail = events::tail(queue.db.read()).await.unwrap();
    append(&queue, &[after]).await;
    read(&queue, tail, &[after]).await;
}

async fn old_events_are_pruned(queue: Queue) {
    let jobs = [JobId::mint(), JobId::mint()];
    append(&queue, &jobs[..1]).await;
    queue.sql("UPDATE events SET created_at = 10").await;
    append(&queue, &jobs[1..]).await;
    let before = longshore::clock::Timestamp(11);
    assert_eq!(queue.write(move |tx| Box::pin(events::prune(tx, before, 10))).await, 1);
    read(&queue, Cursor::default(), &jobs[1..]).await;
}

/// Waits for the end of a job in a process of its own; `end` is run once it waits.
async fn waits(queue: &Queue, end: impl AsyncFnOnce(&Notices)) -> Duration {
    let notices = Notices::new(None);
    let looking = tokio::spawn({
        let (notices, db) = (notices.clone(), queue.db.clone());
        async move { notices.run(db).await }
    });
    let id = queue.claim_within(UNLIMITED, 1).await[0].id;
    let waiting = notices.wait_for(&queue.db, id.0).await.unwrap();
    let changed = waiting.changed();
    assert_eq!(notices.waiters(), 1);
    queue
        .sql(
            "UPDATE jobs SET status = 'succeeded', lease_owner = NULL, lease_until = NULL, \
               finished_at = 1",
        )
        .await;
    append(queue, &[id]).await;
    let begun = std::time::Instant::now();
    end(&notices).await;
    tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap();
    let took = begun.elapsed();
    drop(waiting);
    assert_eq!(notices.waiters(), 0);
    looking.abort();
    took
}

async fn a_change_wakes_those_who_wait_for_its_subject(queue: Queue) {
    queue.one().await;
    waits(&queue, async |notices| notices.hint(Hint::Change)).await;
}

async fn a_change_of_another_process_is_noticed_without_a_hint(queue: Queue) {
    queue.one().await;
    waits(&queue, async |_| {}).await;
}

/// Numbers are given at the insert, and seen at the commit.
#[tokio::test]
async fn a_transaction_that_commits_late_is_not_skipped() {
    let queue = Queue::on(Kind::Postgres).await;
    let [early, late, next] = [JobId::mint(), JobId::mint(), JobId::mint()];
    let now = queue.now().await;

    let own = sea_orm::Database::connect(&queue.database.url).await.unwrap();
    let open = own.begin().await.unwrap();
    events::append(&open, now, &[event(early)]).await.unwrap();
    append(&queue, &[late]).await;
    let tail = events::tail(queue.db.read()).await.unwrap();
    let cursor = Cursor::default();
    assert_eq!(behind(&queue, cursor, 10).await, [], "read over an open transaction");
    // Though none can be read, it is known how far it goes.
    let ahead = data_encoding::BASE64URL_NOPAD.encode(&[0x7f; 24]);
    let (ahead, _) = Cursor::from_text(&ahead).unwrap();
    assert!(cursor < tail && tail < ahead, "{tail:?}");
    open.commit().await.unwrap();

    let behind = read(&queue, cursor, &[early, late]).await;
    read(&queue, tail, &[early, late]).await;
    append(&queue, &[next]).await;
    read(&queue, behind, &[next]).await;
}
