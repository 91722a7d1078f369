//! Idempotency: a repeated creating request gets the first answer again and makes nothing new.
//!
//! With a key, a record is committed before the body is read, and completed in the transaction that
//! creates; one whose process died can be taken over. Without a key, a request of an official SDK
//! (they send a retry count, but no key) leaves its answer until it was sent to its end, so that the
//! SDK's own repetition after a lost connection finds it.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::db::placeholders;
use crate::db::statement;

/// How long the first answer is kept for a key.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How long an answer is kept for an SDK that repeats a request without a key.
pub const KEPT_WITHOUT_KEY: Duration = Duration::from_secs(15 * 60);
/// A running request whose process has not renewed its hold for this long can be taken over.
pub const HOLD: Duration = Duration::from_secs(30);

/// A running or completed creating request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordId(pub Uuid);

/// Whose request it is, and to where: a key means nothing outside it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    pub owner: &'a str,
    pub path: &'a str,
}

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is new, or was left behind by a process that died: the request may run, and holds the record.
    Fresh(RecordId),
    /// The first request is still running.
    Running,
    /// It was answered. The answer is for the same content only.
    Answered { fingerprint: Vec<u8>, response: String },
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    fingerprint: Option<Vec<u8>>,
    held_until: Option<Timestamp>,
    response: Option<String>,
    created_at: Timestamp,
}

/// Takes hold of a key, or says what became of it.
pub async fn begin(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    request: &Request<'_>,
    key: &str,
    holder: &str,
) -> Result<Begun, DbErr> {
    let id = Uuid::now_v7();
    let insert = "INSERT INTO idempotency_keys (id, owner, path, idempotency_key, holder, held_until, created_at) \
                  VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (owner, path, idempotency_key) DO NOTHING";
    let values: [Value; 7] = [
        id.into(),
        request.owner.into(),
        request.path.into(),
        key.into(),
        holder.into(),
        now.after(HOLD).0.into(),
        now.0.into(),
    ];
    if tx.execute_raw(statement(tx, insert, values)).await?.rows_affected() == 1 {
        return Ok(Begun::Fresh(RecordId(id)));
    }
    let select = "SELECT id, fingerprint, held_until, response, created_at FROM idempotency_keys \
                  WHERE owner = $1 AND path = $2 AND idempotency_key = $3";
    let values: [Value; 3] = [request.owner.into(), request.path.into(), key.into()];
    let Some(row) = Row::find_by_statement(statement(tx, select, values)).one(tx).await? else {
        // Ended between the two statements (PostgreSQL): as good as running, and the client comes again.
        return Ok(Begun::Running);
    };
    let is_over = row.response.is_some() && row.created_at < now.before(KEPT);
    let is_abandoned = row.held_until.is_some_and(|until| until < now);
    if is_over || is_abandoned {
        let take = "UPDATE idempotency_keys SET holder = $2, held_until = $3, response = NULL, fingerprint = NULL, \
                    created_at = $4 WHERE id = $1 AND (held_until IS NULL OR held_until < $4)";
        let values: [Value; 4] =
            [row.id.into(), holder.into(), now.after(HOLD).0.into(), now.0.into()];
        let taken = tx.execute_raw(statement(tx, take, values)).await?.rows_affected() == 1;
        return Ok(if taken { Begun::Fresh(RecordId(row.id)) } else { Begun::Running });
    }
    match (row.fingerprint, row.response) {
        (Some(fingerprint), Some(response)) => Ok(Begun::Answered { fingerprint, response }),
        _ => Ok(Begun::Running),
    }
}

/// Prolongs the holds of a process on requests that are still running. Run every third of [`HOLD`]
/// while there are any. A record that is not among them, since nobody runs it any more, lapses.
pub async fn renew(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    holder: &str,
    running: &[RecordId],
) -> Result<(), DbErr> {
    for chunk in running.chunks(500) {
        let sql = format!(
            "UPDATE idempotency_keys SET held_until = $2 WHERE holder = $1 AND id IN ({})",
            placeholders(3, chunk.len())
        );
        let mut values: Vec<Value> = vec![holder.into(), now.after(HOLD).0.into()];
        values.extend(chunk.iter().map(|id| Value::from(id.0)));
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// Stores the answer, in the transaction that creates. `false` when the record was taken over: then
/// nothing may be created.
pub async fn complete(
    tx: &impl ConnectionTrait,
    id: RecordId,
    holder: &str,
    fingerprint: &[u8],
    response: &str,
) -> Result<bool, DbErr> {
    let sql = "UPDATE idempotency_keys SET holder = NULL, held_until = NULL, fingerprint = $3, response = $4 \
               WHERE id = $1 AND holder = $2";
    let values: [Value; 4] = [id.0.into(), holder.into(), fingerprint.into(), response.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 1)
}

/// Forgets a request that ended without making anything.
pub async fn release(tx: &impl ConnectionTrait, id: RecordId, holder: &str) -> Result<(), DbErr> {
    let sql = "DELETE FROM idempotency_keys WHERE id = $1 AND holder = $2";
    tx.execute_raw(statement(tx, sql, [id.0.into(), holder.into()])).await.map(|_| ())
}

/// The answer to an equal request without a key that may not have reached its client.
pub async fn unanswered(
    db: &impl ConnectionTrait,
    now: Timestamp,
    request: &Request<'_>,
    fingerprint: &[u8],
) -> Result<Option<String>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        response: String,
    }
    let sql = "SELECT response FROM idempotency_keys WHERE owner = $1 AND path = $2 AND fingerprint = $3 \
               AND idempotency_key IS NULL AND created_at >= $4 AND response IS NOT NULL \
               ORDER BY created_at DESC LIMIT 1";
    let values: [Value; 4] = [
        request.owner.into(),
        request.path.into(),
        fingerprint.into(),
        now.before(KEPT_WITHOUT_KEY).0.into(),
    ];
    let row = Row::find_by_statement(statement(db, sql, values)).one(db).await?;
    Ok(row.map(|row| row.response))
}

/// Keeps the answer to a request without a key, in the transaction that creates, until it was sent.
pub async fn keep(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    request: &Request<'_>,
    id: RecordId,
    fingerprint: &[u8],
    response: &str,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO idempotency_keys (id, owner, path, fingerprint, response, created_at) \
               VALUES ($1, $2, $3, $4, $5, $6)";
    let values: [Value; 6] = [
        id.0.into(),
        request.owner.into(),
        request.path.into(),
        fingerprint.into(),
        response.into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Forgets answers that were sent to their end.
pub async fn sent(tx: &impl ConnectionTrait, ids: &[RecordId]) -> Result<(), DbErr> {
    for chunk in ids.chunks(500) {
        let sql = format!(
            "DELETE FROM idempotency_keys WHERE idempotency_key IS NULL AND id IN ({})",
            placeholders(1, chunk.len())
        );
        let values: Vec<Value> = chunk.iter().map(|id| id.0.into()).collect();
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

/// Forgets records older than they are kept, at most `limit` of them.
pub async fn prune(tx: &impl ConnectionTrait, now: Timestamp, limit: u32) -> Result<u64, DbErr> {
    let sql = "DELETE FROM idempotency_keys WHERE id IN (SELECT id FROM idempotency_keys \
               WHERE (holder IS NULL OR held_until < $2) AND created_at < $1 ORDER BY created_at LIMIT $3)";
    let values: [Value; 3] = [now.before(KEPT).0.into(), now.0.into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected())
}
