//! When a run is looked at, and what is seen.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Run;
use super::clock;
use super::select;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::is_postgres;
use crate::db::statement;
use crate::ids::RunId;

/// A run that has ended is not looked at any more.
pub async fn forget_looks(tx: &impl ConnectionTrait, id: RunId) -> Result<(), DbErr> {
    let sql = "UPDATE batch_runs SET next_look_at = NULL, waits_for = NULL WHERE id = $1";
    tx.execute_raw(statement(tx, sql, [id.0.into()])).await.map(|_| ())
}

/// Whether a provider shows another batch of ours: then the account is the right one.
pub async fn shows_others(
    db: &impl ConnectionTrait,
    provider: &str,
    but: RunId,
) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM batch_runs WHERE provider = $1 AND next_look_at IS NOT NULL \
               AND missed_since IS NULL AND provider_status IS NOT NULL AND id <> $2 LIMIT 1";
    let values: [Value; 2] = [provider.into(), but.0.into()];
    Ok(db.query_one_raw(statement(db, sql, values)).await?.is_some())
}

/// What a provider shows of a batch that has not ended.
#[derive(Clone, Debug)]
pub struct Seen<'s> {
    pub provider_status: &'s str,
    /// Total, completed, failed.
    pub counts: Option<(i64, i64, i64)>,
    pub expires_at: Option<Timestamp>,
    pub next_look_in: Duration,
    pub looks_alike: i32,
}

pub async fn seen(tx: &impl ConnectionTrait, id: RunId, seen: &Seen<'_>) -> Result<(), DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET provider_status = $2, total = COALESCE($3, total), \
         completed = COALESCE($4, completed), failed = COALESCE($5, failed), \
         expires_at = COALESCE($6, expires_at), next_look_at = {} + $7, looks_alike = $8, missed_since = NULL \
         WHERE id = $1 AND outcome IS NULL AND ended_at IS NULL",
        db::now(tx)
    );
    let sql = if is_postgres(tx) {
        ["$3", "$4", "$5", "$6"]
            .iter()
            .fold(sql, |sql, name| sql.replace(name, &format!("{name}::bigint")))
    } else {
        sql
    };
    let (total, completed, failed) = match seen.counts {
        Some((total, completed, failed)) => (Some(total), Some(completed), Some(failed)),
        None => (None, None, None),
    };
    let values: [Value; 8] = [
        id.0.into(),
        seen.provider_status.into(),
        total.into(),
        completed.into(),
        failed.into(),
        seen.expires_at.map(|at| at.0).into(),
        millis(seen.next_look_in).into(),
        seen.looks_alike.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Runs that look as before: only when to look next is written, of many at once.
pub async fn look_later(
    tx: &impl ConnectionTrait,
    runs: &[(RunId, Duration)],
) -> Result<(), DbErr> {
    for chunk in runs.chunks(200) {
        let mut values: Vec<Value> = Vec::with_capacity(chunk.len() * 2);
        let mut cases = String::new();
        for (place, (id, rest)) in chunk.iter().enumerate() {
            values.extend([Value::from(id.0), millis(*rest).into()]);
            let (id, rest) = (place * 2 + 1, place * 2 + 2);
            cases.push_str(&format!(" WHEN ${id} THEN {}", bigint(tx, rest)));
        }
        let ids: Vec<_> = (0..chunk.len()).map(|place| format!("${}", place * 2 + 1)).collect();
        let sql = format!(
            "UPDATE batch_runs SET next_look_at = {} + CASE id{cases} ELSE 0 END, \
             looks_alike = looks_alike + 1, missed_since = NULL \
             WHERE id IN ({}) AND next_look_at IS NOT NULL",
            db::now(tx),
            ids.join(", ")
        );
        tx.execute_raw(statement(tx, &sql, values)).await?;
    }
    Ok(())
}

fn bigint(db: &impl ConnectionTrait, place: usize) -> String {
    if is_postgres(db) { format!("${place}::bigint") } else { format!("${place}") }
}

/// A batch that its provider did not show: since now, if it was there before, and when to look again.
pub async fn missed(
    tx: &impl ConnectionTrait,
    id: RunId,
    next_look_in: Duration,
) -> Result<(), DbErr> {
    let now = db::now(tx);
    let sql = format!(
        "UPDATE batch_runs SET missed_since = COALESCE(missed_since, {now}), next_look_at = {now} + $2 \
         WHERE id = $1 AND next_look_at IS NOT NULL"
    );
    let values: [Value; 2] = [id.0.into(), millis(next_look_in).into()];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// The runs at a provider whose next look is due, or will be within `soon`, the longest overdue first; at most `limit`.
pub async fn due(
    db: &impl ConnectionTrait,
    provider: &str,
    soon: Duration,
    limit: u32,
) -> Result<Vec<Run>, DbErr> {
    let sql = format!(
        "{} WHERE r.provider = $1 AND r.next_look_at <= {} + $3 ORDER BY r.next_look_at LIMIT $2",
        select(db),
        clock(db)
    );
    let values: [Value; 3] = [provider.into(), i64::from(limit).into(), millis(soon).into()];
    Run::find_by_statement(statement(db, &sql, values)).all(db).await
}

/// How long it is to the next look at a provider, zero where it is due; none where nothing is to be looked at.
pub async fn next_look(
    db: &impl ConnectionTrait,
    provider: &str,
) -> Result<Option<Duration>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        rest: Option<i64>,
    }
    let sql = format!(
        "SELECT min(next_look_at) - {} AS rest FROM batch_runs WHERE provider = $1 AND next_look_at IS NOT NULL",
        db::now(db)
    );
    let row = Row::find_by_statement(statement(db, &sql, [provider.into()])).one(db).await?;
    let rest = row.and_then(|row| row.rest);
    Ok(rest.map(|rest| Duration::from_millis(u64::try_from(rest).unwrap_or(0))))
}

/// Makes the next look at a provider's batch due. `false` where no run that is looked at is that batch.
pub async fn look_now(
    tx: &impl ConnectionTrait,
    provider: &str,
    provider_batch_id: &str,
) -> Result<bool, DbErr> {
    let sql = format!(
        "UPDATE batch_runs SET next_look_at = {}, looks_alike = 0 \
         WHERE provider = $1 AND provider_batch_id = $2 AND next_look_at IS NOT NULL",
        db::now(tx)
    );
    let values: [Value; 2] = [provider.into(), provider_batch_id.into()];
    Ok(tx.execute_raw(statement(tx, &sql, values)).await?.rows_affected() > 0)
}

/// The providers with batches that are to be looked at.
pub async fn watched_providers(db: &impl ConnectionTrait) -> Result<Vec<String>, DbErr> {
    let sql = "SELECT DISTINCT provider FROM batch_runs WHERE next_look_at IS NOT NULL";
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    rows.iter().map(|row| row.try_get("", "provider")).collect()
}
