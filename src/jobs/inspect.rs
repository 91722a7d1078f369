//! The queue at a glance, for an operator: how much waits, for how long, and whether anybody works.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Lane;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::placeholders;
use crate::db::statement;

/// What the queue looks like now, by the database's clock.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Overview {
    pub now: Timestamp,
    pub waiting: i64,
    /// Since when the longest waiting job exists.
    pub oldest: Option<Timestamp>,
    pub running: i64,
    /// Workers that hold a lease which has not run out.
    pub workers: i64,
    /// Jobs whose worker has not renewed its lease.
    pub lapsed: i64,
    /// When a job ended last.
    pub last_ended: Option<Timestamp>,
    /// Jobs that failed for good within a day.
    pub failed: i64,
}

/// Jobs that nothing holds up and yet nobody takes.
#[derive(Clone, Copy, Debug, FromQueryResult)]
pub struct Ignored {
    pub count: i64,
    /// Since when the first of them is due.
    pub since: Option<Timestamp>,
}

const DAY: Duration = Duration::from_hours(24);

pub async fn overview(db: &impl ConnectionTrait) -> Result<Overview, DbErr> {
    let now = db::now(db);
    // Each of these reads a partial index, and of the ended jobs one entry of it for each status.
    let ended = ["succeeded", "failed", "cancelled"].map(|status| {
        format!("SELECT max(finished_at) AS at FROM jobs WHERE finished_at IS NOT NULL AND status = '{status}'")
    });
    let sql = format!(
        "SELECT {now} AS now, \
         (SELECT count(*) FROM jobs WHERE status IN ('queued', 'retrying')) AS waiting, \
         (SELECT min(created_at) FROM jobs WHERE status IN ('queued', 'retrying')) AS oldest, \
         (SELECT count(*) FROM jobs WHERE status = 'running') AS running, \
         (SELECT count(DISTINCT lease_owner) FROM jobs WHERE status = 'running' AND lease_until >= {now}) AS workers, \
         (SELECT count(*) FROM jobs WHERE status = 'running' AND lease_until < {now}) AS lapsed, \
         (SELECT max(at) FROM ({}) AS ends) AS last_ended, \
         (SELECT count(*) FROM jobs WHERE finished_at IS NOT NULL AND status = 'failed' \
          AND finished_at > {now} - $1) AS failed",
        ended.join(" UNION ALL ")
    );
    let overview = Overview::find_by_statement(statement(db, &sql, [millis(DAY).into()]));
    overview.one(db).await?.ok_or_else(|| DbErr::RecordNotFound("the queue".to_owned()))
}

/// Jobs in `lanes` that have been due for longer than `patience` though their lane does not stand still.
pub async fn ignored(
    db: &impl ConnectionTrait,
    lanes: &[Lane],
    patience: Duration,
) -> Result<Ignored, DbErr> {
    if lanes.is_empty() {
        return Ok(Ignored { count: 0, since: None });
    }
    let now = db::now(db);
    let sql = format!(
        "SELECT count(*) AS count, min(jobs.run_at) AS since \
         FROM jobs LEFT JOIN lanes ON lanes.name = jobs.lane \
         WHERE jobs.status IN ('queued', 'retrying') AND jobs.run_at < {now} - $1 \
         AND (lanes.paused_until IS NULL OR lanes.paused_until < {now} - $1) AND jobs.lane IN ({})",
        placeholders(2, lanes.len())
    );
    let mut values: Vec<Value> = vec![millis(patience).into()];
    values.extend(lanes.iter().map(|lane| Value::from(lane.0.clone())));
    let ignored = Ignored::find_by_statement(statement(db, &sql, values)).one(db).await?;
    ignored.ok_or_else(|| DbErr::RecordNotFound("the queue".to_owned()))
}
