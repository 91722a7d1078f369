//! Looking for lost uploads: one reading of a provider's list serves all who look at the same time.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use crate::app::Account;
use crate::mappings::Marker;
use crate::providers::ErrorKind;
use crate::providers::Page;
use crate::providers::ProviderError;
use crate::providers::ProviderFileId;
use crate::providers::RemoteFile;

/// Pages of one list; OpenAI's have up to 10,000 files each.
const MAX_PAGES: usize = 10_000;

/// The lists of all providers.
#[derive(Clone, Default)]
pub struct Listings {
    by_provider: Arc<Mutex<HashMap<String, Arc<Listing>>>>,
}

#[derive(Default)]
struct Listing {
    /// Whoever is about to look, by marker: the next reading keeps only files that somebody looks for,
    /// so its memory does not grow with the list.
    wanted: Mutex<HashMap<Marker, usize>>,
    last: tokio::sync::Mutex<Option<Reading>>,
}

#[derive(Clone)]
struct Reading {
    begun: Instant,
    sought: Arc<HashSet<Marker>>,
    found: Arc<Vec<(Marker, RemoteFile)>>,
}

impl Listings {
    /// Every file at the provider that carries `marker`, in a list that was begun after this call.
    ///
    /// # Errors
    ///
    /// When a page cannot be read: a list with a gap proves nothing.
    pub async fn look(
        &self,
        account: &Account,
        marker: &Marker,
    ) -> Result<Vec<RemoteFile>, ProviderError> {
        let asked = Instant::now();
        let listing = {
            let mut listings =
                self.by_provider.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(listings.entry(account.settings.name.clone()).or_default())
        };
        let _wanted = Wanted::register(&listing, marker);
        let mut last = listing.last.lock().await;
        let reading = match &*last {
            Some(reading) if reading.begun >= asked && reading.sought.contains(marker) => {
                reading.clone()
            }
            _ => {
                let reading = listing.read(account).await?;
                *last = Some(reading.clone());
                reading
            }
        };
        drop(last);
        let files = reading.found.iter().filter(|(found, _)| found == marker);
        Ok(files.map(|(_, file)| file.clone()).collect())
    }
}

impl Listing {
    fn lock_wanted(&self) -> std::sync::MutexGuard<'_, HashMap<Marker, usize>> {
        self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn read(&self, account: &Account) -> Result<Reading, ProviderError> {
        let begun = Instant::now();
        let sought: Arc<HashSet<Marker>> = Arc::new(self.lock_wanted().keys().cloned().collect());
        let mut found = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let page = next_page(account, after.as_ref()).await?;
            for file in page.files {
                let marker = Marker::of(&file.filename);
                if let Some(marker) = marker.filter(|marker| sought.contains(marker)) {
                    found.push((marker, file));
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(Reading { begun, sought, found: Arc::new(found) });
            }
        }
        Err(ProviderError {
            kind: ErrorKind::Garbled,
            outcome_unknown: false,
            message: format!(
                "the list of `{}` does not end after {MAX_PAGES} pages",
                account.settings.name
            ),
            http_status: None,
            provider_code: None,
            provider_request_id: None,
        })
    }
}

/// The page behind `after`.
///
/// # Errors
///
/// As the driver says; but where the place to go on from is refused, because what it names was deleted
/// meanwhile, the list has to be read anew, and that is no fault of whoever reads it.
pub async fn next_page(
    account: &Account,
    after: Option<&ProviderFileId>,
) -> Result<Page, ProviderError> {
    let page = account.driver.list_files(after).await;
    page.map_err(|error| match error.kind {
        ErrorKind::Rejected | ErrorKind::NotFound if after.is_some() => {
            ProviderError { kind: ErrorKind::Conflict, ..error }
        }
        _ => error,
    })
}

/// Keeps a marker among the wanted.
struct Wanted<'a> {
    listing: &'a Listing,
    marker: Marker,
}

impl<'a> Wanted<'a> {
    fn register(listing: &'a Listing, marker: &Marker) -> Self {
        *listing.lock_wanted().entry(marker.clone()).or_default() += 1;
        Self { listing, marker: marker.clone() }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut wanted = self.listing.lock_wanted();
        if let Some(count) = wanted.get_mut(&self.marker) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(&self.marker);
            }
        }
    }
}
