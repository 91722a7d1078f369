//! Claims: which jobs start next, and who may run them. A lane at a time, owners taking turns.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::DeliverWebhook;
use super::Fence;
use super::Lane;
use super::Progress;
use super::Work;
use super::WorkerId;
use super::deliveries;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::BatchId;
use crate::ids::FileId;
use crate::ids::JobId;

/// Owners that one claim looks at; the next claim goes on behind them.
const MAX_OWNERS: usize = 32;
/// One claim in so many takes a job of the lower rank, whatever else waits: a lane that is never idle would keep those
/// for ever.
const SHARE: u8 = 4;
/// What waits. The text is that of `jobs_ready`, so that both planners use it. Statements for which it is
/// the wrong index say the same by `lease_owner` and `finished_at`, as the CHECKs of the table allow:
/// PostgreSQL takes an index of live rows for nearly empty while its statistics are older than the
/// backlog, and would read all of it instead of one row.
pub(super) const READY: &str = "status IN ('queued', 'retrying')";

/// A job that this worker holds a lease on.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Claimed {
    pub id: JobId,
    pub kind: String,
    pub lane: String,
    pub rank: i32,
    pub owner: String,
    pub payload: String,
    pub epoch: i64,
    pub attempt: i32,
    pub max_attempts: i32,
    pub progress: Option<String>,
    pub file_id: Option<FileId>,
    pub batch_id: Option<BatchId>,
    pub model: Option<String>,
    pub request_id: Option<String>,
    /// Where in a trace it was made.
    pub traceparent: Option<String>,
    pub created_at: Timestamp,
    /// Of its first attempt, since it was queued or queued again.
    pub started_at: Timestamp,
    pub lease_until: Timestamp,
}

impl Claimed {
    pub fn fence(&self, worker: &WorkerId) -> Fence {
        Fence { job_id: self.id, epoch: self.epoch, worker: worker.clone() }
    }

    /// The first attempt of three at an upload.
    #[cfg(test)]
    pub fn example() -> Self {
        Self {
            id: JobId::mint(),
            kind: "upload_file".to_owned(),
            lane: "provider:p".to_owned(),
            rank: 0,
            owner: "alice".to_owned(),
            payload: "{}".to_owned(),
            epoch: 1,
            attempt: 1,
            max_attempts: 3,
            progress: None,
            file_id: None,
            batch_id: None,
            model: None,
            request_id: None,
            traceparent: None,
            created_at: Timestamp(0),
            started_at: Timestamp(0),
            lease_until: Timestamp(0),
        }
    }

    /// Whose turn this was: the owner's, or of a delivery its endpoint's.
    pub fn turn(&self) -> String {
        if self.kind == super::DELIVER_WEBHOOK
            && let Ok(payload) = serde_json::from_str::<DeliverWebhook>(&self.payload)
        {
            return payload.endpoint_id.0.to_string();
        }
        self.owner.clone()
    }

    /// Whether it looks for many, and belongs to none of them.
    pub fn is_watch(&self) -> bool {
        self.kind == super::WATCH_BATCH
    }

    pub fn progress(&self) -> Option<Progress> {
        self.progress.as_deref().and_then(|progress| serde_json::from_str(progress).ok())
    }
}

/// Whose turn it is in a lane. Those of each rank take turns for themselves.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    /// Who had the last turn; all workers go on from there.
    pub last: String,
    pub lower: LowerTurns,
}

/// Whose turn it is among jobs of the lower rank, which one process remembers of a lane. Another process, or this one
/// after a restart, begins elsewhere in the same round.
#[derive(Clone, Debug, Default)]
pub struct LowerTurns {
    last: String,
    /// Claims since the last that began with them.
    claims: u8,
}

impl LowerTurns {
    /// Whether the next claim begins with one of them.
    fn is_due(&self) -> bool {
        self.claims + 1 >= SHARE
    }
}

impl Turns {
    /// The turns after a claim.
    pub fn after(&self, claims: &[Claimed]) -> Self {
        let last_of = |is_lower: bool| {
            let mut claims = claims.iter().rev();
            claims.find(|claim| (claim.rank > 0) == is_lower).map(Claimed::turn)
        };
        let counted = if self.lower.is_due() { 0 } else { self.lower.claims + 1 };
        Self {
            last: last_of(false).unwrap_or_else(|| self.last.clone()),
            lower: LowerTurns {
                last: last_of(true).unwrap_or_else(|| self.lower.last.clone()),
                claims: if claims.is_empty() { self.lower.claims } else { counted },
            },
        }
    }
}

/// Claims up to `slots` ready jobs of a lane, owners taking turns (of deliveries: endpoints). They are answered in the
/// order of the turns: the next claim goes on with [`Turns::after`].
///
/// The caller holds the lane (see [`super::lanes::enter`]), so no other worker claims in it meanwhile.
pub async fn claim(
    tx: &impl ConnectionTrait,
    worker: &WorkerId,
    lease: Duration,
    lane: &Lane,
    turns: &Turns,
    slots: usize,
) -> Result<Vec<Claimed>, DbErr> {
    let chosen = if *lane == Lane::webhooks() {
        deliveries::choose(tx, &turns.last, slots).await?
    } else {
        choose_by_owner(tx, lane, turns, slots).await?
    };
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    take(tx, worker, lease, &chosen).await
}

/// Chooses ready jobs of both ranks: what comes first, and of the lower one what there is room for, or its share.
async fn choose_by_owner(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    turns: &Turns,
    slots: usize,
) -> Result<Vec<JobId>, DbErr> {
    let Turns { last, lower } = turns;
    let share = usize::from(lower.is_due()).min(slots);
    let mut chosen =
        if share > 0 { choose(tx, lane, 1, &lower.last, share).await? } else { Vec::new() };
    let share = chosen.len();
    if chosen.len() < slots {
        chosen.extend(choose(tx, lane, 0, last, slots - chosen.len()).await?);
    }
    if chosen.len() < slots {
        // The share is the beginning of these.
        let room = slots - chosen.len() + share;
        let more = choose(tx, lane, 1, &lower.last, room).await?;
        let more: Vec<_> = more.into_iter().filter(|id| !chosen.contains(id)).collect();
        chosen.extend(more);
    }
    Ok(chosen)
}

/// Takes the jobs that were chosen. They are the worker's until its lease ends.
async fn take(
    tx: &impl ConnectionTrait,
    worker: &WorkerId,
    lease: Duration,
    chosen: &[JobId],
) -> Result<Vec<Claimed>, DbErr> {
    let now = db::now(tx);
    let sql = format!(
        "UPDATE jobs SET status = 'running', epoch = epoch + 1, attempt = attempt + 1, lease_owner = $1, \
         lease_until = {now} + $2, started_at = COALESCE(started_at, {now}) \
         WHERE id IN ({}) AND status <> 'running' AND finished_at IS NULL \
         RETURNING id, kind, lane, rank, owner, payload, epoch, attempt, max_attempts, progress, file_id, batch_id, model, \
         request_id, traceparent, created_at, started_at, lease_until",
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
    let owners = due_owners(tx, lane, rank, last_owner).await?;
    let lock = if is_postgres(tx) { "FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "SELECT id FROM jobs WHERE lane = $1 AND rank = $2 AND owner = $3 AND {READY} \
         AND kind IN ({}) AND run_at <= {} ORDER BY run_at, id LIMIT $4 OFFSET $5 {lock}",
        Work::quoted_kinds(),
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

/// Owners with jobs in a lane that are due, at most [`MAX_OWNERS`], from behind `last` on and around: a walk over the
/// index that reads two entries per owner, however many jobs each has. Owners whose jobs all rest take no turn. The
/// order is the database's, so it alone compares names.
async fn due_owners(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    rank: i32,
    last: &str,
) -> Result<Vec<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        owner: String,
    }
    let waiting = format!("FROM jobs WHERE lane = $1 AND rank = $2 AND {READY}");
    let behind = format!("SELECT min(owner) {waiting} AND owner >");
    let around = format!("SELECT min(owner) {waiting} AND owner <= $3");
    // One statement, of which no more is run than what the limit asks for.
    let sql = format!(
        "WITH RECURSIVE behind(owner) AS (SELECT ({behind} $3) UNION ALL \
         SELECT ({behind} behind.owner) FROM behind WHERE behind.owner IS NOT NULL), \
         around(owner) AS (SELECT ({around}) UNION ALL \
         SELECT ({around} AND owner > around.owner) FROM around WHERE around.owner IS NOT NULL) \
         SELECT owner FROM (SELECT owner FROM behind UNION ALL SELECT owner FROM around) AS turn \
         WHERE owner IS NOT NULL \
         AND (SELECT min(run_at) {waiting} AND owner = turn.owner AND kind IN ({})) <= {} LIMIT {MAX_OWNERS}",
        Work::quoted_kinds(),
        due(tx),
    );
    let values: [Value; 3] = [lane.0.clone().into(), rank.into(), last.into()];
    let rows = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
    Ok(rows.into_iter().map(|row| row.owner).collect())
}

/// The database's clock, read once for a statement: PostgreSQL takes a volatile function into no
/// condition of an index, and would read all that rests.
pub(super) fn due(db: &impl ConnectionTrait) -> String {
    format!("(SELECT {})", db::now(db))
}

/// When the next job of each lane is due that has one waiting, and the database's clock now.
#[derive(Clone, Debug)]
pub struct Due {
    pub now: Timestamp,
    pub next: HashMap<Lane, Timestamp>,
}

impl Due {
    pub fn is_due(&self, lane: &Lane) -> bool {
        self.next.get(lane).is_some_and(|next| *next <= self.now)
    }

    /// How long until the first is due of those that are not yet.
    pub fn rest(&self) -> Option<Duration> {
        let later = self.next.values().filter(|next| **next > self.now);
        later.min().map(|next| next.since(self.now))
    }
}

/// Reads what waits in these lanes: an entry of an index each, whatever else waits, and in whichever other lane.
pub async fn next_due(db: &impl ConnectionTrait, lanes: &[Lane]) -> Result<Due, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        name: String,
        next: Option<Timestamp>,
        now: Timestamp,
    }
    let sql = format!(
        "SELECT name, {} AS now, (SELECT min(run_at) FROM jobs WHERE lane = lanes.name AND lease_owner IS NULL \
         AND finished_at IS NULL) AS next FROM lanes WHERE name IN ({})",
        db::now(db),
        placeholders(1, lanes.len()),
    );
    let values: Vec<Value> = lanes.iter().map(|lane| lane.0.clone().into()).collect();
    let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
    let now = rows.iter().map(|row| row.now).max();
    let now = now.ok_or_else(|| DbErr::RecordNotFound("none of these lanes exists".to_owned()))?;
    let next = rows.into_iter().filter_map(|row| Some((Lane(row.name), row.next?))).collect();
    Ok(Due { now, next })
}
