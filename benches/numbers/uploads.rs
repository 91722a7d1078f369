//! Uploads: how many are accepted, and how soon they are where they should be.

use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;

use crate::Bench;
use crate::load;
use crate::load::Connection;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;

/// Bytes of a file.
pub const SIZE: usize = 10_000;
pub const MODELS: [&str; 3] = ["a", "b", "c"];
/// Uploads before the count begins.
const WARM_UP: usize = 200;

/// Accepted while workers carry them, and ready at all models.
pub async fn up(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let clients = bench.options.clients;
    let folder = bench.folder("uploads-up")?;
    let installation = Installation::start(&folder, Setup::default()).await?;
    upload(bench, &installation, WARM_UP).await?;
    until_ready(&installation).await?;

    let (before, begun) = (installation.server.processor_time()?, Instant::now());
    let times = upload(bench, &installation, bench.options.uploads).await?;
    until_ready(&installation).await?;
    let ready = bench.options.uploads as f64 / begun.elapsed().as_secs_f64();
    let ran = installation.server.processor_time()?.saturating_sub(before);

    let all = (WARM_UP + bench.options.uploads) as u64;
    for model in MODELS {
        let created = installation.sandbox.stats(model).files_created;
        anyhow::ensure!(created == all, "`{model}` has {created} files instead of {all}");
    }
    let what = format!(
        "accepted, 10 KB to 3 models, {clients} clients, `up` (SQLite, synced, workers running)"
    );
    let accepted = Line::new(what)
        .at_least("", times.per_second(), Unit::PerSecond, 1000.0)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .at_most("p99", times.percentile(0.99), Unit::Milliseconds, 40.0);
    let what = "the same files ready at all 3 models, from the first request to the last file";
    let ready = Line::new(what).at_least("", ready, Unit::FilesPerSecond, 400.0).figure(
        "the server's time on a core for each",
        each(ran, &times),
        Unit::Milliseconds,
    );
    Ok(vec![accepted, ready])
}

/// Accepted by an intake that has the machine for itself.
pub async fn serve(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let clients = bench.options.clients;
    let folder = bench.folder("uploads-serve")?;
    let setup = Setup { command: "serve", ..Setup::default() };
    let installation = Installation::start(&folder, setup).await?;
    upload(bench, &installation, WARM_UP).await?;
    let before = installation.server.processor_time()?;
    let times = upload(bench, &installation, bench.options.uploads).await?;
    let ran = installation.server.processor_time()?.saturating_sub(before);
    let what = format!("accepted, 10 KB to 3 models, {clients} clients, `serve` alone");
    let accepted = Line::new(what)
        .at_least("", times.per_second(), Unit::PerSecond, 2000.0)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .at_most("p99", times.percentile(0.99), Unit::Milliseconds, 25.0)
        .figure("the server's time on a core for each", each(ran, &times), Unit::Milliseconds);
    Ok(vec![accepted])
}

/// Milliseconds that a server which ran for `ran` spent on each request.
pub fn each(ran: Duration, times: &load::Times) -> f64 {
    ran.as_secs_f64() * 1000.0 / times.count() as f64
}

/// Uploads `count` files to all three models.
pub async fn upload(
    bench: &Bench,
    installation: &Installation,
    count: usize,
) -> anyhow::Result<load::Times> {
    let request = load::upload(&MODELS, "in.txt", &[b'x'; SIZE]);
    let (address, clients) = (installation.address, bench.options.clients);
    load::run(address, clients, count, move |_| request.clone(), |_, _| Ok(())).await
}

/// Waits until no file is on its way any more, and says when one failed.
pub async fn until_ready(installation: &Installation) -> anyhow::Result<()> {
    let address = installation.address;
    tokio::task::spawn_blocking(move || {
        let mut connection = Connection::open(address)?;
        let (waiting, failed) = (
            load::get("/v1/files?limit=1&status=uploaded"),
            load::get("/v1/files?limit=1&status=error"),
        );
        // Asked seldom at first: until the last file is there, every look is taken from the server.
        while is_any(&mut connection, &waiting)? {
            std::thread::sleep(Duration::from_millis(20));
        }
        anyhow::ensure!(!is_any(&mut connection, &failed)?, "a file failed");
        Ok(())
    })
    .await?
}

fn is_any(connection: &mut Connection, request: &[u8]) -> anyhow::Result<bool> {
    let list: serde_json::Value = serde_json::from_slice(connection.call(request)?)?;
    Ok(!list["data"].as_array().context("not a list")?.is_empty())
}
