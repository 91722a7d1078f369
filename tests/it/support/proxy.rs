//! A proxy of TCP in front of a server: the network between, which can be slow, torn or silent.

use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::net::tcp::WriteHalf;
use tokio::sync::watch;

use super::servers::free_port;

/// How long a server has a connection's last words before it loses the connection.
const TEARING: Duration = Duration::from_millis(200);

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    Cut,
    HalfOpen,
    Gone,
}

/// Where a connection is torn, once, by what its client sends.
#[derive(Clone, Debug)]
struct Tear {
    at: Vec<u8>,
    is_passed_on: bool,
}

/// The network in front of a server. It runs in a thread of its own, so that a test may block. Gone with the test.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    mode: watch::Sender<Mode>,
    is_listening: AtomicBool,
    delay: Mutex<Duration>,
    tear: Mutex<Option<Tear>>,
    accepted: AtomicU64,
    open: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Proxy {
    /// One in front of what listens, or will, at a port of this machine.
    pub fn before(port: u16) -> Self {
        let shared = Arc::new(Shared {
            to: (Ipv4Addr::LOCALHOST, port).into(),
            mode: watch::Sender::new(Mode::Pass),
            is_listening: AtomicBool::new(false),
            delay: Mutex::default(),
            tear: Mutex::default(),
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let (port, listening) = (free_port(), Arc::clone(&shared));
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // All connections end with it.
            runtime.block_on(listen(port, listening));
        });
        shared.until_it_listens(true);
        Self { port, shared }
    }

    /// A URL of the server behind it, by way of it.
    pub fn url(&self, url: &str) -> String {
        url.replacen(&format!(":{}", self.shared.to.port()), &format!(":{}", self.port), 1)
    }

    /// Lets all through, also what it has held back.
    pub fn pass(&self) {
        self.turn(Mode::Pass);
    }

    /// Resets all connections, and refuses new ones.
    pub fn cut(&self) {
        self.turn(Mode::Cut);
    }

    /// Accepts and keeps connections, and moves no byte: as a firewall that drops what it does not know.
    pub fn half_open(&self) {
        self.turn(Mode::HalfOpen);
    }

    fn turn(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
        self.shared.until_it_listens(mode != Mode::Cut);
    }

    /// Holds back each piece, in both directions, for so long.
    pub fn delay(&self, delay: Duration) {
        *self.shared.delay.lock().unwrap() = delay;
    }

    /// Resets the connection whose client next sends `text`, once the server has it and before it answers.
    pub fn cut_after(&self, text: &str) {
        self.tear(text, true);
    }

    /// Resets the connection whose client next sends `text`: the server never gets it.
    pub fn cut_before(&self, text: &str) {
        self.tear(text, false);
    }

    fn tear(&self, text: &str, is_passed_on: bool) {
        let tear = Tear { at: text.as_bytes().to_vec(), is_passed_on };
        *self.shared.tear.lock().unwrap() = Some(tear);
    }

    /// Whether a connection was torn since [`Proxy::cut_after`] or [`Proxy::cut_before`].
    pub fn has_torn(&self) -> bool {
        self.shared.tear.lock().unwrap().is_none()
    }

    /// How many connections were accepted.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many of them are open.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// The bytes that went to the server.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The bytes that came from it.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.mode.send_replace(Mode::Gone);
    }
}

/// Accepts connections, except while they are cut, until the proxy is gone.
async fn listen(port: u16, shared: Arc<Shared>) {
    let mut modes = shared.mode.subscribe();
    loop {
        let mode = *modes.wait_for(|mode| *mode != Mode::Cut).await.unwrap();
        if mode == Mode::Gone {
            return;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        shared.is_listening.store(true, Ordering::Relaxed);
        loop {
            tokio::select! {
                _ = modes.wait_for(|mode| matches!(mode, Mode::Cut | Mode::Gone)) => break,
                accepted = listener.accept() => {
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve(accepted.unwrap().0, Arc::clone(&shared)));
                }
            }
        }
        drop(listener);
        shared.is_listening.store(false, Ordering::Relaxed);
    }
}

/// A connection, to its end.
async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    shared.open.fetch_add(1, Ordering::Relaxed);
    shared.until_it_moves().await;
    let server = TcpStream::connect(shared.to).await;
    if let Ok(mut server) = server {
        if join(&mut client, &mut server, &shared).await.is_err() {
            // What is closed now is reset.
            server.set_zero_linger().unwrap();
            client.set_zero_linger().unwrap();
        }
    } else {
        client.set_zero_linger().unwrap();
    }
    shared.open.fetch_sub(1, Ordering::Relaxed);
}

async fn join(client: &mut TcpStream, server: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let is_torn = AtomicBool::new(false);
    let mut modes = shared.mode.subscribe();
    tokio::select! {
        _ = modes.wait_for(|mode| *mode == Mode::Cut) => Err(io::ErrorKind::ConnectionReset.into()),
        ended = async {
            tokio::try_join!(
                shared.send(from_client, to_server, &is_torn),
                shared.receive(from_server, to_client, &is_torn),
            )
        } => ended.map(|_| ()),
    }
}

impl Shared {
    /// Waits for the thread that listens to have done as it was told.
    fn until_it_listens(&self, is_listening: bool) {
        while self.is_listening.load(Ordering::Relaxed) != is_listening {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    async fn until_it_moves(&self) {
        let mut modes = self.mode.subscribe();
        modes.wait_for(|mode| *mode != Mode::HalfOpen).await.unwrap();
    }

    /// The next bytes, once they may move; none at the end.
    async fn read(&self, from: &mut ReadHalf<'_>, buffer: &mut [u8]) -> io::Result<usize> {
        let length = from.read(buffer).await?;
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        self.until_it_moves().await;
        Ok(length)
    }

    async fn send(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        is_torn: &AtomicBool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = self.read(&mut from, &mut buffer).await?;
            let bytes = &buffer[..length];
            let tear = self.tear.lock().unwrap().take_if(|tear| tear.is_in(bytes));
            is_torn.store(tear.is_some(), Ordering::Relaxed);
            if tear.as_ref().is_none_or(|tear| tear.is_passed_on) {
                self.sent.fetch_add(length as u64, Ordering::Relaxed);
                to.write_all(bytes).await?;
            }
            if tear.is_some() {
                // The server has the time to do what it was told; what it answers goes nowhere.
                tokio::time::sleep(TEARING).await;
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if length == 0 {
                return to.shutdown().await;
            }
        }
    }

    async fn receive(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        is_torn: &AtomicBool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = self.read(&mut from, &mut buffer).await?;
            if length == 0 {
                return to.shutdown().await;
            }
            if is_torn.load(Ordering::Relaxed) {
                continue;
            }
            self.received.fetch_add(length as u64, Ordering::Relaxed);
            to.write_all(&buffer[..length]).await?;
        }
    }
}

impl Tear {
    fn is_in(&self, bytes: &[u8]) -> bool {
        bytes.windows(self.at.len()).any(|window| window == self.at)
    }
}
