//! Several processes on one PostgreSQL, with Redis between them and without.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt as _;
use longshore::notices::Hint;
use longshore::notices::Notices;
use longshore::notices::Relay;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use serde_json::Value;

use crate::support::Database;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Process;
use crate::support::Redis;
use crate::support::eventually;

/// The table of the configuration that names it.
fn table(redis: &Redis) -> String {
    format!("[redis]\nurl = \"{}\"\n", redis.url())
}

/// A server without workers, on PostgreSQL.
async fn serve(options: Options) -> Env {
    // No lease ends because the machine is busy.
    Env::with(Options { kind: Kind::Postgres, command: "serve", lease: "20s", ..options }).await
}

async fn with_redis(redis: &Redis) -> Env {
    let env = serve(Options { extra: table(redis), ..Options::default() }).await;
    readiness(&env, "ok", "ok").await;
    env
}

/// Waits until `/readyz` tells this.
async fn readiness(env: &Env, status: &str, redis: &str) {
    eventually(Duration::from_secs(20), async || {
        let (code, body) = env.client.get("/readyz").await;
        (code == 200 && body["status"] == status && body["redis"] == redis).then_some(())
    })
    .await;
}

fn id(file: &Value) -> &str {
    file["id"].as_str().unwrap()
}

/// How long it took from before the upload until its end was answered.
async fn carry(env: &Env) -> Duration {
    let begun = Instant::now();
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(id(&file)).await;
    assert_eq!(file["status"], "processed", "{file}");
    begun.elapsed()
}

/// Uploads as many files to `models` as asked for, a few at a time: the server's connections are not
/// the only ones to PostgreSQL.
async fn upload(env: &Env, count: usize, models: &[&str]) -> Vec<Value> {
    let uploads = (0..count).map(|_| env.client.upload(models));
    futures_util::stream::iter(uploads).buffered(4).collect().await
}

/// Waits until a process that has ended was heard to its end.
async fn said(process: &Process, text: &str) {
    let heard = async || process.log().contains(text).then_some(());
    eventually(Duration::from_secs(5), heard).await;
}

/// Many files over two workers: each goes once to each model, and both workers had a part in it.
async fn share_the_work(env: &Env) {
    let settings = Settings { latency_ms: 50, ..Settings::default() };
    for account in ["a", "b"] {
        env.sandbox.configure(account, settings.clone());
    }
    let _workers = [env.also("work"), env.also("work")];
    for file in upload(env, 20, &["a", "b"]).await {
        let file = env.client.settled(id(&file)).await;
        assert_eq!(file["status"], "processed", "{file}");
    }
    for account in ["a", "b"] {
        assert_eq!(env.sandbox.stats(account).files_created, 20);
    }
    let workers = "SELECT count(DISTINCT worker) FROM job_attempts";
    assert_eq!(env.database.count(workers).await, 2);
    assert_eq!(env.database.count("SELECT count(*) FROM job_attempts").await, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_the_work_without_redis() {
    let env = serve(Options::default()).await;
    share_the_work(&env).await;
    readiness(&env, "ok", "not configured").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_the_work_with_redis() {
    let redis = Redis::running();
    share_the_work(&with_redis(&redis).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_together_stay_within_a_providers_concurrency() {
    let env =
        serve(Options { provider: "max_concurrency = 2\n".to_owned(), ..Options::default() }).await;
    env.sandbox.configure("a", Settings { latency_ms: 150, ..Settings::default() });
    let files = upload(&env, 20, &["a"]).await;
    let _workers = [env.also("work"), env.also("work")];
    for file in files {
        assert_eq!(env.client.settled(id(&file)).await["status"], "processed");
    }
    assert_eq!(env.sandbox.stats("a").max_in_flight, 2);
}

/// Nothing here polls: what is heard was said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_is_heard_in_another_process_at_once() {
    let redis = Redis::running();
    let url = redis.url();
    let [one, other] = [(); 2]
        .map(|()| Notices::new(Some(Relay::new(redis::Client::open(url.as_str()).unwrap()))));
    eventually(Duration::from_secs(20), async || (!other.is_degraded()).then_some(())).await;
    let patience = Duration::from_secs(10);
    // Until it is connected, every hint is given: any may have been missed.
    drop(tokio::time::timeout(Duration::from_millis(1), other.work()).await);
    drop(tokio::time::timeout(Duration::from_millis(1), other.cancel()).await);
    for _ in 0..3 {
        one.hint(Hint::Work);
        tokio::time::timeout(patience, other.work()).await.unwrap();
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), other.cancel()).await.is_err());
    one.hint(Hint::Cancel);
    tokio::time::timeout(patience, other.cancel()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_away_costs_a_poll_and_nothing_else() {
    let mut redis = Redis::running();
    let env = with_redis(&redis).await;
    let _workers = [env.also("work"), env.also("work")];
    carry(&env).await;
    let rule = FaultRule::new(Operation::Upload, Fault::Hold { hold_before: false });
    env.sandbox.add_fault("a", rule).unwrap();
    let held = env.client.upload(&["a"]).await;
    eventually(Duration::from_secs(10), async || (env.sandbox.stats("a").held == 1).then_some(()))
        .await;

    redis.kill();
    readiness(&env, "degraded", "unreachable").await;
    env.sandbox.release("a");
    assert_eq!(env.client.settled(id(&held)).await["status"], "processed");
    for _ in 0..3 {
        assert!(carry(&env).await < Duration::from_secs(3));
    }

    redis.start();
    readiness(&env, "ok", "ok").await;
    carry(&env).await;
    assert_eq!(env.sandbox.stats("a").files_created, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_without_its_redis_finds_it_later() {
    let mut redis = Redis::made();
    let env = serve(Options { extra: table(&redis), ..Options::default() }).await;
    let _worker = env.also("work");
    readiness(&env, "degraded", "unreachable").await;
    carry(&env).await;
    redis.start();
    readiness(&env, "ok", "ok").await;
    carry(&env).await;
}

/// Somebody waits at the server; what they wait for happens in another process.
async fn is_woken_by_another_process(env: &Env) {
    let rule = FaultRule::new(Operation::Upload, Fault::Hold { hold_before: false });
    env.sandbox.add_fault("a", rule).unwrap();
    let _worker = env.also("work");
    let file = env.client.upload(&["a"]).await;
    eventually(Duration::from_secs(10), async || (env.sandbox.stats("a").held == 1).then_some(()))
        .await;
    let (client, path) = (env.client.clone(), format!("/v1/files/{}?wait=30", id(&file)));
    let waiting = tokio::spawn(async move { client.get(&path).await });
    let waiters = "longshore_waiters 1";
    let admin = env.as_key(crate::support::ADMIN_KEY);
    eventually(Duration::from_secs(10), async || {
        let (_, metrics) = admin.get("/metrics").await;
        metrics.as_str().is_some_and(|metrics| metrics.contains(waiters)).then_some(())
    })
    .await;
    env.sandbox.release("a");
    let begun = Instant::now();
    let (status, file) = waiting.await.unwrap();
    assert_eq!((status, file["status"].as_str()), (200, Some("processed")));
    // Before the slow look at everything that is waited for, every five seconds.
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_is_woken_by_another_process_without_redis() {
    is_woken_by_another_process(&serve(Options::default()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_is_woken_by_another_process_through_redis() {
    let redis = Redis::running();
    is_woken_by_another_process(&with_redis(&redis).await).await;
}

/// A configuration that says no more than where the database is.
fn configure(folder: &Path, database: &Database, extra: &str) {
    let text =
        format!("{extra}[database]\nurl = \"{}\"\n[auth]\nadmin_key = \"k\"\n", database.url);
    std::fs::write(folder.join("longshore.toml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_with_redis_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::sqlite(folder.path());
    configure(folder.path(), &database, "[redis]\nurl = \"redis://127.0.0.1:1\"\n");
    let mut process = Process::start(folder.path(), &["up"], &[]);
    assert_eq!(process.wait(Duration::from_secs(20)).code(), Some(2));
    said(&process, "redis.url").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_on_a_database_without_the_schema_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::postgres_schema().await;
    configure(folder.path(), &database, "");
    let mut worker = Process::start(folder.path(), &["work"], &[]);
    assert_eq!(worker.wait(Duration::from_secs(20)).code(), Some(1));
    said(&worker, "run `longshore migrate` first").await;
    let code = |arguments: &[&str]| {
        Process::start(folder.path(), arguments, &[]).wait(Duration::from_secs(20)).code()
    };
    assert_eq!(code(&["migrate", "status"]), Some(1));
    assert_eq!(code(&["migrate"]), Some(0));
    assert_eq!(code(&["migrate", "status"]), Some(0));
    Process::start(folder.path(), &["work"], &[]).logged("workers started");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_start_at_once_on_an_empty_database_are_one_installation() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::postgres_schema().await;
    configure(folder.path(), &database, "[server]\nlisten = \"127.0.0.1:0\"\n");
    let mut servers: Vec<_> =
        (0..3).map(|_| Process::start(folder.path(), &["serve"], &[])).collect();
    for server in &mut servers {
        server.logged("listening on");
        assert!(!server.log().contains("different installations"), "{}", server.log());
    }
    assert_eq!(database.count("SELECT count(*) FROM installation").await, 1);
}
