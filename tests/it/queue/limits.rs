//! What a lane lets through: slots, the rate budget, pauses, probes.

use std::sync::Arc;
use std::time::Duration;

use longshore::db::statement;
use longshore::jobs::Ending;
use longshore::jobs::Lane;
use longshore::jobs::WorkerId;
use longshore::jobs::lanes;
use longshore::jobs::lanes::LaneState;
use longshore::jobs::lanes::Limits;
use longshore::jobs::lanes::Patience;
use longshore::jobs::lanes::PauseReason;
use longshore::jobs::lanes::Report;
use sea_orm::ConnectionTrait as _;
use tokio::sync::Notify;

use super::on_both;
use crate::support::Queue;
use crate::support::eventually;
use crate::support::queue::UNLIMITED;

on_both!(
    claimers_together_stay_within_the_lanes_concurrency,
    claimers_together_stay_within_the_rate_budget,
    a_lane_lets_one_probe_through_after_its_pause,
    a_probe_that_comes_through_reopens_the_lane,
    another_credential_reopens_a_lane_that_was_parked_for_the_old_one,
    another_credential_ends_no_other_pause,
    a_pause_for_the_same_reason_tells_since_when,
    jobs_that_waited_long_in_a_parked_lane_are_found,
    an_opened_lane_is_not_opened_anew,
);

const FOUR: Limits = Limits { max_concurrency: 4, requests_per_minute: None };

async fn many(queue: &Queue, count: usize) {
    let jobs: Vec<_> = (0..count).map(|_| queue.upload("alice")).collect();
    queue.enqueue(jobs).await;
}

/// How many jobs eight workers over two processes get at the same time.
async fn all_at_once(queue: &Queue, limits: Limits, slots: usize) -> usize {
    let processes = [queue.elsewhere().await, queue.elsewhere().await];
    // The connections are there before it begins.
    for process in &processes {
        process.claim_within(Limits { max_concurrency: 0, ..limits }, 1).await;
    }
    let claimers = (0..8).map(|number| processes[number % 2].claim_within(limits, slots));
    futures_util::future::join_all(claimers).await.concat().len()
}

async fn state(queue: &Queue) -> LaneState {
    let lane = queue.lane.clone();
    queue
        .write(move |tx| {
            let lane = lane.clone();
            Box::pin(async move { lanes::enter(tx, &lane).await })
        })
        .await
}

async fn report(queue: &Queue, report: Report) {
    let lane = queue.lane.clone();
    queue
        .write(move |tx| {
            let lane = lane.clone();
            Box::pin(async move {
                let state = lanes::enter(tx, &lane).await?;
                let (pause, failures, _) = lanes::after(&state, report, 0.5);
                lanes::save(tx, &lane, state.now, pause, failures).await
            })
        })
        .await;
}

async fn end_pause(queue: &Queue) {
    queue.sql("UPDATE lanes SET paused_until = 1 WHERE paused_until IS NOT NULL").await;
}

async fn claimers_together_stay_within_the_lanes_concurrency(queue: Queue) {
    many(&queue, 100).await;
    for _ in 0..4 {
        assert_eq!(all_at_once(&queue, FOUR, 4).await, 4);
        assert!(queue.claim_within(FOUR, 4).await.is_empty());
        queue
            .sql(
                "UPDATE jobs SET status = 'succeeded', lease_owner = NULL, lease_until = NULL, \
                   finished_at = 1 WHERE status = 'running'",
            )
            .await;
    }
}

async fn claimers_together_stay_within_the_rate_budget(queue: Queue) {
    many(&queue, 100).await;
    // A tenth of the minute's budget may go at once; the next token comes after six seconds.
    let limits = Limits { max_concurrency: 100, requests_per_minute: Some(10) };
    assert_eq!(all_at_once(&queue, limits, 5).await, 1);
    let state = state(&queue).await;
    let again = state.admit(&limits, 1).again_at.unwrap().since(state.now);
    assert!(again > Duration::from_secs(4) && again < Duration::from_secs(13), "{again:?}");
    queue.sql("UPDATE lanes SET refilled_at = refilled_at - 60000").await;
    assert_eq!(queue.claim_within(limits, 5).await.len(), 1);
}

async fn a_lane_lets_one_probe_through_after_its_pause(queue: Queue) {
    many(&queue, 10).await;
    report(&queue, Report::Outage { retry_after: Some(Duration::from_secs(3600)) }).await;
    assert_eq!(all_at_once(&queue, FOUR, 4).await, 0);
    end_pause(&queue).await;
    assert_eq!(all_at_once(&queue, FOUR, 4).await, 1);
}

async fn a_probe_that_comes_through_reopens_the_lane(queue: Queue) {
    many(&queue, 10).await;
    report(&queue, Report::Outage { retry_after: None }).await;
    end_pause(&queue).await;
    let worker = WorkerId::new();
    let probe = queue.claim_as(&worker, FOUR, 4).await.remove(0);
    assert!(queue.end(&probe.fence(&worker), Ending::Succeeded).await);
    report(&queue, Report::Recovered).await;
    let state = state(&queue).await;
    assert_eq!((state.pause, state.failures), (None, 0));
    assert_eq!(queue.claim_within(FOUR, 10).await.len(), 4);
}

async fn another_credential_reopens_a_lane_that_was_parked_for_the_old_one(queue: Queue) {
    many(&queue, 1).await;
    report(&queue, Report::CredentialRejected).await;
    queue.open_lane("credential").await;
    assert!(queue.claim_within(UNLIMITED, 1).await.is_empty());
    assert!(queue.job(queue_job(&queue).await).await.pause_reason.is_some());
    queue.open_lane("another").await;
    assert_eq!(queue.claim_within(UNLIMITED, 1).await.len(), 1);
}

async fn queue_job(queue: &Queue) -> longshore::ids::JobId {
    let page =
        longshore::page::Page { after: None, limit: 1, order: longshore::page::Order::Ascending };
    let scope = longshore::owners::Scope::Everything;
    let jobs =
        longshore::jobs::store::list(queue.db.read(), &scope, &Default::default(), &page).await;
    jobs.unwrap()[0].id
}

async fn another_credential_ends_no_other_pause(queue: Queue) {
    report(&queue, Report::Outage { retry_after: Some(Duration::from_secs(3600)) }).await;
    queue.open_lane("another").await;
    assert_eq!(state(&queue).await.pause.unwrap().reason, PauseReason::Outage);
}

async fn a_pause_for_the_same_reason_tells_since_when(queue: Queue) {
    let limited = Report::RateLimited { retry_after: Some(Duration::from_secs(3600)) };
    report(&queue, limited).await;
    queue.sql("UPDATE lanes SET paused_at = 7").await;
    report(&queue, limited).await;
    assert_eq!(queue.count("SELECT paused_at FROM lanes").await, 7);
    report(&queue, Report::OutOfMoney).await;
    assert!(queue.count("SELECT paused_at FROM lanes").await > 7);
}

async fn jobs_that_waited_long_in_a_parked_lane_are_found(queue: Queue) {
    let hour = Duration::from_secs(3600);
    many(&queue, 2).await;
    report(&queue, Report::CredentialRejected).await;
    let found = async || {
        let reason = PauseReason::CredentialRejected;
        let patience = Patience { most_jobs: hour, deletes: hour * 1_000_000 };
        lanes::given_up(queue.db.read(), reason, patience).await.unwrap().len()
    };
    assert_eq!(found().await, 0);
    queue.sql("UPDATE jobs SET run_at = 1").await;
    assert_eq!(found().await, 0);
    queue.sql("UPDATE lanes SET paused_at = 1").await;
    assert_eq!(found().await, 2);
    queue.sql("UPDATE jobs SET kind = 'delete_file'").await;
    assert_eq!(found().await, 0, "a delete is given more time");
}

async fn an_opened_lane_is_not_opened_anew(queue: Queue) {
    report(&queue, Report::OutOfMoney).await;
    let lanes = [queue.elsewhere().await, queue.elsewhere().await];
    futures_util::future::join_all(lanes.iter().map(|at| at.open_lane("credential"))).await;
    let rows = lanes::list(queue.db.read()).await.unwrap();
    assert_eq!((rows.len(), rows[0].pause_reason.as_deref()), (1, Some("out_of_money")));
    assert_eq!(Lane(rows[0].name.clone()).provider(), Some("p"));
}

/// Whatever order they are asked for in: so two claims that need the same lanes cannot wait for each other.
#[tokio::test]
async fn lanes_are_locked_in_the_order_of_their_names() {
    let queue = Arc::new(Queue::alone().await);
    queue.sql("INSERT INTO lanes (name) VALUES ('a'), ('b'), ('c')").await;
    let (is_held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let holding = {
        let (queue, is_held, release) =
            (Arc::clone(&queue), Arc::clone(&is_held), Arc::clone(&release));
        tokio::spawn(async move {
            let holder = queue.elsewhere().await;
            let write = holder.write(move |tx| {
                let (is_held, release) = (Arc::clone(&is_held), Arc::clone(&release));
                Box::pin(async move {
                    lanes::lock(tx, &[Lane("b".to_owned())]).await?;
                    is_held.notify_one();
                    release.notified().await;
                    Ok(())
                })
            });
            write.await;
        })
    };
    is_held.notified().await;
    let waiting = {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            let lanes = ["c", "b", "a"].map(|name| Lane(name.to_owned()));
            let lock = queue.write(move |tx| {
                let lanes = lanes.clone();
                Box::pin(async move { lanes::lock(tx, &lanes).await })
            });
            lock.await;
        })
    };
    let waits = async || queue.waits_for_a_lock().await.then_some(());
    eventually(Duration::from_secs(20), waits).await;
    let other = queue.elsewhere().await;
    let free = other.write(|tx| {
        Box::pin(async move {
            let sql = "SELECT name FROM lanes WHERE name IN ('a', 'b', 'c') FOR UPDATE SKIP LOCKED";
            let rows = tx.query_all_raw(statement(tx, sql, [])).await?;
            rows.iter().map(|row| row.try_get_by_index::<String>(0)).collect::<Result<Vec<_>, _>>()
        })
    });
    assert_eq!(free.await, ["c"]);
    release.notify_one();
    holding.await.unwrap();
    waiting.await.unwrap();
}
