//! Looking for what was lost on its way: one reading of a provider's list serves all who look at the same time.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use async_trait::async_trait;

use crate::app::Account;
use crate::mappings::Marker;
use crate::providers::ErrorKind;
use crate::providers::Page;
use crate::providers::ProviderBatchId;
use crate::providers::ProviderError;
use crate::providers::ProviderFileId;
use crate::providers::RemoteBatch;
use crate::providers::RemoteFile;

/// Pages of one list; OpenAI's have up to 10,000 files each.
const MAX_PAGES: usize = 10_000;

/// The lists of all providers.
#[derive(Clone, Default)]
pub struct Listings {
    files: Lists<RemoteFile>,
    batches: Lists<RemoteBatch>,
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
        self.files.look(account, marker).await
    }

    /// Likewise for batches.
    ///
    /// # Errors
    ///
    /// As [`Self::look`].
    pub async fn look_for_batch(
        &self,
        account: &Account,
        marker: &Marker,
    ) -> Result<Vec<RemoteBatch>, ProviderError> {
        self.batches.look(account, marker).await
    }
}

/// What providers list.
#[async_trait]
trait Listed: Clone + Send + Sync + Sized {
    /// The page behind `after`, and where the next one begins.
    async fn page(
        account: &Account,
        after: Option<String>,
    ) -> Result<(Vec<Self>, Option<String>), ProviderError>;

    fn marker(&self) -> Option<Marker>;
}

#[async_trait]
impl Listed for RemoteFile {
    async fn page(
        account: &Account,
        after: Option<String>,
    ) -> Result<(Vec<Self>, Option<String>), ProviderError> {
        let page = next_page(account, after.map(ProviderFileId).as_ref()).await?;
        Ok((page.files, page.next.map(|id| id.0)))
    }

    fn marker(&self) -> Option<Marker> {
        Marker::of(&self.filename)
    }
}

#[async_trait]
impl Listed for RemoteBatch {
    async fn page(
        account: &Account,
        after: Option<String>,
    ) -> Result<(Vec<Self>, Option<String>), ProviderError> {
        let after = after.map(ProviderBatchId);
        let page = account.driver.list_batches(after.as_ref()).await;
        let page = page.map_err(|error| of_page(error, after.is_some()))?;
        Ok((page.batches, page.next.map(|id| id.0)))
    }

    fn marker(&self) -> Option<Marker> {
        self.marker.clone().map(Marker)
    }
}

#[derive(Clone)]
struct Lists<T> {
    by_provider: Arc<Mutex<HashMap<String, Arc<Listing<T>>>>>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self { by_provider: Arc::default() }
    }
}

struct Listing<T> {
    /// Whoever is about to look, by marker: the next reading keeps only what somebody looks for, so its memory
    /// does not grow with the list.
    wanted: Mutex<HashMap<Marker, usize>>,
    last: tokio::sync::Mutex<Option<Reading<T>>>,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { wanted: Mutex::default(), last: tokio::sync::Mutex::default() }
    }
}

#[derive(Clone)]
struct Reading<T> {
    begun: Instant,
    sought: Arc<HashSet<Marker>>,
    found: Arc<Vec<(Marker, T)>>,
}

impl<T: Listed> Lists<T> {
    async fn look(&self, account: &Account, marker: &Marker) -> Result<Vec<T>, ProviderError> {
        let asked = Instant::now();
        let listing = {
            let mut listings =
                self.by_provider.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(listings.entry(account.settings.name.clone()).or_default())
        };
        let _wanted = Wanted::register(&listing.wanted, marker);
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
        let found = reading.found.iter().filter(|(found, _)| found == marker);
        Ok(found.map(|(_, listed)| listed.clone()).collect())
    }
}

impl<T: Listed> Listing<T> {
    async fn read(&self, account: &Account) -> Result<Reading<T>, ProviderError> {
        let begun = Instant::now();
        let sought: Arc<HashSet<Marker>> = Arc::new(lock(&self.wanted).keys().cloned().collect());
        let mut found = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            let (page, next) = T::page(account, after).await?;
            for listed in page {
                let marker = listed.marker();
                if let Some(marker) = marker.filter(|marker| sought.contains(marker)) {
                    found.push((marker, listed));
                }
            }
            after = next;
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

/// The page of files behind `after`.
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
    page.map_err(|error| of_page(error, after.is_some()))
}

fn of_page(error: ProviderError, has_place: bool) -> ProviderError {
    match error.kind {
        ErrorKind::Rejected | ErrorKind::NotFound if has_place => {
            ProviderError { kind: ErrorKind::Conflict, ..error }
        }
        _ => error,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Keeps a marker among the wanted.
struct Wanted<'a> {
    wanted: &'a Mutex<HashMap<Marker, usize>>,
    marker: Marker,
}

impl<'a> Wanted<'a> {
    fn register(wanted: &'a Mutex<HashMap<Marker, usize>>, marker: &Marker) -> Self {
        *lock(wanted).entry(marker.clone()).or_default() += 1;
        Self { wanted, marker: marker.clone() }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut wanted = lock(self.wanted);
        if let Some(count) = wanted.get_mut(&self.marker) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(&self.marker);
            }
        }
    }
}
