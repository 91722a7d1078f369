//! Compares a provider's list with the mappings, deletes what is certainly superfluous there, and notes
//! what is gone.
//!
//! Nothing of it is kept between attempts: a list that was read half proves nothing. What is deleted is
//! first condemned on disk, so a worker that dies here leaves nothing half known.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::hash::BuildHasher as _;
use std::hash::RandomState;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sea_orm::DbErr;

use super::attempt::Attempt;
use super::budget;
use super::conclusion::Conclusion;
use super::conclusion::Done;
use super::conclusion::Effects;
use super::listing::next_page;
use super::strays;
use crate::app::Account;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::ids::MappingId;
use crate::ids::ReconciliationId;
use crate::jobs;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::leases;
use crate::jobs::retry;
use crate::mappings;
use crate::mappings::Marker;
use crate::providers::ErrorKind;
use crate::providers::ProviderFileId;
use crate::providers::RemoteFile;
use crate::reconciliations;
use crate::reconciliations::Report;
use crate::reconciliations::Sample;
use crate::reconciliations::Verdict;
use crate::reconciliations::judge;
use crate::reconciliations::store;
use crate::reconciliations::store::Expected;

/// Pages of one list.
const MAX_PAGES: usize = 10_000;
/// Mappings that are read at once.
const CHUNK: u32 = 1000;
/// Missing copies that one reconciliation looks into, and objects that it deletes. Of more, the rest is left
/// to the next one.
const MOST: usize = 10_000;
/// A copy that is younger than this, or than the provider's lag, may be missing from its list.
const SETTLED_AFTER: Duration = Duration::from_secs(3600);

pub async fn run(attempt: &Attempt, payload: &jobs::Reconcile) -> Done {
    let id = payload.reconciliation_id;
    let result = tokio::select! {
        result = reconcile(attempt, id) => result,
        stop = attempt.lease.stopped() => Err(Conclusion::of_stop(stop)),
    };
    let (conclusion, report) = match result {
        Ok(report) => (Conclusion::Succeeded, report),
        Err(conclusion) => (conclusion, None),
    };
    Done { conclusion, effects: Arc::new(Ended { id, report }) }
}

/// `None` where an attempt before this one has written its report.
async fn reconcile(attempt: &Attempt, id: ReconciliationId) -> Result<Option<Report>, Conclusion> {
    let app = &attempt.app;
    let database = |error: DbErr| Conclusion::without_database(&error);
    let found = store::find(app.db.read(), id).await.map_err(database)?;
    let Some(reconciliation) = found.filter(|found| found.finished_at.is_none()) else {
        return Ok(None);
    };
    let Some(account) = app.providers.get(&reconciliation.provider) else {
        let message =
            format!("the provider `{}` is not configured any more", reconciliation.provider);
        return Err(Conclusion::transient("provider_not_configured", message));
    };
    let mut pass = Pass {
        attempt,
        account,
        is_dry_run: reconciliation.is_dry_run,
        report: Report::default(),
        hasher: RandomState::new(),
        seen: HashSet::new(),
        superfluous: BTreeMap::new(),
    };
    if !app.installation.is_trusted {
        pass.is_dry_run = true;
        pass.report.stopped = Some(
            "the database and the blob store belong to different installations, so nothing is deleted and nothing \
             counts as lost; `longshore doctor` says what to do"
                .to_owned(),
        );
    }
    let begun = app.clock.now();
    pass.compare().await?;
    pass.remove_superfluous().await?;
    pass.remove_strays(begun).await?;
    pass.look_for_missing(begun).await?;
    Ok(Some(pass.report))
}

struct Pass<'a> {
    attempt: &'a Attempt,
    account: &'a Account,
    is_dry_run: bool,
    report: Report,
    hasher: RandomState,
    /// The ids that were listed, by their hashes: eight bytes for each, whatever the ids are like. Two that
    /// share one hide, at worst, that a copy is missing until the next time.
    seen: HashSet<u64>,
    /// What must go. It is deleted when the list was read to its end: a provider that goes on from an object
    /// which was just deleted does not know where it was.
    superfluous: BTreeMap<MappingId, Vec<String>>,
}

impl Pass<'_> {
    /// Reads the list page by page, and sees to each object that carries our marker.
    async fn compare(&mut self) -> Result<(), Conclusion> {
        let mut after = None;
        for _ in 0..MAX_PAGES {
            budget::spend(&self.attempt.app, self.account).await?;
            let page = next_page(self.account, after.as_ref()).await;
            let page = page.map_err(|error| Conclusion::of_error(&error))?;
            self.see(page.files).await?;
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
        let message = format!("the list of `{}` does not end", self.account.settings.name);
        Err(Conclusion::permanent("provider_garbled", message))
    }

    async fn see(&mut self, files: Vec<RemoteFile>) -> Result<(), Conclusion> {
        let installation = Arc::clone(&self.attempt.app.installation.id);
        let mut ours = Vec::new();
        for file in files {
            self.report.listed += 1;
            self.seen.insert(self.hasher.hash_one(&file.id.0));
            match reconciliations::ours(&file.filename, &installation) {
                Some(marker) => ours.push((marker, file)),
                None => self.report.foreign += 1,
            }
        }
        let markers: Vec<Marker> = ours.iter().map(|(marker, _)| marker.clone()).collect();
        let known = store::known(self.attempt.app.db.scan(), &markers).await;
        let known = known.map_err(|error| Conclusion::without_database(&error))?;
        for (marker, file) in ours {
            let mapping = known.get(&marker);
            let verdict = judge(mapping, &self.account.settings.name, &file.id.0);
            match (verdict, mapping) {
                (Verdict::Held, _) => self.report.held += 1,
                (Verdict::Left, _) => self.report.left += 1,
                (Verdict::Superfluous(reason), Some(mapping)) => {
                    self.report.superfluous += 1;
                    self.name("superfluous", &file, Some(reason));
                    if self.superfluous.len() < MOST {
                        self.superfluous.entry(mapping.id).or_default().push(file.id.0);
                    }
                }
                (Verdict::Unknown | Verdict::Superfluous(_), _) => {
                    self.report.unknown += 1;
                    self.name("unknown", &file, None);
                }
            }
        }
        Ok(())
    }

    fn name(&mut self, kind: &str, file: &RemoteFile, reason: Option<&str>) {
        self.report.name(Sample {
            kind: kind.to_owned(),
            provider_file_id: file.id.0.clone(),
            filename: Some(file.filename.clone()),
            reason: reason.map(str::to_owned),
        });
    }

    /// Deletes what nothing holds. It is judged once more in the transaction that condemns it.
    async fn remove_superfluous(&mut self) -> Result<(), Conclusion> {
        if self.is_dry_run {
            return Ok(());
        }
        for (mapping, found) in std::mem::take(&mut self.superfluous) {
            self.remove(mapping, found).await?;
        }
        Ok(())
    }

    /// Deletes what was noted as superfluous long ago, and whose own job did not get to it.
    async fn remove_strays(&mut self, begun: Timestamp) -> Result<(), Conclusion> {
        if self.is_dry_run {
            return Ok(());
        }
        let name = &self.account.settings.name;
        let before = begun.before(SETTLED_AFTER);
        let forgotten =
            mappings::store::mappings_with_strays(self.attempt.app.db.scan(), name, before, CHUNK);
        let forgotten = forgotten.await.map_err(|error| Conclusion::without_database(&error))?;
        for mapping in forgotten {
            self.remove(mapping, Vec::new()).await?;
        }
        Ok(())
    }

    /// Condemns what was found of a mapping, and what was noted of it before, and deletes it. What the provider
    /// refuses to delete stands in the way of nothing else.
    async fn remove(&mut self, id: MappingId, found: Vec<String>) -> Result<(), Conclusion> {
        let upload = mappings::store::find_upload(self.attempt.app.db.read(), id).await;
        let upload = upload.map_err(|error| Conclusion::without_database(&error))?;
        let Some(upload) = upload else { return Ok(()) };
        let condemned = strays::condemn(self.attempt, &upload, found).await;
        let condemned = condemned.map_err(|error| Conclusion::without_database(&error))?;
        for stray in condemned.unwrap_or_default() {
            budget::spend(&self.attempt.app, self.account).await?;
            match strays::delete(self.attempt, self.account, &stray).await {
                Ok(()) => self.report.deleted += 1,
                Err(Conclusion::Failed {
                    failure,
                    verdict: retry::Verdict::Permanent | retry::Verdict::Rest,
                }) => {
                    self.report.failed += 1;
                    self.report.name(Sample {
                        kind: "failed".to_owned(),
                        provider_file_id: stray.provider_file_id,
                        filename: None,
                        reason: Some(failure.message),
                    });
                }
                Err(conclusion) => return Err(conclusion),
            }
        }
        Ok(())
    }

    /// Asks the provider for every copy that the list did not show, twice, and notes those that are gone.
    async fn look_for_missing(&mut self, begun: Timestamp) -> Result<(), Conclusion> {
        let before = begun.before(SETTLED_AFTER.max(self.account.settings.list_lag));
        let missing = self.missing(begun, before).await?;
        if missing.is_empty() || self.report.stopped.is_some() {
            return Ok(());
        }
        if !reconciliations::is_plausible(self.report.missing, self.report.expected) {
            self.report.stopped = Some(format!(
                "{} of {} copies are missing, more than 1 %: is this the account that they were sent to? None of them \
                 counts as lost",
                self.report.missing, self.report.expected
            ));
            return Ok(());
        }
        let mut gone = self.not_found(missing).await?;
        if !gone.is_empty() {
            tokio::time::sleep(self.account.settings.list_lag).await;
            gone = self.not_found(gone).await?;
        }
        for copy in &gone {
            self.report.name(Sample {
                kind: "lost".to_owned(),
                provider_file_id: copy.provider_file_id.clone(),
                filename: None,
                reason: None,
            });
        }
        self.report.lost =
            if self.is_dry_run { gone.len() as u64 } else { self.lose(gone).await? };
        Ok(())
    }

    /// The copies that should be there and were not listed. Beyond so many they are only counted.
    async fn missing(
        &mut self,
        now: Timestamp,
        before: Timestamp,
    ) -> Result<Vec<Expected>, Conclusion> {
        let (mut missing, mut after) = (Vec::new(), String::new());
        loop {
            let name = &self.account.settings.name;
            let page =
                store::expected(self.attempt.app.db.scan(), name, now, before, &after, CHUNK).await;
            let page = page.map_err(|error| Conclusion::without_database(&error))?;
            let Some(last) = page.last() else { return Ok(missing) };
            after = last.provider_file_id.clone();
            self.report.expected += page.len() as u64;
            for copy in page {
                if self.seen.contains(&self.hasher.hash_one(&copy.provider_file_id)) {
                    continue;
                }
                self.report.missing += 1;
                if missing.len() < MOST {
                    missing.push(copy);
                }
            }
        }
    }

    async fn not_found(&self, copies: Vec<Expected>) -> Result<Vec<Expected>, Conclusion> {
        let mut gone = Vec::new();
        for copy in copies {
            budget::spend(&self.attempt.app, self.account).await?;
            let id = ProviderFileId(copy.provider_file_id.clone());
            match self.account.driver.file(&id).await {
                Ok(_) => {}
                Err(error) if error.kind == ErrorKind::NotFound => gone.push(copy),
                Err(error) => return Err(Conclusion::of_error(&error)),
            }
        }
        Ok(gone)
    }

    async fn lose(&self, gone: Vec<Expected>) -> Result<u64, Conclusion> {
        let (fence, gone) = (self.attempt.fence.clone(), Arc::new(gone));
        let lost: Result<u64, DbErr> = self
            .attempt
            .app
            .db
            .work(move |tx| {
                let (fence, gone) = (fence.clone(), Arc::clone(&gone));
                Box::pin(async move {
                    if !leases::check(tx, &fence).await? {
                        return Ok(0);
                    }
                    store::lose(tx, &gone).await
                })
            })
            .await;
        lost.map_err(|error| Conclusion::without_database(&error))
    }
}

/// What an attempt writes with its end.
struct Ended {
    id: ReconciliationId,
    report: Option<Report>,
}

#[async_trait]
impl Effects for Ended {
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr> {
        match (ending, &self.report) {
            (Ending::Succeeded, Some(report)) => {
                reconciliations::finish(tx, now, self.id, Ok(report)).await
            }
            _ => give_up(tx, now, self.id, ending).await,
        }
    }
}

/// Nobody can say how the attempt ended. The next one begins anew, if there is one.
pub async fn ended_unseen(
    tx: &Transaction,
    now: Timestamp,
    payload: &jobs::Reconcile,
    ending: &Ending,
) -> Result<(), DbErr> {
    give_up(tx, now, payload.reconciliation_id, ending).await
}

async fn give_up(
    tx: &Transaction,
    now: Timestamp,
    id: ReconciliationId,
    ending: &Ending,
) -> Result<(), DbErr> {
    match ending {
        Ending::Failed(failure) => reconciliations::finish(tx, now, id, Err(failure)).await,
        Ending::Cancelled => {
            let failure = Failure::permanent("cancelled", "the reconciliation was cancelled");
            reconciliations::finish(tx, now, id, Err(&failure)).await
        }
        Ending::Succeeded | Ending::Retry { .. } => Ok(()),
    }
}
