//! The batch_outputs table, which is how far the ingestion of each file is, and batch_results, the lines.

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Indexed;
use super::LineOutcome;
use super::Problem;
use super::Source;
use super::Tally;
use crate::db;
use crate::db::placeholders;
use crate::db::statement;
use crate::ids::RunId;

/// Rows of one statement.
pub const ROWS: usize = 100;

/// How far the ingestion of one file of a run is.
#[derive(Clone, Debug)]
pub struct Output {
    pub source: Source,
    pub provider_file_id: String,
    /// None while its bytes are not here.
    pub stored: Option<Stored>,
    /// The lines before this place are indexed, and counted in `tally`.
    pub indexed_to: i64,
    pub tally: Tally,
}

/// The bytes of a file, in the blob store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub blob_key: String,
    pub bytes: i64,
    pub sha256: String,
}

/// What is known of a run's files.
pub async fn outputs(db: &impl ConnectionTrait, run: RunId) -> Result<Vec<Output>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        source: String,
        provider_file_id: String,
        blob_key: Option<String>,
        bytes: Option<i64>,
        sha256: Option<String>,
        indexed_to: i64,
        lines: i64,
        succeeded: i64,
        failed: i64,
        broken: i64,
        duplicates: i64,
        strangers: i64,
        usage: Option<String>,
    }
    let sql = "SELECT source, provider_file_id, blob_key, bytes, sha256, indexed_to, lines, succeeded, failed, \
               broken, duplicates, strangers, usage FROM batch_outputs WHERE run_id = $1 ORDER BY source DESC";
    let rows = Row::find_by_statement(statement(db, sql, [run.0.into()])).all(db).await?;
    let outputs = rows.into_iter().map(|row| {
        let stored = match (row.blob_key, row.bytes, row.sha256) {
            (Some(blob_key), Some(bytes), Some(sha256)) => Some(Stored { blob_key, bytes, sha256 }),
            _ => None,
        };
        let usage = row.usage.as_deref().map(serde_json::from_str).transpose().map_err(no_json)?;
        Ok(Output {
            source: row.source.parse().map_err(DbErr::Type)?,
            provider_file_id: row.provider_file_id,
            stored,
            indexed_to: row.indexed_to,
            tally: Tally {
                lines: row.lines,
                succeeded: row.succeeded,
                failed: row.failed,
                broken: row.broken,
                duplicates: row.duplicates,
                strangers: row.strangers,
                usage,
            },
        })
    });
    outputs.collect()
}

/// A file that its provider has named is not there. Answers since how long that is so, by the database's clock.
pub async fn missing(
    tx: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    provider_file_id: &str,
) -> Result<Duration, DbErr> {
    let now = db::now(tx);
    let sql = format!(
        "INSERT INTO batch_outputs (run_id, source, provider_file_id, missing_since) VALUES ($1, $2, $3, {now}) \
         ON CONFLICT (run_id, source) DO UPDATE \
         SET missing_since = COALESCE(batch_outputs.missing_since, excluded.missing_since) \
         RETURNING {now} - missing_since AS age"
    );
    let values: [Value; 3] = [run.0.into(), source.as_str().into(), provider_file_id.into()];
    let row = tx.query_one_raw(statement(tx, &sql, values)).await?;
    let age: i64 = row.map(|row| row.try_get("", "age")).transpose()?.unwrap_or(0);
    Ok(Duration::from_millis(u64::try_from(age).unwrap_or(0)))
}

/// The provider answered otherwise: files that are missing again are missing since then.
pub async fn missing_no_more(tx: &impl ConnectionTrait, run: RunId) -> Result<(), DbErr> {
    let sql = "UPDATE batch_outputs SET missing_since = NULL WHERE run_id = $1 AND missing_since IS NOT NULL";
    tx.execute_raw(statement(tx, sql, [run.0.into()])).await.map(|_| ())
}

/// The bytes of a file are here. What is known of them already stays: its lines may be indexed.
pub async fn downloaded(
    tx: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    provider_file_id: &str,
    stored: &Stored,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO batch_outputs (run_id, source, provider_file_id, blob_key, bytes, sha256) \
               VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (run_id, source) DO UPDATE \
               SET blob_key = excluded.blob_key, bytes = excluded.bytes, sha256 = excluded.sha256, \
               missing_since = NULL WHERE batch_outputs.blob_key IS NULL";
    let values: [Value; 6] = [
        run.0.into(),
        source.as_str().into(),
        provider_file_id.into(),
        stored.blob_key.clone().into(),
        stored.bytes.into(),
        stored.sha256.clone().into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// The bytes of a file are not here any more. Without any line of it, it is fetched and read anew.
pub async fn forget_blob(
    tx: &impl ConnectionTrait,
    run: RunId,
    source: Source,
) -> Result<(), DbErr> {
    let sql = "UPDATE batch_outputs SET blob_key = NULL, bytes = NULL, sha256 = NULL, indexed_to = 0, lines = 0, \
               succeeded = 0, failed = 0, broken = 0, duplicates = 0, strangers = 0, usage = NULL \
               WHERE run_id = $1 AND source = $2";
    let values: [Value; 2] = [run.0.into(), source.as_str().into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Deletes lines of a file, at most `limit`. Answers how many.
pub async fn delete_lines(
    tx: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    limit: u32,
) -> Result<u64, DbErr> {
    // A range, since PostgreSQL would join a list of lines with all the rest.
    let sql = "DELETE FROM batch_results WHERE run_id = $1 AND source = $2 AND line <= (SELECT max(line) FROM \
               (SELECT line FROM batch_results WHERE run_id = $1 AND source = $2 ORDER BY line LIMIT $3) AS first)";
    let values: [Value; 3] = [run.0.into(), source.as_str().into(), limit.into()];
    Ok(tx.execute_raw(statement(tx, sql, values)).await?.rows_affected())
}

/// The file of a run that these bytes are.
pub async fn of_blob(
    db: &impl ConnectionTrait,
    blob_key: &str,
) -> Result<Option<(RunId, Source)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        run_id: RunId,
        source: String,
    }
    let sql = "SELECT run_id, source FROM batch_outputs WHERE blob_key = $1";
    let row = Row::find_by_statement(statement(db, sql, [blob_key.into()])).one(db).await?;
    row.map(|row| Ok((row.run_id, row.source.parse().map_err(DbErr::Type)?))).transpose()
}

/// Writes lines, at most [`ROWS`] of them.
pub async fn insert(
    tx: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    lines: &[Indexed],
) -> Result<(), DbErr> {
    const COLUMNS: usize = 7;
    if lines.is_empty() {
        return Ok(());
    }
    let mut values: Vec<Value> = Vec::with_capacity(2 + lines.len() * COLUMNS);
    values.extend([Value::from(run.0), source.as_str().into()]);
    for line in lines {
        values.extend([
            Value::from(line.line),
            line.custom_id.clone().into(),
            line.outcome.as_str().into(),
            line.problem.map(Problem::as_str).into(),
            line.status_code.into(),
            line.begins_at.into(),
            line.length.into(),
        ]);
    }
    let rows: Vec<_> = (0..lines.len())
        .map(|row| format!("($1, $2, {})", placeholders(row * COLUMNS + 3, COLUMNS)))
        .collect();
    let sql = format!(
        "INSERT INTO batch_results (run_id, source, line, custom_id, outcome, problem, status_code, begins_at, length) \
         VALUES {}",
        rows.join(", ")
    );
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// Writes how far a file is, and what its lines came to.
pub async fn indexed(
    tx: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    indexed_to: i64,
    tally: &Tally,
) -> Result<(), DbErr> {
    let usage = tally.usage.as_ref().map(serde_json::to_string).transpose().map_err(no_json)?;
    let sql = "UPDATE batch_outputs SET indexed_to = $3, lines = $4, succeeded = $5, failed = $6, broken = $7, \
               duplicates = $8, strangers = $9, usage = $10 WHERE run_id = $1 AND source = $2";
    let values: [Value; 10] = [
        run.0.into(),
        source.as_str().into(),
        indexed_to.into(),
        tally.lines.into(),
        tally.succeeded.into(),
        tally.failed.into(),
        tally.broken.into(),
        tally.duplicates.into(),
        tally.strangers.into(),
        usage.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// The `custom_id`s of lines that count, in the order of their lines, behind `after`; at most `limit`.
pub async fn answered(
    db: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    after: i64,
    limit: u32,
) -> Result<Vec<(i64, String)>, DbErr> {
    custom_ids(db, "custom_id IS NOT NULL AND problem IS NULL", run, source, after, limit).await
}

/// Likewise of lines that succeeded, whether they count or not: a success may stand behind a failure.
pub async fn succeeded(
    db: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    after: i64,
    limit: u32,
) -> Result<Vec<(i64, String)>, DbErr> {
    custom_ids(db, "outcome = 'succeeded'", run, source, after, limit).await
}

async fn custom_ids(
    db: &impl ConnectionTrait,
    of: &str,
    run: RunId,
    source: Source,
    after: i64,
    limit: u32,
) -> Result<Vec<(i64, String)>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        line: i64,
        custom_id: String,
    }
    let sql = format!(
        "SELECT line, custom_id FROM batch_results WHERE run_id = $1 AND source = $2 AND line > $3 AND {of} \
         ORDER BY line LIMIT $4"
    );
    let values: [Value; 4] = [run.0.into(), source.as_str().into(), after.into(), limit.into()];
    let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|row| (row.line, row.custom_id)).collect())
}

/// Where a line lies, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub source: Source,
    pub line: i64,
    pub outcome: LineOutcome,
    pub problem: Option<Problem>,
    pub begins_at: i64,
    pub length: i64,
}

/// What the results of a run are narrowed to.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// As it is stored.
    pub custom_id: Option<String>,
    pub outcome: Option<LineOutcome>,
}

/// The lines of one file of a run, in their order, behind `after`; at most `limit`.
pub async fn list(
    db: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    filter: &Filter,
    after: i64,
    limit: u32,
) -> Result<Vec<Entry>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        line: i64,
        outcome: String,
        problem: Option<String>,
        begins_at: i64,
        length: i64,
    }
    let (sql, values) = list_query(run, source, filter, after, limit);
    let rows = Row::find_by_statement(statement(db, &sql, values)).all(db).await?;
    let entries = rows.into_iter().map(|row| {
        Ok(Entry {
            source,
            line: row.line,
            outcome: row.outcome.parse().map_err(DbErr::Type)?,
            problem: row.problem.as_deref().map(str::parse).transpose().map_err(DbErr::Type)?,
            begins_at: row.begins_at,
            length: row.length,
        })
    });
    entries.collect()
}

/// What is concatenated keeps the databases from walking over all lines in their order where another index finds the few.
fn list_query(
    run: RunId,
    source: Source,
    filter: &Filter,
    after: i64,
    limit: u32,
) -> (String, Vec<Value>) {
    let mut values: Vec<Value> =
        vec![run.0.into(), source.as_str().into(), after.into(), limit.into()];
    let mut sql =
        "SELECT line, outcome, problem, begins_at, length FROM batch_results WHERE run_id = $1"
            .to_owned();
    match &filter.custom_id {
        Some(custom_id) => {
            values.push(custom_id.clone().into());
            sql.push_str(" AND custom_id = $5 AND source || '' = $2");
        }
        None => sql.push_str(" AND source = $2"),
    }
    if let Some(outcome) = filter.outcome {
        values.push(outcome.as_str().into());
        let column = if filter.custom_id.is_some() { "outcome || ''" } else { "outcome" };
        sql.push_str(&format!(" AND {column} = ${}", values.len()));
    }
    sql.push_str(" AND line > $3 ORDER BY line LIMIT $4");
    (sql, values)
}

/// Whether there is such a line.
pub async fn is_there(
    db: &impl ConnectionTrait,
    run: RunId,
    source: Source,
    line: i64,
) -> Result<bool, DbErr> {
    let sql = "SELECT 1 FROM batch_results WHERE run_id = $1 AND source = $2 AND line = $3";
    let values: [Value; 3] = [run.0.into(), source.as_str().into(), line.into()];
    Ok(db.query_one_raw(statement(db, sql, values)).await?.is_some())
}

/// Which of these blobs are files of runs, to tell orphans from the rest.
pub async fn known_blobs(db: &impl ConnectionTrait, keys: &[String]) -> Result<Vec<String>, DbErr> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT blob_key FROM batch_outputs WHERE blob_key IN ({})",
        placeholders(1, keys.len())
    );
    let values: Vec<Value> = keys.iter().map(|key| key.clone().into()).collect();
    let rows = db.query_all_raw(statement(db, &sql, values)).await?;
    rows.iter().map(|row| row.try_get("", "blob_key")).collect()
}

fn no_json(error: serde_json::Error) -> DbErr {
    DbErr::Json(error.to_string())
}
