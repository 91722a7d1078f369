//! A batch runs on two of the models, and one file has what both answered.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::json;
use tokio::time::Instant;

use super::FAILING_PERCENT;
use super::LOOK_EVERY;
use super::PATIENCE;
use super::bars::Bars;
use super::bars::Step;
use super::requests;
use crate::cli::batches::BatchObject;
use crate::cli::batches::Counts;
use crate::cli::batches::Run;
use crate::cli::batches::results;
use crate::cli::client::Client;
use crate::cli::watch::Watched as _;

const MODELS: [&str; 2] = ["swift", "steady"];
/// The request that is looked up, and how many that failed are shown beside it.
const LOOKED_UP: &str = "airport-JFK";
const FAILED_SHOWN: usize = 3;

/// Creates the batch, watches its runs, and prints what some requests were answered.
pub async fn show(client: &Client, input_file_id: &str) -> anyhow::Result<BatchObject> {
    let begun = Instant::now();
    let new = json!({
        "input_file_id": input_file_id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "target_model_names": MODELS,
    });
    let mut batch: BatchObject = client.create(&["batches"], "demo", &new).await?.value;
    println!(
        "Created a batch of it on {}; its id came back after {} ms:\n{}\n",
        MODELS.map(|model| format!("`{model}`")).join(" and "),
        begun.elapsed().as_millis(),
        batch.id
    );
    let bars = Bars::new(batch.runs.iter().map(|run| run.model.as_str()));
    while !batch.is_over() && begun.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK_EVERY).await;
        batch = client.get(&["batches", &batch.id], &[]).await?.value;
        bars.show(batch.runs.iter().map(step));
    }
    bars.finish();
    let took = begun.elapsed();
    println!("{}", answers(client, &batch.id).await?);
    println!(
        "The batch is `{}` after {:.1} s: {}{}.\n\
         `longshore batches retry` would run what failed once more, as a batch of its own.",
        batch.status,
        took.as_secs_f64(),
        batch.request_counts.text(),
        batch.usage.map(|usage| format!("; tokens: {}", usage.text())).unwrap_or_default(),
    );
    Ok(batch)
}

/// Whether all was answered, and as much failed as was to fail.
pub fn is_good(batch: &BatchObject) -> bool {
    let asked = requests();
    let failed = asked * u64::from(FAILING_PERCENT) / 100;
    let total = asked * MODELS.len() as u64;
    batch.status == "completed"
        && batch.request_counts == Counts { total, completed: total - failed, failed }
        && batch.usage.is_some_and(|usage| usage.total_tokens > 0)
}

fn step(run: &Run) -> Step {
    let Counts { total, .. } = run.request_counts;
    // A provider does not count before it has read the file.
    let all = if total == 0 { requests() } else { total };
    Step { done: run.request_counts.done(), all, says: run.state() }
}

/// One request as both models answered it, and a few that failed.
async fn answers(client: &Client, id: &str) -> anyhow::Result<Table> {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["custom_id", "model", "status", "answer"]);
    for query in [
        vec![("custom_id", LOOKED_UP.to_owned())],
        vec![("status", "failed".to_owned()), ("limit", FAILED_SHOWN.to_string())],
    ] {
        table.add_rows(results::rows(client, id, &query).await?);
    }
    Ok(table)
}
