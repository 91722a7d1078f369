//! Events: what changed, written in the transaction that changed it, for all who wait for it.

use std::collections::HashMap;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;
use serde::Serialize;
use uuid::Uuid;

use crate::batches;
use crate::clock::Timestamp;
use crate::db::is_postgres;
use crate::db::placeholders;
use crate::db::statement;
use crate::files;
use crate::ids::BatchId;
use crate::ids::EventId;
use crate::ids::FileId;
use crate::ids::JobId;
use crate::ids::SweepId;
use crate::jobs::DELIVER_WEBHOOK;
use crate::jobs::Ending;
use crate::owners::Scope;
use crate::webhooks;
use crate::webhooks::Announcement;
use crate::webhooks::EventType;
use crate::webhooks::store::Listener;

/// Who wants to resume a stream of events has this long.
pub const KEPT: Duration = Duration::from_hours(24);

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
    /// A `job.failed` that no webhook tells of: it is of a webhook.
    DeliveryFailed,
}

impl EventKind {
    /// What is said of a job's attempt that ended like this, if anything is.
    pub fn of_ending(ending: &Ending, job_kind: &str) -> Option<Self> {
        match ending {
            Ending::Succeeded => Some(Self::JobSucceeded),
            Ending::Failed(_) if job_kind == DELIVER_WEBHOOK => Some(Self::DeliveryFailed),
            Ending::Failed(_) => Some(Self::JobFailed),
            Ending::Cancelled => Some(Self::JobCancelled),
            Ending::Retry { .. } => None,
        }
    }

    /// What webhooks call it, if they tell of it.
    pub const fn announced(self) -> Option<EventType> {
        match self {
            Self::FileProcessed => Some(EventType::FileProcessed),
            Self::FileFailed => Some(EventType::FileFailed),
            Self::FileDeleted => Some(EventType::FileDeleted),
            Self::SweepCompleted => Some(EventType::SweepCompleted),
            Self::JobFailed => Some(EventType::JobFailed),
            Self::BatchCompleted => Some(EventType::BatchCompleted),
            Self::BatchFailed => Some(EventType::BatchFailed),
            Self::BatchExpired => Some(EventType::BatchExpired),
            Self::BatchCancelled => Some(EventType::BatchCancelled),
            Self::BatchCreated
            | Self::BatchInProgress
            | Self::BatchFinalizing
            | Self::BatchCancelling
            | Self::FileCreated
            | Self::FilePurged
            | Self::JobSucceeded
            | Self::JobCancelled
            | Self::DeliveryFailed => None,
        }
    }

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
            Self::JobFailed | Self::DeliveryFailed => "job.failed",
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

/// Writes events, and the deliveries of those that somebody's webhooks tell of.
///
/// Where nobody has any, that costs no statement on PostgreSQL, and on SQLite one look into an empty index.
pub async fn append(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    events: &[Event],
) -> Result<(), DbErr> {
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = events.iter().map(|_| EventId::mint()).collect();
    let announcements: Vec<_> = events
        .iter()
        .zip(&ids)
        .filter_map(|(event, id)| {
            let event_type = event.kind.announced()?;
            Some(Announcement { id: *id, owner: &event.owner, event_type, subject: event.subject })
        })
        .collect();
    let listeners = if is_postgres(tx) {
        insert_together(tx, now, events, &ids, !announcements.is_empty()).await?
    } else {
        insert(tx, now, events, &ids).await?;
        listeners(tx, &announcements).await?
    };
    webhooks::announce(tx, now, &announcements, &listeners).await
}

async fn insert(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    events: &[Event],
    ids: &[EventId],
) -> Result<(), DbErr> {
    const COLUMNS: usize = 5;
    let mut values: Vec<Value> = Vec::with_capacity(events.len() * COLUMNS);
    for (event, id) in events.iter().zip(ids) {
        values.extend([
            id.0.into(),
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

/// Who may be told of these.
async fn listeners(
    tx: &impl ConnectionTrait,
    announcements: &[Announcement<'_>],
) -> Result<Vec<Listener>, DbErr> {
    let mut owners: Vec<_> = announcements.iter().map(|event| event.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    if owners.is_empty() { Ok(Vec::new()) } else { webhooks::store::listening(tx, &owners).await }
}

/// As JSON: workers report any number at once, and the text is the same for all, so PostgreSQL plans it once. Who
/// listens to their owners is answered by the same statement, if that is `wanted`.
async fn insert_together(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    events: &[Event],
    ids: &[EventId],
    wanted: bool,
) -> Result<Vec<Listener>, DbErr> {
    #[derive(Serialize)]
    struct Row<'e> {
        id: Uuid,
        owner: &'e str,
        kind: &'static str,
        subject: Uuid,
    }
    let rows: Vec<_> = events
        .iter()
        .zip(ids)
        .map(|(event, id)| Row {
            id: id.0,
            owner: &event.owner,
            kind: event.kind.as_str(),
            subject: event.subject,
        })
        .collect();
    let rows = serde_json::to_string(&rows).map_err(|error| DbErr::Json(error.to_string()))?;
    let insert = "INSERT INTO events (id, owner, type, subject, created_at) \
                  SELECT id, owner, kind, subject, $2 \
                  FROM json_to_recordset($1::json) AS given(id uuid, owner text, kind text, subject uuid)";
    let values: [Value; 2] = [rows.into(), now.0.into()];
    if !wanted {
        tx.execute_raw(statement(tx, insert, values)).await?;
        return Ok(Vec::new());
    }
    let listening = webhooks::store::LISTENING;
    let sql = format!(
        "WITH written AS ({insert} RETURNING owner) {listening} (SELECT owner FROM written)"
    );
    Listener::find_by_statement(statement(tx, &sql, values)).all(tx).await
}

/// A place in the order of events: everything before it has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    txid: i64,
    seq: i64,
}

/// PostgreSQL: transactions commit out of the order of their numbers. Only what lies below the oldest
/// one still running is read; nothing can appear below it any more.
const VISIBLE: &str = "txid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint";

impl Cursor {
    /// As a client keeps it. `at` is when nothing before it was missing: later on, what was behind it may be pruned.
    pub fn to_text(self, at: Timestamp) -> String {
        let mut bytes = [0; 24];
        for (part, number) in bytes.chunks_mut(8).zip([self.txid, self.seq, at.0]) {
            part.copy_from_slice(&number.to_be_bytes());
        }
        data_encoding::BASE64URL_NOPAD.encode(&bytes)
    }

    /// Reads what [`Cursor::to_text`] wrote.
    pub fn from_text(text: &str) -> Option<(Self, Timestamp)> {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        let bytes: [u8; 24] = bytes.try_into().ok()?;
        let mut numbers =
            bytes.chunks(8).filter_map(|part| part.try_into().ok().map(i64::from_be_bytes));
        let (txid, seq, at) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some((Self { txid, seq }, Timestamp(at)))
    }
}

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
    match end {
        Some(End { txid, seq }) => Ok(Cursor { txid, seq }),
        None if is_postgres(db) => below_all_that_runs(db).await,
        None => Ok(Cursor::default()),
    }
}

/// The end where no event can be read, on PostgreSQL: there may be some that a transaction hides which began before
/// them, be it one of another database of the server.
async fn below_all_that_runs(db: &impl ConnectionTrait) -> Result<Cursor, DbErr> {
    let sql = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 1 AS txid";
    let row = db.query_one_raw(statement(db, sql, [])).await?;
    let txid = row.map(|row| row.try_get("", "txid")).transpose()?.unwrap_or_default();
    Ok(Cursor { txid, seq: i64::MAX })
}

/// An event that was read.
#[derive(Clone, Debug, PartialEq, Eq, FromQueryResult)]
pub struct Happened {
    txid: i64,
    seq: i64,
    pub id: EventId,
    pub owner: String,
    /// The word of its [`EventKind`], which may be one of a newer version.
    pub kind: String,
    pub subject: Uuid,
    pub created_at: Timestamp,
}

impl Happened {
    /// The place behind it.
    pub fn cursor(&self) -> Cursor {
        Cursor { txid: self.txid, seq: self.seq }
    }
}

/// The events behind `cursor` that `scope` may see, at most `limit`.
pub async fn behind(
    db: &impl ConnectionTrait,
    scope: &Scope,
    cursor: Cursor,
    limit: u64,
) -> Result<Vec<Happened>, DbErr> {
    let visible = if is_postgres(db) { VISIBLE } else { "txid = 0" };
    let (owned, owner) = match scope {
        Scope::Everything => ("", None),
        Scope::Owner(owner) => ("AND owner = $4", Some(owner.clone())),
    };
    let sql = format!(
        "SELECT txid, CAST(seq AS BIGINT) AS seq, id, owner, type AS kind, subject, created_at FROM events \
         WHERE {visible} AND (txid, seq) > ($1, $2) {owned} ORDER BY events.txid, events.seq LIMIT $3"
    );
    let mut values: Vec<Value> = vec![cursor.txid.into(), cursor.seq.into(), limit.into()];
    values.extend(owner.map(Value::from));
    Happened::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// What clients call the subjects of events, each with its event's kind.
pub async fn names(
    db: &impl ConnectionTrait,
    events: &[(&str, Uuid)],
) -> Result<HashMap<Uuid, String>, DbErr> {
    let (mut files, mut batches) = (Vec::new(), Vec::new());
    let mut names = HashMap::with_capacity(events.len());
    for (kind, subject) in events {
        match kind.split_once('.') {
            Some(("file", _)) => files.push(*subject),
            Some(("batch", _)) => batches.push(*subject),
            Some(("sweep", _)) => {
                names.insert(*subject, SweepId(*subject).to_string());
            }
            Some(("job", _)) => {
                names.insert(*subject, JobId(*subject).to_string());
            }
            // Of a newer version.
            _ => {}
        }
    }
    names.extend(files::store::managed_ids(db, &files).await?);
    names.extend(batches::store::managed_ids(db, &batches).await?);
    Ok(names)
}

/// An event in words, for a stream of them.
#[derive(Debug)]
pub struct Told {
    pub cursor: Cursor,
    pub kind: String,
    pub created_at: Timestamp,
    pub json: String,
}

/// Puts events into words.
pub async fn tell(
    db: &impl ConnectionTrait,
    events: Vec<Happened>,
) -> Result<Vec<(Happened, Told)>, DbErr> {
    let subjects: Vec<_> =
        events.iter().map(|event| (event.kind.as_str(), event.subject)).collect();
    let names = names(db, &subjects).await?;
    let told = events.into_iter().map(|event| {
        let unnamed = || event.subject.to_string();
        let name = names.get(&event.subject).cloned().unwrap_or_else(unnamed);
        let json = to_json(event.id, &event.kind, event.created_at, &name);
        let json = json.map_err(|error| DbErr::Json(error.to_string()))?;
        let (kind, created_at) = (event.kind.clone(), event.created_at);
        let told = Told { cursor: event.cursor(), kind, created_at, json };
        Ok((event, told))
    });
    told.collect()
}

/// An event as clients are told of it, by a webhook or in a stream: in OpenAI's shape.
pub fn to_json(
    id: EventId,
    kind: &str,
    created_at: Timestamp,
    subject: &str,
) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Event<'e> {
        id: EventId,
        object: &'static str,
        r#type: &'e str,
        created_at: i64,
        data: Data<'e>,
    }
    #[derive(Serialize)]
    struct Data<'e> {
        /// What is said here is asked for by it.
        id: &'e str,
    }
    serde_json::to_string(&Event {
        id,
        object: "event",
        r#type: kind,
        created_at: created_at.unix_seconds(),
        data: Data { id: subject },
    })
}

/// Forgets events older than `before`, at most `limit` of them.
pub async fn prune(tx: &impl ConnectionTrait, before: Timestamp, limit: u32) -> Result<u64, DbErr> {
    let sql = "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE created_at < $1 \
               ORDER BY created_at LIMIT $2)";
    let values: [Value; 2] = [before.0.into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_order_of_events_reads_back_and_nothing_else_does() {
        let cursor = Cursor { txid: 7, seq: i64::MAX };
        let text = cursor.to_text(Timestamp(5));
        assert_eq!(Cursor::from_text(&text), Some((cursor, Timestamp(5))));
        for other in ["", "x", "evt_x", &text[1..], &format!("{text}AAAA"), "ä"] {
            assert_eq!(Cursor::from_text(other), None, "{other}");
        }
    }
}
