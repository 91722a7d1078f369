//! What happens to a batch by itself.

use std::sync::Arc;

use tokio::time::timeout_at;

use super::Next;
use crate::sandbox::account::Account;
use crate::sandbox::webhook;

/// Moves a batch on as time passes, and tells the webhook of its end.
pub(in crate::sandbox) async fn follow(account: Arc<Account>, id: String) {
    loop {
        // Made before looking, so that what is done in between wakes it.
        let steered = account.steered();
        match account.next_step(&id) {
            Next::Never => break,
            Next::Steered => steered.await,
            Next::At(due) => timeout_at(due, steered).await.unwrap_or_default(),
        }
        let Some(ending) = account.step(&id) else { continue };
        let results = tokio::task::spawn_blocking(move || (ending.write(), ending));
        match results.await {
            Ok((results, ending)) => account.finish_batch(&id, &ending.end, results),
            // Only at the end of the runtime.
            Err(_) => return,
        }
    }
    webhook::tell(&account, &id).await;
}
