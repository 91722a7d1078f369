//! How many jobs of an owner wait.

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Lane;
use super::claims::READY;
use crate::db::statement;

/// Jobs of an owner that wait, all lanes together; what is more than `most` is not counted to its end. Deliveries of
/// webhooks are not among them: an owner's receiver that is away must not keep its files out.
///
/// # Errors
///
/// What the database says.
pub async fn waiting(db: &impl ConnectionTrait, owner: &str, most: u64) -> Result<u64, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        waiting: i64,
    }
    // A query for each lane and rank, as `jobs_ready` begins with them.
    let of_rank = |rank: u8| {
        format!(
            "(SELECT count(*) FROM (SELECT 1 FROM jobs WHERE lane = lanes.name AND rank = {rank} AND owner = $1 \
             AND {READY} LIMIT $2) AS of_lane)"
        )
    };
    let sql = format!(
        "SELECT CAST(coalesce(sum({} + {}), 0) AS BIGINT) AS waiting FROM lanes WHERE name <> $3",
        of_rank(0),
        of_rank(1)
    );
    let limit = i64::try_from(most).unwrap_or(i64::MAX).saturating_add(1);
    let values: [Value; 3] = [owner.into(), limit.into(), Lane::webhooks().0.into()];
    let row = Row::find_by_statement(statement(db, &sql, values)).one(db).await?;
    Ok(row.map_or(0, |row| u64::try_from(row.waiting).unwrap_or(0)))
}
