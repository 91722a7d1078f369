//! Deliveries in the job table: written with the event that they tell of, once for each endpoint, and claimed
//! endpoint by endpoint.
//!
//! A receiver that hangs holds up its own deliveries alone: of each endpoint only so many run at once, over all
//! workers, and only one while it fails.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;
use uuid::Uuid;

use super::DeliverWebhook;
use super::Lane;
use super::Work;
use super::claims::due;
use crate::clock::Timestamp;
use crate::db;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::JobId;
use crate::ids::WebhookEndpointId;
use crate::traces;

/// The first and nine more, over three days: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h later.
pub const MAX_ATTEMPTS: u32 = 10;
/// Deliveries to one endpoint that run at once.
const MOST_AT_ONCE: i64 = 8;
/// Endpoints that one claim looks at; the next claim goes on behind them.
const MAX_ENDPOINTS: usize = 32;
/// What waits, in the words of its index, which are those of no other.
const READY: &str =
    "webhook_endpoint_id IS NOT NULL AND lease_until IS NULL AND finished_at IS NULL";

/// A delivery to be written.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub owner: String,
    pub work: DeliverWebhook,
}

/// Writes deliveries, due at once.
///
/// # Errors
///
/// What the database says.
pub async fn enqueue(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    deliveries: &[Delivery],
) -> Result<(), DbErr> {
    const COLUMNS: usize = 11;
    let traceparent = traces::traceparent();
    for chunk in deliveries.chunks(500) {
        let mut values: Vec<Value> = Vec::with_capacity(chunk.len() * COLUMNS);
        for Delivery { owner, work } in chunk {
            let (event, endpoint) = (work.event_id, work.endpoint_id);
            let work = Work::DeliverWebhook(work.clone());
            let payload = work.payload().map_err(|error| DbErr::Json(error.to_string()))?;
            values.extend([
                Value::from(JobId::mint().0),
                work.kind().into(),
                Lane::webhooks().0.into(),
                work.rank().into(),
                owner.clone().into(),
                payload.into(),
                i32::try_from(MAX_ATTEMPTS).unwrap_or(i32::MAX).into(),
                event.0.into(),
                endpoint.0.into(),
                traceparent.clone().into(),
                now.0.into(),
            ]);
        }
        let rows: Vec<_> = (0..chunk.len())
            .map(|row| {
                format!("('queued', {}, {})", db::now(tx), placeholders(row * COLUMNS + 1, COLUMNS))
            })
            .collect();
        let sql = format!(
            "INSERT INTO jobs (status, run_at, id, kind, lane, rank, owner, payload, max_attempts, event_id, \
             webhook_endpoint_id, traceparent, created_at) VALUES {}",
            rows.join(", ")
        );
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// Chooses ready deliveries, endpoints taking turns, beginning behind the one that `last_turn` names.
pub(super) async fn choose(
    tx: &impl ConnectionTrait,
    last_turn: &str,
    slots: usize,
) -> Result<Vec<JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        id: JobId,
    }
    let last = Uuid::try_parse(last_turn).unwrap_or_default();
    let mut turns = turns(tx, last, None, MAX_ENDPOINTS).await?;
    if turns.len() < MAX_ENDPOINTS {
        let room = MAX_ENDPOINTS - turns.len();
        turns.extend(self::turns(tx, Uuid::nil(), Some(last), room).await?);
    }
    let lock = if is_postgres(tx) { "FOR UPDATE SKIP LOCKED" } else { "" };
    let sql = format!(
        "SELECT id FROM jobs WHERE {READY} AND webhook_endpoint_id = $1 AND run_at <= {} \
         ORDER BY run_at, id LIMIT $2 {lock}",
        due(tx),
    );
    let mut chosen = Vec::new();
    for (place, turn) in turns.iter().enumerate() {
        let share = (slots - chosen.len()).div_ceil(turns.len() - place);
        let share = share.min(usize::try_from(turn.room).unwrap_or(0));
        let values: [Value; 2] = [turn.endpoint.into(), (share as u64).into()];
        let rows = Row::find_by_statement(statement(tx, &sql, values)).all(tx).await?;
        chosen.extend(rows.into_iter().map(|row| row.id));
    }
    Ok(chosen)
}

/// An endpoint with deliveries that are due, and how many of them may start.
#[derive(Debug, FromQueryResult)]
struct Turn {
    endpoint: Uuid,
    room: i64,
}

/// Endpoints whose turn may come, in order, behind `last` and up to `end`: a walk over the index that reads two
/// entries for each, however many deliveries it has.
async fn turns(
    tx: &impl ConnectionTrait,
    last: Uuid,
    end: Option<Uuid>,
    limit: usize,
) -> Result<Vec<Turn>, DbErr> {
    let bound = if end.is_some() { "AND webhook_endpoint_id <= $3" } else { "" };
    let next = |behind: &str| {
        format!(
            "(SELECT webhook_endpoint_id FROM jobs WHERE {READY} {bound} AND webhook_endpoint_id > {behind} \
             ORDER BY webhook_endpoint_id LIMIT 1)"
        )
    };
    let sql = format!(
        "WITH RECURSIVE turn(endpoint) AS (SELECT {} UNION ALL \
         SELECT {} FROM turn WHERE turn.endpoint IS NOT NULL), \
         rooms AS (SELECT turn.endpoint, CASE WHEN failing_since IS NULL THEN {MOST_AT_ONCE} ELSE 1 END - \
         (SELECT count(*) FROM jobs WHERE webhook_endpoint_id = turn.endpoint AND lease_until IS NOT NULL) AS room \
         FROM turn LEFT JOIN webhook_endpoints ON webhook_endpoints.id = turn.endpoint \
         WHERE turn.endpoint IS NOT NULL AND (SELECT min(run_at) FROM jobs WHERE {READY} \
         AND webhook_endpoint_id = turn.endpoint) <= {}) \
         SELECT endpoint, room FROM rooms WHERE room > 0 LIMIT $2",
        next("$1"),
        next("turn.endpoint"),
        due(tx),
    );
    let mut values: Vec<Value> = vec![last.into(), (limit as u64).into()];
    values.extend(end.map(Value::from));
    Turn::find_by_statement(statement(tx, &sql, values)).all(tx).await
}

/// Cancels deliveries to an endpoint that wait, at most `limit` of them. Nobody is told: nothing of the owner's has
/// changed that it did not change itself.
pub async fn cancel_waiting(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: WebhookEndpointId,
    limit: u32,
) -> Result<u64, DbErr> {
    let values: [Value; 3] = [now.0.into(), limit.into(), id.0.into()];
    cancel(
        tx,
        &format!("SELECT id FROM jobs WHERE {READY} AND webhook_endpoint_id = $3 LIMIT $2"),
        values,
    )
    .await
}

/// Likewise, to all endpoints that are told of nothing any more.
pub async fn cancel_stranded(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    limit: u32,
) -> Result<u64, DbErr> {
    let chosen = format!(
        "SELECT jobs.id FROM webhook_endpoints, jobs WHERE webhook_endpoints.status <> 'enabled' \
         AND webhook_endpoint_id = webhook_endpoints.id AND {READY} LIMIT $2"
    );
    cancel(tx, &chosen, [now.0.into(), limit.into()]).await
}

async fn cancel<const N: usize>(
    tx: &impl ConnectionTrait,
    chosen: &str,
    values: [Value; N],
) -> Result<u64, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE OF jobs SKIP LOCKED" } else { "" };
    let sql = format!(
        "UPDATE jobs SET status = 'cancelled', finished_at = $1 WHERE id IN ({chosen} {lock}) \
         AND status <> 'running' AND finished_at IS NULL"
    );
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected())
}
