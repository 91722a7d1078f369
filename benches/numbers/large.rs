//! One large file, and what it costs others: memory of the server, and the time of their reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use longshore::jsonl::Check;

use crate::Bench;
use crate::lines;
use crate::load;
use crate::load::Connection;
use crate::load::Times;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;
use crate::uploads;
use crate::uploads::MODELS;

const CHUNK: usize = 128 * 1024;
/// How often another client reads meanwhile.
const PROBE: Duration = Duration::from_millis(10);

/// A file of gigabytes, passed on byte for byte.
pub async fn file(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let megabytes = bench.options.large;
    // The same bytes over and over: the sender should cost nothing.
    let piece = Bytes::from(vec![b'x'; 1_000_000]);
    let measured = measure(bench, "large-file", "user_data", vec![piece; megabytes]).await?;
    let bytes = megabytes as u64 * 1_000_000;
    measured.expect_bytes(|_| bytes)?;
    let line = measured.line(format!("one upload of {megabytes} MB to 3 models"));
    Ok(vec![line.figure("ready after", measured.ready, Unit::Seconds)])
}

/// A batch file, each line of which is rewritten for each model.
pub async fn batch(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let megabytes = bench.options.batch;
    let content = lines::airports(megabytes * 1_000_000);
    let measured = measure(bench, "large-batch", "batch", vec![content.clone()]).await?;
    let mut check = Check::batch(None);
    check.feed(&content)?;
    let edits = check.finish()?.edits;
    measured.expect_bytes(|model| {
        edits.rewritten_len(content.len() as u64, &format!("{model}-2026-11-23"))
    })?;
    let line = measured.line(format!("one batch file of {megabytes} MB, rewritten for 3 models"));
    Ok(vec![line.at_most("ready after", measured.ready, Unit::Seconds, 4.0)])
}

struct Measured {
    /// Seconds from the first byte to the answer.
    intake: f64,
    /// Seconds from the answer until it is ready at all models.
    ready: f64,
    bytes: u64,
    memory: f64,
    reads: Times,
    installation: Installation,
}

impl Measured {
    fn line(&self, what: String) -> Line {
        Line::new(what)
            .at_most("peak memory", self.memory, Unit::Megabytes, 120.0)
            .at_most("others' slowest read", self.reads.percentile(1.0), Unit::Milliseconds, 30.0)
            .figure("their p99", self.reads.percentile(0.99), Unit::Milliseconds)
            .figure("intake", self.bytes as f64 / 1e6 / self.intake, Unit::MegabytesPerSecond)
            .figure("accepted in", self.intake, Unit::Seconds)
    }

    /// Whether each provider has received what it should, to the byte.
    fn expect_bytes(&self, expected: impl Fn(&str) -> u64) -> anyhow::Result<()> {
        for model in MODELS {
            let files = self.installation.sandbox.live_files(model);
            let sizes: Vec<_> = files.iter().map(|file| file.bytes).collect();
            anyhow::ensure!(
                sizes.contains(&expected(model)),
                "`{model}` has files of {sizes:?} bytes, none of {}",
                expected(model)
            );
        }
        Ok(())
    }
}

/// Uploads `pieces` as one file, while another client reads.
async fn measure(
    bench: &Bench,
    row: &str,
    purpose: &str,
    pieces: Vec<Bytes>,
) -> anyhow::Result<Measured> {
    let installation = Installation::start(&bench.folder(row)?, Setup::default()).await?;
    // What the other client reads.
    let warm = uploads::upload(bench, &installation, 1).await;
    warm?;
    uploads::until_ready(&installation).await?;

    let is_over = Arc::new(AtomicBool::new(false));
    let (address, watched) = (installation.address, Arc::clone(&is_over));
    let reads = tokio::task::spawn_blocking(move || probe(address, &watched));
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    let form = load::form(purpose, &MODELS, "in.jsonl", bytes);
    let sent = tokio::task::spawn_blocking(move || -> anyhow::Result<(f64, f64)> {
        let mut connection = Connection::open(address)?;
        let begun = Instant::now();
        connection.send(&form.head)?;
        for chunk in pieces.iter().flat_map(|piece| piece.chunks(CHUNK)) {
            connection.send(chunk)?;
        }
        connection.send(&form.tail)?;
        let id = load::id_of(connection.receive()?)?;
        let (intake, accepted) = (begun.elapsed(), Instant::now());
        let wait = load::get(&format!("/v1/files/{id}?wait=60"));
        loop {
            let file = load::file(connection.call(&wait)?)?;
            match file.status.as_str() {
                "uploaded" => {}
                "processed" => break,
                status => anyhow::bail!("the file is `{status}`"),
            }
        }
        Ok((intake.as_secs_f64(), accepted.elapsed().as_secs_f64()))
    })
    .await?;
    is_over.store(true, Ordering::Relaxed);
    let (reads, (intake, ready)) = (reads.await??, sent?);
    let memory = installation.server.peak_memory()?;
    Ok(Measured { intake, ready, bytes, memory, reads, installation })
}

/// Reads a file object now and then, until it is over.
fn probe(address: SocketAddr, is_over: &AtomicBool) -> anyhow::Result<Times> {
    let mut connection = Connection::open(address)?;
    let list: serde_json::Value =
        serde_json::from_slice(connection.call(&load::get("/v1/files?limit=1&order=asc"))?)?;
    let id = list["data"][0]["id"].as_str().unwrap_or_default();
    let request = load::get(&format!("/v1/files/{id}"));
    let (mut times, begun) = (Vec::new(), Instant::now());
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        connection.call(&request)?;
        times.push(begun.elapsed());
        std::thread::sleep(PROBE);
    }
    Ok(Times::new(times, begun.elapsed()))
}
