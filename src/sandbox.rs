//! The built-in sandbox provider: an OpenAI-shaped API of files and batches whose latency and faults
//! follow a script, and which writes down every call, for the demo and for tests.
//!
//! Many accounts share one port. The provider behind `base_url("blue")` comes into being at its
//! first use and has files, batches, faults, settings and a ledger of its own. Everything a [`Sandbox`]
//! handle can do to an account is also served over HTTP under `/_control/{account}`.

mod account;
mod answer;
mod batches;
mod call;
mod control;
mod faults;
mod files;
mod ledger;
mod openai;
mod purpose;
mod request_body;
mod routes;
mod server;
mod settings;
mod upload;
mod webhook;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpSocket;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use self::batches::{
    BatchCounts, BatchEnd, BatchError, BatchErrors, BatchFile, BatchSettings, BatchState,
    BatchUsage, InputTokens, Oddity, OutputTokens, OverLimit, PlantedBatch, StoredBatch,
};
pub use self::faults::{Fault, FaultRule, InvalidFault};
pub use self::files::StoredFile;
pub use self::ledger::{Call, Operation, Stats};
pub use self::purpose::Purpose;
pub use self::settings::Settings;
pub use self::webhook::Webhook;

use self::account::{Account, Accounts, Background};

/// Connections the kernel keeps waiting for us to accept.
const BACKLOG: u32 = 1024;

/// A handle to a running sandbox, cheap to clone.
///
/// The sandbox stops when the last handle is dropped. A method that names an account creates it
/// where it does not exist yet.
#[derive(Clone)]
pub struct Sandbox {
    running: Arc<Running>,
}

struct Running {
    accounts: Arc<Accounts>,
    address: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl Sandbox {
    /// Listens on `address` (port 0 picks a free one) and serves in the background.
    ///
    /// Fails where the address cannot be listened on, and outside of a tokio runtime.
    pub fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let runtime = Handle::try_current().map_err(std::io::Error::other)?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;

        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let background =
            Background { runtime: runtime.clone(), tasks: tasks.clone(), stop: stop.clone() };
        let accounts = Arc::new(Accounts::new(background));
        tasks.spawn_on(
            server::accept(listener, Arc::clone(&accounts), tasks.clone(), stop.clone()),
            &runtime,
        );
        tasks.close();

        let stop_on_drop = stop.clone().drop_guard();
        let running = Running { accounts, address, tasks, stop, _stop_on_drop: stop_on_drop };
        Ok(Self { running: Arc::new(running) })
    }

    /// The address it listens on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.running.address
    }

    /// The base URL to configure for a provider: `http://HOST:PORT/{account}/v1`.
    ///
    /// Over HTTP an account's name is 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub fn base_url(&self, account: &str) -> String {
        format!("http://{}/{account}/v1", self.reachable_address())
    }

    /// The URL under which `account` is scripted: `http://HOST:PORT/_control/{account}`.
    pub fn control_url(&self, account: &str) -> String {
        format!("http://{}/{}/{account}", self.reachable_address(), routes::CONTROL)
    }

    /// The time since its start: its own clock, by which the ledger tells when something arrived.
    pub fn elapsed(&self) -> Duration {
        self.running.accounts.elapsed()
    }

    /// Closes the port and every connection, and returns once that is done.
    pub async fn shutdown(&self) {
        self.running.stop.cancel();
        self.running.tasks.wait().await;
    }

    /// The settings in force.
    pub fn settings(&self, account: &str) -> Settings {
        self.account(account).settings()
    }

    /// Replaces all settings, for calls that arrive from now on.
    pub fn configure(&self, account: &str, settings: Settings) {
        self.account(account).configure(settings);
    }

    /// Queues a fault behind those of the same operation.
    pub fn add_fault(&self, account: &str, rule: FaultRule) -> Result<(), InvalidFault> {
        self.account(account).add_fault(rule)
    }

    /// Forgets every queued fault. Calls a fault already holds stay held: see
    /// [`release`](Self::release).
    pub fn clear_faults(&self, account: &str) {
        self.account(account).clear_faults();
    }

    /// Lets every call that has arrived so far go on, if a `hold` or `hang` keeps it now or would
    /// keep it later on. Calls that arrive afterwards are held as scripted.
    pub fn release(&self, account: &str) {
        self.account(account).release();
    }

    /// Waits until at least `count` calls of `operation` have arrived, answered or not.
    ///
    /// It waits for as long as they do not come: bound it with `tokio::time::timeout`.
    pub async fn reached(&self, account: &str, operation: Operation, count: u64) {
        self.account(account).reached(operation, count).await;
    }

    /// Puts a file into the account that came through no call: a stranger's.
    ///
    /// It is listed at once, whatever the lag, and its contents are always kept.
    pub fn plant(
        &self,
        account: &str,
        filename: &str,
        purpose: Purpose,
        bytes: Bytes,
    ) -> StoredFile {
        self.account(account).plant(filename, purpose, bytes)
    }

    /// Every file there ever was, oldest first: the live ones and the last 100,000 deleted.
    pub fn files(&self, account: &str) -> Vec<StoredFile> {
        self.account(account).files()
    }

    /// The files that are not deleted, oldest first, whether the lag shows them yet or not.
    pub fn live_files(&self, account: &str) -> Vec<StoredFile> {
        self.account(account).live_files()
    }

    /// Puts a batch into the account that came through no call: a stranger's.
    ///
    /// It is listed at once, and goes as the account's batches go.
    pub fn plant_batch(&self, account: &str, batch: PlantedBatch) -> StoredBatch {
        batch.plant(&self.account(account))
    }

    /// Every batch, oldest first, whether the lag shows them yet or not.
    pub fn batches(&self, account: &str) -> Vec<StoredBatch> {
        self.account(account).batches()
    }

    /// Lets every batch go on by itself that `hold_at` keeps now or would keep later on. Batches that
    /// are created afterwards are held as the settings say.
    pub fn release_batches(&self, account: &str) {
        self.account(account).release_batches();
    }

    /// Ends a batch at once, with the files that belong to such an end; one that has ended stays as it is.
    pub fn end_batch(
        &self,
        account: &str,
        id: &str,
        end: BatchEnd,
    ) -> Result<StoredBatch, UnknownBatch> {
        known(id, self.account(account).end_batch(id, end))
    }

    /// Shows any word as the status of a batch, whatever it is; none: the true one.
    pub fn set_batch_status(
        &self,
        account: &str,
        id: &str,
        word: Option<&str>,
    ) -> Result<StoredBatch, UnknownBatch> {
        known(id, self.account(account).set_batch_status(id, word.map(str::to_owned)))
    }

    /// What a file of a batch holds, byte for byte: when the batch ends, or from now on if it has ended.
    pub fn set_batch_output(
        &self,
        account: &str,
        id: &str,
        file: BatchFile,
        bytes: Bytes,
    ) -> Result<StoredBatch, UnknownBatch> {
        known(id, self.account(account).set_batch_output(id, file, bytes))
    }

    /// Sends the event of a batch's end once more, under the same `webhook-id`.
    pub fn tell_again(&self, account: &str, id: &str) -> Result<StoredBatch, UnknownBatch> {
        known(id, self.account(account).tell_again(id))
    }

    /// The last 100,000 calls in the order of their arrival.
    pub fn calls(&self, account: &str) -> Vec<Call> {
        self.account(account).calls()
    }

    /// The counters, exact however many calls there were.
    pub fn stats(&self, account: &str) -> Stats {
        self.account(account).stats()
    }

    fn account(&self, name: &str) -> Arc<Account> {
        self.running.accounts.named(name)
    }

    /// One can listen on every address but not connect to it.
    fn reachable_address(&self) -> SocketAddr {
        let mut address = self.running.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
        address
    }
}

/// There is no batch of this id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no batch `{0}`")]
pub struct UnknownBatch(String);

fn known(id: &str, batch: Option<StoredBatch>) -> Result<StoredBatch, UnknownBatch> {
    batch.ok_or_else(|| UnknownBatch(id.to_owned()))
}
