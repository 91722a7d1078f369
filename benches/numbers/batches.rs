//! Batches: thousands of them watched, and how long it takes from the end of one at its provider to its end here.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use longshore::db::Db;
use longshore::runs::observation;
use longshore::sandbox::BatchEnd;
use longshore::sandbox::BatchSettings;
use longshore::sandbox::BatchState;
use longshore::sandbox::PlantedBatch;
use longshore::sandbox::Sandbox;
use longshore::sandbox::Settings;
use longshore::sandbox::Webhook;
use sea_orm::ConnectionTrait as _;

use crate::Bench;
use crate::load;
use crate::load::Connection;
use crate::load::Times;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;

/// Rows that one statement writes.
const AT_ONCE: usize = 500;
/// The first looks are at all of them at once.
const SETTLING: Duration = Duration::from_secs(10);
/// How often somebody uploads a file meanwhile.
const EVERY: Duration = Duration::from_millis(250);
const SECRET: &str = "whsec_bG9uZ3Nob3JlLWJlbmNobWFyaw==";

fn held() -> Settings {
    Settings {
        batches: BatchSettings {
            phase_ms: 0,
            hold_at: Some(BatchState::InProgress),
            ..BatchSettings::default()
        },
        ..Settings::default()
    }
}

/// Many open batches at one provider, with the default settings: what watching them costs, and whether an upload waits
/// behind it.
pub async fn watch(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let count = bench.options.open_batches;
    let folder = bench.folder("watch")?;
    let setup = Setup { models: &["a"], settings: held(), per_minute: 600, ..Setup::default() };
    let installation = Installation::start(&folder, setup).await?;
    seed(&installation.sandbox, &folder, count).await?;
    tokio::time::sleep(SETTLING).await;

    let is_over = Arc::new(AtomicBool::new(false));
    let (address, over) = (installation.address, Arc::clone(&is_over));
    let others = tokio::task::spawn_blocking(move || upload_meanwhile(address, &over));
    let (before, begun) = (installation.server.processor_time()?, Instant::now());
    let looks = installation.sandbox.stats("a").calls.values().sum::<u64>();
    tokio::time::sleep(Duration::from_secs(3 * bench.options.idle as u64)).await;
    let ran = installation.server.processor_time()?.saturating_sub(before);
    let elapsed = begun.elapsed();
    is_over.store(true, Ordering::Relaxed);
    let times = others.await??;
    let looks = installation.sandbox.stats("a").calls.values().sum::<u64>() - looks;
    let share = ran.as_secs_f64() / elapsed.as_secs_f64();
    let what = format!(
        "{count} open batches at one provider, default settings: share of one core over {:.0} s, uploads beside it",
        elapsed.as_secs_f64()
    );
    let line = Line::new(what)
        .at_most("", share, Unit::Percent, 0.05)
        .figure("calls", looks as f64, Unit::Times)
        .figure("slowest upload until ready", times.percentile(1.0), Unit::Milliseconds)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds);
    Ok(vec![line])
}

/// A file now and then, each until it is ready at the provider.
fn upload_meanwhile(address: SocketAddr, is_over: &AtomicBool) -> anyhow::Result<Times> {
    let mut connection = Connection::open(address)?;
    let request = load::upload(&["a"], "in.txt", b"some bytes");
    let (mut times, all) = (Vec::new(), Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let id = load::id_of(connection.call(&request)?)?;
        let look = load::get(&format!("/v1/files/{id}?wait=60"));
        let file = load::file(connection.call(&look)?)?;
        anyhow::ensure!(file.status == "processed", "the file is `{}`", file.status);
        times.push(begun.elapsed());
        std::thread::sleep(EVERY);
    }
    Ok(Times::new(times, all.elapsed()))
}

/// Open batches, each with its run, at the provider and here.
async fn seed(sandbox: &Sandbox, folder: &Path, count: usize) -> anyhow::Result<()> {
    let db = Db::connect(&format!("sqlite://{}", folder.join("longshore.db").display())).await?;
    for first in (0..count).step_by(AT_ONCE) {
        let (mut batches, mut runs) = (Vec::new(), Vec::new());
        for number in first..count.min(first + AT_ONCE) {
            let there = sandbox.plant_batch("a", PlantedBatch::over("file-none"));
            batches.push(format!(
                "(unhex('{number:032x}'), 'batch-{number}', unhex('{number:064x}'), 'admin', 'f', \
                 '/v1/chat/completions', '24h', 'validating', 1)"
            ));
            runs.push(format!(
                "(unhex('{number:032x}'), unhex('{number:032x}'), 0, 'd', 'a', 'a', 'a', 'validating', '{}', 1, 1)",
                there.id
            ));
        }
        let sql = format!(
            "INSERT INTO batches (id, managed_id, managed_id_hash, owner, input_file, endpoint, completion_window, \
             status, created_at) VALUES {}; \
             INSERT INTO batch_runs (id, batch_id, position, deployment_id, model, provider, provider_model, status, \
             provider_batch_id, next_look_at, created_at) VALUES {}",
            batches.join(", "),
            runs.join(", ")
        );
        let sql: Arc<str> = sql.into();
        db.work(move |tx| {
            let sql = Arc::clone(&sql);
            Box::pin(async move {
                for statement in sql.split(';') {
                    tx.execute_unprepared(statement).await?;
                }
                Ok::<_, sea_orm::DbErr>(())
            })
        })
        .await?;
    }
    let now = longshore::clock::Clock::default().now();
    db.work(move |tx| Box::pin(async move { observation::watch(tx, now, "a").await })).await?;
    Ok(())
}

/// From the end of a small batch at its provider, which tells of it, to `completed` here.
pub async fn completion(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let folder = bench.folder("completion")?;
    let setup = Setup {
        models: &["a"],
        settings: held(),
        provider: &format!("webhook_secret = \"{SECRET}\"\n"),
        ..Setup::default()
    };
    let installation = Installation::start(&folder, setup).await?;
    let url = format!("http://{}/v1/provider_events/a", installation.address);
    let webhook = Some(Webhook { url, secret: SECRET.to_owned() });
    installation.sandbox.configure("a", Settings { webhook, ..held() });
    let (address, sandbox) = (installation.address, installation.sandbox.clone());
    let rounds = bench.options.rounds.div_ceil(10);
    let times = tokio::task::spawn_blocking(move || complete(address, &sandbox, rounds)).await??;
    let what = "from the end of a batch at its provider, which tells of it, to `completed` here, one at a time";
    let line = Line::new(what)
        .at_most("p50", times.percentile(0.5), Unit::Milliseconds, 500.0)
        .at_most("slowest", times.percentile(1.0), Unit::Milliseconds, 500.0);
    Ok(vec![line])
}

fn complete(address: SocketAddr, sandbox: &Sandbox, rounds: usize) -> anyhow::Result<Times> {
    let mut connection = Connection::open(address)?;
    let line = br#"{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}"#;
    let form = load::form("batch", &["a"], "in.jsonl", line.len() as u64);
    let upload = [&form.head, &line[..], &form.tail].concat();
    let id = load::id_of(connection.call(&upload)?)?;
    let (mut times, all) = (Vec::new(), Instant::now());
    for _ in 0..rounds {
        let body = format!(
            r#"{{"input_file_id": "{id}", "endpoint": "/v1/chat/completions", "completion_window": "24h"}}"#
        );
        let batch = load::id_of(connection.call(&load::post("/v1/batches", &body))?)?;
        let look = load::get(&format!("/v1/batches/{batch}"));
        let there = loop {
            let batch: serde_json::Value = serde_json::from_slice(connection.call(&look)?)?;
            if let Some(id) = batch["runs"][0]["provider_batch_id"].as_str() {
                break id.to_owned();
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let begun = Instant::now();
        sandbox
            .end_batch("a", &there, BatchEnd::Completed)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let wait = load::get(&format!("/v1/batches/{batch}?wait=60"));
        let batch: serde_json::Value = serde_json::from_slice(connection.call(&wait)?)?;
        anyhow::ensure!(batch["status"] == "completed", "{batch}");
        times.push(begun.elapsed());
    }
    Ok(Times::new(times, all.elapsed()))
}
