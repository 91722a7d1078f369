//! Thousands that wait at the same time: what they cost the server's memory and the database.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::Bench;
use crate::load;
use crate::load::Answer;
use crate::load::Connection;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;
use crate::uploads::SIZE;

const MODEL: &str = "a";
/// How long statements are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Connections that are opened at the same time.
const OPENING: usize = 200;
/// What the server counts its statements with.
const READS: &str = "longshore_db_reads_total ";

pub async fn all(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let (waiters, awaited) =
        (bench.options.waiters, bench.options.awaited.min(bench.options.waiters));
    let setup = Setup { models: &[MODEL], max_concurrency: awaited, ..Setup::default() };
    let installation = Installation::start(&bench.folder("waiters")?, setup).await?;
    let hold = Fault::Hold { hold_before: false };
    let rule = FaultRule { times: 0, ..FaultRule::new(Operation::Upload, hold) };
    installation.sandbox.add_fault(MODEL, rule)?;
    let requests = requests(bench, &installation, awaited).await?;
    let reached = installation.sandbox.reached(MODEL, Operation::Upload, awaited as u64);
    tokio::time::timeout(Duration::from_secs(60), reached).await.context("not all were sent")?;

    let without = statements_meanwhile(installation.address).await?;
    let before = installation.server.present_memory()?;
    let mut waiting = open(installation.address, waiters, &requests).await?;
    until_all_wait(installation.address, waiters).await?;
    let with = statements_meanwhile(installation.address).await?;
    let memory = installation.server.present_memory()?;

    installation.sandbox.clear_faults(MODEL);
    let begun = Instant::now();
    installation.sandbox.release(MODEL);
    while let Some(answered) = waiting.join_next().await {
        answered??;
    }
    let answered = begun.elapsed();

    let seconds = WINDOW.as_secs_f64();
    let line = Line::new(format!("{waiters} requests with `?wait=60` on {awaited} files"))
        .at_most("memory", memory, Unit::Megabytes, 300.0)
        .figure("before them", before, Unit::Megabytes)
        .at_most(
            "statements",
            with as f64 / seconds,
            Unit::PerSecond,
            // One for each of them would be thousands; this is what any polling costs.
            without as f64 / seconds + 10.0,
        )
        .figure("without them", without as f64 / seconds, Unit::PerSecond)
        .figure("all answered after", answered.as_secs_f64(), Unit::Seconds)
        .note("statements as the server counts them");
    Ok(vec![line])
}

/// Uploads the files; answers a request for each that waits for it.
async fn requests(
    bench: &Bench,
    installation: &Installation,
    awaited: usize,
) -> anyhow::Result<Arc<[bytes::Bytes]>> {
    let upload = load::upload(&[MODEL], "in.txt", &[b'x'; SIZE]);
    let made = Arc::new(Mutex::new(Vec::with_capacity(awaited)));
    let seen = Arc::clone(&made);
    let (address, clients) = (installation.address, bench.options.clients);
    let uploading = load::run(
        address,
        clients,
        awaited,
        move |_| upload.clone(),
        move |_, body| {
            let path = format!("/v1/files/{}?wait=60", load::id_of(body)?);
            seen.lock().expect("no client panics").push(load::get(&path));
            Ok(())
        },
    );
    uploading.await?;
    let made = made.lock().expect("no client panics").clone();
    Ok(made.into())
}

/// Statements that read, within some seconds.
async fn statements_meanwhile(address: SocketAddr) -> anyhow::Result<u64> {
    tokio::task::spawn_blocking(move || {
        let mut connection = Connection::open(address)?;
        let mut count = || -> anyhow::Result<u64> {
            let metrics = String::from_utf8_lossy(connection.call(&load::get("/metrics"))?);
            let line = metrics.lines().find_map(|line| line.strip_prefix(READS));
            Ok(line.context("the server does not count its statements")?.parse()?)
        };
        let before = count()?;
        std::thread::sleep(WINDOW);
        Ok(count()? - before)
    })
    .await?
}

/// Opens the connections and sends their requests.
async fn open(
    address: SocketAddr,
    waiters: usize,
    requests: &Arc<[bytes::Bytes]>,
) -> anyhow::Result<JoinSet<anyhow::Result<()>>> {
    let (opening, mut waiting) = (Arc::new(Semaphore::new(OPENING)), JoinSet::new());
    for number in 0..waiters {
        let permit = Arc::clone(&opening).acquire_owned().await?;
        let requests = Arc::clone(requests);
        waiting.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(&requests[number % requests.len()]).await?;
            drop(permit);
            let mut answer = Vec::with_capacity(2048);
            loop {
                let read = stream.read_buf(&mut answer).await?;
                anyhow::ensure!(read > 0, "a connection was closed while it waited");
                let Some(Answer { status, body }) = Answer::read(&answer)? else { continue };
                anyhow::ensure!(status == 200, "a request that waited was answered with {status}");
                let file = load::file(&answer[body])?;
                anyhow::ensure!(file.status == "processed", "it is `{}`", file.status);
                return Ok(());
            }
        });
    }
    Ok(waiting)
}

/// Waits until the server says that so many wait.
async fn until_all_wait(address: SocketAddr, waiters: usize) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || {
        let (mut connection, begun) = (Connection::open(address)?, Instant::now());
        let wanted = format!("longshore_waiters {waiters}");
        loop {
            let metrics = String::from_utf8_lossy(connection.call(&load::get("/metrics"))?);
            if metrics.lines().any(|line| line == wanted) {
                return Ok(());
            }
            anyhow::ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "not all of them wait after 30 s: {:?}",
                metrics.lines().find(|line| line.starts_with("longshore_waiters"))
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    })
    .await?
}
