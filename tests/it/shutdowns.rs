//! SIGTERM while uploads are under way.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::Operation;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::support::ADMIN_KEY;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::RawForm;
use crate::support::answer;
use crate::support::eventually;
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

/// What `/readyz` says to somebody who comes with a new connection.
async fn readiness(env: &Env, base: &str) -> (u16, Value) {
    answer(env.client.http.get(format!("{base}/readyz")).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intake_that_is_to_end_says_so_and_takes_requests_until_its_proxy_has_noticed() {
    let server = "drain_delay = \"5s\"\n".to_owned();
    let mut env = Env::with(Options { server, ..Options::default() }).await;
    env.lane("a", "pause").await;
    let file = env.client.upload(&["a"]).await;
    let (client, path) =
        (env.client.clone(), format!("/v1/files/{}?wait=60", file["id"].as_str().unwrap()));
    let waiting = tokio::spawn(async move { client.get(&path).await });
    let admin = env.as_key(ADMIN_KEY);
    eventually(Duration::from_secs(10), async || {
        let (_, metrics) = admin.get("/metrics").await;
        metrics.as_str().is_some_and(|text| text.contains("longshore_waiters 1")).then_some(())
    })
    .await;
    // An upload that is under way: its second half comes when the listener is closed.
    let body = RawForm::new().field("purpose", "user_data").field("target_model_names", "b");
    let body = body.file("slow.txt", b"first, and then the rest").end();
    let mut upload = env.client.connect().await;
    upload.write_all(&env.client.upload_head(body.len(), "")).await.unwrap();
    let (first, rest) = body.split_at(body.len() - 60);
    upload.write_all(first).await.unwrap();

    let begun = std::time::Instant::now();
    env.server.signal("TERM");
    eventually(Duration::from_secs(4), async || {
        let (status, ready) = readiness(&env, &env.client.base).await;
        (status == 503 && ready["status"] == "draining").then_some(())
    })
    .await;
    // Who waits is answered with what there is.
    let (status, waited) = waiting.await.unwrap();
    assert_eq!((status, waited["status"].as_str()), (200, Some("uploaded")));
    // Who comes is served, and asked to come by another connection the next time.
    let form = RawForm::new().field("purpose", "user_data").field("target_model_names", "b");
    let late = env.client.raw_upload(form.file("late.txt", b"late").end()).send().await.unwrap();
    assert_eq!(
        (late.status().as_u16(), &late.headers()["connection"]),
        (200, &"close".parse().unwrap())
    );

    let address = env.client.base.trim_start_matches("http://").to_owned();
    eventually(Duration::from_secs(20), async || {
        tokio::net::TcpStream::connect(&address).await.is_err().then_some(())
    })
    .await;
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    upload.write_all(rest).await.unwrap();
    let mut answered = String::new();
    upload.read_to_string(&mut answered).await.unwrap();
    assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
    assert!(answered.to_lowercase().contains("connection: close"), "{answered}");
    assert_eq!(env.server.wait(Duration::from_secs(20)).code(), Some(0));
    assert_eq!(env.database.count("SELECT count(*) FROM files").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_listens_answers_how_it_is_until_it_has_ended() {
    let options = Options { command: "serve", drain: "20s", ..Options::on(Kind::Postgres) };
    let env = Env::with(options).await;
    env.reconfigure(|text| text.replace("[workers]\n", "[workers]\nlisten = \"127.0.0.1:0\"\n"));
    let mut worker = env.also("work");
    let line = worker.logged("health and metrics on http://");
    let base = line.split_once(" on ").unwrap().1.split('"').next().unwrap().to_owned();
    let get = |path: &str, key: &str| {
        let request = env.client.http.get(format!("{base}{path}")).bearer_auth(key);
        async move { answer(request.send().await.unwrap()).await }
    };
    assert_eq!(get("/healthz", "").await.0, 200);
    assert_eq!(readiness(&env, &base).await.1["status"], "ok");
    assert_eq!(get("/metrics", "").await.0, 401);
    env.spoil("a", Fault::Hold { hold_before: true });
    env.client.upload(&["a"]).await;
    let done = env.client.upload(&["b"]).await;
    env.client.settled(done["id"].as_str().unwrap()).await;
    env.held("a", 1).await;
    let (status, metrics) = get("/metrics", ADMIN_KEY).await;
    assert_eq!(status, 200);
    assert!(metrics.as_str().unwrap().contains("longshore_attempts_total"), "{metrics}");
    // It takes no requests.
    assert_eq!(get("/v1/files", ADMIN_KEY).await.0, 404);
    worker.signal("TERM");
    eventually(Duration::from_secs(15), async || {
        let (status, ready) = readiness(&env, &base).await;
        (status == 503 && ready["status"] == "draining").then_some(())
    })
    .await;
    env.sandbox.release("a");
    assert_eq!(worker.wait(Duration::from_secs(20)).code(), Some(0));
}
