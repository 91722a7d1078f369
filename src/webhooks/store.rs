//! The webhook_endpoints table.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::DisabledReason;
use super::EndpointStatus;
use super::EventType;
use super::NewEndpoint;
use crate::clock::Timestamp;
use crate::db;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::WebhookEndpointId;
use crate::owners::Scope;
use crate::page::Page;
use crate::page::Query;

/// An endpoint, as it is stored.
#[derive(Clone, Debug, PartialEq, FromQueryResult)]
pub struct Endpoint {
    pub id: WebhookEndpointId,
    pub owner: String,
    pub name: String,
    pub url: String,
    event_types: String,
    /// Sealed. Only a deleted one has none.
    pub secret: Option<Vec<u8>>,
    pub secret_hint: String,
    pub previous_secret: Option<Vec<u8>>,
    pub previous_until: Option<Timestamp>,
    pub status: String,
    disabled_reason: Option<String>,
    /// Since when nothing was delivered, by the database's clock.
    pub failing_since: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Endpoint {
    pub fn status(&self) -> Result<EndpointStatus, DbErr> {
        self.status.parse().map_err(DbErr::Type)
    }

    pub fn is_enabled(&self) -> bool {
        self.status() == Ok(EndpointStatus::Enabled)
    }

    pub fn disabled_reason(&self) -> Option<&str> {
        self.disabled_reason.as_deref()
    }

    /// As its owner wrote them.
    pub fn event_types(&self) -> Result<Vec<String>, DbErr> {
        serde_json::from_str(&self.event_types).map_err(no_json)
    }

    pub fn set_event_types(&mut self, types: &[EventType]) -> Result<(), DbErr> {
        self.event_types = json(types)?;
        Ok(())
    }

    /// What it did before is forgotten: from now on it is judged anew.
    pub fn enable(&mut self) {
        self.status = EndpointStatus::Enabled.to_string();
        self.disabled_reason = None;
        self.failing_since = None;
    }

    pub fn disable(&mut self, reason: DisabledReason) {
        self.status = EndpointStatus::Disabled.to_string();
        self.disabled_reason = Some(reason.to_string());
    }
}

const SELECT: &str = "SELECT id, owner, name, url, event_types, secret, secret_hint, previous_secret, \
     previous_until, status, disabled_reason, failing_since, created_at, updated_at FROM webhook_endpoints";

/// How many endpoints an owner has. On PostgreSQL nobody makes it another until the transaction ends.
pub async fn count(tx: &impl ConnectionTrait, owner: &str) -> Result<i64, DbErr> {
    #[derive(FromQueryResult)]
    struct Count {
        count: i64,
    }
    if is_postgres(tx) {
        let sql = "SELECT pg_advisory_xact_lock(hashtext('longshore.webhooks'), hashtext($1))";
        tx.execute_raw(statement(tx, sql, [owner.into()])).await?;
    }
    let sql =
        "SELECT count(*) AS count FROM webhook_endpoints WHERE owner = $1 AND status <> 'deleted'";
    let count = Count::find_by_statement(statement(tx, sql, [owner.into()])).one(tx).await?;
    Ok(count.map_or(0, |row| row.count))
}

pub async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    new: &NewEndpoint,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO webhook_endpoints (id, owner, name, url, event_types, secret, secret_hint, status, \
               created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 'enabled', $8, $8)";
    let values: [Value; 8] = [
        new.id.0.into(),
        new.owner.clone().into(),
        new.name.clone().into(),
        new.url.clone().into(),
        json(&new.event_types)?.into(),
        new.secret.bytes.clone().into(),
        new.secret.hint.clone().into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// An endpoint that is not deleted.
pub async fn find(
    db: &impl ConnectionTrait,
    id: WebhookEndpointId,
) -> Result<Option<Endpoint>, DbErr> {
    let sql = format!("{SELECT} WHERE id = $1 AND status <> 'deleted'");
    Endpoint::find_by_statement(statement(db, &sql, [id.0.into()])).one(db).await
}

/// As [`find`]. On PostgreSQL nobody else changes it until the transaction ends.
pub async fn lock(
    tx: &impl ConnectionTrait,
    id: WebhookEndpointId,
) -> Result<Option<Endpoint>, DbErr> {
    let lock = if is_postgres(tx) { "FOR UPDATE" } else { "" };
    let sql = format!("{SELECT} WHERE id = $1 AND status <> 'deleted' {lock}");
    Endpoint::find_by_statement(statement(tx, &sql, [id.0.into()])).one(tx).await
}

/// Whose an endpoint is or was: a list may go on behind one that was deleted since.
pub async fn owner(
    db: &impl ConnectionTrait,
    id: WebhookEndpointId,
) -> Result<Option<String>, DbErr> {
    let sql = "SELECT owner FROM webhook_endpoints WHERE id = $1";
    let row = db.query_one_raw(statement(db, sql, [id.0.into()])).await?;
    row.map(|row| row.try_get("", "owner")).transpose()
}

/// The newest endpoints of all owners, at most `limit`.
pub async fn newest(db: &impl ConnectionTrait, limit: u32) -> Result<Vec<Endpoint>, DbErr> {
    let sql = format!("{SELECT} WHERE status <> 'deleted' ORDER BY id DESC LIMIT $1");
    Endpoint::find_by_statement(statement(db, &sql, [limit.into()])).all(db).await
}

/// One page of endpoints, `page.limit + 1` at most: the one more tells that there is another page.
pub async fn list(
    db: &impl ConnectionTrait,
    scope: &Scope,
    page: &Page<WebhookEndpointId>,
) -> Result<Vec<Endpoint>, DbErr> {
    let mut query = Query::new(SELECT);
    query.filter("status <>", "deleted");
    if let Scope::Owner(owner) = scope {
        query.filter("owner =", owner.clone());
    }
    let (sql, values) = query.finish("id", page.after.map(|id| id.0), page);
    Endpoint::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// Writes what [`lock`] read and its caller changed.
pub async fn save(tx: &impl ConnectionTrait, endpoint: &Endpoint) -> Result<(), DbErr> {
    let sql = "UPDATE webhook_endpoints SET name = $2, url = $3, event_types = $4, secret = $5, secret_hint = $6, \
               previous_secret = $7, previous_until = $8, status = $9, disabled_reason = $10, failing_since = $11, \
               updated_at = $12 WHERE id = $1 AND status <> 'deleted'";
    let values: [Value; 12] = [
        endpoint.id.0.into(),
        endpoint.name.clone().into(),
        endpoint.url.clone().into(),
        endpoint.event_types.clone().into(),
        endpoint.secret.clone().into(),
        endpoint.secret_hint.clone().into(),
        endpoint.previous_secret.clone().into(),
        endpoint.previous_until.map(|at| at.0).into(),
        endpoint.status.clone().into(),
        endpoint.disabled_reason.clone().into(),
        endpoint.failing_since.map(|at| at.0).into(),
        endpoint.updated_at.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Deletes an endpoint, its secrets with it. `false` when it is deleted already.
pub async fn bury(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: WebhookEndpointId,
) -> Result<bool, DbErr> {
    let sql = "UPDATE webhook_endpoints SET status = 'deleted', deleted_at = $2, url = '', secret = NULL, \
               secret_hint = '', previous_secret = NULL, previous_until = NULL, disabled_reason = NULL \
               WHERE id = $1 AND status <> 'deleted'";
    let values: [Value; 2] = [id.0.into(), now.0.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected() == 1)
}

/// Forgets the secrets that were replaced and are not good any more.
pub async fn forget_previous(tx: &impl ConnectionTrait, now: Timestamp) -> Result<u64, DbErr> {
    let sql = "UPDATE webhook_endpoints SET previous_secret = NULL, previous_until = NULL \
               WHERE previous_until IS NOT NULL AND previous_until < $1";
    Ok(tx.execute_raw(statement(tx, sql, [now.0.into()])).await?.rows_affected())
}

/// Forgets endpoints that were deleted before `before`, at most `limit` of them.
pub async fn prune(tx: &impl ConnectionTrait, before: Timestamp, limit: u32) -> Result<u64, DbErr> {
    let sql = "DELETE FROM webhook_endpoints WHERE id IN (SELECT id FROM webhook_endpoints \
               WHERE deleted_at IS NOT NULL AND deleted_at < $1 ORDER BY deleted_at LIMIT $2)";
    let values: [Value; 2] = [before.0.into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected())
}

/// An endpoint that may be told of an event.
#[derive(Clone, Debug, FromQueryResult)]
pub struct Listener {
    pub id: WebhookEndpointId,
    pub owner: String,
    event_types: String,
}

impl Listener {
    pub fn listens_to(&self, event_type: EventType) -> bool {
        let types: Vec<String> = serde_json::from_str(&self.event_types).unwrap_or_default();
        types.iter().any(|name| name == event_type.as_str())
    }
}

/// The listeners of owners that a list in parentheses is to follow. An index holds these alone.
pub const LISTENING: &str =
    "SELECT id, owner, event_types FROM webhook_endpoints WHERE status = 'enabled' AND owner IN";

/// The endpoints of these owners that are told of anything.
pub async fn listening(db: &impl ConnectionTrait, owners: &[&str]) -> Result<Vec<Listener>, DbErr> {
    let sql = format!("{LISTENING} ({})", placeholders(1, owners.len()));
    let values: Vec<Value> = owners.iter().map(|owner| (*owner).into()).collect();
    Listener::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// Notes that a delivery failed, if nothing has failed since the last success.
pub async fn note_failure(tx: &impl ConnectionTrait, id: WebhookEndpointId) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE webhook_endpoints SET failing_since = {} WHERE id = $1 AND status = 'enabled' AND failing_since IS NULL",
        db::now(tx)
    );
    tx.execute_raw(statement(tx, &sql, [id.0.into()])).await.map(|_| ())
}

/// Notes that a delivery got through.
pub async fn note_success(tx: &impl ConnectionTrait, id: WebhookEndpointId) -> Result<(), DbErr> {
    let sql = "UPDATE webhook_endpoints SET failing_since = NULL \
               WHERE id = $1 AND status = 'enabled' AND failing_since IS NOT NULL";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// Disables an endpoint that is enabled; with `failing_by`, only if it has been failing since then.
pub async fn disable(
    tx: &impl ConnectionTrait,
    id: WebhookEndpointId,
    reason: DisabledReason,
    failing_by: Option<Timestamp>,
) -> Result<bool, DbErr> {
    let condition = if failing_by.is_some() { "AND failing_since <= $3" } else { "" };
    let sql = format!(
        "UPDATE webhook_endpoints SET status = 'disabled', disabled_reason = $2 \
         WHERE id = $1 AND status = 'enabled' {condition}"
    );
    let mut values: Vec<Value> = vec![id.0.into(), reason.as_str().into()];
    values.extend(failing_by.map(|at| Value::from(at.0)));
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() == 1)
}

fn json(types: &[EventType]) -> Result<String, DbErr> {
    let words: Vec<_> = types.iter().map(|event_type| event_type.as_str()).collect();
    serde_json::to_string(&words).map_err(no_json)
}

fn no_json(error: serde_json::Error) -> DbErr {
    DbErr::Json(error.to_string())
}
