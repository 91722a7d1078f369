//! Deleting: one file after another, and a million of them with one sweep.
//!
//! The files of a sweep are written into the database before the server is started. Their copies do not exist, so that
//! every delete is one call to a provider that answers 404 at once.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use longshore::db::Db;
use longshore::mappings::Marker;
use longshore::sandbox::Purpose;
use sea_orm::ConnectionTrait as _;

use crate::Bench;
use crate::load;
use crate::load::Connection;
use crate::load::Times;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;
use crate::uploads::MODELS;
use crate::uploads::SIZE;

/// Files that one statement writes.
const AT_ONCE: usize = 20_000;
/// How long the deletes of a sweep are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// How often somebody else uploads a file meanwhile.
const EVERY: Duration = Duration::from_millis(50);

/// `DELETE` of files that three models have.
pub async fn files(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let (clients, count) = (bench.options.clients, bench.options.uploads);
    let folder = bench.folder("deletes")?;
    let setup = Setup { command: "serve", ..Setup::default() };
    let installation = Installation::start(&folder, setup).await?;
    let request = load::upload(&MODELS, "in.txt", &[b'x'; SIZE]);
    let ids = Arc::new(Mutex::new(Vec::with_capacity(count)));
    let kept = Arc::clone(&ids);
    let keep = move |_, body: &[u8]| {
        let id = load::id_of(body)?;
        kept.lock().map_err(|_| anyhow::anyhow!("a client panicked"))?.push(id);
        Ok(())
    };
    load::run(installation.address, clients, count, move |_| request.clone(), keep).await?;
    execute(
        &folder,
        &[
            "UPDATE jobs SET status = 'succeeded', finished_at = created_at, started_at = created_at".to_owned(),
            "UPDATE mappings SET status = 'ready', provider_file_id = 'file-' || hex(id)".to_owned(),
            "UPDATE files SET status = 'processed'".to_owned(),
        ],
    )
    .await?;
    let ids: Vec<String> =
        std::mem::take(&mut *ids.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    let request = move |number: usize| {
        let id = ids.get(number).map_or("", String::as_str);
        format!(
            "DELETE /v1/files/{id} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {}\r\n\r\n",
            load::KEY
        )
        .into()
    };
    let times = load::run(installation.address, clients, count, request, |_, _| Ok(())).await?;
    let what = format!(
        "`DELETE` of files that 3 models have, {clients} clients, `serve` alone (SQLite, synced)"
    );
    let line = Line::new(what)
        .at_least("", times.per_second(), Unit::PerSecond, 2000.0)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .figure("p99", times.percentile(0.99), Unit::Milliseconds);
    Ok(vec![line])
}

/// One sweep of very many files, while somebody else uploads.
pub async fn sweep(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let count = bench.options.swept;
    let folder = bench.folder("sweep")?;
    // Made by a first start: a database with files and a blob store without an id are not trusted.
    drop(Installation::start(&folder, Setup { models: &["a"], ..Setup::default() }).await?);
    seed(&folder, count).await?;
    let installation =
        Installation::start(&folder, Setup { models: &["a"], ..Setup::default() }).await?;
    let address = installation.address;

    let is_over = Arc::new(AtomicBool::new(false));
    let others = tokio::task::spawn_blocking({
        let is_over = Arc::clone(&is_over);
        move || upload_meanwhile(address, &is_over)
    });
    let begun = Instant::now();
    let (took, rate) = tokio::task::spawn_blocking(move || watch(address, count)).await??;
    let all = begun.elapsed();
    is_over.store(true, Ordering::Relaxed);
    let times = others.await??;
    let slowest_write = slowest_write(address).await?;
    let memory = installation.server.peak_memory()?;

    let taken = Line::new(format!("sweep of {count} files: taken from their client"))
        .at_least("", count as f64 / took.as_secs_f64(), Unit::FilesPerSecond, 15_000.0)
        .at_most("memory", memory, Unit::Megabytes, 150.0)
        .at_most("longest group of writes under", slowest_write, Unit::Milliseconds, 50.0)
        .at_most("slowest upload meanwhile", times.percentile(1.0), Unit::Milliseconds, 50.0)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds);
    let deleted = Line::new(format!(
        "the same files deleted at a provider without latency, 16 at a time, over {} s of {:.0} s",
        WINDOW.as_secs(),
        all.as_secs_f64()
    ))
    .figure("", rate, Unit::FilesPerSecond);
    anyhow::ensure!(rate > 0.0, "nothing was deleted");
    Ok(vec![taken, deleted])
}

/// Starts the sweep; how long it took all files from their client, and how many were deleted per second then.
fn watch(address: SocketAddr, count: usize) -> anyhow::Result<(Duration, f64)> {
    let mut connection = Connection::open(address)?;
    let body = r#"{"all": true}"#;
    let request = format!(
        "POST /v1/sweeps HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        load::KEY,
        body.len()
    );
    let begun = Instant::now();
    let id = load::id_of(connection.call(request.as_bytes())?)?;
    let look = load::get(&format!("/v1/sweeps/{id}"));
    let mut counts = || -> anyhow::Result<serde_json::Value> {
        let sweep: serde_json::Value = serde_json::from_slice(connection.call(&look)?)?;
        anyhow::ensure!(sweep["status"] != "failed", "{sweep}");
        Ok(sweep["counts"].clone())
    };
    while counts()?["matched"].as_u64().context("no counts")? < count as u64 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = begun.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    let (before, begun) = (counts()?["deleted"].as_u64().context("no counts")?, Instant::now());
    std::thread::sleep(WINDOW);
    let after = counts()?["deleted"].as_u64().context("no counts")?;
    Ok((took, (after - before) as f64 / begun.elapsed().as_secs_f64()))
}

fn upload_meanwhile(address: SocketAddr, is_over: &AtomicBool) -> anyhow::Result<Times> {
    let mut connection = Connection::open(address)?;
    let request = load::upload(&["a"], "in.txt", &[b'x'; SIZE]);
    let (mut times, begun) = (Vec::new(), Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        connection.call(&request)?;
        times.push(begun.elapsed());
        std::thread::sleep(EVERY.saturating_sub(begun.elapsed()));
    }
    Ok(Times::new(times, begun.elapsed()))
}

/// The bucket of the server's own histogram that its longest group of writes fell into, in milliseconds.
async fn slowest_write(address: SocketAddr) -> anyhow::Result<f64> {
    let text = tokio::task::spawn_blocking(move || -> anyhow::Result<String> {
        let mut connection = Connection::open(address)?;
        Ok(String::from_utf8_lossy(connection.call(&load::get("/metrics"))?).into_owned())
    });
    let text = text.await??;
    let buckets: Vec<(f64, u64)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("longshore_db_group_seconds_bucket{le=\""))
        .filter_map(|line| {
            let (bound, count) = line.split_once("\"} ")?;
            Some((bound.parse().unwrap_or(f64::INFINITY), count.parse().ok()?))
        })
        .collect();
    let all = buckets.last().context("no groups were counted")?.1;
    let longest = buckets.iter().find(|(_, count)| *count == all).context("no bucket")?;
    Ok(longest.0 * 1000.0)
}

/// Writes files of the admin's, each with a copy that is said to be at the provider.
async fn seed(folder: &Path, count: usize) -> anyhow::Result<()> {
    let mut statements = Vec::new();
    for first in (0..count).step_by(AT_ONCE) {
        let last = (first + AT_ONCE).min(count) - 1;
        let numbers = format!(
            "WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})"
        );
        let id = |kind: &str| format!("unhex(printf('{kind}%024x', n))");
        statements.push(format!(
            "INSERT INTO files (id, managed_id, managed_id_hash, owner, filename, content_type, purpose, bytes, sha256, \
             metadata, status, created_at) {numbers} SELECT {}, 'seeded-' || n, {}, 'admin', 'in.txt', 'text/plain', \
             'user_data', 1, '', '{{}}', 'processed', 1700000000000 FROM numbers",
            id("01900000"),
            id("0f0f0f0f")
        ));
        statements.push(format!(
            "INSERT INTO mappings (id, file_id, position, deployment_id, model, provider, provider_model, marker, status, \
             provider_file_id, job_id, created_at) {numbers} SELECT {}, {}, 0, 'dep', 'a', 'a', 'a', 'm' || n, 'ready', \
             'file-' || n, {}, 1700000000000 FROM numbers",
            id("01900001"),
            id("01900000"),
            id("01900002")
        ));
    }
    execute(folder, &statements).await
}

fn database(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("longshore.db").display())
}

async fn execute(folder: &Path, statements: &[String]) -> anyhow::Result<()> {
    let db = Db::connect(&database(folder)).await?;
    db.migrate().await?;
    for sql in statements {
        let sql: Arc<str> = sql.as_str().into();
        let written: Result<(), sea_orm::DbErr> = db
            .work(move |tx| {
                let sql = Arc::clone(&sql);
                Box::pin(async move { tx.execute_unprepared(&sql).await.map(|_| ()) })
            })
            .await;
        written?;
    }
    Ok(())
}

/// A provider's whole list compared with the mappings: half of it ours.
pub async fn reconcile(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let count = bench.options.reconciled;
    let folder = bench.folder("reconcile")?;
    // Made by a first start, since the markers begin with its id.
    let first = Installation::start(&folder, Setup { models: &["a"], ..Setup::default() }).await?;
    drop(first);
    let db = Db::connect(&database(&folder)).await?;
    let id = longshore::installation::in_database(db.read()).await?.context("no installation")?;
    let installation =
        Installation::start(&folder, Setup { models: &["a"], ..Setup::default() }).await?;
    let mut rows = Vec::with_capacity(count / 2);
    for number in 0..count {
        let is_ours = number % 2 == 0;
        let filename = match is_ours {
            true => Marker::mint(&id).mark("in.txt"),
            false => format!("in.{number}.txt"),
        };
        let planted = installation.sandbox.plant(
            "a",
            &filename,
            Purpose::UserData,
            bytes::Bytes::from_static(b"x"),
        );
        if is_ours {
            let marker = Marker::of(&filename).context("no marker")?.0;
            rows.push((number, marker, planted.id));
        }
    }
    let mut statements = Vec::new();
    for chunk in rows.chunks(1000) {
        let files: Vec<_> = chunk
            .iter()
            .map(|(number, _, _)| {
                format!(
                    "(x'{0:032x}', 'seeded-{0}', x'{0:032x}', 'admin', 'in.txt', 'text/plain', 'user_data', 1, '', '{{}}', \
                     'processed', 1)",
                    number + 1
                )
            })
            .collect();
        statements.push(format!(
            "INSERT INTO files (id, managed_id, managed_id_hash, owner, filename, content_type, purpose, bytes, sha256, \
             metadata, status, created_at) VALUES {}",
            files.join(", ")
        ));
        let mappings: Vec<_> = chunk
            .iter()
            .map(|(number, marker, planted)| {
                format!(
                    "(x'{0:032x}', x'{0:032x}', 0, 'dep', 'a', 'a', 'a', '{marker}', 'ready', 1, '{planted}', x'{0:032x}', 1)",
                    number + 1
                )
            })
            .collect();
        statements.push(format!(
            "INSERT INTO mappings (id, file_id, position, deployment_id, model, provider, provider_model, marker, status, \
             ready_at, provider_file_id, job_id, created_at) VALUES {}",
            mappings.join(", ")
        ));
    }
    execute(&folder, &statements).await?;
    let before = installation.server.present_memory()?;
    let address = installation.address;
    let took = tokio::task::spawn_blocking(move || reconciled(address, count)).await??;
    let memory = installation.server.peak_memory()?;
    let what = format!("reconciliation of {count} files at a provider, half of them ours");
    let line = Line::new(what)
        .at_most("", took.as_secs_f64(), Unit::Seconds, 60.0)
        .at_most("memory", memory, Unit::Megabytes, 100.0)
        .figure("before it", before, Unit::Megabytes);
    Ok(vec![line])
}

fn reconciled(address: SocketAddr, count: usize) -> anyhow::Result<Duration> {
    let mut connection = Connection::open(address)?;
    let request = format!(
        "POST /v1/admin/providers/a/reconcile HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {}\r\n\
         content-length: 0\r\n\r\n",
        load::KEY
    );
    let begun = Instant::now();
    let id = load::id_of(connection.call(request.as_bytes())?)?;
    let look = load::get(&format!("/v1/admin/reconciliations/{id}"));
    loop {
        let now: serde_json::Value = serde_json::from_slice(connection.call(&look)?)?;
        if now["status"] != "queued" {
            let took = begun.elapsed();
            let report = &now["report"];
            anyhow::ensure!(
                report["listed"] == count
                    && report["held"] == count.div_ceil(2)
                    && report["missing"] == 0,
                "{now}"
            );
            return Ok(took);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
