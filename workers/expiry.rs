//! Deletes files whose time is over, and notes which copies their providers have let go of.

use sea_orm::DbErr;

use crate::app::App;
use crate::db::warn_of;
use crate::files;
use crate::files::deletion::Order;
use crate::mappings;
use crate::notices::Hint;

/// Files of one transaction: short enough for the one writer of SQLite.
const CHUNK: u32 = 100;
/// What is left over waits for the next round, so that no round floods the queue.
const MAX_CHUNKS: usize = 1000;

/// Looks every `sweeps.every`, until it is dropped.
pub async fn run(app: App) {
    let mut ticks = tokio::time::interval(app.config.sweeps.every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = expire_copies(&app).await {
            warn_of(&error, "could not look for copies that providers have let go of");
        }
        match expire_files(&app).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "deleted files whose time is over"),
            Err(error) => {
                warn_of(&error, "could not delete files whose time is over; trying again");
            }
        }
    }
}

/// Two processes may do it at the same time: each file is deleted once.
async fn expire_files(app: &App) -> Result<usize, DbErr> {
    let mut count = 0;
    for _ in 0..MAX_CHUNKS {
        let now = app.clock.now();
        let expired = files::deletion::store::expired(app.db.read(), now, CHUNK).await?;
        if expired.is_empty() {
            break;
        }
        let buried = app
            .db
            .work_alone(move |tx| {
                let expired = expired.clone();
                Box::pin(async move {
                    let order = Order { is_background: true, ..Order::default() };
                    files::deletion::delete(tx, now, &expired, &order).await
                })
            })
            .await?;
        count += buried.len();
        app.notices.hint(Hint::Work);
        app.notices.hint(Hint::Cancel);
        app.notices.hint(Hint::Change);
    }
    Ok(count)
}

async fn expire_copies(app: &App) -> Result<(), DbErr> {
    for _ in 0..MAX_CHUNKS {
        let now = app.clock.now();
        let expired = app
            .db
            .work(move |tx| {
                Box::pin(async move { mappings::deletion::expire(tx, now, CHUNK).await })
            })
            .await?;
        if expired < u64::from(CHUNK) {
            break;
        }
    }
    Ok(())
}
