//! Results of batches: how fast they are taken in, and how fast one is found.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use bytes::Bytes;
use longshore::db::Db;
use longshore::sandbox::BatchFile;
use longshore::sandbox::BatchSettings;
use longshore::sandbox::BatchState;
use longshore::sandbox::Settings;
use sea_orm::ConnectionTrait as _;
use serde_json::Value;

use crate::Bench;
use crate::load;
use crate::load::Connection;
use crate::report::Line;
use crate::report::Unit;
use crate::server::Installation;
use crate::server::Setup;

const LINES: usize = 50_000;
const LINE: usize = 4_000;
const LOOKUPS: usize = 2_000;
const WATCH_QUICKLY: &str = "[batches]\npoll = \"50ms\"\npoll_max = \"100ms\"\n";

/// An output of 200 MB in lines as a chat model answers them.
pub async fn large(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let lines = LINES * bench.options.output / 200;
    let taken = take_in(bench, "ingestion", lines, LINE).await?;
    let megabytes = taken.bytes as f64 / 1e6;
    let what = format!("ingestion of an output of {megabytes:.0} MB ({lines} lines)");
    let line = Line::new(what)
        .at_least(
            "for each second on a core",
            megabytes / taken.processor.as_secs_f64(),
            Unit::MegabytesPerSecond,
            100.0,
        )
        .figure(
            "from fetching to the end",
            megabytes / taken.took.as_secs_f64(),
            Unit::MegabytesPerSecond,
        )
        .at_most("peak memory", taken.installation.server.peak_memory()?, Unit::Megabytes, 150.0);
    Ok(vec![line])
}

/// One result among very many.
pub async fn many(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let lines = bench.options.results;
    let taken = take_in(bench, "results", lines, 300).await?;
    let (address, batch) = (taken.installation.address, taken.batch.clone());
    let times = load::run(
        address,
        1,
        LOOKUPS,
        move |number| {
            let wanted = number * 7919 % lines;
            load::get(&format!("/v1/batches/{batch}/results?custom_id=request-{wanted}"))
        },
        |_, body| {
            anyhow::ensure!(body.ends_with(b"\"has_more\":false}"), "not one result");
            Ok(())
        },
    )
    .await?;
    let line = Line::new(format!("a result by its `custom_id` among {lines}"))
        .at_most("p99", times.percentile(0.99), Unit::Milliseconds, 5.0)
        .figure("p50", times.percentile(0.5), Unit::Milliseconds)
        .figure("ingested", lines as f64 / taken.took.as_secs_f64(), Unit::PerSecond)
        .at_most("peak memory", taken.installation.server.peak_memory()?, Unit::Megabytes, 150.0);
    Ok(vec![line])
}

struct Taken {
    installation: Installation,
    batch: String,
    bytes: usize,
    /// From the start of the ingestion to its end.
    took: Duration,
    /// What the server ran on a core meanwhile.
    processor: Duration,
}

/// Lets a batch of so many lines of this length come to its end.
async fn take_in(bench: &Bench, row: &str, lines: usize, length: usize) -> anyhow::Result<Taken> {
    let batches = BatchSettings {
        phase_ms: 20,
        hold_at: Some(BatchState::Finalizing),
        max_requests: usize::MAX,
        ..BatchSettings::default()
    };
    let settings = Settings {
        keep_bytes: 1 << 40,
        keep_total_bytes: 1 << 40,
        max_file_bytes: 1 << 40,
        batches,
        ..Settings::default()
    };
    let folder = bench.folder(row)?;
    let setup = Setup { models: &["a"], settings, extra: WATCH_QUICKLY, ..Setup::default() };
    let installation = Installation::start(&folder, setup).await?;
    let (address, input) = (installation.address, requests(lines));
    let batch =
        tokio::task::spawn_blocking(move || create(&mut Connection::open(address)?, &input))
            .await??;
    let provider_batch = loop {
        match &installation.sandbox.batches("a")[..] {
            [batch] if batch.status == "finalizing" => break batch.id.clone(),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let output = answers(lines, length);
    let bytes = output.len();
    installation.sandbox.set_batch_output("a", &provider_batch, BatchFile::Output, output)?;
    let before = installation.server.processor_time()?;
    installation.sandbox.release_batches("a");
    let wait = load::get(&format!("/v1/batches/{batch}?wait=60"));
    tokio::task::spawn_blocking(move || {
        until_completed(&mut Connection::open(address)?, &wait, lines)
    })
    .await??;
    let processor = installation.server.processor_time()?.saturating_sub(before);
    let took = ingestion_time(&folder).await?;
    Ok(Taken { installation, batch, bytes, took, processor })
}

fn requests(lines: usize) -> Vec<u8> {
    let mut text = String::with_capacity(lines * 120);
    for number in 0..lines {
        text += &format!(
            "{{\"custom_id\":\"request-{number}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{{}}}}\n"
        );
    }
    text.into_bytes()
}

fn answers(lines: usize, length: usize) -> Bytes {
    let mut text = String::with_capacity(lines * (length + 1));
    for number in 0..lines {
        let begin = format!(
            "{{\"id\":\"batch_req_{number}\",\"custom_id\":\"request-{number}\",\"response\":{{\"status_code\":200,\"request_id\":\"\",\
             \"body\":{{\"choices\":[{{\"message\":{{\"role\":\"assistant\",\"content\":\""
        );
        let end = "\"}}],\"usage\":{\"prompt_tokens\":70,\"completion_tokens\":32,\"total_tokens\":102}}},\"error\":null}\n";
        let filling = length.saturating_sub(begin.len() + end.len());
        text += &begin;
        text.extend(std::iter::repeat_n(
            "all the words of an answer, \\\"quoted\\\" ",
            filling / 38,
        ));
        text += end;
    }
    text.into()
}

fn create(connection: &mut Connection, input: &[u8]) -> anyhow::Result<String> {
    let upload = load::form("batch", &["a"], "in.jsonl", input.len() as u64);
    connection.send(&upload.head)?;
    connection.send(input)?;
    connection.send(&upload.tail)?;
    let file = load::id_of(connection.receive()?)?;
    let body = serde_json::json!({
        "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h",
    });
    load::id_of(connection.call(&load::post("/v1/batches", &body.to_string()))?)
}

fn until_completed(connection: &mut Connection, wait: &[u8], lines: usize) -> anyhow::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(600) {
        let batch: Value = serde_json::from_slice(connection.call(wait)?)?;
        match batch["status"].as_str() {
            Some("completed") => {
                let completed = &batch["request_counts"]["completed"];
                anyhow::ensure!(*completed == lines, "{completed} of {lines} lines");
                return Ok(());
            }
            Some("failed" | "cancelled" | "expired") => anyhow::bail!("the batch ended as {batch}"),
            _ => {}
        }
    }
    anyhow::bail!("the batch did not end")
}

/// How long the job took, as the database has it.
async fn ingestion_time(folder: &Path) -> anyhow::Result<Duration> {
    let db = Db::connect(&format!("sqlite://{}", folder.join("longshore.db").display())).await?;
    let sql = "SELECT finished_at - started_at AS took FROM jobs WHERE kind = 'ingest_batch'";
    let statement = longshore::db::statement(db.read(), sql, []);
    let row = db.read().query_one_raw(statement).await?.context("no ingestion")?;
    Ok(Duration::from_millis(u64::try_from(row.try_get::<i64>("", "took")?)?))
}
