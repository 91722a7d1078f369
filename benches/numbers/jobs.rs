//! The queue itself: jobs that find nothing to do, claimed, run and ended by one worker process.
//!
//! There is no kind of job that does nothing, so these are `upload_file` jobs whose mapping is `ready` already, as an
//! attempt finds it whose predecessor got as far as the provider's answer. They go the whole way of a job: claimed
//! through the lane with its limits, leased, read, run by apalis, ended in a fenced transaction with a row for the
//! attempt; only the provider is left out. They are written into the database before the worker is started.

use std::ops::Range;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use longshore::clock::Clock;
use longshore::db::Db;
use longshore::db::statement;
use sea_orm::ConnectionTrait as _;
use sea_orm::DatabaseConnection;
use sea_orm::QueryResult;

use crate::Bench;
use crate::postgres::Database;
use crate::process::Process;
use crate::report::Line;
use crate::report::Unit;
use crate::server;
use crate::server::Setup;

const PROVIDER: &str = "a";
/// Mappings that the jobs are about, in turn.
const MAPPINGS: usize = 1_000;
const OWNERS: usize = 4;
/// Rows that one statement writes.
const AT_ONCE: usize = 50_000;
const HOUR: i64 = 3_600_000;
const QUEUED: &str = "'queued', 0, 0";
const SQLITE: &str = "sqlite://longshore.db";

pub async fn sqlite(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let rate = Queue::sqlite(bench, "jobs-sqlite").await?.drain(0).await?;
    Ok(vec![line(bench, "SQLite").at_least("", rate, Unit::PerSecond, 5000.0)])
}

pub async fn postgres(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let database = Database::create(bench).await?;
    let rate = Queue::postgres(bench, "jobs-postgres", &database).await?.drain(0).await;
    database.remove().await?;
    Ok(vec![line(bench, "PostgreSQL").at_least("", rate?, Unit::PerSecond, 3000.0)])
}

pub async fn sqlite_history(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let alone = Queue::sqlite(bench, "history-sqlite/alone").await?.drain(0).await?;
    let queue = Queue::sqlite(bench, "history-sqlite/beside").await?;
    queue.add_history(bench.options.finished).await?;
    let beside = queue.drain(0).await?;
    Ok(vec![compared(bench, "SQLite", alone, beside)])
}

pub async fn postgres_history(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let database = Database::create(bench).await?;
    let alone = Queue::postgres(bench, "history-postgres/alone", &database).await?.drain(0).await;
    database.remove().await?;
    let database = Database::create(bench).await?;
    let beside = async {
        let queue = Queue::postgres(bench, "history-postgres/beside", &database).await?;
        queue.add_history(bench.options.finished).await?;
        queue.drain(0).await
    };
    let beside = beside.await;
    database.remove().await?;
    Ok(vec![compared(bench, "PostgreSQL", alone?, beside?)])
}

fn line(bench: &Bench, database: &str) -> Line {
    let jobs = bench.options.jobs;
    Line::new(format!("jobs with nothing to do, end to end, one worker process, {database}"))
        .note(format!("{jobs} `upload_file` jobs whose mapping is `ready`"))
}

fn compared(bench: &Bench, database: &str, alone: f64, beside: f64) -> Line {
    let (finished, waiting) = (bench.options.finished, bench.options.waiting);
    let what =
        format!("the same beside {finished} finished and {waiting} waiting jobs, {database}");
    Line::new(what)
        .figure("", beside, Unit::PerSecond)
        .figure("without them", alone, Unit::PerSecond)
        .at_least("ratio", beside / alone, Unit::Percent, 0.9)
}

/// A database with jobs in it, and a folder in which a worker can be started.
pub struct Queue<'b> {
    bench: &'b Bench,
    folder: PathBuf,
    /// As the driver has it, from anywhere.
    url: String,
    is_postgres: bool,
    /// When this was, in milliseconds.
    now: i64,
}

/// The kinds of things that rows are made for: part of their ids.
#[derive(Clone, Copy)]
enum Tag {
    File = 1,
    Mapping,
    Finished,
    Waiting,
    Due,
    Others,
}

impl<'b> Queue<'b> {
    pub async fn sqlite(bench: &'b Bench, row: &str) -> anyhow::Result<Self> {
        let folder = bench.folder(row)?;
        let url = format!("sqlite://{}/longshore.db", folder.display());
        Self::prepare(bench, folder, url, SQLITE).await
    }

    pub async fn postgres(
        bench: &'b Bench,
        row: &str,
        database: &Database,
    ) -> anyhow::Result<Self> {
        let folder = bench.folder(row)?;
        Self::prepare(bench, folder, database.url.clone(), &database.url).await
    }

    async fn prepare(
        bench: &'b Bench,
        folder: PathBuf,
        url: String,
        configured: &str,
    ) -> anyhow::Result<Self> {
        let setup = Setup {
            models: &[PROVIDER],
            database: configured,
            max_concurrency: bench.options.slots,
            ..Setup::default()
        };
        // Nothing listens there: a job that called its provider would fail, and be noticed.
        server::configure(&folder, &setup, |_| "http://127.0.0.1:9/v1".to_owned())?;
        Db::connect(&url).await?.migrate().await?;
        let is_postgres = url.starts_with("postgres");
        let queue = Self { bench, folder, url, is_postgres, now: Clock::default().now().0 };
        queue.add_mappings().await?;
        Ok(queue)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds the jobs, starts a worker, and answers how many jobs a second it ends. `round` counts from 0.
    pub async fn drain(&self, round: usize) -> anyhow::Result<f64> {
        let jobs = self.bench.options.jobs;
        let numbers = round * jobs..(round + 1) * jobs;
        self.add_due(numbers.clone()).await?;
        self.settle().await?;
        let mut worker = Process::start(&self.folder, "work")?;
        worker.logged("workers started").await?;
        let begun = Instant::now();
        let connection = self.connect().await?;
        // Both looks are answered by an index, at once: the worker has the database almost for itself.
        let left = format!(
            "SELECT (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE status = 'running' LIMIT 1) AS r) \
             + (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE lease_owner IS NULL AND finished_at IS NULL \
             AND run_at <= {} LIMIT 1) AS w)",
            self.now
        );
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if one(&connection, &left).await?.try_get_by_index::<i64>(0)? == 0 {
                break;
            }
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(300), "not done after 300 s");
        }
        let sql = format!(
            "SELECT count(*) AS n, min(started_at) AS first, max(finished_at) AS last FROM jobs WHERE id >= {} AND id <= {} \
             AND status = 'succeeded' AND attempt = 1",
            self.id(Tag::Due, &numbers.start.to_string()),
            self.id(Tag::Due, &(numbers.end - 1).to_string()),
        );
        let row = one(&connection, &sql).await?;
        let (succeeded, first, last): (i64, i64, i64) =
            (row.try_get("", "n")?, row.try_get("", "first")?, row.try_get("", "last")?);
        anyhow::ensure!(succeeded == jobs as i64, "{succeeded} of {jobs} jobs succeeded at once");
        Ok(jobs as f64 / ((last - first) as f64 / 1000.0))
    }

    async fn add_mappings(&self) -> anyhow::Result<()> {
        let (file, mapping, job) =
            (self.id(Tag::File, "i"), self.id(Tag::Mapping, "i"), self.id(Tag::Due, "i"));
        let hash = if self.is_postgres {
            "decode(lpad(to_hex(i), 64, '0'), 'hex')"
        } else {
            "unhex(printf('%064x', i))"
        };
        let files = format!(
            "SELECT {file}, 'file-' || i, {hash}, {}, 'in.txt', 'text/plain', 'user_data', 10000, '', '{{}}', \
             'processed', {} FROM n",
            owner(),
            self.now - 24 * HOUR
        );
        self.insert(
            "files (id, managed_id, managed_id_hash, owner, filename, content_type, purpose, bytes, sha256, \
             metadata, status, created_at)",
            &files,
            0..MAPPINGS,
        )
        .await?;
        let mappings = format!(
            "SELECT {mapping}, {file}, 0, 'dep', '{PROVIDER}', '{PROVIDER}', '{PROVIDER}', 'marker' || i, 'ready', \
             'file-' || i, 1, {job}, {}, {} FROM n",
            self.now - 23 * HOUR,
            self.now - 24 * HOUR
        );
        self.insert(
            "mappings (id, file_id, position, deployment_id, model, provider, provider_model, marker, status, \
             provider_file_id, attempts, job_id, ready_at, created_at)",
            &mappings,
            0..MAPPINGS,
        )
        .await
    }

    /// Jobs that are due now.
    async fn add_due(&self, numbers: Range<usize>) -> anyhow::Result<()> {
        self.add_jobs(Tag::Due, numbers, &owner(), QUEUED, self.now, "NULL, NULL").await
    }

    /// Jobs of one owner that are due now.
    pub async fn add_backlog(&self, count: usize) -> anyhow::Result<()> {
        self.add_jobs(Tag::Due, 0..count, "'many'", QUEUED, self.now, "NULL, NULL").await
    }

    /// Jobs of another owner, due at a time.
    pub async fn add_others(&self, numbers: Range<usize>, run_at: i64) -> anyhow::Result<()> {
        self.add_jobs(Tag::Others, numbers, "'few'", QUEUED, run_at, "NULL, NULL").await
    }

    /// When the last of these has started; it waits for that.
    pub async fn others_started(&self, numbers: Range<usize>) -> anyhow::Result<i64> {
        let connection = self.connect().await?;
        let sql = format!(
            "SELECT count(*) AS n, CAST(max(started_at) AS BIGINT) AS last FROM jobs WHERE id >= {} AND id <= {} \
             AND started_at IS NOT NULL",
            self.id(Tag::Others, &numbers.start.to_string()),
            self.id(Tag::Others, &(numbers.end - 1).to_string()),
        );
        let begun = Instant::now();
        loop {
            let row = one(&connection, &sql).await?;
            if row.try_get::<i64>("", "n")? == numbers.len() as i64 {
                connection.close().await?;
                return Ok(row.try_get("", "last")?);
            }
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "not started after 60 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether anything of the backlog waits.
    pub async fn left_of_backlog(&self) -> anyhow::Result<bool> {
        let connection = self.connect().await?;
        let sql = "SELECT count(*) AS n FROM (SELECT 1 FROM jobs WHERE lease_owner IS NULL AND finished_at IS NULL \
                   LIMIT 1) AS w";
        let left = one(&connection, sql).await?.try_get::<i64>("", "n")?;
        connection.close().await?;
        Ok(left > 0)
    }

    /// Jobs that ended in the last day, their attempts with them, and jobs that are due tomorrow.
    pub async fn add_history(&self, finished: usize) -> anyhow::Result<()> {
        let waiting = self.bench.options.waiting;
        let (started, ended) = (self.now - 12 * HOUR, self.now - 12 * HOUR + 100);
        let times = format!("{started} + i, {ended} + i");
        let all = 0..finished;
        self.add_jobs(Tag::Finished, all.clone(), &owner(), "'succeeded', 1, 1", started, &times)
            .await?;
        let attempts = format!(
            "SELECT {}, 1, 1, 'worker', 'succeeded', {times} FROM n",
            self.id(Tag::Finished, "i")
        );
        self.insert(
            "job_attempts (job_id, epoch, attempt, worker, outcome, started_at, finished_at)",
            &attempts,
            all,
        )
        .await?;
        let tomorrow = self.now + 24 * HOUR;
        self.add_jobs(Tag::Waiting, 0..waiting, &owner(), QUEUED, tomorrow, "NULL, NULL").await
    }

    async fn add_jobs(
        &self,
        tag: Tag,
        numbers: Range<usize>,
        owner: &str,
        state: &str,
        run_at: i64,
        times: &str,
    ) -> anyhow::Result<()> {
        let mapping = self.hex(Tag::Mapping, &format!("i % {MAPPINGS}"));
        // What is long over, and what is due tomorrow, is of files of its own, as old as it is.
        let file = match tag {
            Tag::Finished | Tag::Waiting => self.id(tag, "i"),
            _ => self.id(Tag::File, &format!("i % {MAPPINGS}")),
        };
        let rows = format!(
            "SELECT {}, 'upload_file', 'provider:{PROVIDER}', 0, {}, '{{\"mapping_id\":\"map_' || {mapping} || '\"}}', \
             '{PROVIDER}', 30, {}, {state}, {run_at}, {run_at}, {times} FROM n",
            self.id(tag, "i"),
            owner,
            file,
        );
        self.insert(
            "jobs (id, kind, lane, rank, owner, payload, model, max_attempts, file_id, status, epoch, attempt, \
             run_at, created_at, started_at, finished_at)",
            &rows,
            numbers,
        )
        .await
    }

    /// Inserts `rows`, a query over `n(i)`, for these numbers.
    async fn insert(&self, table: &str, rows: &str, numbers: Range<usize>) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        for first in numbers.clone().step_by(AT_ONCE) {
            let last = numbers.end.min(first + AT_ONCE) - 1;
            let numbers = if self.is_postgres {
                format!("n(i) AS (SELECT generate_series({first}::bigint, {last}))")
            } else {
                format!(
                    "RECURSIVE n(i) AS (SELECT CAST({first} AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < {last})"
                )
            };
            let sql = format!("INSERT INTO {table} WITH {numbers} {rows}");
            connection.execute_unprepared(&sql).await.context(table.to_owned())?;
        }
        Ok(connection.close().await?)
    }

    async fn connect(&self) -> anyhow::Result<DatabaseConnection> {
        Ok(Db::connect(&self.url).await?.for_migrations().await?)
    }

    /// What the database does by itself in time, and would otherwise do in the middle of the run.
    pub async fn settle(&self) -> anyhow::Result<()> {
        let connection = self.connect().await?;
        let statements: &[&str] = if self.is_postgres {
            &["VACUUM ANALYZE", "CHECKPOINT"]
        } else {
            &["PRAGMA wal_checkpoint(TRUNCATE)"]
        };
        for statement in statements {
            connection.execute_unprepared(statement).await?;
        }
        Ok(connection.close().await?)
    }

    /// The id of a thing: a UUIDv7 that rises with its number, as an expression.
    fn id(&self, tag: Tag, number: &str) -> String {
        let hex = self.hex(tag, number);
        if self.is_postgres { format!("CAST({hex} AS UUID)") } else { format!("unhex({hex})") }
    }

    fn hex(&self, tag: Tag, number: &str) -> String {
        // Things were made one after another, hours ago; what is due came last.
        let since = match tag {
            Tag::File | Tag::Mapping => self.now - 24 * HOUR,
            Tag::Finished | Tag::Waiting => self.now - 12 * HOUR,
            Tag::Due | Tag::Others => self.now,
        };
        let tag = tag as u8;
        if self.is_postgres {
            format!(
                "(lpad(to_hex({since} + ({number}) / 100), 12, '0') || '70008' || lpad(to_hex({tag}), 2, '0') \
                 || lpad(to_hex({number}), 13, '0'))"
            )
        } else {
            format!("printf('%012x70008%02x%013x', {since} + ({number}) / 100, {tag}, {number})")
        }
    }
}

async fn one(connection: &DatabaseConnection, sql: &str) -> anyhow::Result<QueryResult> {
    let row = connection.query_one_raw(statement(connection, sql, [])).await?;
    row.with_context(|| format!("no answer to `{sql}`"))
}

fn owner() -> String {
    format!("'owner-' || (i % {OWNERS})")
}
