//! The sample goes up once, and arrives at every model.

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use reqwest::multipart::Form;
use reqwest::multipart::Part;
use tokio::time::Instant;

use super::LOOK_EVERY;
use super::MODELS;
use super::PATIENCE;
use super::SAMPLE;
use super::bars::Bars;
use super::bars::Step;
use super::requests;
use crate::cli::client::Client;
use crate::cli::files::FileObject;
use crate::cli::files::Mapping;

/// From the order to its end.
const STEPS: u64 = 3;

/// Uploads the sample, watches it arrive, and prints the table.
pub async fn show(client: &Client) -> anyhow::Result<FileObject> {
    let begun = Instant::now();
    let mut form = Form::new().text("purpose", "batch");
    for model in MODELS {
        form = form.text("target_model_names", model.name);
    }
    let part =
        Part::bytes(SAMPLE).file_name("airports.batch.jsonl").mime_str("application/jsonl")?;
    let request = client.upload(&["files"]).multipart(form.part("file", part));
    let mut file: FileObject = client.transfer(request, || 0).await?.value;
    println!(
        "Uploaded airports.batch.jsonl ({} requests, {} KB) once; its id came back after {} ms:\n{}\n",
        requests(),
        SAMPLE.len() / 1024,
        begun.elapsed().as_millis(),
        file.id
    );
    let bars = Bars::new(file.mappings.iter().map(|mapping| mapping.model.as_str()));
    while file.status == "uploaded" && begun.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK_EVERY).await;
        file = client.get(&["files", &file.id], &[]).await?.value;
        bars.show(file.mappings.iter().map(step));
    }
    bars.finish();
    println!("{}", arrivals(&file));
    println!("The file is `{}` after {:.1} s.\n", file.status, begun.elapsed().as_secs_f64());
    Ok(file)
}

fn step(mapping: &Mapping) -> Step {
    let done = match mapping.status.as_str() {
        "pending" => 1,
        "uploading" => 2,
        _ => STEPS,
    };
    let code = mapping.error.as_ref().and_then(|error| error.code.as_deref());
    let reason = code.map(|code| format!(" (last: {code})")).unwrap_or_default();
    let says = format!("{}, attempt {}{reason}", mapping.status, mapping.attempts);
    Step { done, all: STEPS, says }
}

fn arrivals(file: &FileObject) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "model",
        "provider",
        "status",
        "attempts",
        "the provider's id",
    ]);
    for mapping in &file.mappings {
        table.add_row([
            mapping.model.clone(),
            mapping.provider.clone(),
            mapping.status.clone(),
            mapping.attempts.to_string(),
            mapping.provider_file_id.clone().unwrap_or_default(),
        ]);
    }
    table
}
