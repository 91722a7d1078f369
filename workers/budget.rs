//! Calls that a job makes beyond those that its claim has paid for, out of its provider's rate budget.

use std::time::Duration;
use std::time::Instant;

use sea_orm::DbErr;

use super::conclusion::Conclusion;
use crate::app::Account;
use crate::app::App;
use crate::jobs::Failure;
use crate::jobs::Lane;
use crate::jobs::lanes;
use crate::jobs::lanes::Leave;

/// How long a job rests at most whose provider is left alone: somebody may let it go on.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Takes a call out of the provider's budget, and waits for it. What clients wait for goes first.
///
/// # Errors
///
/// While the provider is left alone: the job rests, and spends nothing.
pub async fn spend(app: &App, account: &Account) -> Result<(), Conclusion> {
    let per_minute = account.settings.requests_per_minute.get();
    let (begun, patience) = (Instant::now(), lanes::patience(per_minute));
    loop {
        let rest = patience.saturating_sub(begun.elapsed());
        match ask(app, account.lane(), per_minute, rest.is_zero()).await {
            Ok(Leave::In(wait)) => {
                tokio::time::sleep(wait).await;
                return Ok(());
            }
            Ok(Leave::AskIn(wait)) => tokio::time::sleep(wait.min(rest)).await,
            Ok(Leave::NotFor(rest)) => {
                let failure =
                    Failure::transient("provider_paused", "the provider is left alone for now");
                let after = rest.min(LONGEST_REST);
                return Err(Conclusion::Again { after, failure: Some(failure) });
            }
            Err(error) => return Err(Conclusion::without_database(&error)),
        }
    }
}

async fn ask(app: &App, lane: Lane, per_minute: u32, is_overdue: bool) -> Result<Leave, DbErr> {
    app.db
        .work_alone(move |tx| {
            let lane = lane.clone();
            Box::pin(async move { lanes::spend(tx, &lane, per_minute, is_overdue).await })
        })
        .await
}
