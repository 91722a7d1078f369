//! `cargo bench --bench numbers`: every figure that the README states, measured, beside the raw limits of the same
//! machine in the same run.
//!
//! Load, providers and the server under test share the machine. The server is the real binary, configured as an
//! operator has it: everything synced to disk, its log (`info`) written to a file. What follows `--` narrows the run:
//! `cargo bench --bench numbers -- uploads reads`; `-- --help` shows the sizes.

mod backlog;
mod batches;
mod deletes;
mod fleet;
mod idle;
mod jobs;
mod large;
mod latency;
mod lines;
mod load;
mod postgres;
mod process;
mod raw;
mod reads;
mod report;
mod results;
mod server;
mod uploads;
mod waiters;

use std::future::Future;
use std::path::Path;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use std::time::Instant;

use clap::Parser;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

use report::Line;
use report::Report;

/// No row takes longer; one that does has failed.
const LONGEST: Duration = Duration::from_secs(900);
/// Of those that are only measured when they are named.
const LONGEST_NAMED: Duration = Duration::from_secs(3600);

/// What is measured, and how much of it.
#[derive(Clone, Debug, Parser)]
#[command(name = "numbers", bin_name = "cargo bench --bench numbers --")]
pub struct Options {
    /// Only the rows whose names hold one of these; all of them if there is none
    filter: Vec<String>,
    /// Prints the rows' names
    #[arg(long)]
    list: bool,
    /// Prints JSON instead of a table
    #[arg(long)]
    json: bool,
    /// A tenth of every size, to see that it works
    #[arg(long)]
    quick: bool,
    /// Clients at the same time
    #[arg(long, env = "LONGSHORE_BENCH_CLIENTS", default_value_t = 16)]
    clients: usize,
    /// Files uploaded in a row of uploads
    #[arg(long, env = "LONGSHORE_BENCH_UPLOADS", default_value_t = 5_000)]
    uploads: usize,
    /// Reads of file objects
    #[arg(long, env = "LONGSHORE_BENCH_READS", default_value_t = 100_000)]
    reads: usize,
    /// Uploads one after another on an idle system
    #[arg(long, env = "LONGSHORE_BENCH_ROUNDS", default_value_t = 200)]
    rounds: usize,
    /// Megabytes of the one large file
    #[arg(long, env = "LONGSHORE_BENCH_LARGE", default_value_t = 2_000)]
    large: usize,
    /// Megabytes of the one large batch file
    #[arg(long, env = "LONGSHORE_BENCH_BATCH", default_value_t = 400)]
    batch: usize,
    /// Megabytes of the output of a batch
    #[arg(long, env = "LONGSHORE_BENCH_OUTPUT", default_value_t = 200)]
    output: usize,
    /// Results of the batch in which one is looked for
    #[arg(long, env = "LONGSHORE_BENCH_RESULTS", default_value_t = 1_000_000)]
    results: usize,
    /// Requests that wait at the same time
    #[arg(long, env = "LONGSHORE_BENCH_WAITERS", default_value_t = 10_000)]
    waiters: usize,
    /// Files that they wait for
    #[arg(long, env = "LONGSHORE_BENCH_AWAITED", default_value_t = 100)]
    awaited: usize,
    /// Jobs that have nothing to do
    #[arg(long, env = "LONGSHORE_BENCH_JOBS", default_value_t = 20_000)]
    jobs: usize,
    /// Slots of their lane
    #[arg(long, env = "LONGSHORE_BENCH_SLOTS", default_value_t = 256)]
    slots: usize,
    /// Jobs in the history that the queue has beside them
    #[arg(long, env = "LONGSHORE_BENCH_FINISHED", default_value_t = 1_000_000)]
    finished: usize,
    /// Jobs that wait and are not due, likewise
    #[arg(long, env = "LONGSHORE_BENCH_WAITING", default_value_t = 100_000)]
    waiting: usize,
    /// Finished jobs of the row `history-long`
    #[arg(long, env = "LONGSHORE_BENCH_HISTORY", default_value_t = 10_000_000)]
    history: usize,
    /// Jobs of the owner that is not to delay another
    #[arg(long, env = "LONGSHORE_BENCH_BACKLOG", default_value_t = 1_000_000)]
    backlog: usize,
    /// Files of the one sweep
    #[arg(long, env = "LONGSHORE_BENCH_SWEPT", default_value_t = 1_000_000)]
    swept: usize,
    /// Files that a provider has
    #[arg(long, env = "LONGSHORE_BENCH_RECONCILED", default_value_t = 100_000)]
    reconciled: usize,
    /// Batches that are open at one provider
    #[arg(long, env = "LONGSHORE_BENCH_OPEN_BATCHES", default_value_t = 10_000)]
    open_batches: usize,
    /// Seconds that a system without work is watched
    #[arg(long, env = "LONGSHORE_BENCH_IDLE", default_value_t = 20)]
    idle: usize,
    /// A PostgreSQL server on which a database may be made; without one its rows are left out
    #[arg(long, env = "LONGSHORE_TEST_POSTGRES_URL", hide_env_values = true)]
    postgres: Option<String>,
    /// A Redis server; without one the rows on PostgreSQL do without
    #[arg(long, env = "LONGSHORE_TEST_REDIS_URL", hide_env_values = true)]
    redis: Option<String>,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
    /// What `cargo test --benches` says: it only wants to know that it builds
    #[arg(long, hide = true)]
    test: bool,
}

impl Options {
    fn made_quick(mut self) -> Self {
        for size in [
            &mut self.uploads,
            &mut self.reads,
            &mut self.rounds,
            &mut self.large,
            &mut self.batch,
            &mut self.output,
            &mut self.results,
            &mut self.waiters,
            &mut self.jobs,
            &mut self.finished,
            &mut self.waiting,
            &mut self.history,
            &mut self.backlog,
            &mut self.swept,
            &mut self.reconciled,
            &mut self.open_batches,
            &mut self.idle,
        ] {
            *size = size.div_ceil(10);
        }
        self
    }

    fn wants(&self, row: &Row) -> bool {
        if row.takes_long {
            return self.filter.iter().any(|name| name == row.name);
        }
        self.filter.is_empty() || self.filter.iter().any(|part| row.name.contains(part.as_str()))
    }
}

/// What a row works with.
pub struct Bench {
    options: Options,
    /// On the disk whose limits are measured; removed in the end.
    folder: PathBuf,
}

impl Bench {
    /// A folder for one row.
    fn folder(&self, row: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join(row);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

type Running<'b> = Pin<Box<dyn Future<Output = anyhow::Result<Vec<Line>>> + 'b>>;

/// A row, or a few that one run measures together.
struct Row {
    name: &'static str,
    needs_postgres: bool,
    /// It leaves few files, but large ones.
    is_large: bool,
    /// It is left out unless its whole name is given.
    takes_long: bool,
    run: fn(&Bench) -> Running<'_>,
}

const fn row(name: &'static str, run: fn(&Bench) -> Running<'_>) -> Row {
    Row { name, needs_postgres: false, is_large: false, takes_long: false, run }
}

const fn on_postgres(name: &'static str, run: fn(&Bench) -> Running<'_>) -> Row {
    Row { name, needs_postgres: true, is_large: false, takes_long: false, run }
}

const fn large(name: &'static str, run: fn(&Bench) -> Running<'_>) -> Row {
    Row { name, needs_postgres: false, is_large: true, takes_long: false, run }
}

const fn long_on_postgres(name: &'static str, run: fn(&Bench) -> Running<'_>) -> Row {
    Row { takes_long: true, ..on_postgres(name, run) }
}

/// In the order of the table. The raw limits come first, and whatever is chosen comes beside them.
const ROWS: [Row; 33] = [
    row("raw-files", |bench| Box::pin(raw::files(bench))),
    row("raw-loopback", |bench| Box::pin(raw::loopback(bench))),
    row("raw-sqlite", |bench| Box::pin(raw::sqlite(bench))),
    on_postgres("raw-postgres", |bench| Box::pin(raw::postgres(bench))),
    row("uploads-up", |bench| Box::pin(uploads::up(bench))),
    row("uploads-serve", |bench| Box::pin(uploads::serve(bench))),
    on_postgres("fleet-uploads", |bench| Box::pin(fleet::uploads(bench))),
    row("fanout", |bench| Box::pin(latency::fanout(bench))),
    row("first-byte", |bench| Box::pin(latency::first_byte(bench))),
    on_postgres("fleet-start", |bench| Box::pin(fleet::start_told(bench))),
    on_postgres("fleet-start-untold", |bench| Box::pin(fleet::start_untold(bench))),
    on_postgres("fleet-takeover", |bench| Box::pin(fleet::takeover(bench))),
    row("reads", |bench| Box::pin(reads::files(bench))),
    large("large-file", |bench| Box::pin(large::file(bench))),
    large("large-batch", |bench| Box::pin(large::batch(bench))),
    row("lines", |bench| Box::pin(lines::all(bench))),
    large("ingestion", |bench| Box::pin(results::large(bench))),
    large("results", |bench| Box::pin(results::many(bench))),
    row("deletes", |bench| Box::pin(deletes::files(bench))),
    large("sweep", |bench| Box::pin(deletes::sweep(bench))),
    large("reconcile", |bench| Box::pin(deletes::reconcile(bench))),
    row("watch", |bench| Box::pin(batches::watch(bench))),
    row("completion", |bench| Box::pin(batches::completion(bench))),
    row("waiters", |bench| Box::pin(waiters::all(bench))),
    row("jobs-sqlite", |bench| Box::pin(jobs::sqlite(bench))),
    on_postgres("jobs-postgres", |bench| Box::pin(jobs::postgres(bench))),
    large("history-sqlite", |bench| Box::pin(jobs::sqlite_history(bench))),
    on_postgres("history-postgres", |bench| Box::pin(jobs::postgres_history(bench))),
    long_on_postgres("history-long", |bench| Box::pin(backlog::long_history(bench))),
    large("fairness-sqlite", |bench| Box::pin(backlog::fairness_sqlite(bench))),
    on_postgres("fairness-postgres", |bench| Box::pin(backlog::fairness_postgres(bench))),
    row("idle-sqlite", |bench| Box::pin(idle::sqlite(bench))),
    on_postgres("idle-postgres", |bench| Box::pin(idle::postgres(bench))),
];

fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    if options.test {
        return Ok(());
    }
    if options.list {
        for row in &ROWS {
            println!("{}", row.name);
        }
        return Ok(());
    }
    if options.quick {
        options = options.made_quick();
    }
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = tempfile::tempdir_in(target)?;
    let bench = Bench { options, folder: folder.path().to_owned() };
    // Two threads for the providers and for what waits; load has threads of its own.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(async {
        tokio::select! {
            report = run(&bench) => report,
            // Whatever was started ends with what is dropped here.
            stopped = stopped() => Err(stopped.err().unwrap_or(anyhow::anyhow!("stopped"))),
        }
    });
    runtime.shutdown_background();
    let report = report?;
    report.print(bench.options.json);
    anyhow::ensure!(report.failed.is_empty(), "not measured: {}", report.failed.join(", "));
    Ok(())
}

/// Ends at SIGINT or SIGTERM.
async fn stopped() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn run(bench: &Bench) -> anyhow::Result<Report> {
    let mut report = Report::default();
    for row in &ROWS {
        if !row.name.starts_with("raw-") && !bench.options.wants(row) {
            continue;
        }
        if row.needs_postgres && bench.options.postgres.is_none() {
            report.left_out.push(row.name);
            continue;
        }
        let begun = Instant::now();
        let longest = if row.takes_long { LONGEST_NAMED } else { LONGEST };
        let measured = tokio::time::timeout(longest, (row.run)(bench)).await;
        match measured.map_err(anyhow::Error::from).and_then(|measured| measured) {
            Ok(lines) => {
                for line in &lines {
                    eprintln!("{:>5.0} s  {line}", begun.elapsed().as_secs_f64());
                }
                report.lines.extend(lines.into_iter().map(|line| (row.name, line)));
            }
            Err(error) => {
                eprintln!("{}: {error:#}", row.name);
                report.failed.push(row.name);
            }
        }
        // Small files stay until the end: ext4 without a journal goes round inodes that were deleted within the
        // last five minutes, one by one, and every file that a later row makes would pay for it.
        if row.is_large {
            drop(std::fs::remove_dir_all(bench.folder.join(row.name)));
        }
    }
    Ok(report)
}
