//! Connections to PostgreSQL, in a pool, with a time limit on everything that is asked of them.
//!
//! The pool is our own: sqlx's asks a connection that comes back to it whether it still stands, and waits for the
//! answer without end. Over a connection that the network has forgotten none comes, and its place would be lost for
//! good. Here a connection is given back only when what was asked of it was answered and no transaction is open;
//! otherwise it is thrown away, and the server undoes what it held.

mod failure;
mod health;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use sea_orm::ConnAcquireErr;
use sea_orm::DbErr;
use sea_orm::ExecResult;
use sea_orm::QueryResult;
use sea_orm::RuntimeErr;
use sea_orm::Statement;
use sea_query_sqlx::SqlxValues;
use sqlx::AssertSqlSafe;
use sqlx::Connection as _;
use sqlx::Executor as _;
use sqlx::PgConnection;
use sqlx::Postgres;
use sqlx::Row as _;
use sqlx::postgres::PgConnectOptions;
use sqlx::query::Query;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::config;
use health::Health;

pub use failure::is_away;
pub use failure::is_lost;
use failure::is_silence;

/// What an answer may take beyond what the server may take for it.
const JOURNEY: Duration = Duration::from_secs(5);
/// A connection that has rested for longer is asked whether it still stands before it is used: to ask at once is a
/// journey to the server and back for every read.
const UNTESTED_REST: Duration = Duration::from_millis(100);
/// How long it may take to say so.
const TEST_LIMIT: Duration = Duration::from_secs(3);
/// A connection that nobody used for as long is closed.
const LONGEST_REST: Duration = Duration::from_mins(10);
/// Backends keep what they learned of every table and statement; after this long they are made anew.
const LONGEST_LIFE: Duration = Duration::from_mins(30);
/// The wait between tries to connect to a server that refuses, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A process that is frozen in the middle of a transaction holds up all others by its locks, for this long.
const LONGEST_IDLE_TRANSACTION: Duration = Duration::from_secs(5);

/// Connections that are kept from requests, however many wait: workers that renew leases, and whoever asks whether the
/// database is there, always find a place soon.
const KEPT_FROM_REQUESTS: usize = 2;

/// The connections of this process. Cloned freely.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// What may be used of them at once, where that is not all.
    shares: Vec<Arc<Semaphore>>,
    /// How long an answer is waited for.
    limit: Duration,
}

#[derive(Debug)]
struct Shared {
    options: PgConnectOptions,
    settings: config::Database,
    idle: Mutex<Vec<Idle>>,
    places: Arc<Semaphore>,
    health: Health,
}

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    connection: PgConnection,
    made_at: Instant,
    since: Instant,
}

/// What is asked of a connection.
#[derive(Clone, Copy)]
pub enum Question<'a> {
    /// All rows.
    Rows(&'a Statement),
    /// The first row, if there is one.
    Row(&'a Statement),
    /// What it changes.
    Effect(&'a Statement),
    /// Statements without parameters.
    Batch(&'a str),
}

pub enum Answer {
    Rows(Vec<QueryResult>),
    Effect(ExecResult),
}

impl Pool {
    /// Makes none yet. It is for statements that an index answers: they wait for a lock at the longest.
    pub fn new(options: PgConnectOptions, settings: &config::Database) -> Self {
        let places = settings.max_connections.get() as usize;
        let shared = Shared {
            options,
            settings: settings.clone(),
            idle: Mutex::default(),
            places: Arc::new(Semaphore::new(places)),
            health: Health::default(),
        };
        let limit = settings.lock_timeout + JOURNEY;
        Self { shared: Arc::new(shared), shares: Vec::new(), limit }
    }

    /// The same connections, a quarter of them at once, for statements that may read many rows and take long.
    pub fn for_scans(&self) -> Self {
        let places = self.shared.settings.max_connections.get() as usize;
        Self {
            shared: Arc::clone(&self.shared),
            shares: vec![Arc::new(Semaphore::new((places / 4).max(1)))],
            limit: self.shared.settings.statement_timeout + JOURNEY,
        }
    }

    /// What all requests together may use of them at once: all but a few.
    pub fn share_of_requests(&self) -> Arc<Semaphore> {
        let places = self.shared.settings.max_connections.get() as usize;
        Arc::new(Semaphore::new(places.saturating_sub(KEPT_FROM_REQUESTS).max(1)))
    }

    /// The same connections, within `share` of them too.
    pub fn within(&self, share: &Arc<Semaphore>) -> Self {
        let mut within = self.clone();
        within.shares.push(Arc::clone(share));
        within
    }

    /// The same connections, all of them.
    pub fn without_shares(&self) -> Self {
        Self { shares: Vec::new(), ..self.clone() }
    }

    /// How it is connected to.
    pub fn options(&self) -> &PgConnectOptions {
        &self.shared.options
    }

    /// A connection that nobody else uses meanwhile.
    ///
    /// # Errors
    ///
    /// When none is free or can be made within the time for that.
    pub async fn lend(&self) -> Result<Lent, DbErr> {
        let deadline = Instant::now() + self.shared.settings.acquire_timeout;
        let mut places = Vec::with_capacity(self.shares.len() + 1);
        for share in self.shares.iter().chain([&self.shared.places]) {
            places.push(self.place(share, deadline).await?);
        }
        let (connection, made_at, is_new) = match self.rested().await {
            Some(Idle { connection, made_at, .. }) => (connection, made_at, false),
            None => {
                let made = self.shared.connect(deadline).await;
                (made.map_err(connection_failed)?, Instant::now(), true)
            }
        };
        Ok(Lent {
            connection: Some(connection),
            made_at,
            is_new,
            is_whole: true,
            is_in_transaction: false,
            limit: self.limit,
            shared: Arc::clone(&self.shared),
            _places: places,
        })
    }

    /// Asks something that changes nothing. A connection that was lost since it was last used is replaced.
    ///
    /// # Errors
    ///
    /// What the database says of it.
    pub async fn ask(&self, question: Question<'_>) -> Result<Answer, DbErr> {
        let mut lent = self.lend().await?;
        let is_new = lent.is_new;
        match lent.ask(question).await {
            Err(error) if !is_new && was_cut(&error) => {
                drop(lent);
                self.lend().await?.ask(question).await
            }
            answer => answer,
        }
    }

    /// Begins a transaction. A connection that was lost since it was last used is replaced.
    ///
    /// # Errors
    ///
    /// What the database says of it.
    pub async fn begin(&self) -> Result<Lent, DbErr> {
        let mut lent = self.lend().await?;
        let is_new = lent.is_new;
        match lent.begin().await {
            Err(error) if !is_new && was_cut(&error) => {
                drop(lent);
                lent = self.lend().await?;
                lent.begin().await?;
            }
            begun => begun?,
        }
        Ok(lent)
    }

    async fn place(
        &self,
        places: &Arc<Semaphore>,
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, DbErr> {
        match timeout_at(deadline, Arc::clone(places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed)),
            Err(_) => {
                self.shared.health.crowded(&self.shared.settings);
                Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout))
            }
        }
    }

    /// One that was used before, and stands.
    async fn rested(&self) -> Option<Idle> {
        loop {
            // The one that rested shortest: what is not needed grows old, and goes.
            let mut idle = self.shared.lock().pop()?;
            if idle.made_at.elapsed() > LONGEST_LIFE {
                continue;
            }
            if idle.since.elapsed() <= UNTESTED_REST {
                return Some(idle);
            }
            // So that time is left to make another.
            let limit = TEST_LIMIT.min(self.shared.settings.acquire_timeout / 2);
            match timeout(limit, idle.connection.ping()).await {
                Ok(Ok(())) => return Some(idle),
                Ok(Err(error)) => self.shared.lost(&error),
                Err(_) => self.shared.lost(&failure::silence(limit)),
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says so, and lets go of all that rest: what ended one connection has most likely ended them all.
    fn lost(&self, error: &sqlx::Error) {
        self.lock().clear();
        self.health.lost(error);
    }

    /// Tries until `deadline`: a server that restarts is back in a moment.
    async fn connect(&self, deadline: Instant) -> Result<PgConnection, sqlx::Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match timeout_at(deadline, self.establish()).await {
                Ok(Ok(connection)) => {
                    self.health.answered();
                    return Ok(connection);
                }
                Ok(Err(error)) => error,
                Err(_) => failure::silence(self.settings.acquire_timeout),
            };
            if !failure::may_pass(&error) || Instant::now() + pause >= deadline {
                self.lost(&error);
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Connects, and sets what holds for every statement. By a statement and not with the connection's start, where
    /// PgBouncer lets no setting through.
    async fn establish(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        let set = |name: &str, limit: Duration| {
            format!("set_config('{name}', '{}', false)", limit.as_millis())
        };
        let sql = format!(
            "SELECT {}, {}, {}, set_config('timezone', 'UTC', false), \
             current_setting('transaction_read_only')::bool AS is_read_only",
            set("statement_timeout", self.settings.statement_timeout),
            set("lock_timeout", self.settings.lock_timeout),
            set("idle_in_transaction_session_timeout", LONGEST_IDLE_TRANSACTION),
        );
        let row = connection.fetch_one(AssertSqlSafe(sql)).await?;
        if row.try_get("is_read_only")? { Err(failure::read_only()) } else { Ok(connection) }
    }
}

/// A connection in use. Dropped, it goes back to its pool, unless there is no telling what state it is in.
pub struct Lent {
    connection: Option<PgConnection>,
    made_at: Instant,
    /// Made for this use.
    is_new: bool,
    /// Everything that was asked of it was answered.
    is_whole: bool,
    is_in_transaction: bool,
    limit: Duration,
    shared: Arc<Shared>,
    _places: Vec<OwnedSemaphorePermit>,
}

impl Lent {
    async fn begin(&mut self) -> Result<(), DbErr> {
        self.is_in_transaction = true;
        self.ask(Question::Batch("BEGIN")).await.map(drop)
    }

    /// Ends the transaction by `COMMIT` or `ROLLBACK`.
    pub async fn end(&mut self, how: &'static str) -> Result<(), DbErr> {
        self.ask(Question::Batch(how)).await?;
        self.is_in_transaction = false;
        Ok(())
    }

    pub async fn ask(&mut self, question: Question<'_>) -> Result<Answer, DbErr> {
        let failed = |error: sqlx::Error| {
            let error = RuntimeErr::SqlxError(Arc::new(error));
            match question {
                Question::Rows(_) | Question::Row(_) => DbErr::Query(error),
                Question::Effect(_) | Question::Batch(_) => DbErr::Exec(error),
            }
        };
        let Some(connection) = &mut self.connection else {
            return Err(failed(failure::gone()));
        };
        self.is_whole = false;
        let answer = match timeout(self.limit, asked(connection, question)).await {
            Ok(answer) => answer,
            Err(_) => Err(failure::silence(self.limit)),
        };
        match &answer {
            Ok(_) => self.shared.health.answered(),
            Err(error) if is_lost(error) => {
                self.connection = None;
                self.shared.lost(error);
            }
            Err(_) => {}
        }
        self.is_whole = true;
        answer.map_err(failed)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !self.is_whole || self.is_in_transaction {
            return;
        }
        let mut idle = self.shared.lock();
        idle.push(Idle { connection, made_at: self.made_at, since: Instant::now() });
        if idle.first().is_some_and(|oldest| oldest.since.elapsed() > LONGEST_REST) {
            idle.remove(0);
        }
    }
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lent").finish_non_exhaustive()
    }
}

async fn asked(
    connection: &mut PgConnection,
    question: Question<'_>,
) -> Result<Answer, sqlx::Error> {
    let rows = match question {
        Question::Rows(statement) => query(statement).fetch_all(connection).await?,
        Question::Row(statement) => {
            query(statement).fetch_optional(connection).await?.into_iter().collect()
        }
        Question::Effect(statement) => {
            return Ok(Answer::Effect(query(statement).execute(connection).await?.into()));
        }
        Question::Batch(sql) => {
            let done = connection.execute(AssertSqlSafe(sql.to_owned())).await?;
            return Ok(Answer::Effect(done.into()));
        }
    };
    Ok(Answer::Rows(rows.into_iter().map(QueryResult::from).collect()))
}

fn query(statement: &Statement) -> Query<'_, Postgres, SqlxValues> {
    let values = statement.values.clone().unwrap_or_else(|| sea_orm::sea_query::Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql.as_str()), SqlxValues(values))
}

impl Answer {
    pub fn rows(self) -> Vec<QueryResult> {
        match self {
            Self::Rows(rows) => rows,
            Self::Effect(_) => Vec::new(),
        }
    }

    /// # Errors
    ///
    /// When it is the answer to another question.
    pub fn effect(self) -> Result<ExecResult, DbErr> {
        match self {
            Self::Effect(effect) => Ok(effect),
            Self::Rows(_) => Err(DbErr::Custom("rows are no effect".to_owned())),
        }
    }
}

pub fn connection_failed(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(error)))
}

/// No answer came.
pub fn silence(limit: Duration) -> DbErr {
    connection_failed(failure::silence(limit))
}

/// The server answers, and takes no writes.
pub fn read_only() -> DbErr {
    connection_failed(failure::read_only())
}

/// Whether the connection was lost, other than by silence: whatever was not committed may be tried on another.
pub fn was_cut(error: &DbErr) -> bool {
    super::driver_error(error).is_some_and(|error| is_lost(error) && !is_silence(error))
}
