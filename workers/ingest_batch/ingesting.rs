//! The files of a run: fetched, and what they come to.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sea_orm::DbErr;

use super::super::attempt::Attempt;
use super::super::budget;
use super::super::conclusion::Conclusion;
use super::super::download;
use super::super::download::Download;
use super::super::download::Moved;
use super::super::download::Wanted;
use super::unreachable;
use crate::app::Account;
use crate::batches;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::files;
use crate::files::store::File;
use crate::jobs::Failure;
use crate::jobs::leases;
use crate::mappings::store::Copy;
use crate::providers::ProviderFileId;
use crate::results::Source;
use crate::results::Tally;
use crate::results::store;
use crate::results::store::Output;
use crate::results::store::Stored;
use crate::runs::ingestion;
use crate::runs::ingestion::Found;
use crate::runs::ingestion::Produced;
use crate::runs::store::Run;

/// How many times a provider's lag a file may be missing that it has named itself: three hours, if nothing is
/// configured. What is given up then is lost, unless somebody retries the job.
const LAGS: u32 = 2160;
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// How many lags are between two tries at most.
const LONGEST_REST: u32 = 60;

/// The ingestion of one run, in one attempt.
pub struct Ingesting<'a> {
    pub(super) attempt: &'a Attempt,
    account: &'a Account,
    pub(super) run: Run,
    /// The input of its batch, if it is known here.
    pub(super) input: Option<File>,
    pub(super) moved: Moved,
    /// Why a file did not come.
    failure: Option<Failure>,
}

impl<'a> Ingesting<'a> {
    pub async fn begin(
        attempt: &'a Attempt,
        account: &'a Account,
        run: Run,
    ) -> Result<Self, Conclusion> {
        let input = input(attempt, &run).await?;
        Ok(Self { attempt, account, run, input, moved: Moved::default(), failure: None })
    }

    /// The files that the provider has named, but for those that the run has already.
    fn named(&self) -> Vec<(Source, Wanted)> {
        let run = &self.run;
        let output = run.provider_output_file_id.as_ref();
        let error = run.provider_error_file_id.as_ref().filter(|id| output != Some(id));
        let has_no_failures = run.answered.is_some() && run.failed == 0;
        [(Source::Output, output, false), (Source::Error, error, has_no_failures)]
            .into_iter()
            .filter(|(source, ..)| run.file(*source).is_none())
            .filter_map(|(source, id, is_empty)| {
                Some((source, Wanted { id: ProviderFileId(id?.clone()), is_empty }))
            })
            .collect()
    }

    pub(super) async fn outputs(&self) -> Result<Vec<Output>, Conclusion> {
        store::outputs(self.attempt.app.db.read(), self.run.id).await.map_err(unreachable)
    }

    /// Fetches what is not here yet. What does not come takes nothing from the rest.
    pub async fn fetch(&mut self) -> Result<(), Conclusion> {
        let here = self.outputs().await?;
        for output in &here {
            let Some(stored) = &output.stored else { continue };
            self.moved.expect(stored.bytes.saturating_sub(output.indexed_to).unsigned_abs());
        }
        for (source, wanted) in self.named() {
            if here.iter().any(|output| output.source == source && output.stored.is_some()) {
                continue;
            }
            let moved = &mut self.moved;
            match download::download(self.attempt, self.account, &wanted, moved).await {
                Ok(Download::Here(stored)) => self.keep(source, &wanted.id, stored).await?,
                Ok(Download::Missing(failure)) => self.miss(source, &wanted.id, failure).await?,
                Ok(Download::Refused(failure)) => {
                    tracing::error!(provider.file_id = %wanted.id, "the provider refuses the results that it named");
                    self.failure = Some(ingestion::unavailable(&failure));
                }
                Err(conclusion) => {
                    if matches!(conclusion, Conclusion::Failed { .. }) {
                        self.miss_no_more().await?;
                    }
                    return Err(conclusion);
                }
            }
        }
        Ok(())
    }

    /// Waits for a file that is missing, until that was long enough.
    async fn miss(
        &mut self,
        source: Source,
        id: &ProviderFileId,
        failure: Failure,
    ) -> Result<(), Conclusion> {
        let (run, file): (_, Arc<str>) = (self.run.id, id.0.as_str().into());
        let missing_for = self
            .fenced(move |tx| {
                let file = Arc::clone(&file);
                Box::pin(async move { store::missing(tx, run, source, &file).await })
            })
            .await?;
        let lag = self.account.settings.list_lag;
        if missing_for < (lag * LAGS).clamp(SHORTEST_PATIENCE, LONGEST_PATIENCE) {
            let after = (missing_for / 10).clamp(lag, lag * LONGEST_REST);
            let failure = Failure { retryable: true, ..failure };
            return Err(Conclusion::Again { after, failure: Some(failure) });
        }
        tracing::error!(provider.file_id = %id, "the provider does not have the results that it named");
        self.failure = Some(ingestion::lost(&failure));
        Ok(())
    }

    async fn miss_no_more(&self) -> Result<(), Conclusion> {
        let run = self.run.id;
        self.fenced(move |tx| Box::pin(async move { store::missing_no_more(tx, run).await })).await
    }

    async fn keep(
        &self,
        source: Source,
        id: &ProviderFileId,
        stored: Stored,
    ) -> Result<(), Conclusion> {
        let run = self.run.id;
        let (file, kept): (Arc<str>, _) = (id.0.as_str().into(), Arc::new(stored.clone()));
        let is_kept = self
            .fenced(move |tx| {
                let (file, kept) = (Arc::clone(&file), Arc::clone(&kept));
                Box::pin(async move { store::downloaded(tx, run, source, &file, &kept).await })
            })
            .await;
        match is_kept {
            Ok(()) => {
                tracing::info!(provider.file_id = %id, bytes = stored.bytes, "fetched the {source} file of a batch");
            }
            Err(Conclusion::HandedBack) => download::discard(self.attempt, &stored).await,
            Err(_) => {}
        }
        is_kept
    }

    /// Writes in a transaction of its own, if the job is still this attempt's.
    pub(super) async fn fenced<T, F>(&self, write: F) -> Result<T, Conclusion>
    where
        T: Send + 'static,
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, DbErr>> + Send + Sync + 'static,
    {
        let (fence, write) = (self.attempt.fence.clone(), Arc::new(write));
        let written = self
            .attempt
            .app
            .db
            .work_alone(move |tx| {
                let (fence, write) = (fence.clone(), Arc::clone(&write));
                Box::pin(async move {
                    if !leases::advance(tx, &fence).await? {
                        return Ok(None);
                    }
                    write(tx).await.map(Some)
                })
            })
            .await
            .map_err(unreachable)?;
        written.ok_or(Conclusion::HandedBack)
    }

    /// What the run came to, with everything indexed.
    pub async fn found(self) -> Result<Found, Conclusion> {
        let (mut tally, mut produced) = (Tally::default(), Vec::new());
        for output in self.outputs().await? {
            let Some(stored) = &output.stored else { continue };
            tally += output.tally;
            if self.run.file(output.source).is_some() {
                continue;
            }
            let copy = self.copy(&output.provider_file_id).await?;
            produced.push(Produced::new(
                &self.run,
                &output,
                stored,
                copy,
                self.attempt.job.id,
                &self.attempt.app.installation.id,
                self.attempt.app.clock.now(),
            ));
        }
        let failure = self.failure.or_else(|| ingestion::shortfall(&self.run, &tally));
        // What is not certainly all here may be needed there again.
        let is_whole = failure.is_none() && tally.broken == 0;
        let deletes_copies = self.attempt.app.config.batches.delete_provider_files && is_whole;
        let requests = self.input.and_then(|input| input.lines);
        Ok(Found { run: self.run, produced, tally, requests, failure, deletes_copies })
    }

    /// The provider's copy of a file. Until when it keeps it is good to know, and no more.
    async fn copy(&self, id: &str) -> Result<Copy, Conclusion> {
        budget::spend(&self.attempt.app, self.account).await?;
        let told = self.account.driver.file(&ProviderFileId(id.to_owned())).await;
        let expires_at = told.ok().and_then(|file| file.expires_at);
        let expires_at = expires_at.map(Timestamp::from_unix_seconds);
        Ok(Copy { provider_file_id: id.to_owned(), expires_at })
    }
}

async fn input(attempt: &Attempt, run: &Run) -> Result<Option<File>, Conclusion> {
    let db = attempt.app.db.read();
    let batch = batches::store::find_by_id(db, run.batch_id).await.map_err(unreachable)?;
    let Some(id) = batch.and_then(|batch| batch.input_file_id) else { return Ok(None) };
    let view = files::store::find_by_id(db, id).await.map_err(unreachable)?;
    Ok(view.map(|view| view.file))
}
