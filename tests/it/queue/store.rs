//! What is asked of the job table beside claims.

use std::time::Duration;

use longshore::clock::Timestamp;
use longshore::error::Error;
use longshore::ids::JobId;
use longshore::jobs::Ending;
use longshore::jobs::Failure;
use longshore::jobs::JobStatus;
use longshore::jobs::WorkerId;
use longshore::jobs::control;
use longshore::jobs::store;
use longshore::jobs::store::Filter;
use longshore::owners::Scope;
use longshore::page::Order;
use longshore::page::Page;

use super::on_both;
use crate::support::Queue;
use crate::support::eventually;
use crate::support::queue::UNLIMITED;

on_both!(
    a_list_is_paged_without_gaps_and_repetitions,
    a_list_shows_what_its_filter_and_its_owner_let_through,
    a_dead_letter_queued_again_has_all_its_attempts,
    only_a_dead_letter_is_queued_again,
    a_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked_to_stop,
    pruning_takes_what_is_old_with_its_attempts_and_nothing_else,
    a_failed_upload_that_its_file_still_shows_is_not_pruned,
    depths_count_what_waits_and_what_runs,
);

const FAILED: JobStatus = JobStatus::Failed;

async fn fail(queue: &Queue, id: JobId) {
    let worker = WorkerId::new();
    let claim = queue.claim_one(&worker).await;
    assert_eq!(claim.id, id);
    let failure = Failure::permanent("no", "no");
    assert!(queue.end(&claim.fence(&worker), Ending::Failed(failure)).await);
}

async fn requeue(queue: &Queue, ids: &[JobId]) -> Vec<JobId> {
    let ids = ids.to_vec();
    queue
        .write(move |tx| {
            let ids = ids.clone();
            Box::pin(async move { store::requeue(tx, &ids).await })
        })
        .await
}

async fn prune(queue: &Queue, status: JobStatus, before: Timestamp) -> u64 {
    queue.write(move |tx| Box::pin(store::prune(tx, status, before, 100))).await
}

async fn control(queue: &Queue, id: JobId, is_cancel: bool) -> Result<(), Error> {
    let (job, now) = (queue.job(id).await, queue.now().await);
    queue
        .db
        .intake(move |tx| {
            let job = job.clone();
            Box::pin(async move {
                if is_cancel {
                    control::cancel(tx, now, &job).await
                } else {
                    control::retry(tx, now, &job).await
                }
            })
        })
        .await
}

fn page(after: Option<JobId>, limit: u32, order: Order) -> Page<JobId> {
    Page { after, limit, order }
}

async fn a_list_is_paged_without_gaps_and_repetitions(queue: Queue) {
    let jobs: Vec<_> = (0..7).map(|_| queue.upload("alice")).collect();
    let mut ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    queue.enqueue(jobs).await;
    for order in [Order::Ascending, Order::Descending] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (scope, page) = (Scope::Owner("alice".to_owned()), page(after, 3, order));
            let rows =
                store::list(queue.db.read(), &scope, &Filter::default(), &page).await.unwrap();
            seen.extend(rows.iter().take(3).map(|job| job.id));
            after = seen.last().copied();
            if rows.len() <= 3 {
                break;
            }
        }
        assert_eq!(seen, ids);
        ids.reverse();
    }
}

async fn a_list_shows_what_its_filter_and_its_owner_let_through(queue: Queue) {
    let file = queue.file(&["m"]).await;
    queue.enqueue([queue.look("bob"), queue.upload("bob")]).await;
    queue.claim_within(UNLIMITED, 1).await;
    let count = async |scope: Scope, filter: Filter| {
        let page = page(None, 100, Order::Ascending);
        store::list(queue.db.read(), &scope, &filter, &page).await.unwrap().len()
    };
    let bob = || Scope::Owner("bob".to_owned());
    assert_eq!(count(bob(), Filter::default()).await, 2);
    assert_eq!(count(Scope::Everything, Filter::default()).await, 3);
    let looks = Filter { kind: Some("verify_upload".to_owned()), ..Filter::default() };
    assert_eq!(count(bob(), looks).await, 1);
    let running = Filter { status: Some(JobStatus::Running), ..Filter::default() };
    assert_eq!(count(Scope::Everything, running).await, 1);
    let of_file = Filter { file_id: Some(file.file.id), ..Filter::default() };
    assert_eq!(count(Scope::Everything, of_file.clone()).await, 1);
    assert_eq!(count(bob(), of_file).await, 0);
}

async fn a_dead_letter_queued_again_has_all_its_attempts(queue: Queue) {
    let id = queue.one().await;
    fail(&queue, id).await;
    queue.sql("UPDATE jobs SET attempt = 30, deaths = 3, cancel_requested_at = 1").await;
    assert_eq!(requeue(&queue, &[id]).await, [id]);
    let claim = queue.claim_one(&WorkerId::new()).await;
    assert_eq!((claim.epoch, claim.attempt), (2, 1), "the epoch rises on, the attempts begin anew");
    assert_eq!(
        queue.count("SELECT sum(deaths) FROM jobs WHERE cancel_requested_at IS NULL").await,
        0
    );
    assert_eq!(queue.job(id).await.failure(), None);
}

async fn only_a_dead_letter_is_queued_again(queue: Queue) {
    let (id, worker) = (queue.one().await, WorkerId::new());
    assert!(requeue(&queue, &[id]).await.is_empty());
    let claim = queue.claim_one(&worker).await;
    assert!(requeue(&queue, &[id]).await.is_empty());
    assert!(queue.end(&claim.fence(&worker), Ending::Succeeded).await);
    assert!(requeue(&queue, &[id]).await.is_empty());
    assert!(matches!(
        control(&queue, id, false).await,
        Err(Error::Conflict { code: "job_not_failed", .. })
    ));
}

async fn a_waiting_job_is_cancelled_at_once_and_a_running_one_is_asked_to_stop(queue: Queue) {
    let file = queue.file(&["a", "b"]).await;
    let claim = queue.claim_one(&WorkerId::new()).await;
    let waiting = file.mappings.iter().find(|mapping| mapping.job_id != claim.id).unwrap().job_id;
    control(&queue, waiting, true).await.unwrap();
    control(&queue, claim.id, true).await.unwrap();
    assert_eq!(queue.status(waiting).await, "cancelled");
    assert_eq!(queue.status(claim.id).await, "running");
    let asked = "SELECT count(*) FROM jobs WHERE cancel_requested_at IS NOT NULL";
    assert_eq!(queue.count(asked).await, 1);
    assert_eq!(queue.count("SELECT count(*) FROM mappings WHERE status = 'failed'").await, 1);
    assert!(matches!(
        control(&queue, waiting, true).await,
        Err(Error::Conflict { code: "job_ended", .. })
    ));
    control(&queue, waiting, false).await.unwrap();
    assert_eq!(queue.status(waiting).await, "queued");
    assert_eq!(queue.count("SELECT count(*) FROM mappings WHERE status = 'failed'").await, 0);
}

async fn pruning_takes_what_is_old_with_its_attempts_and_nothing_else(queue: Queue) {
    let (old, young) = (queue.one().await, queue.upload("alice"));
    fail(&queue, old).await;
    queue.sql("UPDATE jobs SET finished_at = 10").await;
    let young_id = young.id;
    queue.enqueue([young]).await;
    fail(&queue, young_id).await;
    let waiting = queue.one().await;
    assert_eq!(prune(&queue, JobStatus::Succeeded, Timestamp(11)).await, 0);
    assert_eq!(prune(&queue, FAILED, Timestamp(10)).await, 0);
    assert_eq!(prune(&queue, FAILED, Timestamp(11)).await, 1);
    assert!(store::find(queue.db.read(), old).await.unwrap().is_none());
    assert!(store::attempts(queue.db.read(), old).await.unwrap().is_empty());
    assert_eq!(store::attempts(queue.db.read(), young_id).await.unwrap().len(), 1);
    assert_eq!(queue.status(waiting).await, "queued");
}

async fn a_failed_upload_that_its_file_still_shows_is_not_pruned(queue: Queue) {
    let file = queue.file(&["m"]).await;
    let id = file.mappings[0].job_id;
    fail(&queue, id).await;
    queue.sql("UPDATE jobs SET finished_at = 10").await;
    queue.sql("UPDATE mappings SET status = 'failed'").await;
    assert_eq!(prune(&queue, FAILED, Timestamp(11)).await, 0);
    queue.sql("UPDATE mappings SET status = 'ready', provider_file_id = 'file-1'").await;
    assert_eq!(prune(&queue, FAILED, Timestamp(11)).await, 1);
}

async fn depths_count_what_waits_and_what_runs(queue: Queue) {
    assert!(store::depths(queue.db.read()).await.unwrap().is_empty());
    queue.enqueue([queue.upload("alice"), queue.upload("bob"), queue.look("bob")]).await;
    queue.claim_within(UNLIMITED, 1).await;
    let depths = store::depths(queue.db.read()).await.unwrap();
    let mut told: Vec<_> = depths
        .iter()
        .map(|depth| (depth.kind.as_str(), depth.status.as_str(), depth.count))
        .collect();
    told.sort_unstable();
    let expected = [
        ("upload_file", "running", 1),
        ("upload_file", "waiting", 1),
        ("verify_upload", "waiting", 1),
    ];
    assert_eq!(told, expected);
}

/// Two workers tidy up at the same time: the second waits for the first in the middle of its work, and
/// goes on with what the first has left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_prune_at_once_leave_no_attempts_behind() {
    let queue = Queue::alone().await;
    for _ in 0..4 {
        let id = queue.one().await;
        fail(&queue, id).await;
    }
    let (first, second) = (queue.elsewhere().await, queue.elsewhere().await);
    let pruned = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let done = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let (told, wait) = (std::sync::Arc::clone(&pruned), std::sync::Arc::clone(&done));
    let now = queue.now().await.after(Duration::from_secs(1));
    let one = tokio::spawn(async move {
        let write = first.write(move |tx| {
            let (told, wait) = (std::sync::Arc::clone(&told), std::sync::Arc::clone(&wait));
            Box::pin(async move {
                store::prune(tx, FAILED, now, 2).await?;
                told.add_permits(1);
                drop(wait.acquire().await);
                Ok(())
            })
        });
        write.await;
    });
    drop(pruned.acquire().await);
    let other = tokio::spawn(async move {
        second.write(move |tx| Box::pin(store::prune(tx, FAILED, now, 2))).await
    });
    eventually(Duration::from_secs(10), async || queue.waits_for_a_lock().await.then_some(()))
        .await;
    done.add_permits(1);
    one.await.unwrap();
    other.await.unwrap();
    let orphans = "SELECT count(*) FROM job_attempts WHERE job_id NOT IN (SELECT id FROM jobs)";
    assert_eq!(queue.count(orphans).await, 0);
}
