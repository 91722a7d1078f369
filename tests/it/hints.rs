//! Redis away in every way, and with a password: it costs a poll's latency, and nothing else.

use std::time::Duration;

use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Proxy;
use crate::support::Redis;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

async fn env(url: &str) -> Env {
    let extra = format!("[redis]\nurl = \"{url}\"\n");
    // No lease ends because the machine is busy.
    let options = Options { extra, lease: "20s", models: &["a"], ..Options::on(Kind::Postgres) };
    Env::with(Options { command: "serve", ..options }).await
}

async fn readiness(env: &Env, status: &str, redis: &str) {
    eventually(PATIENCE, async || {
        let (code, body) = env.client.get("/readyz").await;
        (code == 200 && body["status"] == status && body["redis"] == redis).then_some(())
    })
    .await;
}

async fn carry(env: &Env, count: usize) {
    for _ in 0..count {
        let file = env.client.upload(&["a"]).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_flushed_frozen_or_cut_off_holds_up_nothing() {
    let redis = Redis::running();
    let proxy = Proxy::before(redis.port);
    let env = env(&proxy.url(&redis.url())).await;
    let _worker = env.also("work");
    readiness(&env, "ok", "ok").await;
    redis.flush().await;
    carry(&env, 2).await;

    redis.freeze();
    // More hints than there is room for.
    carry(&env, 30).await;
    readiness(&env, "degraded", "unreachable").await;
    redis.thaw();
    readiness(&env, "ok", "ok").await;

    proxy.half_open();
    carry(&env, 2).await;
    readiness(&env, "degraded", "unreachable").await;
    proxy.pass();
    readiness(&env, "ok", "ok").await;
    carry(&env, 2).await;
    let log = env.server.log();
    // Once each, or a few times more where the machine itself is slow to answer.
    for said in ["Redis is away", "Redis is back"] {
        assert!((2..=6).contains(&log.matches(said).count()), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_of_redis_is_said_and_stops_nothing() {
    let mut redis = Redis::made();
    redis.set(&["--requirepass", "right"]);
    redis.start();
    let url = |password: &str| redis.url().replace("127.0.0.1", &format!(":{password}@127.0.0.1"));
    let mut env = env(&url("wrong-canary")).await;
    env.server.logged("Redis refuses the user or password of `redis.url`");
    readiness(&env, "degraded", "unreachable").await;
    let worker = env.also("work");
    carry(&env, 1).await;
    drop(worker);
    assert!(!env.server.log().contains("wrong-canary"));
    let found = crate::support::run(&env.folder(), &["doctor"], &[]);
    assert!(found.output.contains("refuses the user or password"), "{}", found.output);

    env.server.kill();
    env.reconfigure(|text| text.replace("wrong-canary", "right"));
    env.restart();
    readiness(&env, "ok", "ok").await;
}
