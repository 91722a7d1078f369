//! The input and all that came of it go again, from every provider.

use std::collections::BTreeSet;

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::Value;
use tokio::time::Instant;

use super::LOOK_EVERY;
use super::MODELS;
use super::PATIENCE;
use super::bars::Bars;
use super::bars::Step;
use crate::cli::batches::BatchObject;
use crate::cli::client::Client;
use crate::cli::files::DeletedCopy;
use crate::cli::files::DeletionObject;
use crate::cli::watch::Watched as _;

/// A file that is deleted.
struct Doomed {
    /// What it is to the batch.
    role: String,
    id: String,
}

/// Deletes the files of a batch, watches their copies go, prints the receipts, and answers whether nothing is left.
pub async fn show(client: &Client, batch: &BatchObject) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let files = files(batch);
    for file in &files {
        client.delete::<Value>(&["files", &file.id], &[]).await?;
    }
    println!(
        "Deleted all {} files, the input and what came of it: gone here after {} ms, and on their way out at every \
         provider:\n",
        files.len(),
        begun.elapsed().as_millis()
    );
    let bars = Bars::new(MODELS.iter().map(|model| model.name));
    let deletions = loop {
        let mut deletions = Vec::with_capacity(files.len());
        for file in &files {
            let path = ["files", &file.id, "deletion"];
            deletions.push(client.get::<DeletionObject>(&path, &[]).await?.value);
        }
        bars.show(MODELS.iter().map(|model| departure(model.name, &deletions)));
        if deletions.iter().all(DeletionObject::is_over) || begun.elapsed() >= PATIENCE {
            break deletions;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    bars.finish();
    println!("{}", receipts(&files, &deletions));
    let are_done = deletions.iter().all(|deletion| deletion.status == "done");
    println!(
        "The deletions are {} after {:.1} s.",
        if are_done { "done" } else { "not done" },
        begun.elapsed().as_secs_f64()
    );
    Ok(are_done)
}

/// The input, what each model answered, and the files of all answers.
fn files(batch: &BatchObject) -> Vec<Doomed> {
    let mut named = vec![("input".to_owned(), Some(&batch.input_file_id))];
    for run in &batch.runs {
        named.push((format!("output of {}", run.model), run.output_file_id.as_ref()));
        named.push((format!("errors of {}", run.model), run.error_file_id.as_ref()));
    }
    named.push(("output of both".to_owned(), batch.output_file_id.as_ref()));
    named.push(("errors of both".to_owned(), batch.error_file_id.as_ref()));
    // Where only one has errors, no file has to be made for both.
    let mut known = BTreeSet::new();
    named
        .into_iter()
        .filter_map(|(role, id)| Some(Doomed { role, id: id?.clone() }))
        .filter(|file| known.insert(file.id.clone()))
        .collect()
}

/// How many copies of all files are gone from a model's provider, and what went wrong last.
fn departure(model: &str, deletions: &[DeletionObject]) -> Step {
    let copies: Vec<_> = deletions
        .iter()
        .flat_map(|deletion| &deletion.mappings)
        .filter(|copy| copy.model == model)
        .collect();
    let gone = copies.iter().filter(|copy| copy.is_gone()).count();
    let failure = copies.iter().filter(|copy| !copy.is_gone()).find_map(|copy| copy.error.as_ref());
    let reason = failure.and_then(|error| error.code.as_deref());
    let reason = reason.map(|code| format!(" (last: {code})")).unwrap_or_default();
    let says = format!("{gone} of {} gone{reason}", copies.len());
    Step { done: gone as u64, all: copies.len() as u64, says }
}

fn receipts(files: &[Doomed], deletions: &[DeletionObject]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(["file", "model", "provider", "status", "receipt"]);
    for (file, deletion) in files.iter().zip(deletions) {
        for copy in &deletion.mappings {
            table.add_row(receipt(file, copy));
        }
    }
    table
}

fn receipt(file: &Doomed, copy: &DeletedCopy) -> [String; 5] {
    [
        file.role.clone(),
        copy.model.clone(),
        copy.provider.clone(),
        copy.status.clone(),
        copy.note().unwrap_or_default(),
    ]
}
