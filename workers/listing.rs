//! Looking for what was lost on its way: one reading of a provider's list serves all who look at the same time.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;

use super::budget;
use super::conclusion::Conclusion;
use crate::app::Account;
use crate::app::App;
use crate::clock::Timestamp;
use crate::mappings::Marker;
use crate::providers::ErrorKind;
use crate::providers::Page;
use crate::providers::ProviderBatchId;
use crate::providers::ProviderError;
use crate::providers::ProviderFileId;
use crate::providers::RemoteBatch;
use crate::providers::RemoteFile;
use crate::traces;
use crate::traces::Here;

/// How far a provider's clock may be from ours.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);
/// Pages of one list; OpenAI's have up to 10,000 files each.
const MAX_PAGES: usize = 10_000;

/// The lists of all providers.
#[derive(Clone, Default)]
pub struct Listings {
    files: Lists<RemoteFile>,
    batches: Lists<RemoteBatch>,
}

impl Listings {
    /// Every file at the provider that carries `marker`, in a list that was begun after this call. Each page is paid for
    /// out of the provider's rate budget.
    ///
    /// # Errors
    ///
    /// When a page cannot be read: a list with a gap proves nothing.
    pub async fn look(
        &self,
        app: &App,
        account: &Account,
        marker: &Marker,
    ) -> Result<Vec<RemoteFile>, Unread> {
        self.files.look(app, account, marker, Timestamp(0)).await
    }

    /// Likewise every batch, in a list that goes back to those created before `since`.
    ///
    /// # Errors
    ///
    /// As [`Self::look`].
    pub async fn look_for_batch(
        &self,
        app: &App,
        account: &Account,
        marker: &Marker,
        since: Timestamp,
    ) -> Result<Vec<RemoteBatch>, Unread> {
        self.batches.look(app, account, marker, since).await
    }
}

/// Why a list was not read.
#[derive(Clone, Debug)]
pub enum Unread {
    /// The provider has refused, or answered something else.
    Refused(ProviderError),
    /// Nobody asked it.
    NotNow(Conclusion),
}

impl Unread {
    /// Whether the provider has no list to be asked.
    pub fn has_no_list(&self) -> bool {
        matches!(self, Self::Refused(error)
            if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Unsupported))
    }

    pub fn conclusion(self) -> Conclusion {
        match self {
            Self::Refused(error) => Conclusion::of_error(&error),
            Self::NotNow(conclusion) => conclusion,
        }
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

    /// Unix seconds, where the provider says so.
    fn created_at(&self) -> Option<i64>;
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

    fn created_at(&self) -> Option<i64> {
        self.created_at
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

    fn created_at(&self) -> Option<i64> {
        self.created_at
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
    /// Whoever is about to look, by marker, and how far back: the next reading keeps only what somebody looks for, so
    /// its memory does not grow with the list.
    wanted: Mutex<HashMap<Marker, Interest>>,
    last: tokio::sync::Mutex<Option<Reading<T>>>,
}

#[derive(Clone, Copy)]
struct Interest {
    count: usize,
    since: Timestamp,
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
    /// Where in a trace: the calls are in that one, whoever else uses it.
    read_in: Here,
}

impl<T: Listed> Lists<T> {
    async fn look(
        &self,
        app: &App,
        account: &Account,
        marker: &Marker,
        since: Timestamp,
    ) -> Result<Vec<T>, Unread> {
        let asked = Instant::now();
        let listing = {
            let mut listings =
                self.by_provider.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(listings.entry(account.settings.name.clone()).or_default())
        };
        let _wanted = Wanted::register(&listing.wanted, marker, since);
        let mut last = listing.last.lock().await;
        let reading = match &*last {
            Some(reading) if reading.begun >= asked && reading.sought.contains(marker) => {
                traces::here().link_to(&reading.read_in);
                reading.clone()
            }
            _ => {
                let reading = listing.read(app, account).await?;
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
    async fn read(&self, app: &App, account: &Account) -> Result<Reading<T>, Unread> {
        let begun = Instant::now();
        let wanted = lock(&self.wanted).clone();
        let since = wanted.values().map(|interest| interest.since).min();
        let oldest = since.unwrap_or(Timestamp(0)).before(CLOCKS_DIFFER).unix_seconds();
        let sought: Arc<HashSet<Marker>> = Arc::new(wanted.into_keys().collect());
        let mut found = Vec::new();
        let mut after = None;
        for _ in 0..MAX_PAGES {
            budget::spend(app, account).await.map_err(Unread::NotNow)?;
            let (page, next) = T::page(account, after).await.map_err(Unread::Refused)?;
            let is_older = |listed: &T| listed.created_at().is_some_and(|at| at < oldest);
            // The newest come first: what follows is older still.
            let next = next.filter(|_| !page.iter().all(is_older));
            for listed in page {
                let marker = listed.marker();
                if let Some(marker) = marker.filter(|marker| sought.contains(marker)) {
                    found.push((marker, listed));
                }
            }
            after = next;
            if after.is_none() {
                let read_in = traces::here();
                return Ok(Reading { begun, sought, found: Arc::new(found), read_in });
            }
        }
        Err(Unread::Refused(ProviderError {
            kind: ErrorKind::Garbled,
            outcome_unknown: false,
            message: format!(
                "the list of `{}` does not end after {MAX_PAGES} pages",
                account.settings.name
            ),
            http_status: None,
            provider_code: None,
            provider_request_id: None,
        }))
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
    wanted: &'a Mutex<HashMap<Marker, Interest>>,
    marker: Marker,
}

impl<'a> Wanted<'a> {
    fn register(
        wanted: &'a Mutex<HashMap<Marker, Interest>>,
        marker: &Marker,
        since: Timestamp,
    ) -> Self {
        let mut all = lock(wanted);
        let interest = all.entry(marker.clone()).or_insert(Interest { count: 0, since });
        interest.count += 1;
        interest.since = interest.since.min(since);
        drop(all);
        Self { wanted, marker: marker.clone() }
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut wanted = lock(self.wanted);
        if let Some(interest) = wanted.get_mut(&self.marker) {
            interest.count -= 1;
            if interest.count == 0 {
                wanted.remove(&self.marker);
            }
        }
    }
}
