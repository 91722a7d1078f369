//! PostgreSQL away in every way: silent, restarted, killed, cut off, read-only. Nothing that was accepted is lost.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::Fault;
use reqwest::Method;
use serde_json::Value;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::PgConnection;

use crate::support::Client;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::Postgres;
use crate::support::Proxy;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

async fn env(url: String, options: Options) -> Env {
    let database = Some(url);
    Env::with(Options { kind: Kind::Postgres, database, models: &["a"], ..options }).await
}

async fn readiness(env: &Env, code: u16, status: &str) {
    eventually(PATIENCE, async || {
        let (answered, body) = env.client.get("/readyz").await;
        (answered == code && body["status"] == status).then_some(())
    })
    .await;
}

/// Statements by a superuser, beside the server.
async fn tell(postgres: &Postgres, sql: &'static str) {
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
    connection.execute(sql).await.unwrap();
    connection.close().await.unwrap();
}

/// Clients that upload, one file after another, until they are stopped.
struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn on(env: &Env) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let begin = || tokio::spawn(uploads(env.client.clone(), Arc::clone(&is_over)));
        let clients = (0..4).map(|_| begin()).collect();
        Self { is_over, clients }
    }

    /// The ids of what was accepted.
    async fn stop(self) -> Vec<String> {
        self.is_over.store(true, Ordering::Relaxed);
        let mut ids = Vec::new();
        for client in self.clients {
            ids.extend(client.await.unwrap());
        }
        ids
    }
}

async fn uploads(client: Client, is_over: Arc<AtomicBool>) -> Vec<String> {
    let mut ids = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let part = Part {
            filename: "notes.txt",
            purpose: "user_data",
            models: &["a"],
            content: b"some bytes\n".to_vec(),
        };
        let request = client.request(Method::POST, "/v1/files").multipart(Client::form(part));
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        if status == 503 {
            assert!(answer.headers().contains_key("retry-after"));
            continue;
        }
        let text = answer.text().await.unwrap();
        assert_eq!(status, 200, "{text}");
        let file: Value = serde_json::from_str(&text).unwrap();
        ids.push(file["id"].as_str().unwrap().to_owned());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ids
}

/// All of them are at the provider, once.
async fn all_carried(env: &Env, ids: &[String]) {
    for id in ids {
        let file = env.client.settled(id).await;
        assert_eq!(file["status"], "processed", "{file}");
    }
    env.quiet().await;
    let live = env.sandbox.live_files("a").len() as i64;
    // A commit whose answer was lost may have come true: then the file is here though nobody was told.
    assert!(live >= ids.len() as i64);
    assert_eq!(env.database.count("SELECT count(*) FROM files").await, live);
    assert_eq!(env.database.count("SELECT count(*) FROM jobs WHERE status = 'failed'").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_and_comes_again_loses_nothing_that_was_accepted() {
    let mut postgres = Postgres::running();
    let env = env(postgres.url("postgres"), Options::default()).await;
    let load = Load::on(&env);
    let pause = async || tokio::time::sleep(Duration::from_millis(500)).await;
    pause().await;
    tell(
        &postgres,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'longshore'",
    )
    .await;
    pause().await;
    postgres.restart();
    readiness(&env, 200, "ok").await;
    pause().await;
    postgres.kill();
    readiness(&env, 503, "unavailable").await;
    postgres.start();
    readiness(&env, 200, "ok").await;
    pause().await;
    let ids = load.stop().await;
    assert!(ids.len() > 10, "{}", ids.len());
    all_carried(&env, &ids).await;
    let log = env.server.log();
    assert!(log.contains("the database is back, after"), "{log}");
    for level in ["WARN", "ERROR"] {
        let lines: Vec<_> = log.lines().filter(|line| line.contains(level)).collect();
        assert!(lines.len() < 60, "{} lines of {level}, as {:?}", lines.len(), &lines[..60]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_gives_no_answer_hangs_no_request_and_no_lease() {
    let postgres = Postgres::running();
    let proxy = Proxy::before(postgres.port);
    let options = Options {
        database_settings: "lock_timeout = \"1s\"\nacquire_timeout = \"2s\"\n".to_owned(),
        lease: "3s",
        ..Options::default()
    };
    let mut env = env(proxy.url(&postgres.url("postgres")), options).await;
    env.spoil("a", Fault::Hold { hold_before: false });
    let file = env.client.upload(&["a"]).await;
    let id = file["id"].as_str().unwrap().to_owned();
    env.held("a", 1).await;

    proxy.half_open();
    let begun = Instant::now();
    let path = format!("/v1/files/{id}");
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let request = env.client.request(Method::GET, &path);
            tokio::spawn(async move { request.send().await.unwrap() })
        })
        .collect();
    for read in reads {
        let answer = read.await.unwrap();
        assert_eq!(answer.status().as_u16(), 503);
        assert!(answer.headers().contains_key("retry-after"));
    }
    // Two seconds for a connection, or six for an answer; the rest is a busy machine's.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    readiness(&env, 503, "unavailable").await;
    // By its own clock, whatever the database says.
    env.server.logged("the lease ends and could not be renewed");

    proxy.pass();
    readiness(&env, 200, "ok").await;
    env.sandbox.release("a");
    all_carried(&env, &[id]).await;
    assert!(env.server.log().contains("no answer within"), "{}", env.server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_in_the_primarys_place_counts_as_away() {
    let mut postgres = Postgres::running();
    let env = env(postgres.url("postgres"), Options::default()).await;
    let before = env.client.upload(&["a"]).await;
    env.client.settled(before["id"].as_str().unwrap()).await;
    postgres.stop();
    postgres.put("standby.signal", "");
    postgres.start();
    readiness(&env, 503, "unavailable").await;
    let part = Part {
        filename: "notes.txt",
        purpose: "user_data",
        models: &["a"],
        content: b"some bytes\n".to_vec(),
    };
    let (status, refused) = env.client.try_upload(part).await;
    assert_eq!(status, 503, "{refused}");
    assert!(env.server.log().contains("the server answers read-only"), "{}", env.server.log());

    tell(&postgres, "SELECT pg_promote()").await;
    readiness(&env, 200, "ok").await;
    let after = env.client.upload(&["a"]).await;
    all_carried(&env, &[after["id"].as_str().unwrap().to_owned()]).await;
}
