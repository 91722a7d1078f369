//! The queue under a long history and under one owner's backlog: what they cost others.

use std::time::Duration;
use std::time::Instant;

use longshore::clock::Clock;

use crate::Bench;
use crate::jobs::Queue;
use crate::load::Times;
use crate::postgres::Database;
use crate::process::Process;
use crate::report::Line;
use crate::report::Unit;

/// Pairs of runs: beside the history and without it, in turn, so that both meet the same machine.
const PAIRS: usize = 3;
/// Tens of another owner's jobs, one after another.
const TENS: usize = 20;
const TEN: usize = 10;
/// What is promised: so much later at most.
const DELAY_MS: f64 = 2000.0;

/// Claims beside ten million finished jobs, and in an empty table.
pub async fn long_history(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let database = Database::create(bench).await?;
    let measured = beside_and_alone(bench, &database).await;
    database.remove().await?;
    let (mut beside, mut alone, filling) = measured?;
    let (finished, waiting) = (bench.options.history, bench.options.waiting);
    let ratio = median(&mut beside) / median(&mut alone);
    let what = format!(
        "jobs with nothing to do beside {finished} finished and {waiting} waiting, PostgreSQL"
    );
    let all: Vec<_> = beside
        .iter()
        .zip(&alone)
        .map(|(with, without)| format!("{with:.0} and {without:.0}"))
        .collect();
    let line = Line::new(what)
        .figure("", median(&mut beside), Unit::PerSecond)
        .figure("in an empty table", median(&mut alone), Unit::PerSecond)
        .at_least("ratio", ratio, Unit::Percent, 0.9)
        .note(format!(
            "medians of {PAIRS} pairs in turn, by size: {}; filled in {:.0} s",
            all.join(", "),
            filling.as_secs_f64()
        ));
    Ok(vec![line])
}

async fn beside_and_alone(
    bench: &Bench,
    database: &Database,
) -> anyhow::Result<(Vec<f64>, Vec<f64>, Duration)> {
    let queue = Queue::postgres(bench, "history-long/beside", database).await?;
    let begun = Instant::now();
    // An index is made in one go in a fraction of the time that ten million insertions into it take.
    let indexes = "FROM pg_indexes WHERE tablename = 'jobs' AND indexname <> 'jobs_pkey'";
    let definitions = database.texts(&format!("SELECT indexdef {indexes}")).await?;
    for name in database.texts(&format!("SELECT indexname {indexes}")).await? {
        database.execute(&format!("DROP INDEX {name}")).await?;
    }
    queue.add_history(bench.options.history).await?;
    for definition in definitions {
        database.execute(&definition).await?;
    }
    database.execute("VACUUM ANALYZE").await?;
    let filling = begun.elapsed();
    eprintln!("        filled in {:.0} s", filling.as_secs_f64());
    let (mut beside, mut alone) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        beside.push(queue.drain(pair).await?);
        let empty = Database::create(bench).await?;
        let rate = async {
            let queue = Queue::postgres(bench, &format!("history-long/{pair}"), &empty).await?;
            queue.drain(0).await
        };
        let rate = rate.await;
        empty.remove().await?;
        alone.push(rate?);
        eprintln!("        {:.0}/s beside it, {:.0}/s without", beside[pair], alone[pair]);
    }
    Ok((beside, alone, filling))
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

pub async fn fairness_sqlite(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let queue = Queue::sqlite(bench, "fairness-sqlite").await?;
    Ok(vec![line(bench, "SQLite", &others_ten(&queue, bench).await?)])
}

pub async fn fairness_postgres(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let database = Database::create(bench).await?;
    let measured = async {
        let queue = Queue::postgres(bench, "fairness-postgres", &database).await?;
        others_ten(&queue, bench).await
    };
    let measured = measured.await;
    database.remove().await?;
    Ok(vec![line(bench, "PostgreSQL", &measured?)])
}

fn line(bench: &Bench, database: &str, times: &Times) -> Line {
    let (backlog, slots) = (bench.options.backlog, bench.options.slots);
    let what = format!(
        "ten jobs of an owner beside another's {backlog} in the same lane, until all have started, {database}"
    );
    Line::new(what)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .at_most("slowest", times.percentile(1.0), Unit::Milliseconds, DELAY_MS)
        .note(format!("{TENS} times, one after another; {slots} slots, all busy"))
}

/// How long after they were queued the last of another owner's ten has started, several times.
async fn others_ten(queue: &Queue<'_>, bench: &Bench) -> anyhow::Result<Times> {
    // More than a worker ends meanwhile.
    queue.add_backlog(bench.options.backlog).await?;
    queue.settle().await?;
    let mut worker = Process::start(queue.folder(), "work")?;
    worker.logged("workers started").await?;
    let begun = Instant::now();
    let mut times = Vec::new();
    for ten in 0..TENS {
        let queued_at = Clock::default().now().0;
        queue.add_others(ten * TEN..(ten + 1) * TEN, queued_at).await?;
        let last = queue.others_started(ten * TEN..(ten + 1) * TEN).await?;
        times.push(Duration::from_millis(u64::try_from(last - queued_at).unwrap_or(0)));
    }
    let left = queue.left_of_backlog().await?;
    anyhow::ensure!(left, "the backlog was done before the last ten");
    Ok(Times::new(times, begun.elapsed()))
}
