//! The fault suite: a fleet of processes on PostgreSQL and Redis, clients that work with it, and everything that can go
//! wrong, again and again and several things at a time. In the end every answer that was given has to be true.
//!
//! `tests/faults.sh [minutes]` runs it for long; the tests run it for less than a minute. `LONGSHORE_TEST_SEED` repeats
//! its choices; the moments themselves are the machine's.

mod at_work;
mod batches;
mod checker;
mod clients;
mod fleet;
mod follower;
mod history;
mod injector;
mod rows;
mod strangers;
mod waits;

use std::time::Duration;
use std::time::Instant;

use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::clients::World;
use self::fleet::Fleet;
use self::history::History;
use self::rows::Rows;
use self::strangers::Strangers;
use crate::support::Receiver;

/// Of a run in the tests.
const SHORT: Duration = Duration::from_secs(40);
const CLIENTS: usize = 16;

fn length() -> Duration {
    match std::env::var("LONGSHORE_TEST_FAULT_MINUTES") {
        Ok(minutes) => Duration::from_secs_f64(60.0 * minutes.parse::<f64>().expect("minutes")),
        Err(_) => SHORT,
    }
}

fn seed() -> u64 {
    match std::env::var("LONGSHORE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("LONGSHORE_TEST_SEED is a number"),
        Err(_) => rand::random(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_every_answer_that_was_given_stays_true() {
    let (seed, length) = (seed(), length());
    println!("LONGSHORE_TEST_SEED={seed}, for {} s", length.as_secs());
    let mut random = StdRng::seed_from_u64(seed);
    let mut fleet = Fleet::start().await;
    fleet.all_up().await;
    let strangers = Strangers::plant(&fleet).await;
    let receiver = Receiver::start().await;
    let world = World {
        servers: fleet.clients().into(),
        history: History::default(),
        closing: CancellationToken::new(),
    };
    listen(&world, &receiver).await;

    let over = CancellationToken::new();
    let follower = tokio::spawn(follower::follow(world.clone(), random.random(), over.clone()));
    // Until the stream is there: what happens before it begins it need not tell.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client =
                clients::client(world.clone(), format!("client-{number}"), random.random());
            tokio::spawn(client)
        })
        .collect();
    let end = Instant::now() + length;
    injector::make_trouble(&mut fleet, &world.history, &mut random, end).await;

    world.closing.cancel();
    let rows = Rows::of(&fleet).await;
    waits::check(&rows, &world.history).await;
    injector::resume_lanes(fleet.clients()).await;
    waits::release_keys(&rows).await;
    for client in clients {
        client.await.unwrap();
    }
    waits::check(&rows, &world.history).await;
    waits::come_to_rest(&mut fleet, &rows, &world.history).await;
    // The stream catches up within its own interval of coming again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    over.cancel();
    follower.await.unwrap();
    checker::check(&mut fleet, &rows, &receiver, &strangers, &world.history).await;
    fleet.read_logs(&world.history);

    println!("{}", world.history.report());
    let (faults, operations, violations) = world.history.sums();
    if violations > 0 {
        let folder = std::env::temp_dir().join(format!("longshore-faults-{seed}"));
        fleet.keep_logs(&folder);
        panic!("{violations} violations; the logs of all processes are in {}", folder.display());
    }
    let seconds = length.as_secs();
    assert!(faults >= seconds / 3 && operations >= seconds * 10, "too little happened");
}

/// Has webhooks sent of everything.
async fn listen(world: &World, receiver: &Receiver) {
    let (status, body) = world.servers[0]
        .post(
            "/v1/webhook_endpoints",
            json!({
                "name": "faults", "url": receiver.url(),
                "event_types": ["file.processed", "batch.completed", "batch.failed", "batch.cancelled", "batch.expired"],
            }),
        )
        .await;
    assert_eq!(status, 200, "{body}");
}
