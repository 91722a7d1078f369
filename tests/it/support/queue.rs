//! The job table without the rest: a database, and the store functions as the workers call them.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::BoxFuture;
use longshore::clock::Timestamp;
use longshore::db::Db;
use longshore::db::Transaction;
use longshore::files::create;
use longshore::files::create::Destination;
use longshore::files::create::Dispatch;
use longshore::files::store::FileView;
use longshore::files::store::NewFile;
use longshore::ids::FileId;
use longshore::ids::JobId;
use longshore::ids::MappingId;
use longshore::jobs::Ending;
use longshore::jobs::Fence;
use longshore::jobs::Lane;
use longshore::jobs::NewJob;
use longshore::jobs::UploadFile;
use longshore::jobs::VerifyUpload;
use longshore::jobs::Work;
use longshore::jobs::WorkerId;
use longshore::jobs::claims;
use longshore::jobs::claims::Claimed;
use longshore::jobs::claims::LowerTurns;
use longshore::jobs::claims::Turns;
use longshore::jobs::lanes;
use longshore::jobs::lanes::Limits;
use longshore::jobs::leases;
use longshore::jobs::leases::End;
use longshore::jobs::store;
use longshore::jobs::store::Job;
use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use tempfile::TempDir;

use super::Database;
use super::Kind;

/// The lease of every claim here: longer than any test.
pub const LEASE: Duration = Duration::from_secs(60);

/// Limits that limit nothing here.
pub const UNLIMITED: Limits = Limits { max_concurrency: 1_000_000, requests_per_minute: None };

/// A lane of a fresh database, opened.
pub struct Queue {
    pub db: Db,
    pub lane: Lane,
    pub database: Arc<Database>,
    /// What the one process remembers that claims.
    lower: Mutex<LowerTurns>,
    _folder: Arc<TempDir>,
}

impl Queue {
    pub async fn on(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = match kind {
            Kind::Sqlite => Database::sqlite(folder.path()),
            Kind::Postgres => Database::postgres_schema().await,
        };
        Self::of(database, folder).await
    }

    /// On PostgreSQL, in a database that has no other users.
    pub async fn alone() -> Self {
        Self::of(Database::postgres().await, tempfile::tempdir().unwrap()).await
    }

    pub async fn of(database: Database, folder: TempDir) -> Self {
        let db = database.open().await;
        let lane = Lane::of_provider("p");
        let (database, lower) = (Arc::new(database), Mutex::default());
        let queue = Self { db, lane, database, lower, _folder: Arc::new(folder) };
        queue.open_lane("credential").await;
        queue
    }

    /// The same queue over connections of its own, as another process sees it.
    pub async fn elsewhere(&self) -> Self {
        let db = Db::connect(&self.database.url).await.unwrap();
        let (database, folder) = (Arc::clone(&self.database), Arc::clone(&self._folder));
        Self { db, lane: self.lane.clone(), database, lower: Mutex::default(), _folder: folder }
    }

    pub async fn open_lane(&self, credential: &'static str) {
        let lane = self.lane.clone();
        self.write(move |tx| {
            let lane = lane.clone();
            Box::pin(async move { lanes::open(tx, &lane, credential).await })
        })
        .await;
    }

    /// Lanes of other work, as a worker opens them.
    pub async fn open_others(&self, lanes: &[Lane]) {
        let lanes: Arc<[Lane]> = lanes.into();
        self.write(move |tx| {
            let lanes = Arc::clone(&lanes);
            Box::pin(async move {
                for lane in &*lanes {
                    lanes::ensure(tx, lane).await?;
                }
                Ok(())
            })
        })
        .await;
    }

    /// A worker's write that the database does not refuse.
    pub async fn write<T, F>(&self, write: F) -> T
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, DbErr>> + Send + Sync + 'static,
        T: Send + 'static,
    {
        self.db.work(write).await.unwrap()
    }

    /// Statements of the test's own.
    pub async fn sql(&self, sql: &str) {
        self.try_sql(sql).await.unwrap();
    }

    pub async fn try_sql(&self, sql: &str) -> Result<(), DbErr> {
        let sql = sql.to_owned();
        self.db
            .work(move |tx| {
                let sql = sql.clone();
                Box::pin(async move { tx.execute_unprepared(&sql).await.map(|_| ()) })
            })
            .await
    }

    pub async fn count(&self, sql: &str) -> i64 {
        let row = self.db.read().query_one_raw(longshore::db::statement(self.db.read(), sql, []));
        row.await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    pub async fn text(&self, sql: &str) -> Vec<String> {
        let rows = self.db.read().query_all_raw(longshore::db::statement(self.db.read(), sql, []));
        rows.await.unwrap().iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    /// PostgreSQL: whether somebody in this database waits for a lock.
    pub async fn waits_for_a_lock(&self) -> bool {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND wait_event_type = 'Lock'";
        self.count(waiting).await > 0
    }

    /// The database's clock.
    pub async fn now(&self) -> Timestamp {
        Timestamp(self.count(&format!("SELECT {}", longshore::db::now(self.db.read()))).await)
    }

    /// An upload of `owner`.
    pub fn upload(&self, owner: &str) -> NewJob {
        NewJob {
            id: JobId::mint(),
            work: Work::UploadFile(UploadFile { mapping_id: MappingId::mint() }),
            lane: self.lane.clone(),
            owner: owner.to_owned(),
            max_attempts: 30,
            delay: Duration::ZERO,
            file_id: None,
            batch_id: None,
            model: None,
            request_id: None,
        }
    }

    /// A look after an upload of `owner`.
    pub fn look(&self, owner: &str) -> NewJob {
        let work = Work::VerifyUpload(VerifyUpload { mapping_id: MappingId::mint() });
        NewJob { work, ..self.upload(owner) }
    }

    pub async fn enqueue(&self, jobs: impl Into<Vec<NewJob>>) {
        let jobs: Arc<[NewJob]> = jobs.into().into();
        let now = self.now().await;
        self.write(move |tx| {
            let jobs = Arc::clone(&jobs);
            Box::pin(async move { store::enqueue(tx, now, &jobs).await })
        })
        .await;
    }

    /// One upload, queued.
    pub async fn one(&self) -> JobId {
        let job = self.upload("alice");
        let id = job.id;
        self.enqueue([job]).await;
        id
    }

    /// Claims as a worker does: through the lane, within `limits`.
    pub async fn claim_within(&self, limits: Limits, slots: usize) -> Vec<Claimed> {
        self.claim_as(&WorkerId::new(), limits, slots).await
    }

    pub async fn claim_as(&self, worker: &WorkerId, limits: Limits, slots: usize) -> Vec<Claimed> {
        let (lane, worker) = (self.lane.clone(), worker.clone());
        let lower = self.lower.lock().unwrap().clone();
        let (claims, lower) = self
            .write(move |tx| {
                let (lane, worker, lower) = (lane.clone(), worker.clone(), lower.clone());
                Box::pin(
                    async move { claim_in_turn(tx, &worker, &lane, lower, &limits, slots).await },
                )
            })
            .await;
        *self.lower.lock().unwrap() = lower;
        claims
    }

    /// The one job that is ready, claimed by `worker`.
    pub async fn claim_one(&self, worker: &WorkerId) -> Claimed {
        let mut claims = self.claim_as(worker, UNLIMITED, 1).await;
        assert_eq!(claims.len(), 1, "nothing was ready");
        claims.remove(0)
    }

    /// Ends an attempt. `false` when the lease was lost.
    pub async fn end(&self, fence: &Fence, ending: Ending) -> bool {
        let end = self.as_ended(fence, ending).await;
        self.end_together([end]).await == [true]
    }

    /// The end of an attempt, as it is written.
    pub async fn as_ended(&self, fence: &Fence, ending: Ending) -> End {
        let (fence, outcome) = (fence.clone(), outcome(&ending));
        End { fence, claimed_at: self.now().await, ending, outcome }
    }

    /// Ends attempts, and tells of each whether its lease held.
    pub async fn end_together(&self, ends: impl Into<Vec<End>>) -> Vec<bool> {
        let ends: Arc<[End]> = ends.into().into();
        self.write(move |tx| {
            let ends = Arc::clone(&ends);
            Box::pin(async move { leases::end(tx, &ends).await })
        })
        .await
    }

    pub async fn job(&self, id: JobId) -> Job {
        store::find(self.db.read(), id).await.unwrap().unwrap()
    }

    pub async fn status(&self, id: JobId) -> String {
        self.job(id).await.status
    }

    /// A file of `alice` on its way to these models of the provider `p`.
    pub async fn file(&self, models: &[&str]) -> FileView {
        let id = FileId::mint();
        let file = NewFile {
            id,
            managed_id: id.to_string(),
            owner: "alice".to_owned(),
            filename: "in.txt".to_owned(),
            content_type: "text/plain".to_owned(),
            purpose: "user_data".to_owned(),
            bytes: 1,
            sha256: String::new(),
            metadata: Default::default(),
            blob_key: format!("uploads/{id}"),
            expires_at: None,
            lines: None,
        };
        let destinations: Arc<[Destination]> = models.iter().map(destination).collect();
        let dispatch =
            Dispatch { installation_id: "aaaaaa".into(), max_attempts: 30, request_id: None };
        let now = self.now().await;
        let created = self.db.intake(move |tx| {
            let (file, destinations, dispatch) =
                (file.clone(), Arc::clone(&destinations), dispatch.clone());
            Box::pin(async move { create::create(tx, now, &file, &destinations, &dispatch).await })
        });
        created.await.unwrap()
    }

    pub async fn file_status(&self, id: FileId) -> String {
        let view = longshore::files::store::find_by_id(self.db.read(), id).await.unwrap();
        view.unwrap().file.status
    }
}

/// What the dispatcher does for one lane at its first claim.
pub async fn claim(
    tx: &impl ConnectionTrait,
    worker: &WorkerId,
    lane: &Lane,
    limits: &Limits,
    slots: usize,
) -> Result<Vec<Claimed>, DbErr> {
    let claimed = claim_in_turn(tx, worker, lane, LowerTurns::default(), limits, slots).await;
    claimed.map(|(claims, _)| claims)
}

/// What the dispatcher does for one lane.
async fn claim_in_turn(
    tx: &impl ConnectionTrait,
    worker: &WorkerId,
    lane: &Lane,
    lower: LowerTurns,
    limits: &Limits,
    slots: usize,
) -> Result<(Vec<Claimed>, LowerTurns), DbErr> {
    let state = lanes::enter(tx, lane).await?;
    let admission = state.admit(limits, slots);
    if admission.slots == 0 {
        return Ok((Vec::new(), lower));
    }
    let turns = Turns { last: state.last_owner.clone(), lower };
    let claims = claims::claim(tx, worker, LEASE, lane, &turns, admission.slots).await?;
    let turns = turns.after(&claims);
    if let Some(last) = claims.last() {
        lanes::leave(tx, lane, &state, &admission, claims.len(), (last.id, &turns.last)).await?;
    }
    Ok((claims, turns.lower))
}

fn destination(model: &&str) -> Destination {
    Destination {
        deployment_id: (*model).to_owned(),
        model: (*model).to_owned(),
        provider: "p".to_owned(),
        provider_model: (*model).to_owned(),
    }
}

fn outcome(ending: &Ending) -> &'static str {
    match ending {
        Ending::Succeeded => "succeeded",
        Ending::Retry { .. } => "retried",
        Ending::Failed(_) => "failed",
        Ending::Cancelled => "cancelled",
    }
}
