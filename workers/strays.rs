//! Copies at a provider that are ours and that no mapping holds: condemned first, on disk, then deleted.

use std::sync::Arc;
use std::time::Duration;

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use crate::app::Account;
use crate::error::Error;
use crate::jobs::Failure;
use crate::jobs::leases;
use crate::mappings::store;
use crate::mappings::store::Stray;
use crate::mappings::store::Upload;
use crate::providers::ProviderFileId;

const UNTRUSTED_PAUSE: Duration = Duration::from_secs(600);

/// What a job comes to that would make or delete something at a provider while the database may be an old one: what it
/// would make may be there already, and what it would delete may be another's.
pub fn untrusted() -> Conclusion {
    let failure = Failure::transient(
        "installation_mismatch",
        "nothing is sent to providers and nothing deleted there while the database is a restored one, or belongs to \
         another installation than the blob store; `longshore doctor` says what to do",
    );
    Conclusion::Again { after: UNTRUSTED_PAUSE, failure: Some(failure) }
}

/// Puts the decision on disk before anything is deleted. Only while the lease holds: another worker
/// may have gone on meanwhile. `None` when the decision cannot be made now.
pub async fn condemn(
    attempt: &Attempt,
    upload: &Upload,
    found: Vec<String>,
) -> Result<Option<Vec<Stray>>, Error> {
    let (now, fence) = (attempt.app.clock.now(), attempt.fence.clone());
    let (upload, found): (Arc<Upload>, Arc<[String]>) = (Arc::new(upload.clone()), found.into());
    attempt
        .app
        .db
        .work_alone(move |tx| {
            let (fence, upload, found) = (fence.clone(), Arc::clone(&upload), Arc::clone(&found));
            Box::pin(async move {
                if !leases::check(tx, &fence).await? {
                    return Ok(None);
                }
                Ok(store::condemn(tx, now, &upload, &found).await?)
            })
        })
        .await
}

/// Deletes a condemned copy.
pub async fn delete(attempt: &Attempt, account: &Account, stray: &Stray) -> Result<(), Conclusion> {
    let id = ProviderFileId(stray.provider_file_id.clone());
    account.driver.delete_file(&id).await.map_err(|error| Conclusion::of_error(&error))?;
    tracing::info!(provider.name = %account.settings.name, provider.file_id = %id, "deleted a superfluous copy");
    metrics::counter!("longshore_rescues_total", "how" => "stray_deleted").increment(1);
    let (now, id, fence) = (attempt.app.clock.now(), stray.id, attempt.fence.clone());
    let written: Result<(), Error> = attempt
        .app
        .db
        .work(move |tx| {
            let fence = fence.clone();
            Box::pin(async move {
                if leases::check(tx, &fence).await? {
                    store::stray_deleted(tx, now, id).await?;
                }
                Ok(())
            })
        })
        .await;
    written.map_err(|error| Conclusion::without_database(&error))
}
