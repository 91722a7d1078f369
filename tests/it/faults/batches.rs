//! Batches, as their clients, the rows and the providers have them: all three have to agree.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use longshore::sandbox::BatchCounts;

use super::fleet::Fleet;
use super::fleet::MODELS;
use super::history::Batch;
use super::history::Fate;
use super::history::History;
use super::rows::Rows;
use crate::support::Client;

/// What each provider counts, by the model and its id of the batch.
type Counted = BTreeMap<(&'static str, String), BatchCounts>;

/// Each batch has ended as it should, once at each provider, with every line's result.
pub async fn check(fleet: &Fleet, client: &Client, rows: &Rows, history: &History) {
    let counted = count(fleet, history);
    for batch in history.batches() {
        check_batch(client, &batch, &counted, history).await;
    }
    check_runs(rows, &counted, history).await;
}

fn count(fleet: &Fleet, history: &History) -> Counted {
    let mut counted = Counted::new();
    for model in MODELS {
        let mut markers = BTreeSet::new();
        for batch in fleet.sandbox.batches(model) {
            history.checked("batch of a provider compared");
            let marker = batch.metadata.as_ref().and_then(|metadata| metadata.get("longshore"));
            if !marker.is_some_and(|marker| markers.insert(marker.clone())) {
                history.violation(format_args!("a second batch at `{model}`: {batch:?}"));
            }
            counted.insert((model, batch.id), batch.request_counts);
        }
    }
    counted
}

/// As its client sees it.
async fn check_batch(client: &Client, batch: &Batch, counted: &Counted, history: &History) {
    let (status, body) = client.get(&format!("/v1/batches/{}", batch.id)).await;
    history.checked("batch compared");
    let input = history.file(&batch.input);
    let may_be_cancelled =
        batch.is_cancelled || input.as_ref().is_some_and(|file| file.fate != Fate::Kept);
    let end = body["status"].as_str().unwrap_or_default();
    let is_right = match end {
        "completed" => true,
        "cancelled" => may_be_cancelled,
        _ => false,
    };
    if status != 200 || !is_right || batch.end.as_ref().is_some_and(|before| before != end) {
        return history.violation(format_args!("batch {}: {status} {body}", batch.id));
    }
    let (mut completed, mut failed) = (0, 0);
    for run in body["runs"].as_array().unwrap() {
        for model in MODELS.into_iter().filter(|model| run["model"] == *model) {
            let id = run["provider_batch_id"].as_str().unwrap_or_default();
            let counts = counted.get(&(model, id.to_owned())).copied().unwrap_or_default();
            completed += counts.completed;
            failed += counts.failed;
        }
    }
    let results = count_results(client, &batch.id).await;
    let counts = &body["request_counts"];
    if counts["completed"] != completed || counts["failed"] != failed {
        history.violation(format_args!(
            "the providers of batch {} count {completed} and {failed}: {body}",
            batch.id
        ));
    }
    if results != (completed, failed) {
        history.violation(format_args!(
            "results of batch {} that succeeded and failed: {results:?}, not {completed} and {failed}",
            batch.id
        ));
    }
    if let Some(file) = input.filter(|_| end == "completed" && !may_be_cancelled) {
        let total = u64::try_from(file.requests * file.models.len()).unwrap();
        if counts["total"] != total || completed + failed != total {
            history.violation(format_args!("of {total} lines, each once: {body}"));
        }
    }
}

/// How many results of a batch succeeded, and how many failed.
async fn count_results(client: &Client, id: &str) -> (u64, u64) {
    let (mut succeeded, mut failed, mut after) = (0, 0, String::new());
    loop {
        let path = format!("/v1/batches/{id}/results?limit=100{after}");
        let (status, page) = client.get(&path).await;
        let Some(data) = page["data"].as_array().filter(|_| status == 200) else { return (0, 0) };
        let count = |word: &str| data.iter().filter(|line| line["status"] == word).count() as u64;
        succeeded += count("succeeded");
        failed += count("failed");
        if page["has_more"] != true {
            return (succeeded, failed);
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
}

/// Each batch at a provider is one run's, or was called off since it is nobody's; and each run has, whatever its end,
/// what its provider counts.
async fn check_runs(rows: &Rows, counted: &Counted, history: &History) {
    let strays = rows
        .texts(
            "SELECT payload::json ->> 'stray' FROM jobs WHERE kind = 'cancel_batch' \
             AND payload::json ->> 'stray' IS NOT NULL",
        )
        .await;
    let mut nobodys: BTreeMap<_, _> = counted.iter().collect();
    let runs = rows
        .query(
            "SELECT r.id::text, r.model, r.provider_batch_id, r.completed, r.failed, \
             (SELECT count(DISTINCT custom_id) FROM batch_results l WHERE l.run_id = r.id \
             AND l.problem IS NULL AND l.outcome <> 'broken') FROM batch_runs r",
        )
        .await;
    for row in runs {
        history.checked("run compared");
        let text = |index| row.try_get_by_index::<Option<String>>(index).unwrap();
        let number = |index| u64::try_from(row.try_get_by_index::<i64>(index).unwrap()).unwrap();
        let (run, model, id) = (text(0), text(1).unwrap(), text(2));
        let (completed, failed, lines) = (number(3), number(4), number(5));
        let counts = match &id {
            None => Some(BatchCounts::default()),
            Some(id) => {
                let model = MODELS.into_iter().find(|other| *other == model).unwrap();
                nobodys.remove(&(model, id.clone())).copied()
            }
        };
        let Some(counts) = counts else {
            history.violation(format_args!("run {run:?} is on {id:?}, which `{model}` has not"));
            continue;
        };
        if (completed, failed) != (counts.completed, counts.failed) || lines != completed + failed {
            history.violation(format_args!(
                "run {run:?} counts {completed} and {failed} in {lines} lines, and `{model}` of {id:?} {counts:?}"
            ));
        }
    }
    for (model, id) in nobodys.into_keys() {
        if !strays.contains(id) {
            history.violation(format_args!("batch {id} at `{model}` is no run's, and goes on"));
        }
    }
}
