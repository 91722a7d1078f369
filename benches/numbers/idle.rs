//! What a system costs that has nothing to do.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use crate::Bench;
use crate::postgres::Database;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;

/// What a start has to do is over by then.
const SETTLING: Duration = Duration::from_secs(3);

pub async fn sqlite(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let folder = bench.folder("idle-sqlite")?;
    watch(bench, &folder, Setup::default(), "`up` with SQLite").await
}

pub async fn postgres(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let folder = bench.folder("idle-postgres")?;
    let database = Database::create(bench).await?;
    let redis = bench.options.redis.clone().unwrap_or_default();
    let name =
        if redis.is_empty() { "`up` with PostgreSQL" } else { "`up` with PostgreSQL and Redis" };
    let setup = Setup { database: &database.url, redis: &redis, ..Setup::default() };
    let lines = watch(bench, &folder, setup, name).await;
    database.remove().await?;
    lines
}

async fn watch(
    bench: &Bench,
    folder: &Path,
    setup: Setup<'_>,
    name: &str,
) -> anyhow::Result<Vec<Line>> {
    let seconds = bench.options.idle;
    let installation = Installation::start(folder, setup).await?;
    tokio::time::sleep(SETTLING).await;
    let (before, begun) = (installation.server.processor_time()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    let ran = installation.server.processor_time()?.saturating_sub(before);
    let share = ran.as_secs_f64() / begun.elapsed().as_secs_f64();
    let line = Line::new(format!("no work, {name}: share of one core over {seconds} s"))
        .at_most("", share, Unit::Percent, 0.01)
        .figure("memory", installation.server.present_memory()?, Unit::Megabytes);
    Ok(vec![line])
}
