//! How long one file takes on a system that has nothing else to do.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::Operation;
use longshore::sandbox::Settings;

use crate::Bench;
use crate::load;
use crate::load::Connection;
use crate::load::Times;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;
use crate::uploads;
use crate::uploads::MODELS;
use crate::uploads::SIZE;

const EIGHT: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
const WARM_UP: usize = 5;

/// From the first byte of an upload to the answer that it is ready at eight models, each 100 ms away.
pub async fn fanout(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let folder = bench.folder("fanout")?;
    let defaults = Setup::default();
    let settings = Settings { latency_ms: 100, ..defaults.settings.clone() };
    let installation =
        Installation::start(&folder, Setup { models: &EIGHT, settings, ..defaults }).await?;
    let (address, rounds) = (installation.address, bench.options.rounds);
    let times = tokio::task::spawn_blocking(move || -> anyhow::Result<Times> {
        let mut connection = Connection::open(address)?;
        let request = load::upload(&EIGHT, "in.txt", &[b'x'; SIZE]);
        let (mut times, begun) = (Vec::new(), Instant::now());
        for round in 0..WARM_UP + rounds {
            let begun = Instant::now();
            let id = load::id_of(connection.call(&request)?)?;
            let path = format!("/v1/files/{id}?wait=60");
            let file = load::file(connection.call(&load::get(&path))?)?;
            anyhow::ensure!(file.status == "processed", "the file is `{}`", file.status);
            if round >= WARM_UP {
                times.push(begun.elapsed());
            }
            rest(round);
        }
        Ok(Times::new(times, begun.elapsed()))
    });
    let times = times.await??;
    let what =
        "upload to 8 models at 100 ms each until ready at all, one at a time (then `?wait=`)";
    let line = Line::new(what)
        .at_most("p50", times.percentile(0.5), Unit::Milliseconds, 130.0)
        .figure("p99", times.percentile(0.99), Unit::Milliseconds);
    Ok(vec![line])
}

/// From the answer to an upload to its first byte at each of three providers.
pub async fn first_byte(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let folder = bench.folder("first-byte")?;
    let installation = Installation::start(&folder, Setup::default()).await?;
    let times = to_first_byte(bench, &installation).await?;
    let what =
        "from the answer to an upload to its first byte at a provider, 3 models, one at a time";
    let line = Line::new(what)
        .at_most("p50", times.percentile(0.5), Unit::Milliseconds, 10.0)
        .at_most("p99", times.percentile(0.99), Unit::Milliseconds, 100.0);
    Ok(vec![line])
}

/// From each answer to an upload, one at a time, to its first byte at each of three providers.
pub async fn to_first_byte(bench: &Bench, installation: &Installation) -> anyhow::Result<Times> {
    let (address, rounds) = (installation.address, bench.options.rounds);
    let sandbox = installation.sandbox.clone();
    let answered = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<Duration>> {
        let mut connection = Connection::open(address)?;
        let mut answered = Vec::new();
        for round in 0..WARM_UP + rounds {
            let request = load::upload(&MODELS, &format!("{round}.txt"), &[b'x'; SIZE]);
            connection.call(&request)?;
            // By the same clock as the arrivals.
            answered.push(sandbox.elapsed());
            rest(round);
        }
        Ok(answered)
    });
    let answered = answered.await??;
    uploads::until_ready(installation).await?;

    let mut times = Vec::new();
    for model in MODELS {
        let calls = installation.sandbox.calls(model).into_iter();
        let arrived: HashMap<usize, Duration> = calls
            .filter(|call| call.operation == Operation::Upload)
            .filter_map(|call| {
                // The name the file was sent with, its marker behind the first dot.
                let round = call.filename?.split('.').next()?.parse().ok()?;
                Some((round, Duration::from_micros(call.first_byte_at_us?)))
            })
            .collect();
        for (round, answered) in answered.iter().enumerate().skip(WARM_UP) {
            let arrived = arrived.get(&round);
            let arrived =
                arrived.ok_or_else(|| anyhow::anyhow!("upload {round} did not arrive"))?;
            // A worker may be faster than the answer.
            times.push(arrived.saturating_sub(*answered));
        }
    }
    Ok(Times::new(times, Duration::ZERO))
}

/// Lets the system come to rest, for a time that keeps no step with any of its polls.
fn rest(round: usize) {
    std::thread::sleep(Duration::from_millis(40 + (round as u64 * 37) % 97));
}
