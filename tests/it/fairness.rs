//! One owner's backlog, and what another notices of it.

use serde_json::Value;

use crate::support::BOB_KEY;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::mapping;

const BACKLOG: usize = 100_000;
const TEN: usize = 10;
/// Slots of the lane, as it is configured.
const SLOTS: i64 = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_jobs_beside_a_hundred_thousand_of_another_owner_start_at_once_on_sqlite() {
    ten_start_beside_a_backlog(Kind::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_jobs_beside_a_hundred_thousand_of_another_owner_start_at_once_on_postgres() {
    ten_start_beside_a_backlog(Kind::Postgres).await;
}

async fn ten_start_beside_a_backlog(kind: Kind) {
    let provider = "requests_per_minute = 1000000000\n".to_owned();
    let env = Env::with(Options { models: &["a"], provider, ..Options::on(kind) }).await;
    let many = env.client.upload(&["a"]).await;
    env.client.settled(many["id"].as_str().unwrap()).await;
    env.lane("a", "pause").await;
    // Uploads that find their copy at the provider already: they are jobs like any other, and quickly done.
    let (id, series) = match kind {
        Kind::Postgres => ("gen_random_uuid()", format!("generate_series(1, {BACKLOG})")),
        Kind::Sqlite => (
            "randomblob(16)",
            format!(
                "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {BACKLOG}) SELECT n FROM s)"
            ),
        ),
    };
    let backlog = format!(
        "INSERT INTO jobs (id, kind, lane, rank, owner, status, payload, model, max_attempts, run_at, file_id, created_at) \
         SELECT {id}, kind, lane, rank, owner, 'queued', payload, model, 30, run_at, file_id, created_at \
         FROM jobs, {series} AS series WHERE kind = 'upload_file'"
    );
    env.database.execute(&backlog).await;
    let bob = env.as_key(BOB_KEY);
    let mut ten = Vec::new();
    for _ in 0..TEN {
        ten.push(bob.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
    }
    env.lane("a", "resume").await;
    for id in &ten {
        let file: Value = bob.settled(id).await;
        assert_eq!(mapping(&file, "a")["status"], "ready", "{file}");
    }
    let first = "SELECT min(started_at) FROM jobs WHERE owner = 'bob'";
    let first = env.database.count(first).await;
    let last = "SELECT max(started_at) FROM jobs WHERE owner = 'bob'";
    let last = env.database.count(last).await;
    let before = format!(
        "SELECT count(*) FROM jobs WHERE owner = 'alice' AND started_at >= {first} AND started_at < {last}"
    );
    let before = env.database.count(&before).await;
    // A turn for a turn: as many of the other's as of these, and what was under way.
    let most = TEN as i64 + 3 * SLOTS;
    assert!(before <= most, "{before} of the backlog started before the last of ten, {most} may");
    let left = "SELECT count(*) FROM jobs WHERE status = 'queued'";
    let left = env.database.count(left).await;
    assert!(left > 0, "the backlog was done before it could delay anybody");
}
