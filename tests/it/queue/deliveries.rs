//! Deliveries: written with their events, once for each endpoint that listens; claimed endpoint by endpoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore::events;
use longshore::events::Event;
use longshore::events::EventKind;
use longshore::ids::FileId;
use longshore::ids::JobId;
use longshore::ids::WebhookEndpointId;
use longshore::jobs::Ending;
use longshore::jobs::Failure;
use longshore::jobs::Lane;
use longshore::jobs::WorkerId;
use longshore::jobs::claims::Claimed;
use longshore::jobs::deliveries;
use longshore::jobs::lanes;
use longshore::webhooks;
use longshore::webhooks::DisabledReason;
use longshore::webhooks::EventType;
use longshore::webhooks::NewEndpoint;
use longshore::webhooks::Sealed;
use longshore::webhooks::store;
use sea_orm::DbErr;

use super::on_both;
use super::plans::Recorded;
use super::plans::after_a_while;
use super::plans::assert_frugal;
use crate::support::Queue;
use crate::support::queue::UNLIMITED;
use crate::support::queue::claim;

on_both!(
    an_event_is_queued_for_each_endpoint_that_listens_and_for_no_other,
    where_nobody_listens_an_event_costs_next_to_nothing,
    what_became_of_a_delivery_is_delivered_to_nobody,
    of_each_endpoint_only_so_many_run_and_one_while_it_fails,
    endpoints_take_turns,
    a_claim_of_deliveries_reads_no_more_than_what_is_due,
    what_waits_for_an_endpoint_that_is_told_of_nothing_is_called_off,
);

const DELIVERIES: &str = "SELECT count(*) FROM jobs WHERE kind = 'deliver_webhook'";

async fn endpoint(queue: &Queue, owner: &str, types: &[EventType]) -> WebhookEndpointId {
    let id = WebhookEndpointId::mint();
    let new = NewEndpoint {
        id,
        owner: owner.to_owned(),
        name: String::new(),
        url: String::new(),
        event_types: types.to_vec(),
        secret: Sealed { bytes: vec![1; 79], hint: String::new() },
    };
    let now = queue.now().await;
    queue
        .write(move |tx| {
            let new = new.clone();
            Box::pin(async move { store::insert(tx, now, &new).await })
        })
        .await;
    id
}

/// Appends events, and answers with how many statements.
async fn append(queue: &Queue, events: Vec<Event>) -> usize {
    let (events, now): (Arc<[Event]>, _) = (events.into(), queue.now().await);
    queue
        .write(move |tx| {
            let events = Arc::clone(&events);
            Box::pin(async move {
                let recorded = Recorded::new(tx);
                events::append(&recorded, now, &events).await?;
                Ok(recorded.count())
            })
        })
        .await
}

fn processed(owner: &str) -> Event {
    Event::of_file(EventKind::FileProcessed, owner, FileId::mint())
}

/// The queue, seen from the lane of deliveries.
async fn lane(queue: &Queue) -> Queue {
    let mut queue = queue.elsewhere().await;
    queue.lane = Lane::webhooks();
    queue.write(|tx| Box::pin(async move { lanes::ensure(tx, &Lane::webhooks()).await })).await;
    queue
}

/// How many were claimed of each endpoint.
fn by_endpoint(claims: &[Claimed]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for claim in claims {
        *counts.entry(claim.turn()).or_default() += 1;
    }
    counts
}

async fn an_event_is_queued_for_each_endpoint_that_listens_and_for_no_other(queue: Queue) {
    let listening = [EventType::FileProcessed, EventType::FileDeleted];
    let mut expected = Vec::new();
    for _ in 0..2 {
        expected.push(endpoint(&queue, "alice", &listening).await.0.to_string());
    }
    endpoint(&queue, "alice", &[EventType::FileFailed]).await;
    endpoint(&queue, "bob", &listening).await;
    let off = endpoint(&queue, "alice", &listening).await;
    queue
        .write(move |tx| {
            Box::pin(async move { store::disable(tx, off, DisabledReason::ByOwner, None).await })
        })
        .await;
    let created = Event::of_file(EventKind::FileCreated, "alice", FileId::mint());
    append(&queue, vec![created, processed("alice"), processed("carol")]).await;
    let claims = lane(&queue).await.claim_within(UNLIMITED, 100).await;
    let mut told: Vec<_> = claims.iter().map(Claimed::turn).collect();
    told.sort();
    assert_eq!(told, expected);
    assert!(claims.iter().all(|claim| claim.owner == "alice" && claim.max_attempts == 10));
    let id = if queue.db.is_postgres() { "gen_random_uuid()" } else { "randomblob(16)" };
    let twice = format!(
        "INSERT INTO jobs (id, kind, lane, rank, owner, status, payload, max_attempts, run_at, created_at, event_id, \
         webhook_endpoint_id) SELECT {id}, kind, lane, rank, owner, 'queued', payload, 1, 1, 1, event_id, \
         webhook_endpoint_id FROM jobs"
    );
    assert!(queue.try_sql(&twice).await.is_err(), "an event is told once");
}

async fn where_nobody_listens_an_event_costs_next_to_nothing(queue: Queue) {
    let job = Event::of_job(EventKind::JobSucceeded, "alice", JobId::mint());
    assert_eq!(append(&queue, vec![job]).await, 1);
    // On PostgreSQL, where a statement is a journey, the same one tells who listens.
    let expected = if queue.db.is_postgres() { 1 } else { 2 };
    assert_eq!(append(&queue, vec![processed("alice"), processed("bob")]).await, expected);
    endpoint(&queue, "alice", &[EventType::FileFailed]).await;
    assert_eq!(append(&queue, vec![processed("alice")]).await, expected);
    assert_eq!(queue.count(DELIVERIES).await, 0);
}

async fn what_became_of_a_delivery_is_delivered_to_nobody(queue: Queue) {
    endpoint(&queue, "alice", &[EventType::JobFailed]).await;
    let failed = Ending::Failed(Failure::permanent("x", "y"));
    for (kind, expected) in [("deliver_webhook", 0), ("upload_file", 1)] {
        let said = EventKind::of_ending(&failed, kind).unwrap();
        assert_eq!(said.as_str(), "job.failed");
        append(&queue, vec![Event::of_job(said, "alice", JobId::mint())]).await;
        assert_eq!(queue.count(DELIVERIES).await, expected);
    }
}

async fn of_each_endpoint_only_so_many_run_and_one_while_it_fails(queue: Queue) {
    let types = [EventType::FileProcessed];
    let (well, failing) =
        (endpoint(&queue, "alice", &types).await, endpoint(&queue, "alice", &types).await);
    queue.write(move |tx| Box::pin(async move { store::note_failure(tx, failing).await })).await;
    append(&queue, (0..30).map(|_| processed("alice")).collect()).await;
    let lane = lane(&queue).await;
    let worker = WorkerId::new();
    let claims = lane.claim_as(&worker, UNLIMITED, 100).await;
    let expected = BTreeMap::from([(well.0.to_string(), 8), (failing.0.to_string(), 1)]);
    assert_eq!(by_endpoint(&claims), expected);
    assert!(lane.claim_within(UNLIMITED, 100).await.is_empty(), "over all workers");
    for claim in &claims[..4] {
        assert!(lane.end(&claim.fence(&worker), Ending::Succeeded).await);
    }
    let ended = by_endpoint(&claims[..4]);
    assert_eq!(by_endpoint(&lane.claim_within(UNLIMITED, 100).await), ended);
    queue.write(move |tx| Box::pin(async move { store::note_success(tx, failing).await })).await;
    let more = BTreeMap::from([(failing.0.to_string(), 7)]);
    assert_eq!(by_endpoint(&lane.claim_within(UNLIMITED, 100).await), more);
}

async fn endpoints_take_turns(queue: Queue) {
    let types = [EventType::FileProcessed];
    for owner in ["alice", "alice", "bob"] {
        endpoint(&queue, owner, &types).await;
    }
    append(&queue, (0..20).map(|_| processed("alice")).chain([processed("bob")]).collect()).await;
    let lane = lane(&queue).await;
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(lane.claim_within(UNLIMITED, 1).await.remove(0).turn());
    }
    turns.sort();
    turns.dedup();
    assert_eq!(turns.len(), 3, "each has had a turn");
    let claims = lane.claim_within(UNLIMITED, 6).await;
    assert!(by_endpoint(&claims).values().all(|count| *count == 3), "{:?}", by_endpoint(&claims));
}

async fn a_claim_of_deliveries_reads_no_more_than_what_is_due(queue: Queue) {
    after_a_while(&queue).await;
    for number in 0..40 {
        let owner = format!("owner-{number}");
        endpoint(&queue, &owner, &[EventType::FileProcessed]).await;
        append(&queue, (0..20).map(|_| processed(&owner)).collect()).await;
    }
    lane(&queue).await;
    let (claims, plans) = queue
        .write(|tx| {
            Box::pin(async move {
                let recorded = Recorded::new(tx);
                let worker = WorkerId::new();
                let claims = claim(&recorded, &worker, &Lane::webhooks(), &UNLIMITED, 64).await?;
                deliveries::cancel_stranded(&recorded, longshore::clock::Timestamp(1), 10).await?;
                let event = [processed("owner-1")];
                events::append(&recorded, longshore::clock::Timestamp(1), &event).await?;
                Ok::<_, DbErr>((claims, recorded.plans().await?))
            })
        })
        .await;
    assert_eq!((claims.len(), by_endpoint(&claims).len()), (64, 32));
    assert_frugal(&plans);
    let turns = plans.iter().find(|plan| plan.contains("WITH RECURSIVE")).unwrap();
    assert!(turns.contains("jobs_deliveries_ready"), "{turns}");
    assert!(turns.contains("jobs_deliveries_running"), "{turns}");
    let others = ["jobs_ready", "jobs_due", "jobs_running"];
    assert!(!others.iter().any(|index| turns.contains(index)), "{turns}");
    let choice = plans.iter().find(|plan| plan.contains("ORDER BY run_at")).unwrap();
    assert!(choice.contains("jobs_deliveries_ready"), "{choice}");
}

async fn what_waits_for_an_endpoint_that_is_told_of_nothing_is_called_off(queue: Queue) {
    let types = [EventType::FileProcessed];
    let (off, gone) =
        (endpoint(&queue, "alice", &types).await, endpoint(&queue, "alice", &types).await);
    endpoint(&queue, "alice", &types).await;
    append(&queue, (0..600).map(|_| processed("alice")).collect()).await;
    let now = queue.now().await;
    queue.write(move |tx| Box::pin(async move { webhooks::gone(tx, now, off).await })).await;
    let deleted =
        queue.db.intake(move |tx| Box::pin(async move { webhooks::delete(tx, now, gone).await }));
    assert!(deleted.await.unwrap());
    let waiting = format!("{DELIVERIES} AND status = 'queued'");
    assert_eq!(queue.count(&waiting).await, 800, "not all in one transaction");
    let rest = queue
        .write(move |tx| Box::pin(async move { deliveries::cancel_stranded(tx, now, 500).await }))
        .await;
    assert_eq!(rest, 200);
    assert_eq!(queue.count(&waiting).await, 600);
    let kept =
        "SELECT count(*) FROM webhook_endpoints WHERE status = 'deleted' AND secret IS NOT NULL";
    assert_eq!(queue.count(kept).await, 0);
}
