//! Claims, and what fences them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use longshore::db::Transaction;
use longshore::ids::JobId;
use longshore::jobs::Ending;
use longshore::jobs::Failure;
use longshore::jobs::Lane;
use longshore::jobs::Progress;
use longshore::jobs::ProgressUnit;
use longshore::jobs::Spend;
use longshore::jobs::WorkerId;
use longshore::jobs::claims;
use longshore::jobs::claims::Claimed;
use longshore::jobs::leases;
use longshore::jobs::leases::End;
use longshore::jobs::leases::Leased;
use longshore::jobs::leases::Reaped;
use longshore::jobs::leases::Renewed;
use longshore::jobs::store;
use sea_orm::DbErr;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::on_both;
use crate::support::Queue;
use crate::support::eventually;
use crate::support::queue::LEASE;
use crate::support::queue::UNLIMITED;

on_both!(
    a_claim_counts_an_epoch_and_an_attempt,
    a_job_rests_until_its_time,
    a_job_that_is_hastened_while_it_runs_does_not_rest_as_planned,
    each_job_is_claimed_once_by_sixteen_claimers,
    an_epoch_that_is_over_writes_nothing,
    ends_that_are_written_together_are_each_fenced,
    only_what_speaks_against_the_job_spends_an_attempt,
    every_ended_attempt_is_recorded,
    a_worker_renews_its_own_leases_and_hears_of_a_cancellation,
    a_lease_renewed_after_it_was_seen_lapsed_is_left_to_its_worker,
    a_lapsed_job_is_reaped_once,
    a_job_that_outlived_three_workers_is_a_dead_letter,
    a_job_that_dies_in_its_last_attempt_is_a_dead_letter,
    a_job_that_was_to_be_cancelled_is_not_run_again_when_its_worker_dies,
    the_end_of_an_attempt_is_found_by_its_fence,
    a_kind_that_this_version_does_not_know_is_left_alone,
);

const RETRY: Ending = Ending::Retry { after: Duration::ZERO, spend: Spend::Attempt, failure: None };
const HAND_BACK: Ending =
    Ending::Retry { after: Duration::ZERO, spend: Spend::Nothing, failure: None };

/// Takes a claim's lease away, as the reaper does.
async fn reap(queue: &Queue, lapsed: &Leased) -> Option<Reaped> {
    let lapsed = lapsed.clone();
    queue
        .write(move |tx| {
            let lapsed = lapsed.clone();
            Box::pin(async move { leases::reap(tx, &lapsed).await })
        })
        .await
}

async fn lapse(queue: &Queue, id: JobId) -> Leased {
    queue.sql("UPDATE jobs SET lease_until = lease_until - 3600000 WHERE status = 'running'").await;
    let lapsed = leases::lapsed(queue.db.read()).await.unwrap();
    lapsed.into_iter().find(|lapsed| lapsed.id == id).unwrap()
}

async fn renew(queue: &Queue, worker: &WorkerId) -> Vec<Renewed> {
    let worker = worker.clone();
    queue
        .write(move |tx| {
            let worker = worker.clone();
            Box::pin(async move { leases::renew(tx, &worker, LEASE).await })
        })
        .await
}

async fn a_claim_counts_an_epoch_and_an_attempt(queue: Queue) {
    let id = queue.one().await;
    let before = queue.now().await;
    let claim = queue.claim_one(&WorkerId::new()).await;
    assert_eq!((claim.id, claim.epoch, claim.attempt, claim.max_attempts), (id, 1, 1, 30));
    let (least, most) = (before.after(LEASE), queue.now().await.after(LEASE));
    assert!((least..=most).contains(&claim.lease_until), "by another clock than the database's");
    assert_eq!(queue.status(id).await, "running");
    assert!(queue.claim_within(UNLIMITED, 1).await.is_empty());
}

async fn a_job_rests_until_its_time(queue: Queue) {
    let hour = Duration::from_secs(3600);
    let mut job = queue.upload("alice");
    job.delay = hour;
    let id = job.id;
    let before = queue.now().await;
    queue.enqueue([job]).await;
    assert!(queue.claim_within(UNLIMITED, 1).await.is_empty());
    let lanes = [queue.lane.clone(), Lane::sweeps()];
    queue.open_others(&lanes[1..]).await;
    let due = claims::next_due(queue.db.read(), &lanes).await.unwrap();
    let next = due.next[&queue.lane];
    assert!(next >= before.after(hour) && next <= due.now.after(hour));
    assert!(!due.is_due(&queue.lane) && due.rest().unwrap() > hour / 2);
    queue.sql("UPDATE jobs SET run_at = run_at - 3600000").await;
    let due = claims::next_due(queue.db.read(), &lanes).await.unwrap();
    assert!(due.is_due(&queue.lane) && !due.is_due(&Lane::sweeps()) && due.rest().is_none());
    let claim = queue.claim_one(&WorkerId::new()).await;
    assert_eq!(claim.id, id);
    assert_eq!(claims::next_due(queue.db.read(), &lanes).await.unwrap().next, HashMap::new());
    let rest = Ending::Retry { after: hour, spend: Spend::Nothing, failure: None };
    assert!(queue.end(&claim.fence(&WorkerId(worker_of(&queue).await)), rest).await);
    assert!(queue.claim_within(UNLIMITED, 1).await.is_empty());
}

async fn hasten(queue: &Queue, id: JobId) {
    queue.write(move |tx| Box::pin(async move { store::hasten(tx, id).await })).await;
}

/// The end of an attempt that is to go on in an hour, as its worker writes it.
async fn rest(queue: &Queue, claim: &Claimed, worker: &WorkerId, failure: Option<Failure>) -> End {
    let after = Duration::from_secs(3600);
    let ending = Ending::Retry { after, spend: Spend::Nothing, failure };
    let end = queue.as_ended(&claim.fence(worker), ending).await;
    End { claimed_at: claim.lease_until.before(LEASE), ..end }
}

async fn a_job_that_is_hastened_while_it_runs_does_not_rest_as_planned(queue: Queue) {
    let (id, worker) = (queue.one().await, WorkerId::new());
    for _ in 0..2 {
        let claim = queue.claim_one(&worker).await;
        hasten(&queue, id).await;
        let end = rest(&queue, &claim, &worker, None).await;
        assert_eq!(queue.end_together([end]).await, [true]);
    }
    // A failure is answered by its own pause, and nothing lasts beyond its attempt.
    let failures = [Some(Failure::transient("x", "y")), None];
    for (is_hastened, failure) in [true, false].into_iter().zip(failures) {
        let claim = queue.claim_one(&worker).await;
        if is_hastened {
            hasten(&queue, id).await;
        }
        let end = rest(&queue, &claim, &worker, failure).await;
        assert_eq!(queue.end_together([end]).await, [true]);
        assert!(queue.claim_within(UNLIMITED, 1).await.is_empty());
        hasten(&queue, id).await;
    }
    assert_eq!(queue.claim_one(&worker).await.id, id);
}

/// A write of another process that is done, and commits when it is told to.
struct Open {
    go: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Open {
    async fn write<F>(queue: &Queue, write: F) -> Self
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<(), DbErr>> + Send + Sync + 'static,
    {
        let (done, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (told, wait) = (Arc::clone(&done), Arc::clone(&go));
        let (process, write) = (queue.elsewhere().await, Arc::new(write));
        let task = tokio::spawn(async move {
            let writing = process.write(move |tx| {
                let (write, told, wait) =
                    (Arc::clone(&write), Arc::clone(&told), Arc::clone(&wait));
                Box::pin(async move {
                    write(tx).await?;
                    told.add_permits(1);
                    drop(wait.acquire().await);
                    Ok(())
                })
            });
            writing.await;
        });
        drop(done.acquire().await);
        Self { go, task }
    }

    async fn commit(self) {
        self.go.add_permits(1);
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_hastened_while_its_end_is_written_does_not_rest() {
    let queue = Queue::alone().await;
    let (id, worker) = (queue.one().await, WorkerId::new());
    let claim = queue.claim_one(&worker).await;
    let end = rest(&queue, &claim, &worker, None).await;
    let open = Open::write(&queue, move |tx| {
        let end = end.clone();
        Box::pin(async move { leases::end(tx, &[end]).await.map(|_| ()) })
    })
    .await;
    let process = queue.elsewhere().await;
    let hastening = tokio::spawn(async move { hasten(&process, id).await });
    eventually(Duration::from_secs(10), async || queue.waits_for_a_lock().await.then_some(()))
        .await;
    open.commit().await;
    hastening.await.unwrap();
    assert_eq!(queue.claim_one(&worker).await.id, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_due_job_is_not_claimed_before_what_it_waits_for_is_committed() {
    let queue = Queue::alone().await;
    let (id, worker) = (queue.one().await, WorkerId::new());
    let open = Open::write(&queue, move |tx| Box::pin(store::hasten(tx, id))).await;
    assert!(queue.claim_within(UNLIMITED, 1).await.is_empty());
    open.commit().await;
    assert_eq!(queue.claim_one(&worker).await.id, id);
}

async fn worker_of(queue: &Queue) -> String {
    queue.text("SELECT lease_owner FROM jobs").await.remove(0)
}

async fn each_job_is_claimed_once_by_sixteen_claimers(queue: Queue) {
    const JOBS: usize = 1000;
    let owners = ["alice", "bob", "carol"];
    let jobs: Vec<_> = (0..JOBS).map(|number| queue.upload(owners[number % 3])).collect();
    queue.enqueue(jobs).await;
    let processes = [queue.elsewhere().await, queue.elsewhere().await];
    let claimers = (0..16).map(|number| {
        let process = &processes[number % 2];
        async move {
            let mut claimed = Vec::new();
            loop {
                let claims = process.claim_within(UNLIMITED, 13).await;
                if claims.is_empty() {
                    return claimed;
                }
                claimed.extend(claims.into_iter().map(|claim| claim.id));
            }
        }
    });
    let mut times: HashMap<JobId, usize> = HashMap::new();
    for id in futures_util::future::join_all(claimers).await.concat() {
        *times.entry(id).or_default() += 1;
    }
    assert_eq!(times.len(), JOBS);
    assert!(times.values().all(|times| *times == 1));
    assert_eq!(
        queue.count("SELECT count(*) FROM jobs WHERE epoch = 1 AND attempt = 1").await,
        1000
    );
}

async fn an_epoch_that_is_over_writes_nothing(queue: Queue) {
    let id = queue.one().await;
    let (frozen, next) = (WorkerId::new(), WorkerId::new());
    let old = queue.claim_one(&frozen).await.fence(&frozen);
    let lapsed = lapse(&queue, id).await;
    assert_eq!(reap(&queue, &lapsed).await, Some(Reaped::Retrying));
    let new = queue.claim_one(&next).await;
    assert_eq!(new.epoch, 2);

    let failure = Failure::permanent("late", "late");
    for ending in [Ending::Succeeded, RETRY, Ending::Failed(failure), Ending::Cancelled] {
        assert!(!queue.end(&old, ending).await);
    }
    let progress = Progress { done: 1, total: 2, unit: ProgressUnit::Bytes };
    let late = old.clone();
    let held = queue.write(move |tx| {
        let fence = late.clone();
        Box::pin(async move {
            leases::report_progress(tx, &fence, progress).await?;
            assert!(leases::leased(tx, &fence).await?.is_none());
            assert!(!leases::has_ended(tx, &fence).await?);
            leases::check(tx, &fence).await
        })
    });
    assert!(!held.await);
    // Not even in the name of the worker that holds it now.
    let forged = longshore::jobs::Fence { worker: next.clone(), ..old };
    assert!(!queue.end(&forged, Ending::Succeeded).await);
    let job = queue.job(id).await;
    assert_eq!((job.status.as_str(), job.progress), ("running", None));
    assert_eq!(queue.count("SELECT count(*) FROM job_attempts").await, 1);
    assert!(queue.end(&new.fence(&next), Ending::Succeeded).await);
    assert!(!queue.end(&new.fence(&next), Ending::Succeeded).await);
}

async fn ends_that_are_written_together_are_each_fenced(queue: Queue) {
    let worker = WorkerId::new();
    queue.enqueue([queue.upload("alice"), queue.upload("alice"), queue.upload("alice")]).await;
    let claims = queue.claim_as(&worker, UNLIMITED, 3).await;
    let [succeeded, lost, failed] = [0, 1, 2].map(|place| claims[place].clone());
    let lapsed = lapse(&queue, lost.id).await;
    assert_eq!(reap(&queue, &lapsed).await, Some(Reaped::Retrying));
    // By the same worker, as happens to one that stood still for a while: both attempts end at once.
    let again = queue.claim_one(&worker).await;
    let failure = Failure::permanent("odd", "a \"quoted\" \u{0} and \u{1F980}");
    let late = Ending::Failed(Failure::permanent("late", "late"));
    let ends = [
        queue.as_ended(&lost.fence(&worker), late).await,
        queue.as_ended(&succeeded.fence(&worker), Ending::Succeeded).await,
        queue.as_ended(&again.fence(&worker), HAND_BACK).await,
        queue.as_ended(&failed.fence(&worker), Ending::Failed(failure.clone())).await,
    ];
    assert_eq!(queue.end_together(ends.clone()).await, [false, true, true, true]);
    assert_eq!(queue.end_together(ends).await, [false; 4]);
    for (id, status) in [(succeeded.id, "succeeded"), (again.id, "retrying"), (failed.id, "failed")]
    {
        assert_eq!(queue.status(id).await, status);
    }
    assert_eq!(queue.job(failed.id).await.failure(), Some(failure));
    let attempts = store::attempts(queue.db.read(), again.id).await.unwrap();
    let told: Vec<_> = attempts.iter().map(|attempt| attempt.outcome.as_str()).collect();
    assert_eq!(told, ["died", "retried"]);
    // The one that died, and the three whose leases held.
    assert_eq!(queue.count("SELECT count(*) FROM job_attempts").await, 4);
}

async fn only_what_speaks_against_the_job_spends_an_attempt(queue: Queue) {
    let id = queue.one().await;
    let worker = WorkerId::new();
    for (epoch, ending, attempt) in
        [(1, HAND_BACK, 0), (2, RETRY, 1), (3, HAND_BACK, 1), (4, RETRY, 2)]
    {
        let claim = queue.claim_one(&worker).await;
        assert_eq!(claim.epoch, epoch);
        assert!(queue.end(&claim.fence(&worker), ending).await);
        let job = queue.job(id).await;
        assert_eq!((job.status.as_str(), job.attempt), ("retrying", attempt));
    }
}

async fn every_ended_attempt_is_recorded(queue: Queue) {
    let id = queue.one().await;
    let worker = WorkerId::new();
    let failure = Failure::transient("busy", "it was busy");
    let again = Ending::Retry {
        after: Duration::ZERO,
        spend: Spend::Attempt,
        failure: Some(failure.clone()),
    };
    for ending in [again, HAND_BACK, Ending::Succeeded] {
        let claim = queue.claim_one(&worker).await;
        assert!(queue.end(&claim.fence(&worker), ending).await);
        let kept = queue.job(id).await.failure();
        assert_eq!(kept, (queue.status(id).await != "succeeded").then(|| failure.clone()));
    }
    let attempts = store::attempts(queue.db.read(), id).await.unwrap();
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt.attempt, attempt.outcome.as_str(), attempt.error.is_some()))
        .collect();
    assert_eq!(told, [(1, "retried", true), (2, "retried", false), (2, "succeeded", false)]);
    assert!(attempts.iter().all(|attempt| attempt.worker == worker.0));
    assert!(attempts.iter().all(|attempt| attempt.started_at <= attempt.finished_at));
}

async fn a_worker_renews_its_own_leases_and_hears_of_a_cancellation(queue: Queue) {
    let (ours, theirs) = (WorkerId::new(), WorkerId::new());
    let id = queue.one().await;
    queue.claim_one(&ours).await;
    queue.one().await;
    let other = queue.claim_one(&theirs).await;
    queue.sql("UPDATE jobs SET lease_until = 5").await;
    let now = queue.now().await;
    assert!(queue.write(move |tx| Box::pin(store::request_cancel(tx, now, id))).await);
    let renewed = renew(&queue, &ours).await;
    assert_eq!(renewed.len(), 1);
    assert_eq!((renewed[0].id, renewed[0].is_cancel_requested), (id, true));
    let lapsed = leases::lapsed(queue.db.read()).await.unwrap();
    assert_eq!(lapsed.iter().map(|lapsed| lapsed.id).collect::<Vec<_>>(), [other.id]);
}

async fn a_lease_renewed_after_it_was_seen_lapsed_is_left_to_its_worker(queue: Queue) {
    let id = queue.one().await;
    let worker = WorkerId::new();
    let claim = queue.claim_one(&worker).await;
    let seen = lapse(&queue, id).await;
    renew(&queue, &worker).await;
    assert_eq!(reap(&queue, &seen).await, None);
    assert!(queue.end(&claim.fence(&worker), Ending::Succeeded).await);
    assert_eq!(reap(&queue, &seen).await, None);
    assert_eq!(queue.status(id).await, "succeeded");
}

async fn a_lapsed_job_is_reaped_once(queue: Queue) {
    let id = queue.one().await;
    queue.claim_one(&WorkerId::new()).await;
    let lapsed = lapse(&queue, id).await;
    let reapers = [queue.elsewhere().await, queue.elsewhere().await, queue.elsewhere().await];
    let reaped = futures_util::future::join_all(reapers.iter().map(|at| reap(at, &lapsed))).await;
    assert_eq!(reaped.iter().flatten().count(), 1);
    assert_eq!(queue.count("SELECT sum(deaths) FROM jobs").await, 1);
    assert_eq!(queue.count("SELECT count(*) FROM job_attempts WHERE outcome = 'died'").await, 1);
}

async fn a_job_that_outlived_three_workers_is_a_dead_letter(queue: Queue) {
    let id = queue.one().await;
    for death in 1..=3 {
        queue.claim_one(&WorkerId::new()).await;
        let lapsed = lapse(&queue, id).await;
        let reaped = reap(&queue, &lapsed).await.unwrap();
        assert_eq!(matches!(reaped, Reaped::Failed(_)), death == 3);
    }
    let job = queue.job(id).await;
    assert_eq!(
        (job.status.as_str(), job.failure().unwrap().code.as_str()),
        ("failed", "worker_died")
    );
    assert!(job.finished_at.is_some());
    assert!(queue.claim_within(UNLIMITED, 1).await.is_empty());
}

async fn a_job_that_dies_in_its_last_attempt_is_a_dead_letter(queue: Queue) {
    let job = longshore::jobs::NewJob { max_attempts: 1, ..queue.upload("alice") };
    let id = job.id;
    queue.enqueue([job]).await;
    queue.claim_one(&WorkerId::new()).await;
    let lapsed = lapse(&queue, id).await;
    assert!(matches!(reap(&queue, &lapsed).await, Some(Reaped::Failed(_))));
}

async fn a_job_that_was_to_be_cancelled_is_not_run_again_when_its_worker_dies(queue: Queue) {
    let id = queue.one().await;
    queue.claim_one(&WorkerId::new()).await;
    let now = queue.now().await;
    assert!(queue.write(move |tx| Box::pin(store::request_cancel(tx, now, id))).await);
    let lapsed = lapse(&queue, id).await;
    assert_eq!(reap(&queue, &lapsed).await, Some(Reaped::Cancelled));
    assert_eq!(queue.status(id).await, "cancelled");
}

async fn the_end_of_an_attempt_is_found_by_its_fence(queue: Queue) {
    let id = queue.one().await;
    let worker = WorkerId::new();
    let fence = queue.claim_one(&worker).await.fence(&worker);
    let found = async |fence: &longshore::jobs::Fence| {
        let fence = fence.clone();
        queue
            .write(move |tx| {
                let fence = fence.clone();
                Box::pin(async move {
                    let leased = leases::leased(tx, &fence).await?.map(|leased| leased.id);
                    Ok((leased, leases::has_ended(tx, &fence).await?))
                })
            })
            .await
    };
    assert_eq!(found(&fence).await, (Some(id), false));
    assert!(queue.end(&fence, RETRY).await);
    assert_eq!(found(&fence).await, (None, true));
}

async fn a_kind_that_this_version_does_not_know_is_left_alone(queue: Queue) {
    let (unknown, known) = (queue.one().await, queue.upload("alice"));
    let id = known.id;
    queue.sql("UPDATE jobs SET kind = 'of_a_newer_version', payload = 'not even JSON'").await;
    queue.enqueue([known]).await;
    let claims = queue.claim_within(UNLIMITED, 10).await;
    assert_eq!(claims.iter().map(|claim| claim.id).collect::<Vec<_>>(), [id]);
    assert_eq!(queue.status(unknown).await, "queued");
}
