//! Leases: claiming jobs, keeping them, ending attempts, and taking over what nobody keeps.
//!
//! A lease is judged by the database's clock. Whatever ends an attempt is conditional on its
//! [`Fence`]: a worker whose job was taken over changes nothing.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Ending;
use super::Failure;
use super::Fence;
use super::Lane;
use super::Progress;
use super::Spend;
use super::Work;
use super::WorkerId;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::FileId;
use crate::ids::JobId;

/// A job whose workers died this often is a dead letter.
pub const MAX_DEATHS: i32 = 3;
/// Owners that one claim looks at; the next claim goes on behind them.
const MAX_OWNERS: usize = 32;
/// What waits. The text is that of the partial indexes, so that both planners use them. A statement that
/// goes by `id` says the same by `lease_owner`, `lease_until` and `finished_at`, as the CHECKs of the table
/// allow: PostgreSQL takes an index of live rows for nearly empty while its statistics are older than the
/// backlog, and would read all of it instead of one row.
const READY: &str = "status IN ('queued', 'retrying')";

/// A job that this worker holds a lease on.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Claimed {
    pub id: JobId,
    pub kind: String,
    pub lane: String,
    pub owner: String,
    pub payload: String,
    pub epoch: i64,
    pub attempt: i32,
    pub max_attempts: i32,
    pub progress: Option<String>,
    pub file_id: Option<FileId>,
    pub model: Option<String>,
    pub request_id: Option<String>,
    pub created_at: Timestamp,
    pub lease_until: Timestamp,
}

impl Claimed {
    pub fn fence(&self, worker: &WorkerId) -> Fence {
        Fence { job_id: self.id, epoch: self.epoch, worker: worker.clone() }
    }

    pub fn progress(&self) -> Option<Progress> {
        self.progress.as_deref().and_then(|progress| serde_json::from_str(progress).ok())
    }
}

/// Claims up to `slots` ready jobs of a lane, owners taking turns, beginning behind `last_owner`. They
/// are answered in the order of the turns: the next claim begins behind the last one's owner.
///
/// The caller holds the lane (see [`super::lanes::enter`]), so no other worker claims in it meanwhile.
pub async fn claim(
    tx: &impl ConnectionTrait,
    worker: &WorkerId,
    lease: Duration,
    lane: &Lane,
    last_owner: &str,
    slots: usize,
) -> Result<Vec<Claimed>, DbErr> {
    let mut chosen: Vec<JobId> = Vec::new();
    for rank in 0..=1 {
        if chosen.len() < slots {
            chosen.extend(choose(tx, lane, rank, last_owner, slots - chosen.len()).await?);
        }
    }
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let now = db::now(tx);
    let sql = format!(
        "UPDATE jobs SET status = 'running', epoch = epoch + 1, attempt = attempt + 1, lease_owner = $1, \
         lease_until = {now} + $2, started_at = COALESCE(started_at, {now}) \
         WHERE id IN ({}) AND lease_owner IS NULL AND finished_at IS NULL \
         RETURNING id, kind, lane, owner, payload, epoch, attempt, max_attempts, progress, file_id, model, \
         request_id, created_at, lease_until",
        placeholders(3, chosen.len())
    );
    let mut values: Vec<Value> = vec![worker.0.clone().into(), millis(lease).into()];
    values.extend(chosen.iter().map(|id| Value::from(id.0)));
    let mut claims = Claimed::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    claims.sort_by_key(|claim| chosen.iter().position(|id| *id == claim.id));
    Ok(claims)
}

/// Chooses ready jobs of one rank, a fair share of the slots for each owner, in the order of the turns.
async fn choose(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    rank: i32,
    last_owner: &str,
    slots: usize,
) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
    }
    let mut owners = due_owners(tx, lane, rank, last_owner, None, MAX_OWNERS).await?;
    if owners.len() < MAX_OWNERS {
        let room = MAX_OWNERS - owners.len();
        owners.extend(due_owners(tx, lane, rank, "", Some(last_owner), room).await?);
    }
    let lock = if is_postgres(tx) { "FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "SELECT id FROM jobs WHERE lane = $1 AND rank = $2 AND owner = $3 AND {READY} \
         AND kind IN ({}) AND run_at <= {} ORDER BY run_at, id LIMIT $4 OFFSET $5 {lock}",
        quoted(&Work::KINDS),
        due(tx),
    );
    // Each with its owner's place, and its place among the owner's.
    let mut chosen: Vec<(usize, usize, JobId)> = Vec::new();
    let mut taken = vec![0; owners.len()];
    // The first round gives each owner its share; the second gives what others left to who has more.
    for is_first_round in [true, false] {
        for (place, owner) in owners.iter().enumerate() {
            let left = slots - chosen.len();
            if left == 0 {
                break;
            }
            let share = if is_first_round { left.div_ceil(owners.len() - place) } else { left };
            if !is_first_round && taken[place] == 0 {
                continue;
            }
            let values: [Value; 5] = [
                lane.0.clone().into(),
                rank.into(),
                owner.clone().into(),
                (share as u64).into(),
                (taken[place] as u64).into(),
            ];
            let rows = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
            let before = taken[place];
            // Fewer than the share: this owner has no more, and the second round passes it over.
            taken[place] = if rows.len() < share { 0 } else { rows.len() };
            let rows = rows.into_iter().enumerate();
            chosen.extend(rows.map(|(number, row)| (before + number, place, row.id)));
        }
        if owners.len() < 2 {
            break;
        }
    }
    chosen.sort_by_key(|(number, place, _)| (*number, *place));
    Ok(chosen.into_iter().map(|(_, _, id)| id).collect())
}

/// Owners with jobs in a lane that are due, in order, behind `last` and up to `end`: a walk over the
/// index that reads two entries per owner, however many jobs each has. Owners whose jobs all rest take
/// no turn. The order is the database's, so it alone compares names.
async fn due_owners(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    rank: i32,
    last: &str,
    end: Option<&str>,
    limit: usize,
) -> Result<Vec<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        owner: String,
    }
    let bound = if end.is_some() { "AND owner <= $5" } else { "" };
    let waiting = format!("FROM jobs WHERE lane = $1 AND rank = $2 AND {READY}");
    let first = format!("SELECT min(owner) {waiting} {bound} AND owner >");
    let sql = format!(
        "WITH RECURSIVE turn(owner) AS (SELECT ({first} $3) UNION ALL \
         SELECT ({first} turn.owner) FROM turn WHERE turn.owner IS NOT NULL) \
         SELECT owner FROM turn WHERE owner IS NOT NULL \
         AND (SELECT min(run_at) {waiting} AND owner = turn.owner AND kind IN ({})) <= {} LIMIT $4",
        quoted(&Work::KINDS),
        due(tx),
    );
    let mut values: Vec<Value> =
        vec![lane.0.clone().into(), rank.into(), last.into(), (limit as u64).into()];
    values.extend(end.map(Value::from));
    let rows = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    Ok(rows.into_iter().map(|row| row.owner).collect())
}

/// The database's clock, read once for a statement: PostgreSQL takes a volatile function into no
/// condition of an index, and would read all that rests.
fn due(db: &impl ConnectionTrait) -> String {
    format!("(SELECT {})", db::now(db))
}

fn quoted(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    words.join(", ")
}

/// When the next waiting job is due, and the database's clock now.
#[derive(Clone, Copy, Debug, FromQueryResult)]
pub struct Due {
    pub now: Timestamp,
    pub next: Option<Timestamp>,
}

pub async fn next_due(db: &impl ConnectionTrait) -> Result<Due, DbErr> {
    let sql = format!(
        "SELECT {} AS now, (SELECT min(run_at) FROM jobs WHERE {READY} AND run_at >= 0) AS next",
        db::now(db)
    );
    let due = Due::find_by_statement(statement(db, &sql, [])).one(db).await?;
    due.ok_or_else(|| DbErr::RecordNotFound("the database's clock".to_owned()))
}

/// A job that is still ours after a renewal.
#[derive(Clone, Copy, Debug, FromQueryResult)]
pub struct Renewed {
    pub id: JobId,
    pub epoch: i64,
    pub cancel_requested_at: Option<Timestamp>,
}

/// Prolongs every lease of `worker` that has not been taken over.
pub async fn renew(
    tx: &impl ConnectionTrait,
    worker: &WorkerId,
    lease: Duration,
) -> Result<Vec<Renewed>, DbErr> {
    let sql = format!(
        "UPDATE jobs SET lease_until = {} + $2 WHERE lease_owner = $1 AND status = 'running' \
         RETURNING id, epoch, cancel_requested_at",
        db::now(tx)
    );
    Renewed::find_by_statement(statement(tx, &sql, [worker.0.clone().into(), millis(lease).into()]))
        .all(tx)
        .await
}

/// Lets a lease run out at once, because nobody runs the job: the reaper finds it.
pub async fn let_lapse(tx: &impl ConnectionTrait, fence: &Fence) -> Result<(), DbErr> {
    let sql = "UPDATE jobs SET lease_until = 0 WHERE id = $1 AND epoch = $2 AND lease_owner = $3";
    let values: [Value; 3] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Whether the lease is still this worker's. On PostgreSQL it stays so until the transaction ends.
pub async fn check(tx: &impl ConnectionTrait, fence: &Fence) -> Result<bool, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql =
        format!("SELECT 1 FROM jobs WHERE id = $1 AND epoch = $2 AND lease_owner = $3 {lock}");
    let values: [Value; 3] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into()];
    Ok(tx.query_one_raw(statement(tx, &sql, values)).await?.is_some())
}

/// Sets how far a job is, in a transaction that has passed its fence.
pub async fn set_progress(
    tx: &impl ConnectionTrait,
    job: JobId,
    progress: Progress,
) -> Result<(), DbErr> {
    let progress =
        serde_json::to_string(&progress).map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "UPDATE jobs SET progress = $2 WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [job.0.into(), progress.into()])).await.map(|_| ())
}

/// Shows how far a job is. Nothing happens when the lease is lost: the end of the attempt will find out.
pub async fn report_progress(
    tx: &impl ConnectionTrait,
    fence: &Fence,
    progress: Progress,
) -> Result<(), DbErr> {
    let progress =
        serde_json::to_string(&progress).map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "UPDATE jobs SET progress = $4 WHERE id = $1 AND epoch = $2 AND lease_owner = $3";
    let values: [Value; 4] =
        [fence.job_id.0.into(), fence.epoch.into(), fence.worker.0.clone().into(), progress.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

#[derive(FromQueryResult)]
struct Ended {
    attempt: i32,
    started_at: Timestamp,
    now: Timestamp,
}

/// Ends the attempt that `fence` stands for. `false` when the lease was lost: then nothing was
/// written, and the caller writes nothing either.
///
/// It comes first in a worker's transaction, so that a lost lease is known before anything is changed.
pub async fn end(
    tx: &impl ConnectionTrait,
    fence: &Fence,
    claimed_at: Timestamp,
    ending: &Ending,
    outcome: &str,
) -> Result<bool, DbErr> {
    let now = db::now(tx);
    let (status, rest, unspent, error) = match ending {
        Ending::Succeeded => ("succeeded", None, 0, None),
        Ending::Retry { after, spend, failure } => {
            let unspent = if *spend == Spend::Nothing { 1 } else { 0 };
            ("retrying", Some(millis(*after)), unspent, failure.as_ref())
        }
        Ending::Failed(failure) => ("failed", None, 0, Some(failure)),
        Ending::Cancelled => ("cancelled", None, 0, None),
    };
    let error = error
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = format!(
        "UPDATE jobs SET status = $4, attempt = attempt - $5, lease_owner = NULL, lease_until = NULL, \
         run_at = COALESCE({now} + $6, run_at), error = CASE WHEN $4 = 'succeeded' THEN NULL ELSE COALESCE($7, error) END, \
         finished_at = CASE WHEN $4 = 'retrying' THEN NULL ELSE {now} END \
         WHERE id = $1 AND epoch = $2 AND lease_owner = $3 \
         RETURNING attempt + $5 AS attempt, $8 AS started_at, {now} AS now"
    );
    let casts = [
        ("$4", "::text"),
        ("$5", "::integer"),
        ("$6", "::bigint"),
        ("$7", "::text"),
        ("$8", "::bigint"),
    ];
    // PostgreSQL infers no type for a parameter that stands in a CASE or an output column.
    let sql = if is_postgres(tx) {
        casts.iter().fold(sql, |sql, (name, cast)| sql.replace(name, &format!("{name}{cast}")))
    } else {
        sql
    };
    let values: [Value; 8] = [
        fence.job_id.0.into(),
        fence.epoch.into(),
        fence.worker.0.clone().into(),
        status.into(),
        unspent.into(),
        rest.into(),
        error.clone().into(),
        claimed_at.0.into(),
    ];
    let Some(ended) = Ended::find_by_statement(statement(tx, &sql, values)).one(tx).await? else {
        return Ok(false);
    };
    record_attempt(tx, fence.job_id, fence.epoch, &fence.worker.0, &ended, outcome, error).await?;
    Ok(true)
}

async fn record_attempt(
    tx: &impl ConnectionTrait,
    id: JobId,
    epoch: i64,
    worker: &str,
    ended: &Ended,
    outcome: &str,
    error: Option<String>,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO job_attempts (job_id, epoch, attempt, worker, outcome, error, started_at, finished_at) \
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let values: [Value; 8] = [
        id.0.into(),
        epoch.into(),
        ended.attempt.into(),
        worker.into(),
        outcome.into(),
        error.into(),
        ended.started_at.0.into(),
        ended.now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// A running job whose lease has run out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, FromQueryResult)]
pub struct Lapsed {
    pub id: JobId,
    pub kind: String,
    pub payload: String,
    pub owner: String,
    pub lane: String,
    pub file_id: Option<FileId>,
    pub epoch: i64,
    pub lease_until: Timestamp,
}

/// Jobs whose lease has run out, at most 1,000.
pub async fn lapsed(db: &impl ConnectionTrait) -> Result<Vec<Lapsed>, DbErr> {
    let sql = format!(
        "SELECT id, kind, payload, owner, lane, file_id, epoch, lease_until FROM jobs \
         WHERE status = 'running' AND lease_until < {} LIMIT 1000",
        db::now(db)
    );
    Lapsed::find_by_statement(statement(db, &sql, [])).all(db).await
}

/// What became of a job that was taken from its silent worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// It waits for another worker.
    Retrying,
    /// It was to be cancelled, and is.
    Cancelled,
    /// It outlived too many of its workers.
    Failed(Failure),
}

/// Takes a lapsed job from its worker. `None` when it was renewed, ended or reaped meanwhile.
pub async fn reap(tx: &impl ConnectionTrait, lapsed: &Lapsed) -> Result<Option<Reaped>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        attempt: i32,
        deaths: i32,
        max_attempts: i32,
        lease_owner: String,
        started_at: Timestamp,
        cancel_requested_at: Option<Timestamp>,
        now: Timestamp,
    }
    let now = db::now(tx);
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!(
        "SELECT attempt, deaths, max_attempts, lease_owner, COALESCE(started_at, created_at) AS started_at, \
         cancel_requested_at, {now} AS now FROM jobs \
         WHERE id = $1 AND epoch = $2 AND lease_until = $3 {lock}"
    );
    let values: [Value; 3] = [lapsed.id.0.into(), lapsed.epoch.into(), lapsed.lease_until.0.into()];
    let Some(row) = Row::find_by_statement(statement(tx, &sql, values)).one(tx).await? else {
        return Ok(None);
    };
    let deaths = row.deaths + 1;
    let died =
        Failure::transient("worker_died", "the worker went silent before it had ended the attempt");
    let (status, reaped) = if row.cancel_requested_at.is_some() {
        ("cancelled", Reaped::Cancelled)
    } else if deaths >= MAX_DEATHS || row.attempt >= row.max_attempts {
        let message =
            format!("{deaths} workers went silent while they ran this job; it is not tried again");
        ("failed", Reaped::Failed(Failure::permanent("worker_died", message)))
    } else {
        ("retrying", Reaped::Retrying)
    };
    let shown = if let Reaped::Failed(failure) = &reaped { failure } else { &died };
    let error = serde_json::to_string(shown).map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "UPDATE jobs SET status = $2, deaths = $3, lease_owner = NULL, lease_until = NULL, error = $4, \
               run_at = $5, finished_at = $6 WHERE id = $1";
    let finished_at = (status != "retrying").then_some(row.now.0);
    let values: [Value; 6] = [
        lapsed.id.0.into(),
        status.into(),
        deaths.into(),
        error.clone().into(),
        row.now.0.into(),
        finished_at.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await?;
    let ended = Ended { attempt: row.attempt, started_at: row.started_at, now: row.now };
    record_attempt(tx, lapsed.id, lapsed.epoch, &row.lease_owner, &ended, "died", Some(error))
        .await?;
    Ok(Some(reaped))
}
