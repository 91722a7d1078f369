//! The one way to write: groups of writes that do not disturb each other, and survive the database's.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::BoxFuture;
use longshore::db::Db;
use longshore::db::Transaction;
use longshore::ids::JobId;
use longshore::jobs::store;
use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use tokio::sync::Barrier;

use super::on_both;
use crate::support::Kind;
use crate::support::Queue;
use crate::support::eventually;

on_both!(
    a_write_that_fails_in_a_group_undoes_only_itself,
    writes_of_sixty_four_tasks_are_durable_when_they_are_answered,
    a_caller_that_stops_waiting_does_not_stop_its_write,
    a_write_that_panics_stops_nobody_elses,
);

const ROWS: &str = "SELECT count(*) FROM jobs";

/// A write of one job, that then fails if it `is_bad`.
fn job(
    queue: &Queue,
    is_bad: bool,
) -> impl Fn(&Transaction) -> BoxFuture<'_, Result<JobId, DbErr>> + use<> {
    let job = queue.upload("alice");
    move |tx| {
        let job = job.clone();
        Box::pin(async move {
            let id = job.id;
            store::enqueue(tx, longshore::clock::Timestamp(1), &[job]).await?;
            if is_bad {
                tx.execute_unprepared("INSERT INTO nowhere VALUES (1)").await?;
            }
            Ok(id)
        })
    }
}

async fn a_write_that_fails_in_a_group_undoes_only_itself(queue: Queue) {
    let writes = (0..30).map(|number| queue.db.work(job(&queue, number % 3 == 0)));
    let results = futures_util::future::join_all(writes).await;
    for (number, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), number % 3 == 0, "{result:?}");
    }
    assert_eq!(queue.count(ROWS).await, 20);
}

async fn writes_of_sixty_four_tasks_are_durable_when_they_are_answered(queue: Queue) {
    let queue = Arc::new(queue);
    let tasks = (0..64).map(|number| {
        let queue = Arc::clone(&queue);
        tokio::spawn(async move {
            for _ in 0..5 {
                let write = job(&queue, false);
                let is_intake = number % 2 == 0;
                let id = if is_intake {
                    queue.db.intake(write).await
                } else {
                    queue.db.work(write).await
                };
                // Another connection sees it: it is committed.
                assert!(store::find(queue.db.read(), id.unwrap()).await.unwrap().is_some());
            }
        })
    });
    for task in futures_util::future::join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!(queue.count(ROWS).await, 320);
}

async fn a_caller_that_stops_waiting_does_not_stop_its_write(queue: Queue) {
    {
        let mut work = Box::pin(queue.db.work(job(&queue, false)));
        let mut intake = Box::pin(queue.db.intake(job(&queue, false)));
        // Asked once, they have begun; then both callers are gone.
        poll_fn(|context| {
            assert!(work.as_mut().poll(context).is_pending());
            assert!(intake.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    eventually(Duration::from_secs(10), async || (queue.count(ROWS).await == 2).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_process_that_writes_all_the_time_does_not_keep_another_from_it() {
    let queue = Queue::on(Kind::Sqlite).await;
    let other = queue.elsewhere().await;
    let writing = futures_util::future::join_all((0..8).map(|_| async {
        loop {
            queue.db.work(job(&queue, false)).await.unwrap();
        }
    }));
    let measured = async {
        let mut times = Vec::new();
        for _ in 0..100 {
            let begun = Instant::now();
            other.db.work(job(&other, false)).await.unwrap();
            times.push(begun.elapsed());
        }
        times.sort();
        times
    };
    let times = tokio::select! {
        _ = writing => unreachable!("it never ends"),
        times = measured => times,
    };
    assert!(times[99] < Duration::from_millis(250), "{times:?}");
}

fn panicking(_: &Transaction) -> BoxFuture<'_, Result<(), DbErr>> {
    Box::pin(async { panic!("as a test wants it") })
}

async fn a_write_that_panics_stops_nobody_elses(queue: Queue) {
    assert!(queue.db.work(panicking).await.is_err());
    assert!(queue.db.intake(panicking).await.is_err());
    queue.db.work(job(&queue, false)).await.unwrap();
    queue.db.intake(job(&queue, false)).await.unwrap();
    assert_eq!(queue.count(ROWS).await, 2);
}

#[tokio::test]
async fn reading_connections_of_sqlite_refuse_to_write() {
    let queue = Queue::on(Kind::Sqlite).await;
    let error = queue.db.read().execute_unprepared("DELETE FROM jobs").await.unwrap_err();
    assert!(error.to_string().contains("readonly"), "{error}");
}

/// A write that locks two lanes, the second when the other side has its first as well.
fn crossing(
    order: [&'static str; 2],
    both: Arc<Barrier>,
    runs: Arc<AtomicUsize>,
) -> impl Fn(&Transaction) -> BoxFuture<'_, Result<(), DbErr>> {
    move |tx| {
        let (both, runs) = (Arc::clone(&both), Arc::clone(&runs));
        Box::pin(async move {
            let lock =
                |name| format!("UPDATE lanes SET failures = failures + 1 WHERE name = '{name}'");
            let run = runs.fetch_add(1, Ordering::SeqCst);
            tx.execute_unprepared(&lock(order[0])).await?;
            if run < 2 {
                both.wait().await;
            }
            tx.execute_unprepared(&lock(order[1])).await.map(|_| ())
        })
    }
}

async fn deadlock(is_intake: bool) {
    let queue = Queue::on(Kind::Postgres).await;
    queue.sql("INSERT INTO lanes (name) VALUES ('a'), ('b')").await;
    let other = queue.elsewhere().await;
    let (both, runs) = (Arc::new(Barrier::new(2)), Arc::new(AtomicUsize::new(0)));
    let one = crossing(["a", "b"], Arc::clone(&both), Arc::clone(&runs));
    let two = crossing(["b", "a"], both, Arc::clone(&runs));
    let results = if is_intake {
        tokio::join!(queue.db.intake(one), other.db.intake(two))
    } else {
        tokio::join!(queue.db.work(one), other.db.work(two))
    };
    results.0.unwrap();
    results.1.unwrap();
    assert!(runs.load(Ordering::SeqCst) >= 3, "there was no deadlock");
    assert_eq!(queue.count("SELECT sum(failures)::bigint FROM lanes").await, 4);
}

#[tokio::test]
async fn a_clients_write_that_lost_a_deadlock_is_begun_anew() {
    deadlock(true).await;
}

#[tokio::test]
async fn a_workers_write_that_lost_a_deadlock_is_begun_anew() {
    deadlock(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_server_ended_are_replaced() {
    let queue = Queue::alone().await;
    let other = Db::connect(&queue.database.url).await.unwrap();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for _ in 0..3 {
        queue.db.work(job(&queue, false)).await.unwrap();
        queue.db.intake(job(&queue, false)).await.unwrap();
        other.read().execute_unprepared(end).await.unwrap();
    }
    queue.db.work(job(&queue, false)).await.unwrap();
    queue.db.intake(job(&queue, false)).await.unwrap();
    assert_eq!(queue.count(ROWS).await, 8);
}

/// The connection goes in the middle of a group: what was in it is done on another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_lost_its_connection_is_done_on_another() {
    let queue = Queue::alone().await;
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let own = queue.upload("alice");
    let write = queue.db.work(move |tx: &Transaction| -> BoxFuture<'_, Result<(), DbErr>> {
        let (run, own) = (counted.fetch_add(1, Ordering::SeqCst), own.clone());
        Box::pin(async move {
            store::enqueue(tx, longshore::clock::Timestamp(1), &[own]).await?;
            if run == 0 {
                tx.execute_unprepared("SELECT pg_terminate_backend(pg_backend_pid())").await?;
            }
            Ok(())
        })
    });
    write.await.unwrap();
    assert_eq!((queue.count(ROWS).await, runs.load(Ordering::SeqCst)), (1, 2));
}
