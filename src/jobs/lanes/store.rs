//! The lanes table.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Admission;
use super::Budget;
use super::LaneState;
use super::Leave;
use super::Pause;
use super::PauseReason;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::JobId;
use crate::jobs::Lane;
use crate::jobs::Work;

#[derive(FromQueryResult)]
struct Row {
    paused_until: Option<Timestamp>,
    pause_reason: Option<String>,
    failures: i32,
    tokens: Option<f64>,
    refilled_at: Option<Timestamp>,
    last_owner: String,
    credential: Option<String>,
    running: i64,
    probing: i64,
    now: Timestamp,
}

/// Makes sure that the lane exists, and lets a pause go that was for another credential.
///
/// `credential` is a fingerprint of what the provider is reached with.
pub async fn open(tx: &impl ConnectionTrait, lane: &Lane, credential: &str) -> Result<(), DbErr> {
    ensure(tx, lane).await?;
    let sql = "UPDATE lanes SET paused_until = NULL, pause_reason = NULL, paused_at = NULL, failures = 0 \
               WHERE name = $1 AND pause_reason IN ('credential_rejected', 'out_of_money') \
               AND (credential IS NULL OR credential <> $2)";
    let values: [Value; 2] = [lane.0.clone().into(), credential.into()];
    tx.execute_raw(statement(tx, sql, values)).await?;
    let sql = "UPDATE lanes SET credential = $2 WHERE name = $1 AND (credential IS NULL OR credential <> $2)";
    let values: [Value; 2] = [lane.0.clone().into(), credential.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Makes sure that the lane exists.
pub async fn ensure(tx: &impl ConnectionTrait, lane: &Lane) -> Result<(), DbErr> {
    let sql = "INSERT INTO lanes (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";
    tx.execute_raw(statement(tx, sql, [lane.0.clone().into()])).await.map(|_| ())
}

/// Locks the lane and reads it: claims and reports of one lane come one after another.
pub async fn enter(tx: &impl ConnectionTrait, lane: &Lane) -> Result<LaneState, DbErr> {
    // A statement of its own: one that waited for the lock would count as of before the wait.
    lock(tx, std::slice::from_ref(lane)).await?;
    read(tx, lane).await
}

/// Locks lanes on PostgreSQL, in the order of their names whatever order they are in: whoever needs several has to take
/// all of them by this, and at once, so that no two wait for each other. (SQLite has one writer anyway.)
pub async fn lock(tx: &impl ConnectionTrait, lanes: &[Lane]) -> Result<(), DbErr> {
    if !is_postgres(tx) || lanes.is_empty() {
        return Ok(());
    }
    let names = placeholders(1, lanes.len());
    let sql = format!("SELECT 1 FROM lanes WHERE name IN ({names}) ORDER BY name FOR UPDATE");
    let values: Vec<Value> = lanes.iter().map(|lane| lane.0.clone().into()).collect();
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Reads a lane that the caller has locked.
pub async fn read(tx: &impl ConnectionTrait, lane: &Lane) -> Result<LaneState, DbErr> {
    let sql = format!(
        "SELECT paused_until, pause_reason, failures, tokens, refilled_at, last_owner, credential, \
         (SELECT count(*) FROM jobs WHERE id = lanes.probe_job AND status = 'running') AS probing, \
         (SELECT count(*) FROM jobs WHERE lane IN ($1, $2) AND status = 'running') AS running, {} AS now \
         FROM lanes WHERE name = $1",
        db::now(tx)
    );
    let values: [Value; 2] = [lane.0.clone().into(), lane.counted_with().0.into()];
    let row = Row::find_by_statement(statement(tx, &sql, values)).one(tx).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound(format!("lane `{lane}`")))?;
    let pause = pause(row.paused_until, row.pause_reason.as_deref());
    Ok(LaneState {
        pause,
        failures: row.failures,
        running: row.running,
        is_probed: row.probing > 0,
        credential: row.credential,
        budget: Budget { tokens: row.tokens, refilled_at: row.refilled_at },
        last_owner: row.last_owner,
        now: row.now,
    })
}

fn pause(until: Option<Timestamp>, reason: Option<&str>) -> Option<Pause> {
    Some(Pause { until: until?, reason: known(reason?) })
}

/// What a newer version calls otherwise stands still all the same, until then: nothing of it is undone here.
fn known(reason: &str) -> PauseReason {
    reason.parse().unwrap_or(PauseReason::Paused)
}

/// Notes what a claim took: the budget that its calls use, the owner whose turn was last, and the probe.
pub async fn leave(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    state: &LaneState,
    admission: &Admission,
    calls: usize,
    last: (JobId, &str),
) -> Result<(), DbErr> {
    let (last_job, last_owner) = last;
    let sql = "UPDATE lanes SET tokens = $2, refilled_at = $3, last_owner = $4, probe_job = $5 WHERE name = $1";
    let tokens = admission.tokens.map(|tokens| tokens - calls as f64);
    let values: [Value; 5] = [
        lane.0.clone().into(),
        tokens.into(),
        tokens.map(|_| state.now.0).into(),
        last_owner.into(),
        admission.is_probe.then_some(last_job.0).into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Stores what [`super::after`] decided.
pub async fn save(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    now: Timestamp,
    pause: Option<Pause>,
    failures: i32,
) -> Result<(), DbErr> {
    // `paused_at` is kept while the reason stays, so that it tells since when.
    let sql = "UPDATE lanes SET paused_until = $2, failures = $4, \
               paused_at = CASE WHEN $3 IS NULL THEN NULL WHEN pause_reason = $3 THEN paused_at ELSE $5 END, \
               pause_reason = $3 WHERE name = $1";
    let sql = if is_postgres(tx) {
        sql.replace("$3", "$3::text").replace("$5", "$5::bigint")
    } else {
        sql.to_owned()
    };
    let values: [Value; 5] = [
        lane.0.clone().into(),
        pause.map(|pause| pause.until.0).into(),
        pause.map(|pause| pause.reason.as_str()).into(),
        failures.into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Which of these lanes stand still, why and until when.
pub async fn pauses(
    db: &impl ConnectionTrait,
    lanes: &[Lane],
) -> Result<HashMap<Lane, Pause>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        name: String,
        paused_until: Timestamp,
        pause_reason: String,
    }
    let mut stopped = HashMap::new();
    for chunk in lanes.chunks(500) {
        let sql = format!(
            "SELECT name, paused_until, pause_reason FROM lanes WHERE pause_reason IS NOT NULL AND name IN ({})",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|lane| lane.0.clone().into()).collect();
        for row in Row::find_by_statement(statement(db, &sql, values)).all(db).await? {
            let reason = known(&row.pause_reason);
            stopped.insert(Lane(row.name), Pause { until: row.paused_until, reason });
        }
    }
    Ok(stopped)
}

/// How long a job waits for what only a person can change.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub most_jobs: Duration,
    /// A delete that is given up leaves something at a provider.
    pub deletes: Duration,
}

impl Patience {
    /// In milliseconds, as an expression.
    fn of_a_job(self) -> String {
        format!(
            "CASE WHEN jobs.kind = 'delete_file' THEN {} ELSE {} END",
            millis(self.deletes),
            millis(self.most_jobs)
        )
    }
}

/// A lane for the metrics, the admin's list, and the search for jobs that wait in vain.
#[derive(Clone, Debug, FromQueryResult)]
pub struct LaneRow {
    pub name: String,
    pub paused_until: Option<Timestamp>,
    pub pause_reason: Option<String>,
    pub paused_at: Option<Timestamp>,
    pub failures: i32,
    pub running: i64,
    pub waiting: i64,
}

pub async fn list(db: &impl ConnectionTrait) -> Result<Vec<LaneRow>, DbErr> {
    let sql = "SELECT name, paused_until, pause_reason, paused_at, failures, \
               (SELECT count(*) FROM jobs WHERE lane = lanes.name AND status = 'running') AS running, \
               (SELECT count(*) FROM jobs WHERE lane = lanes.name AND status IN ('queued', 'retrying')) AS waiting \
               FROM lanes ORDER BY name";
    LaneRow::find_by_statement(statement(db, sql, [])).all(db).await
}

/// Jobs that have waited longer than they may in a lane that stands still for `reason`, at most 100.
pub async fn given_up(
    db: &impl ConnectionTrait,
    reason: PauseReason,
    patience: Patience,
) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Id {
        id: JobId,
    }
    let sql = format!(
        "SELECT jobs.id FROM lanes JOIN jobs ON jobs.lane = lanes.name \
         WHERE lanes.pause_reason = $1 AND lanes.paused_at < {now} - {patience} \
         AND jobs.status IN ('queued', 'retrying') AND jobs.run_at < {now} - {patience} AND jobs.kind IN ({kinds}) \
         LIMIT 100",
        kinds = Work::quoted_kinds(),
        now = db::now(db),
        patience = patience.of_a_job()
    );
    let values: [Value; 1] = [reason.as_str().into()];
    let rows = Id::find_by_statement(statement(db, &sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Jobs that have waited longer than they may in a lane that nobody serves, at most 100.
pub async fn unserved(
    db: &impl ConnectionTrait,
    served: &[Lane],
    patience: Patience,
) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Id {
        id: JobId,
    }
    let others = if served.is_empty() {
        String::new()
    } else {
        format!("AND lane NOT IN ({})", placeholders(1, served.len()))
    };
    let sql = format!(
        "SELECT id FROM jobs WHERE status IN ('queued', 'retrying') \
         AND (lane LIKE 'provider:%' OR lane LIKE 'ingest:%') \
         AND run_at < {} - {} AND kind IN ({}) {others} LIMIT 100",
        db::now(db),
        patience.of_a_job(),
        Work::quoted_kinds()
    );
    let values: Vec<Value> = served.iter().map(|lane| lane.0.clone().into()).collect();
    let rows = Id::find_by_statement(statement(db, &sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

/// Takes a call out of a lane's rate budget, unless the lane stands still.
///
/// Claims wait for this, so the lane is read as it is locked: all that is asked of it is in its own row.
pub async fn spend(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    per_minute: u32,
    is_overdue: bool,
) -> Result<Leave, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        paused_until: Option<Timestamp>,
        pause_reason: Option<String>,
        tokens: Option<f64>,
        refilled_at: Option<Timestamp>,
        now: Timestamp,
    }
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    // The clock is read behind the lock, and not before the wait for it.
    let sql = format!(
        "SELECT held.*, {} AS now FROM (SELECT paused_until, pause_reason, tokens, refilled_at FROM lanes \
         WHERE name = $1 {lock}) AS held",
        db::now(tx)
    );
    let row = Row::find_by_statement(statement(tx, &sql, [lane.0.clone().into()])).one(tx).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound(format!("lane `{lane}`")))?;
    let now = row.now;
    if let Some(pause) = pause(row.paused_until, row.pause_reason.as_deref())
        && pause.until > now
    {
        return Ok(Leave::NotFor(pause.until.since(now)));
    }
    let budget = Budget { tokens: row.tokens, refilled_at: row.refilled_at };
    let (tokens, wait) = match budget.spend(now, per_minute, is_overdue) {
        Ok(spent) => spent,
        Err(rest) => return Ok(Leave::AskIn(rest)),
    };
    let sql = "UPDATE lanes SET tokens = $2, refilled_at = $3 WHERE name = $1";
    let values: [Value; 3] = [lane.0.clone().into(), tokens.into(), now.0.into()];
    tx.execute_raw(statement(tx, sql, values)).await?;
    Ok(Leave::In(wait))
}
