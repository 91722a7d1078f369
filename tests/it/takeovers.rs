//! Workers that are frozen beyond their lease, and wake.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::Operation;

use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::eventually;
use crate::support::mapping;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_whose_copy_was_adopted_changes_nothing_when_it_wakes() {
    let mut crew = Crew::on(Kind::Postgres).await;
    crew.env.spoil("a", Fault::Hold { hold_before: false });
    let file = crew.env.client.upload(&["a"]).await;
    crew.env.held("a", 1).await;
    crew.worker().signal("STOP");
    let _other = crew.env.also("work");
    let adopted = crew.env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(adopted["status"], "processed", "{adopted}");
    crew.env.sandbox.release("a");
    crew.worker().signal("CONT");
    crew.worker().logged("taken over");
    crew.env.quiet().await;
    assert_eq!(crew.env.client.file(file["id"].as_str().unwrap()).await, adopted);
    crew.env.assert_one_copy(&adopted);
    assert_eq!(crew.env.calls("a", Operation::Upload), 1);
    assert_eq!(crew.env.outcomes(mapping(&adopted, "a")).await, ["died", "succeeded"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_frozen_worker_did_at_the_provider_is_removed() {
    let mut crew = Crew::on(Kind::Postgres).await;
    crew.env.spoil("a", Fault::Hold { hold_before: true });
    let file = crew.env.client.upload(&["a"]).await;
    crew.env.held("a", 1).await;
    crew.worker().signal("STOP");
    let _other = crew.env.also("work");
    let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    // Now the provider executes what the frozen worker had sent.
    crew.env.sandbox.release("a");
    eventually(PATIENCE, async || (crew.env.sandbox.live_files("a").len() == 2).then_some(()))
        .await;
    crew.worker().signal("CONT");
    crew.worker().logged("taken over");
    crew.env.quiet().await;
    assert_eq!(crew.env.client.file(file["id"].as_str().unwrap()).await, file);
    crew.env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_frozen_alone_keeps_its_job() {
    let env = Env::start().await;
    env.spoil("a", Fault::Hold { hold_before: false });
    let file = env.client.upload(&["a"]).await;
    env.held("a", 1).await;
    env.server.signal("STOP");
    // Longer than the lease of a second.
    tokio::time::sleep(Duration::from_millis(1800)).await;
    env.server.signal("CONT");
    env.sandbox.release("a");
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    let outcomes = env.outcomes(mapping(&file, "a")).await;
    assert!(!outcomes.contains(&"died".to_owned()), "reaped at first sight: {outcomes:?}");
    env.quiet().await;
    env.assert_one_copy(&file);
    assert_eq!(env.calls("a", Operation::Upload), 1);
}
