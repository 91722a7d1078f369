//! Many writes, one commit: the cost of a synced commit is shared by all that wait for one.
//!
//! The writes of a group run one after another in one transaction. When one of them fails, all of them
//! are run again, each in a savepoint of its own, so that it undoes nothing of the others. Savepoints are
//! the exception because they cost: SQLite copies every page that is changed under one, and PostgreSQL
//! wants two more round trips. A write is answered after the commit that holds it, never before.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::BoxFuture;
use sea_orm::DbErr;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::WriteError;
use super::attempt;
use super::copy;
use super::driver_error;
use super::is_away;
use super::is_conflict;
use super::postgres;
use super::transaction::Connection;
use super::transaction::Transaction;
use super::write_alone;
use crate::traces;
use crate::traces::Here;

/// A group is closed after this long, so that no write transaction holds the SQLite writer longer.
const MAX_GROUP_TIME: Duration = Duration::from_millis(8);
const MAX_GROUP_SIZE: usize = 256;
/// In a group, every so many-th write is a worker's, if one waits.
const WORK_EVERY: usize = 3;
/// Writes that wait for the writer; who comes later waits before it is let in.
const QUEUE: usize = 1024;

/// Who waits for a write.
#[derive(Clone, Copy, Debug)]
pub enum Urgency {
    /// A client. Goes first.
    Intake,
    /// A worker.
    Work,
}

/// The writer's side of a database. It ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Group {
    intake: mpsc::Sender<Box<dyn Write>>,
    work: mpsc::Sender<Box<dyn Write>>,
}

impl Group {
    /// Begins to take writes.
    ///
    /// # Errors
    ///
    /// When there is no thread for SQLite's.
    pub fn spawn(connection: Connection) -> std::io::Result<Self> {
        let (intake, intake_queue) = mpsc::channel(QUEUE);
        let (work, work_queue) = mpsc::channel(QUEUE);
        let is_blocking = matches!(connection, Connection::Sqlite(_));
        let writes = run(connection, intake_queue, work_queue);
        if is_blocking {
            // Its statements and commits run in whatever thread calls them: it has one of its own.
            let runtime = tokio::runtime::Handle::current();
            std::thread::Builder::new()
                .name("sqlite-writer".to_owned())
                .spawn(move || runtime.block_on(writes))?;
        } else {
            tokio::spawn(writes);
        }
        Ok(Self { intake, work })
    }

    pub async fn write<T, E, F>(&self, urgency: Urgency, write: F) -> Result<T, E>
    where
        F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync + 'static,
        T: Send + 'static,
        E: WriteError,
    {
        let (reply, answer) = oneshot::channel();
        let write =
            Box::new(Waiting { write: Arc::new(write), here: traces::here(), result: None, reply });
        let queue = match urgency {
            Urgency::Intake => &self.intake,
            Urgency::Work => &self.work,
        };
        let gone = || E::from(DbErr::Custom("the database writer has stopped".to_owned()));
        queue.send(write).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// A write of any type, and whoever waits for it.
#[async_trait::async_trait]
trait Write: Send {
    /// Runs it; `true` if what it wrote is to stay.
    async fn run(&mut self, tx: &Transaction) -> bool;
    /// Whether it was broken off for another transaction's sake, and may pass when begun anew.
    fn has_lost_a_conflict(&self) -> bool;
    /// Runs it on its own, because its group came to nothing or it lost a conflict, and answers. The error, if the
    /// database is away.
    async fn run_alone(self: Box<Self>, connection: &Connection) -> Option<DbErr>;
    /// Answers, now that the commit is on disk.
    fn answer(self: Box<Self>);
    /// Answers that no transaction could begin, or that nobody knows whether it was committed.
    fn refuse(self: Box<Self>, error: &DbErr);
}

struct Waiting<T, E, F> {
    write: Arc<F>,
    here: Here,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

#[async_trait::async_trait]
impl<T, E, F> Write for Waiting<T, E, F>
where
    F: for<'t> Fn(&'t Transaction) -> BoxFuture<'t, Result<T, E>> + Send + Sync,
    T: Send,
    E: WriteError,
{
    async fn run(&mut self, tx: &Transaction) -> bool {
        let result = self.here.hold(attempt(self.write.as_ref(), tx)).await;
        let keep = result.is_ok();
        self.result = Some(result);
        keep
    }

    fn has_lost_a_conflict(&self) -> bool {
        matches!(&self.result, Some(Err(error)) if error.as_db_err().is_some_and(is_conflict))
    }

    async fn run_alone(self: Box<Self>, connection: &Connection) -> Option<DbErr> {
        let result = self.here.hold(write_alone(connection, self.write.as_ref())).await;
        let error = result.as_ref().err().and_then(WriteError::as_db_err);
        let away = error.filter(|error| is_away(error)).map(copy);
        // Nobody waiting is no error: the client hung up, and what it asked for was done.
        drop(self.reply.send(result));
        away
    }

    fn answer(self: Box<Self>) {
        if let Some(result) = self.result {
            drop(self.reply.send(result));
        }
    }

    fn refuse(self: Box<Self>, error: &DbErr) {
        drop(self.reply.send(Err(copy(error).into())));
    }
}

async fn run(
    connection: Connection,
    mut intake: mpsc::Receiver<Box<dyn Write>>,
    mut work: mpsc::Receiver<Box<dyn Write>>,
) {
    loop {
        let first = tokio::select! {
            biased;
            Some(write) = intake.recv() => write,
            Some(write) = work.recv() => write,
            else => return,
        };
        let mut taken = 0usize;
        let next = || {
            taken += 1;
            // Workers are not shut out by an intake that never pauses.
            if taken.is_multiple_of(WORK_EVERY) {
                work.try_recv().or_else(|_| intake.try_recv()).ok()
            } else {
                intake.try_recv().or_else(|_| work.try_recv()).ok()
            }
        };
        commit_group(&connection, first, next).await;
    }
}

/// Runs `first` and whatever `next` yields in one transaction, commits, and answers them all.
async fn commit_group(
    connection: &Connection,
    first: Box<dyn Write>,
    mut next: impl FnMut() -> Option<Box<dyn Write>>,
) {
    let begun = Instant::now();
    let tx = match connection.begin().await {
        Ok(tx) => tx,
        Err(error) => {
            // The database is away, or another process holds SQLite's lock: all who wait would wait for the
            // same, one after another. They are told now, and come again.
            for write in std::iter::once(first).chain(std::iter::from_fn(next)) {
                write.refuse(&error);
            }
            return;
        }
    };
    let mut writes = vec![first];
    let mut committed = together(tx, &mut writes, begun, &mut next).await;
    if matches!(committed, Err(Failed::Undone)) {
        committed = apart(connection, &mut writes).await;
    }
    metrics::histogram!("longshore_db_group_writes").record(writes.len() as f64);
    metrics::histogram!("longshore_db_group_seconds").record(begun.elapsed().as_secs_f64());
    if let Err(Failed::Unknown(error)) = &committed {
        // It may have come true, and is not run again: whoever asked for it finds out.
        for write in writes {
            write.refuse(error);
        }
        return;
    }
    let mut away = None;
    for write in writes {
        match (&committed, &away) {
            (Ok(()), _) if !write.has_lost_a_conflict() => write.answer(),
            // What failed (a deadlock, a full disk) may be the fault of one write: each is tried on its own and
            // gets its own answer.
            (_, None) => away = write.run_alone(connection).await,
            // The next would wait for as long as that one.
            (_, Some(error)) => write.refuse(error),
        }
    }
}

/// Why a group came to nothing, as far as is known.
enum Failed {
    /// Nothing of it was written.
    Undone,
    /// The connection was lost on its commit.
    Unknown(DbErr),
}

async fn commit(tx: Transaction) -> Result<(), Failed> {
    tx.commit().await.map_err(|error| {
        let is_lost = driver_error(&error).is_some_and(postgres::is_lost);
        if is_lost { Failed::Unknown(error) } else { Failed::Undone }
    })
}

/// Runs the first of `writes` and then those that `next` yields, which it adds to them, as long as none
/// fails.
async fn together(
    tx: Transaction,
    writes: &mut Vec<Box<dyn Write>>,
    begun: Instant,
    mut next: impl FnMut() -> Option<Box<dyn Write>>,
) -> Result<(), Failed> {
    let mut place = 0;
    while let Some(write) = writes.get_mut(place) {
        if !write.run(&tx).await || tx.has_failed() {
            roll_back(tx).await;
            return Err(Failed::Undone);
        }
        place += 1;
        if place < MAX_GROUP_SIZE && begun.elapsed() < MAX_GROUP_TIME {
            writes.extend(next());
        }
    }
    commit(tx).await
}

/// Runs each of `writes` in a savepoint.
async fn apart(connection: &Connection, writes: &mut [Box<dyn Write>]) -> Result<(), Failed> {
    let tx = connection.begin().await.map_err(|_| Failed::Undone)?;
    for write in writes {
        if run_in_savepoint(&tx, write.as_mut()).await.is_err() {
            roll_back(tx).await;
            return Err(Failed::Undone);
        }
    }
    commit(tx).await
}

/// Without its connection it is rolled back all the same; who tries again meets whatever else is amiss.
async fn roll_back(tx: Transaction) {
    if let Err(error) = tx.rollback().await {
        tracing::debug!(error = %error, "could not roll a group of writes back");
    }
}

async fn run_in_savepoint(tx: &Transaction, write: &mut dyn Write) -> Result<(), DbErr> {
    let savepoint = tx.savepoint().await?;
    if write.run(&savepoint).await { savepoint.commit().await } else { savepoint.rollback().await }
}
