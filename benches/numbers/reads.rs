//! Reads of file objects.

use std::sync::Arc;
use std::sync::Mutex;

use crate::Bench;
use crate::load;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;
use crate::uploads;
use crate::uploads::MODELS;
use crate::uploads::SIZE;

/// Different files that are read.
const FILES: usize = 2_000;

pub async fn files(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let folder = bench.folder("reads")?;
    let installation = Installation::start(&folder, Setup::default()).await?;
    let (address, clients) = (installation.address, bench.options.clients);
    let requests = requests(bench, &installation).await?;
    let (count, before) = (bench.options.reads, installation.server.processor_time()?);
    let times = load::run(
        address,
        clients,
        count,
        // In an order that visits all of them and follows none of theirs.
        move |number| requests[number * 7919 % requests.len()].clone(),
        |_, body| {
            anyhow::ensure!(body.ends_with(b"}"), "not a file object");
            Ok(())
        },
    );
    let times = times.await?;
    let ran = installation.server.processor_time()?.saturating_sub(before);
    let what =
        format!("`GET /v1/files/{{id}}`, {clients} clients, {FILES} files with 3 mappings each");
    let line = Line::new(what)
        .at_least("", times.per_second(), Unit::PerSecond, 10_000.0)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .figure("p99", times.percentile(0.99), Unit::Milliseconds)
        .figure(
            "the server's time on a core for each",
            uploads::each(ran, &times),
            Unit::Milliseconds,
        );
    Ok(vec![line])
}

/// Makes the files; answers a request for each, once all are ready.
async fn requests(
    bench: &Bench,
    installation: &Installation,
) -> anyhow::Result<Arc<[bytes::Bytes]>> {
    let upload = load::upload(&MODELS, "in.txt", &[b'x'; SIZE]);
    let made = Arc::new(Mutex::new(Vec::with_capacity(FILES)));
    let seen = Arc::clone(&made);
    let (address, clients) = (installation.address, bench.options.clients);
    let uploading = load::run(
        address,
        clients,
        FILES,
        move |_| upload.clone(),
        move |_, body| {
            let path = format!("/v1/files/{}", load::id_of(body)?);
            seen.lock().expect("no client panics").push(load::get(&path));
            Ok(())
        },
    );
    uploading.await?;
    uploads::until_ready(installation).await?;
    let made = made.lock().expect("no client panics").clone();
    Ok(made.into())
}
