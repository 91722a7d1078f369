//! SIGTERM while uploads are under way.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::Operation;

use crate::support::Crew;
use crate::support::Kind;
use crate::support::Options;
use crate::support::mapping;

const BOTH: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_ends_within_the_drain_is_finished() {
    for kind in BOTH {
        let mut crew = Crew::on(kind).await;
        crew.env.spoil("a", Fault::Hold { hold_before: true });
        let file = crew.env.client.upload(&["a"]).await;
        crew.env.held("a", 1).await;
        crew.worker().signal("TERM");
        crew.worker().logged("finishing what runs");
        crew.env.sandbox.release("a");
        assert_eq!(crew.worker().wait(Duration::from_secs(7)).code(), Some(0));
        assert_eq!(crew.env.sandbox.live_files("a").len(), 1);
        crew.restart();
        let file = crew.env.client.file(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        assert_eq!(mapping(&file, "a")["attempts"], 1);
        crew.env.assert_one_copy(&file);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_does_not_end_within_the_drain_is_handed_back_at_no_cost() {
    for (kind, hold_before) in [(Kind::Sqlite, false), (Kind::Sqlite, true), (Kind::Postgres, true)]
    {
        let mut crew = Crew::with(Options { drain: "1s", ..Options::on(kind) }).await;
        crew.env.spoil("a", Fault::Hold { hold_before });
        let file = crew.env.client.upload(&["a"]).await;
        crew.env.held("a", 1).await;
        let (status, took) = crew.worker().terminate();
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(3), "{took:?}");
        crew.restart();
        let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        assert_eq!(crew.env.job(mapping(&file, "a")).await["attempt"], 1);
        let outcomes = crew.env.outcomes(mapping(&file, "a")).await;
        assert_eq!(outcomes.first().map(String::as_str), Some("handed_back"));
        assert!(!outcomes.contains(&"died".to_owned()), "{outcomes:?}");
        crew.env.sandbox.release("a");
        crew.env.quiet().await;
        crew.env.assert_one_copy(&file);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_stops_at_once_and_queued_work_waits_for_the_next() {
    let mut crew = Crew::on(Kind::Sqlite).await;
    crew.env.lane("a", "pause").await;
    let file = crew.env.client.upload(&["a"]).await;
    let (status, took) = crew.worker().terminate();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(2), "{took:?}");
    crew.restart();
    crew.env.lane("a", "resume").await;
    let file = crew.env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    assert_eq!(crew.env.calls("a", Operation::Upload), 1);
}
