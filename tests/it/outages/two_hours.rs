//! A provider that is away for two hours: no job fails, and it is left alone but for a probe now and then. The hours are
//! taken out of every time that the database holds, as soon as nothing is left to do but to wait.

use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::BatchState;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Sandbox;
use serde_json::json;

use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::status;

const PATIENCE: Duration = Duration::from_secs(60);
const HOURS: i64 = 2 * 3_600_000;
const MOST_CALLS: u64 = 200;
const FILES: usize = 50;

/// How the provider is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    Answering503,
    Refusing,
}

const CALLS: [Operation; 9] = [
    Operation::Upload,
    Operation::List,
    Operation::Get,
    Operation::Content,
    Operation::Delete,
    Operation::CreateBatch,
    Operation::ListBatches,
    Operation::GetBatch,
    Operation::CancelBatch,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_answers_503_for_two_hours_fails_no_job_on_sqlite() {
    outlast(Kind::Sqlite, Away::Answering503).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_answers_503_for_two_hours_fails_no_job_on_postgres() {
    outlast(Kind::Postgres, Away::Answering503).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_refuses_connections_for_two_hours_fails_no_job_on_sqlite() {
    outlast(Kind::Sqlite, Away::Refusing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_refuses_connections_for_two_hours_fails_no_job_on_postgres() {
    outlast(Kind::Postgres, Away::Refusing).await;
}

async fn outlast(kind: Kind, away: Away) {
    let mut env = Env::with(Options {
        models: &["a"],
        extra: "[batches]\npoll = \"1s\"\npoll_max = \"5m\"\n".to_owned(),
        ..Options::on(kind)
    })
    .await;
    // A batch that is watched, and a file that is deleted meanwhile: all that would call.
    env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
    let input = env.client.upload_requests(&["a"], 3).await;
    let doomed = env.client.upload(&["a"]).await;
    for file in [&input, &doomed] {
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
    }
    let batch = env.client.batch_on(&input).await;
    env.client.batch_when(&batch, |batch| batch["status"] == "in_progress").await;

    let before = env.sandbox.calls("a").len();
    let address = env.sandbox.local_addr();
    match away {
        Away::Answering503 => {
            for operation in CALLS {
                let fault = status(503, &[], json!({"error": {"message": "down"}}));
                env.spoil_as("a", FaultRule { times: 0, ..FaultRule::new(operation, fault) });
            }
        }
        Away::Refusing => env.sandbox.shutdown().await,
    }
    let mut ids = Vec::new();
    for _ in 0..FILES {
        ids.push(env.client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
    }
    env.client.remove(&doomed).await;
    let probes = sit_out(&env, &mut ids).await;

    let calls = match away {
        Away::Answering503 => (env.sandbox.calls("a").len() - before) as u64,
        // Nobody counts them; but each attempt is one, and nothing else calls.
        Away::Refusing => {
            let attempts = "SELECT count(*) FROM job_attempts WHERE outcome = 'retried'";
            env.database.count(attempts).await.unsigned_abs()
        }
    };
    assert!((20..=MOST_CALLS).contains(&calls), "{calls} calls, {probes} probes");
    match away {
        Away::Answering503 => env.sandbox.clear_faults("a"),
        Away::Refusing => env.sandbox = Sandbox::bind(address).unwrap(),
    }
    let over = pause(&env).await.map_or(0, |(left, _)| left);
    pass(&env, over).await;
    for id in &ids {
        let file = env.client.settled(id).await;
        assert_eq!(file["status"], "processed", "{file}");
        let attempt = env.job(mapping(&file, "a")).await["attempt"].as_i64().unwrap();
        assert!(attempt < 30, "{file}");
    }
    let deletion = env.client.purged(&doomed).await;
    assert_eq!(deletion["status"], "done", "{deletion}");
    let failed = "SELECT count(*) FROM jobs WHERE status = 'failed' OR deaths > 0";
    assert_eq!(env.database.count(failed).await, 0);
    // One attempt for each job that was done, and one for each probe, and for the job that found the outage.
    let burnt = "SELECT CAST(sum(attempt - 1) AS BIGINT) FROM jobs WHERE status = 'succeeded' \
                 AND kind IN ('upload_file', 'delete_file')";
    let burnt = env.database.count(burnt).await;
    assert!(burnt <= probes + 1, "{burnt} attempts for {probes} probes");
    if away == Away::Answering503 {
        env.sandbox.release_batches("a");
        eventually(PATIENCE, async || {
            // What is looked at next may be minutes away.
            env.database
                .execute("UPDATE batch_runs SET next_look_at = 0 WHERE next_look_at > 0")
                .await;
            env.bring_on("watch_batch").await;
            let batch = env.client.batch(&batch).await;
            (batch["status"] == "completed").then_some(())
        })
        .await;
        assert_eq!(env.sandbox.batches("a").len(), 1);
        let copies = env.sandbox.live_files("a").len();
        // Of the input and of the files, and the output of the batch.
        assert_eq!(copies, 1 + ids.len() + 1);
    }
}

/// How long the lane stands still yet, in milliseconds, and how often its provider has failed in a row.
async fn pause(env: &Env) -> Option<(i64, i64)> {
    let clock = match env.options.kind {
        Kind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        Kind::Postgres => "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
    };
    let lane = format!(
        "SELECT paused_until - {clock} AS left_ms, CAST(failures AS BIGINT) AS times FROM lanes \
         WHERE name = 'provider:at-a' AND pause_reason = 'outage'"
    );
    let rows = env.database.query(&lane).await;
    let row = rows.first()?;
    Some((row.try_get("", "left_ms").unwrap(), row.try_get("", "times").unwrap()))
}

/// Lets time pass: whatever is to come is so much nearer.
async fn pass(env: &Env, time: i64) {
    let sql = format!(
        "UPDATE lanes SET paused_until = paused_until - {time}, paused_at = paused_at - {time} \
         WHERE pause_reason IS NOT NULL; \
         UPDATE lanes SET refilled_at = refilled_at - {time}; \
         UPDATE jobs SET run_at = run_at - {time}, created_at = created_at - {time} WHERE finished_at IS NULL; \
         UPDATE batch_runs SET next_look_at = next_look_at - {time} WHERE next_look_at IS NOT NULL"
    );
    env.database.execute(&sql).await;
}

/// Two hours of the outage, with a new file at each probe. Answers how many probes there were.
async fn sit_out(env: &Env, ids: &mut Vec<String>) -> i64 {
    let (mut passed, begun, mut seen) = (0, Instant::now(), 0);
    while passed + i64::try_from(begun.elapsed().as_millis()).unwrap() < HOURS {
        let (left, failures) = eventually(PATIENCE, async || {
            pause(env).await.filter(|(left, failures)| *left > 0 && *failures > seen)
        })
        .await;
        seen = failures;
        pass(env, left).await;
        passed += left;
        // Its hint has the workers look at once.
        ids.push(env.client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
    }
    seen
}
