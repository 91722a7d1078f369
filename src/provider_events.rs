//! What providers told by their own webhooks. An event only makes the next look due: it says nothing that the
//! provider is not asked about again.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::Value;

use crate::clock::Timestamp;
use crate::db::statement;
use crate::runs;
use crate::runs::observation;

/// Takes an event about a batch. `false` when it had come before.
///
/// # Errors
///
/// What the database says.
pub async fn receive(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    provider: &str,
    event_id: &str,
    provider_batch_id: &str,
) -> Result<bool, DbErr> {
    let sql = "INSERT INTO provider_events (provider, event_id, provider_batch_id, received_at) \
               VALUES ($1, $2, $3, $4) ON CONFLICT (provider, event_id) DO NOTHING";
    let values: [Value; 4] =
        [provider.into(), event_id.into(), provider_batch_id.into(), now.0.into()];
    if tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 0 {
        return Ok(false);
    }
    // One that is not known here may be known in a moment: its create has not been answered yet.
    if runs::store::look_now(tx, provider, provider_batch_id).await? {
        observation::watch(tx, now, provider).await?;
    }
    Ok(true)
}

/// Whether an event about a batch has come.
pub async fn has_come(
    db: &impl ConnectionTrait,
    provider: &str,
    provider_batch_id: &str,
) -> Result<bool, DbErr> {
    let sql =
        "SELECT 1 FROM provider_events WHERE provider = $1 AND provider_batch_id = $2 LIMIT 1";
    let values: [Value; 2] = [provider.into(), provider_batch_id.into()];
    Ok(db.query_one_raw(statement(db, sql, values)).await?.is_some())
}

/// Forgets events that came before `before`, at most `limit` of them.
pub async fn prune(tx: &impl ConnectionTrait, before: Timestamp, limit: u32) -> Result<u64, DbErr> {
    let sql = "DELETE FROM provider_events WHERE (provider, event_id) IN (SELECT provider, event_id \
               FROM provider_events WHERE received_at < $1 ORDER BY received_at LIMIT $2)";
    let values: [Value; 2] = [before.0.into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected())
}
