//! Events: what changed, written in the transaction that changed it, for all who wait for it.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;
use serde::Serialize;
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::BatchId;
use crate::ids::EventId;
use crate::ids::FileId;
use crate::ids::JobId;

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    FileCreated,
    FileProcessed,
    FileFailed,
    /// It is gone for its client.
    FileDeleted,
    /// It is gone at every provider, or somebody has to see to what is not.
    FilePurged,
    BatchCreated,
    BatchInProgress,
    BatchFinalizing,
    BatchCancelling,
    BatchCompleted,
    BatchFailed,
    BatchExpired,
    BatchCancelled,
    SweepCompleted,
    JobSucceeded,
    JobFailed,
    JobCancelled,
}

impl EventKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FileCreated => "file.created",
            Self::FileProcessed => "file.processed",
            Self::FileFailed => "file.failed",
            Self::FileDeleted => "file.deleted",
            Self::FilePurged => "file.purged",
            Self::BatchCreated => "batch.created",
            Self::BatchInProgress => "batch.in_progress",
            Self::BatchFinalizing => "batch.finalizing",
            Self::BatchCancelling => "batch.cancelling",
            Self::BatchCompleted => "batch.completed",
            Self::BatchFailed => "batch.failed",
            Self::BatchExpired => "batch.expired",
            Self::BatchCancelled => "batch.cancelled",
            Self::SweepCompleted => "sweep.completed",
            Self::JobSucceeded => "job.succeeded",
            Self::JobFailed => "job.failed",
            Self::JobCancelled => "job.cancelled",
        }
    }
}

/// A change of state, and whose thing changed.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    pub owner: String,
    /// The file, batch, job or sweep.
    pub subject: Uuid,
}

impl Event {
    pub fn of_file(kind: EventKind, owner: &str, file: FileId) -> Self {
        Self { kind, owner: owner.to_owned(), subject: file.0 }
    }

    pub fn of_batch(kind: EventKind, owner: &str, batch: BatchId) -> Self {
        Self { kind, owner: owner.to_owned(), subject: batch.0 }
    }

    pub fn of_job(kind: EventKind, owner: &str, job: JobId) -> Self {
        Self { kind, owner: owner.to_owned(), subject: job.0 }
    }
}

pub async fn append(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    events: &[Event],
) -> Result<(), DbErr> {
    if events.is_empty() {
        return Ok(());
    }
    if is_postgres(tx) {
        return append_together(tx, now, events).await;
    }
    const COLUMNS: usize = 5;
    let mut values: Vec<Value> = Vec::with_capacity(events.len() * COLUMNS);
    for event in events {
        values.extend([
            EventId::mint().0.into(),
            event.owner.clone().into(),
            event.kind.as_str().into(),
            event.subject.into(),
            now.0.into(),
        ]);
    }
    let rows: Vec<_> = (0..events.len())
        .map(|row| format!("({})", placeholders(row * COLUMNS + 1, COLUMNS)))
        .collect();
    let sql = format!(
        "INSERT INTO events (id, owner, type, subject, created_at) VALUES {}",
        rows.join(", ")
    );
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// As JSON: workers report any number at once, and the text is the same for all, so PostgreSQL plans it once.
async fn append_together(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    events: &[Event],
) -> Result<(), DbErr> {
    #[derive(Serialize)]
    struct Row<'e> {
        id: Uuid,
        owner: &'e str,
        kind: &'static str,
        subject: Uuid,
    }
    let rows: Vec<_> = events
        .iter()
        .map(|event| Row {
            id: EventId::mint().0,
            owner: &event.owner,
            kind: event.kind.as_str(),
            subject: event.subject,
        })
        .collect();
    let rows = serde_json::to_string(&rows).map_err(|error| DbErr::Json(error.to_string()))?;
    let sql = "INSERT INTO events (id, owner, type, subject, created_at) \
               SELECT id, owner, kind, subject, $2 \
               FROM json_to_recordset($1::json) AS given(id uuid, owner text, kind text, subject uuid)";
    let values: [Value; 2] = [rows.into(), now.0.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// A place in the order of events: everything before it has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    txid: i64,
    seq: i64,
}

#[derive(Debug, FromQueryResult)]
struct Row {
    txid: i64,
    seq: i64,
    subject: Uuid,
}

/// PostgreSQL: transactions commit out of the order of their numbers. Only what lies below the oldest
/// one still running is read; nothing can appear below it any more.
const VISIBLE: &str = "txid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

/// The end of what can be read now.
pub async fn tail(db: &impl ConnectionTrait) -> Result<Cursor, DbErr> {
    #[derive(FromQueryResult)]
    struct End {
        txid: i64,
        seq: i64,
    }
    let visible = if is_postgres(db) { VISIBLE } else { "txid = 0" };
    let sql = format!(
        "SELECT txid, CAST(seq AS BIGINT) AS seq FROM events WHERE {visible} \
         ORDER BY events.txid DESC, events.seq DESC LIMIT 1"
    );
    let end = End::find_by_statement(statement(db, &sql, [])).one(db).await?;
    Ok(end.map(|end| Cursor { txid: end.txid, seq: end.seq }).unwrap_or_default())
}

/// The subjects of the events behind `cursor`, at most `limit`, and the place behind them.
pub async fn subjects_behind(
    db: &impl ConnectionTrait,
    cursor: Cursor,
    limit: u64,
) -> Result<(Vec<Uuid>, Cursor), DbErr> {
    let visible = if is_postgres(db) { VISIBLE } else { "txid = 0" };
    let sql = format!(
        "SELECT txid, CAST(seq AS BIGINT) AS seq, subject FROM events \
         WHERE {visible} AND (txid, seq) > ($1, $2) ORDER BY events.txid, events.seq LIMIT $3"
    );
    let values: [Value; 3] = [cursor.txid.into(), cursor.seq.into(), limit.into()];
    let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
    let behind = rows.last().map_or(cursor, |row| Cursor { txid: row.txid, seq: row.seq });
    Ok((rows.into_iter().map(|row| row.subject).collect(), behind))
}

/// Forgets events older than `before`, at most `limit` of them.
pub async fn prune(tx: &impl ConnectionTrait, before: Timestamp, limit: u32) -> Result<u64, DbErr> {
    let sql = "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE created_at < $1 \
               ORDER BY created_at LIMIT $2)";
    let values: [Value; 2] = [before.0.into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected())
}
