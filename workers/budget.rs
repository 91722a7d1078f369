//! Calls that a job makes beyond those that its claim has paid for, out of its provider's rate budget.

use std::time::Duration;

use sea_orm::DbErr;

use super::attempt::Conclusion;
use crate::app::Account;
use crate::app::App;
use crate::jobs::lanes;

/// How long to wait for the rate budget, between two looks at it.
const PAUSE: Duration = Duration::from_millis(200);

/// Takes a call out of the provider's budget, and waits for it.
pub async fn spend(app: &App, account: &Account) -> Result<(), Conclusion> {
    let per_minute = account.settings.requests_per_minute.get();
    loop {
        let lane = account.lane();
        let again_at: Result<_, DbErr> = app
            .db
            .work_alone(move |tx| {
                let lane = lane.clone();
                Box::pin(async move { lanes::spend(tx, &lane, per_minute).await })
            })
            .await;
        match again_at {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(Conclusion::without_database(&error)),
        }
    }
}
