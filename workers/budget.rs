//! Calls that a job makes beyond those that its claim has paid for, out of its provider's rate budget.

use std::time::Duration;

use sea_orm::DbErr;

use super::attempt::Conclusion;
use crate::app::Account;
use crate::app::App;
use crate::jobs::Failure;
use crate::jobs::lanes;
use crate::jobs::lanes::Leave;

/// How long a job rests at most whose provider is left alone: somebody may let it go on.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Takes a call out of the provider's budget, and waits for it.
///
/// # Errors
///
/// While the provider is left alone: the job rests, and spends nothing.
pub async fn spend(app: &App, account: &Account) -> Result<(), Conclusion> {
    let (lane, per_minute) = (account.lane(), account.settings.requests_per_minute.get());
    let leave: Result<_, DbErr> = app
        .db
        .work_alone(move |tx| {
            let lane = lane.clone();
            Box::pin(async move {
                lanes::ensure(tx, &lane).await?;
                lanes::spend(tx, &lane, per_minute).await
            })
        })
        .await;
    match leave {
        Ok(Leave::In(wait)) => {
            tokio::time::sleep(wait).await;
            Ok(())
        }
        Ok(Leave::NotFor(rest)) => {
            let failure =
                Failure::transient("provider_paused", "the provider is left alone for now");
            Err(Conclusion::Again { after: rest.min(LONGEST_REST), failure: Some(failure) })
        }
        Err(error) => Err(Conclusion::without_database(&error)),
    }
}
