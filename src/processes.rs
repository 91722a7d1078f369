//! The processes of this installation: a row in `workers` for each, which it renews.
//!
//! Nothing hangs on these rows: jobs are kept by their leases. They tell an operator who is there, of which version,
//! and whose clock is off. All times in them are by the database's clock.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;
use tokio::time::MissedTickBehavior;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::clock;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::statement;
use crate::ids::ProcessId;
use crate::jobs::WorkerId;
use crate::words::words;

/// The version of this program, as the rows have it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

const HEARTBEAT: Duration = Duration::from_secs(10);
/// After three heartbeats that did not come.
const SILENT_AFTER: Duration = Duration::from_secs(35);
/// How long a row is kept of a process that is heard of no more.
const KEPT: Duration = Duration::from_hours(24);
/// How long the end of the process waits for its last write.
const FAREWELL: Duration = Duration::from_millis(300);

words! {
    /// What a process was started as.
    Role, "a role" {
        /// Intake and workers.
        Up = "up",
        Serve = "serve",
        Work = "work",
    }
}

words! {
    /// How a process is, as far as its row tells.
    State, "a state of a process" {
        Running = "running",
        /// Told to stop: it finishes what it has begun.
        Draining = "draining",
        /// Not heard of for a while: killed, frozen, or cut off from the database.
        Silent = "silent",
        Stopped = "stopped",
    }
}

/// This process.
#[derive(Clone, Debug)]
pub struct Process {
    id: ProcessId,
    role: Role,
    host: String,
    started: Instant,
}

impl Process {
    pub fn new(role: Role) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self { id: ProcessId::mint(), role, host, started: Instant::now() }
    }

    /// What its leases are held under.
    pub fn worker(&self) -> WorkerId {
        WorkerId(self.id.to_string())
    }

    /// Writes the row and renews it until it is dropped, from `shutdown` on as of a process that drains. What cannot be
    /// written is written a heartbeat later.
    pub async fn announce(&self, app: &App, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = State::Running;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = shutdown.cancelled(), if state == State::Running => state = State::Draining,
            }
            self.tell(app, state, HEARTBEAT).await;
        }
    }

    /// Notes that it has ended in order. A database that is away does not hold it up.
    pub async fn has_stopped(&self, app: &App) {
        self.tell(app, State::Stopped, FAREWELL).await;
    }

    async fn tell(&self, app: &App, state: State, limit: Duration) {
        let process = self.clone();
        let written = app.db.work(move |tx| {
            let process = process.clone();
            Box::pin(async move { save(tx, &process, state, clock::machine()).await })
        });
        match timeout(limit, written).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "could not tell the database that this process is {state}");
            }
            Err(_) => {
                tracing::warn!("the database did not take in time that this process is {state}")
            }
        }
    }
}

/// Writes the row whole, since it may have been pruned while the process was frozen.
async fn save(
    tx: &impl ConnectionTrait,
    process: &Process,
    state: State,
    machine: Timestamp,
) -> Result<(), DbErr> {
    let now = db::now(tx);
    let since = |is_so: bool| if is_so { now } else { "NULL" };
    let (draining, stopped) = (since(state != State::Running), since(state == State::Stopped));
    // A write that was given up may come after the last one.
    let sql = format!(
        "INSERT INTO workers (id, role, host, pid, version, started_at, clock_ahead_ms, seen_at, draining_at, stopped_at) \
         VALUES ($1, $2, $3, $4, $5, {now} - $6, $7 - {now}, {now}, {draining}, {stopped}) \
         ON CONFLICT (id) DO UPDATE SET clock_ahead_ms = excluded.clock_ahead_ms, seen_at = excluded.seen_at, \
         draining_at = COALESCE(workers.draining_at, excluded.draining_at), \
         stopped_at = COALESCE(workers.stopped_at, excluded.stopped_at)"
    );
    let values: [Value; 7] = [
        process.id.0.into(),
        process.role.as_str().into(),
        process.host.clone().into(),
        i64::from(std::process::id()).into(),
        VERSION.into(),
        millis(process.started.elapsed()).into(),
        machine.0.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// A process, as its row tells. Words are as they are stored: it may be of another version.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Seen {
    pub id: ProcessId,
    pub role: String,
    pub host: String,
    pub pid: i64,
    pub version: String,
    /// How far its machine's clock is ahead of the database's, less what the heartbeat took.
    pub clock_ahead_ms: i64,
    pub started_at: Timestamp,
    pub seen_at: Timestamp,
    pub draining_at: Option<Timestamp>,
    pub stopped_at: Option<Timestamp>,
    /// The database's clock.
    pub now: Timestamp,
}

impl Seen {
    pub fn state(&self) -> State {
        if self.stopped_at.is_some() {
            State::Stopped
        } else if self.now.since(self.seen_at) > SILENT_AFTER {
            State::Silent
        } else if self.draining_at.is_some() {
            State::Draining
        } else {
            State::Running
        }
    }

    pub fn is_alive(&self) -> bool {
        matches!(self.state(), State::Running | State::Draining)
    }

    /// Whether it takes jobs.
    pub fn runs_jobs(&self) -> bool {
        self.state() == State::Running && self.role != Role::Serve.as_str()
    }
}

/// All processes of the last day: those that have ended come last, then the newest first; at most 1,000.
pub async fn list(db: &impl ConnectionTrait) -> Result<Vec<Seen>, DbErr> {
    let sql = format!(
        "SELECT id, role, host, pid, version, clock_ahead_ms, started_at, seen_at, draining_at, stopped_at, {} AS now \
         FROM workers ORDER BY stopped_at IS NOT NULL, id DESC LIMIT 1000",
        db::now(db)
    );
    Seen::find_by_statement(statement(db, &sql, [])).all(db).await
}

/// How many jobs each process runs, by the name that its leases are held under.
pub async fn running(db: &impl ConnectionTrait) -> Result<HashMap<WorkerId, i64>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        lease_owner: String,
        running: i64,
    }
    let sql = "SELECT lease_owner, count(*) AS running FROM jobs WHERE status = 'running' GROUP BY lease_owner";
    let rows = Row::find_by_statement(statement(db, sql, [])).all(db).await?;
    Ok(rows.into_iter().map(|row| (WorkerId(row.lease_owner), row.running)).collect())
}

/// Forgets up to `limit` processes that were heard of no more for a day; answers how many.
pub async fn prune(tx: &impl ConnectionTrait, limit: u32) -> Result<u64, DbErr> {
    let sql = format!(
        "DELETE FROM workers WHERE id IN (SELECT id FROM workers WHERE seen_at < {} - $1 LIMIT $2)",
        db::now(tx)
    );
    let values: [Value; 2] = [millis(KEPT).into(), i64::from(limit).into()];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected())
}
