//! Several processes on PostgreSQL and Redis: an intake, and workers apart from it.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;

use crate::Bench;
use crate::latency;
use crate::load;
use crate::load::Connection;
use crate::load::Times;
use crate::postgres::Database;
use crate::process::Process;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;
use crate::uploads;
use crate::uploads::SIZE;

/// Of the takeover: shorter than the default, so that a few fit into a minute.
const LEASE: Duration = Duration::from_secs(4);
/// What is promised beyond the lease: two heartbeats, each a quarter of it, and a second.
const TAKEOVER: Duration = Duration::from_secs(4 + 2 + 1);
const TAKEOVERS: usize = 5;

/// An intake, its database, and the workers beside it. The database goes with [`Fleet::end`].
struct Fleet {
    intake: Installation,
    workers: Vec<Process>,
    database: Database,
}

impl Fleet {
    async fn start(
        bench: &Bench,
        folder: &Path,
        workers: usize,
        redis: &str,
        extra: &str,
    ) -> anyhow::Result<Self> {
        let database = Database::create(bench).await?;
        let setup =
            Setup { command: "serve", database: &database.url, redis, extra, ..Setup::default() };
        let intake = Installation::start(folder, setup).await?;
        let mut fleet = Self { intake, workers: Vec::new(), database };
        for number in 0..workers {
            let mut worker = Process::start_as(folder, "work", &format!("work-{number}"))?;
            worker.logged("workers started").await?;
            fleet.workers.push(worker);
        }
        Ok(fleet)
    }

    async fn end(self) -> anyhow::Result<()> {
        let Self { intake, workers, database } = self;
        drop((intake, workers));
        database.remove().await
    }
}

/// Accepted while workers of another process carry them.
pub async fn uploads(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    const WARM_UP: usize = 200;
    let folder = bench.folder("fleet-uploads")?;
    let redis = bench.options.redis.clone().unwrap_or_default();
    let fleet = Fleet::start(bench, &folder, 1, &redis, "").await?;
    uploads::upload(bench, &fleet.intake, WARM_UP).await?;
    uploads::until_ready(&fleet.intake).await?;
    let begun = Instant::now();
    let times = uploads::upload(bench, &fleet.intake, bench.options.uploads).await?;
    uploads::until_ready(&fleet.intake).await?;
    let ready = bench.options.uploads as f64 / begun.elapsed().as_secs_f64();
    fleet.end().await?;
    let (clients, beside) = (bench.options.clients, with(&redis));
    let what = format!(
        "accepted, 10 KB to 3 models, {clients} clients, `serve` and `work` on PostgreSQL {beside}"
    );
    let accepted = Line::new(what)
        .at_least("", times.per_second(), Unit::PerSecond, 600.0)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .figure("p99", times.percentile(0.99), Unit::Milliseconds)
        .figure("ready at all 3 models", ready, Unit::FilesPerSecond);
    Ok(vec![accepted])
}

/// From the answer of one process to the first byte that another sends, told by Redis.
pub async fn start_told(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let redis = bench.options.redis.clone().context("no Redis server was given")?;
    let times = start(bench, "fleet-start", &redis).await?;
    let what = "from an answer of `serve` to the first byte of a `work` at a provider, with Redis";
    let line = Line::new(what)
        .at_most("p50", times.percentile(0.5), Unit::Milliseconds, 5.0)
        .at_most("p99", times.percentile(0.99), Unit::Milliseconds, 30.0);
    Ok(vec![line])
}

/// The same, found by polling: 100 ms, and what the rest takes.
pub async fn start_untold(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let times = start(bench, "fleet-start-untold", "").await?;
    let line = Line::new("the same without Redis: one poll, which is 100 ms")
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .at_most("p99", times.percentile(0.99), Unit::Milliseconds, 130.0);
    Ok(vec![line])
}

async fn start(bench: &Bench, row: &str, redis: &str) -> anyhow::Result<Times> {
    let folder = bench.folder(row)?;
    let fleet = Fleet::start(bench, &folder, 1, redis, "").await?;
    let times = latency::to_first_byte(bench, &fleet.intake).await?;
    fleet.end().await?;
    Ok(times)
}

/// From the SIGKILL of a worker in the middle of an upload to the first call of the one that took it over.
pub async fn takeover(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let redis = bench.options.redis.clone().unwrap_or_default();
    let lease = format!("[workers]\nlease = \"{}s\"\n", LEASE.as_secs());
    let mut times = Vec::new();
    for round in 0..TAKEOVERS {
        let folder = bench.folder(&format!("fleet-takeover/{round}"))?;
        let mut fleet = Fleet::start(bench, &folder, 1, &redis, &lease).await?;
        let sandbox = fleet.intake.sandbox.clone();
        let hold = FaultRule::new(Operation::Upload, Fault::Hold { hold_before: false });
        sandbox.add_fault("a", hold)?;
        let request = load::upload(&["a"], "in.txt", &[b'x'; SIZE]);
        let address = fleet.intake.address;
        tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            Connection::open(address)?.call(&request)?;
            Ok(())
        })
        .await??;
        while sandbox.stats("a").held == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut heir = Process::start_as(&folder, "work", "heir")?;
        heir.logged("workers started").await?;
        // At any moment between two heartbeats.
        tokio::time::sleep(LEASE.mul_f64(round as f64 / TAKEOVERS as f64 / 4.0)).await;
        fleet.workers[0].kill()?;
        let begun = Instant::now();
        let looks = async {
            while !sandbox.stats("a").calls.contains_key(&Operation::List) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(4 * TAKEOVER, looks).await.context("nobody took it over")?;
        times.push(begun.elapsed());
        fleet.workers.push(heir);
        fleet.end().await?;
    }
    let times = Times::new(times, Duration::ZERO);
    let (lease, rounds) = (LEASE.as_secs(), TAKEOVERS);
    let what = format!(
        "takeover of an upload after SIGKILL, lease {lease} s, until its next call, {rounds} times"
    );
    let bound = TAKEOVER.as_secs_f64();
    let seconds = |share| times.percentile(share) / 1000.0;
    let line = Line::new(what).figure("p50", seconds(0.5), Unit::Seconds).at_most(
        "slowest",
        seconds(1.0),
        Unit::Seconds,
        bound,
    );
    Ok(vec![line])
}

fn with(redis: &str) -> &'static str {
    if redis.is_empty() { "without Redis" } else { "and Redis" }
}
