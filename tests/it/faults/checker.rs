//! Afterwards: every answer that was given, held against the database, the blob store and the providers' ledgers.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::Purpose;
use reqwest::Method;
use serde_json::Value;
use sha2::Digest as _;
use sha2::Sha256;

use super::at_work;
use super::batches;
use super::fleet::Fleet;
use super::fleet::MODELS;
use super::history::Fate;
use super::history::File;
use super::history::History;
use super::rows::Rows;
use super::strangers;
use super::strangers::Strangers;
use crate::support::Client;
use crate::support::Receiver;

/// Everything that can be asked of what is left.
pub async fn check(
    fleet: &mut Fleet,
    rows: &Rows,
    receiver: &Receiver,
    strangers: &Strangers,
    history: &History,
) {
    let client = fleet.clients().remove(0);
    let listed = list_files(&client).await;
    check_files(&client, &listed, history).await;
    check_copies(fleet, &listed, strangers, history);
    batches::check(fleet, &client, rows, history).await;
    check_rows(rows, history).await;
    check_told(rows, receiver, history).await;
    // Only now: it would delete what should not have been left.
    strangers::reconcile(&client, history).await;
    check_copies(fleet, &listed, strangers, history);
    at_work::check(fleet, rows, history).await;
    check_blobs(fleet, rows, history).await;
}

async fn list_files(client: &Client) -> Vec<Value> {
    let (mut files, mut after) = (Vec::new(), String::new());
    loop {
        let (status, page) = client.get(&format!("/v1/files?limit=10000{after}")).await;
        assert_eq!(status, 200, "{page}");
        files.extend(page["data"].as_array().unwrap().iter().cloned());
        if page["has_more"] != true {
            return files;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
}

/// Each file that was answered is there, whole and processed; each whose delete was answered is not; none is there that
/// nobody was told of, but for what batches made and what a client sent without hearing.
async fn check_files(client: &Client, listed: &[Value], history: &History) {
    let uploads = listed.iter().filter(|file| file["purpose"] != "batch_output");
    let there: BTreeMap<&str, &Value> =
        uploads.map(|file| (file["filename"].as_str().unwrap(), file)).collect();
    let count = listed.iter().filter(|file| file["purpose"] != "batch_output").count();
    if there.len() != count {
        history.violation("a file is there twice");
    }
    for file in history.files() {
        match (there.get(file.filename.as_str()), file.fate) {
            (None, Fate::Kept) => {
                history.violation(format_args!("`{}` ({}) is lost", file.filename, file.id));
            }
            (Some(found), Fate::Promised) => {
                history.violation(format_args!("`{}` was never deleted: {found}", file.filename));
            }
            (Some(found), Fate::Gone) => {
                history.violation(format_args!("`{}` is back: {found}", file.filename));
            }
            (Some(found), _) => check_file(client, &file, found, history).await,
            (None, _) => check_deletion(client, &file, history).await,
        }
        history.checked("file compared");
    }
    for name in there.keys() {
        if history.file(name).is_none() {
            history.violation(format_args!("`{name}` is there, and nobody was told of it"));
        }
    }
}

async fn check_file(client: &Client, file: &File, found: &Value, history: &History) {
    let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(&file.content));
    if found["id"] != file.id.as_str()
        || found["sha256"] != sha256.as_str()
        || found["status"] != "processed"
    {
        history.violation(format_args!("`{}` ({}) is {found}", file.filename, file.id));
    }
    let path = format!("/v1/files/{}/content", file.id);
    let content = client.request(Method::GET, &path).send().await.unwrap().bytes().await.unwrap();
    if *content != *file.content {
        history.violation(format_args!("`{}` has other content", file.filename));
    }
}

async fn check_deletion(client: &Client, file: &File, history: &History) {
    let (status, deletion) = client.get(&format!("/v1/files/{}/deletion", file.id)).await;
    if status != 200 || deletion["status"] != "done" {
        history.violation(format_args!("deletion of `{}`: {status} {deletion}", file.filename));
    }
}

/// Each mapping's copy is live at its provider, with the file's bytes where they go as they are, and so is what is
/// strangers'; no other upload is.
fn check_copies(fleet: &Fleet, listed: &[Value], strangers: &Strangers, history: &History) {
    for model in MODELS {
        let live = fleet.sandbox.live_files(model).into_iter();
        let mut live: BTreeMap<String, _> = live
            .filter(|copy| copy.purpose != Purpose::BatchOutput)
            .map(|copy| (copy.id.clone(), copy))
            .collect();
        for file in listed.iter().filter(|file| file["purpose"] != "batch_output") {
            let mappings = file["mappings"].as_array().unwrap();
            let Some(mapping) = mappings.iter().find(|mapping| mapping["model"] == model) else {
                continue;
            };
            history.checked("copy compared");
            let copy = mapping["provider_file_id"].as_str().and_then(|id| live.remove(id));
            let is_whole = copy.is_some_and(|copy| {
                file["purpose"] == "batch" || file["sha256"] == copy.sha256.as_str()
            });
            if !is_whole || mapping["status"] != "ready" {
                history.violation(format_args!("no copy at `{model}` of {file}"));
            }
        }
        for stranger in strangers.at(model) {
            history.checked("stranger's file compared");
            if live.remove(&stranger.id).is_none() {
                history.violation(format_args!("deleted at `{model}`, and not ours: {stranger:?}"));
            }
        }
        for copy in live.values() {
            history.violation(format_args!("a copy at `{model}` that is no mapping's: {copy:?}"));
        }
    }
}

/// The rows agree with each other.
async fn check_rows(rows: &Rows, history: &History) {
    for (what, sql) in [
        (
            "mappings that still wonder about an upload",
            "SELECT count(*) FROM mappings WHERE status <> 'deleted' AND unknown_since IS NOT NULL",
        ),
        ("copies that are to go", "SELECT count(*) FROM strays WHERE deleted_at IS NULL"),
        (
            "live files with a copy that is not ready",
            "SELECT count(*) FROM mappings m JOIN files f ON f.id = m.file_id \
             WHERE f.deleted_at IS NULL AND f.purpose <> 'batch_output' AND m.status <> 'ready'",
        ),
        (
            "deleted files with a copy that is not deleted",
            "SELECT count(*) FROM mappings m JOIN files f ON f.id = m.file_id \
             WHERE f.deleted_at IS NOT NULL AND m.status <> 'deleted'",
        ),
        (
            "jobs that failed for another reason than dead workers",
            "SELECT count(*) FROM jobs WHERE status = 'failed' AND deaths < 3",
        ),
        (
            "live mappings without their job",
            "SELECT count(*) FROM mappings m JOIN files f ON f.id = m.file_id WHERE f.deleted_at IS NULL \
             AND f.purpose <> 'batch_output' AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.id = m.job_id \
             AND j.kind = 'upload_file' AND j.file_id = m.file_id)",
        ),
        (
            "claims without an end, or ends without a claim",
            "SELECT count(*) FROM jobs j WHERE j.epoch <> \
             (SELECT count(*) FROM job_attempts a WHERE a.job_id = j.id)",
        ),
        (
            "jobs that succeeded twice",
            "SELECT count(*) FROM (SELECT job_id FROM job_attempts WHERE outcome = 'succeeded' \
             GROUP BY job_id HAVING count(*) > 1) AS twice",
        ),
        (
            "jobs with more attempts than they may have",
            "SELECT count(*) FROM jobs WHERE attempt > max_attempts",
        ),
        (
            // No batch runs on any file that one is asked for, and each is asked for once.
            "sweeps that did not delete all that they were asked to",
            "SELECT count(*) FROM sweeps WHERE status <> 'succeeded' OR failed <> 0 OR skipped <> 0 \
             OR deleted <> matched OR matched <> (filter::json ->> 'file_ids')::bigint",
        ),
        (
            "lines that were taken in twice",
            "SELECT count(*) FROM batch_results WHERE problem IS NOT NULL OR outcome = 'broken'",
        ),
    ] {
        history.checked("rows compared");
        let count = rows.count(sql).await;
        if count != 0 {
            history.violation(format_args!("{count} {what}"));
        }
    }
}

/// Whoever listens was told: by the stream, and by webhooks.
async fn check_told(rows: &Rows, receiver: &Receiver, history: &History) {
    let delivered: BTreeSet<(String, String)> = receiver
        .delivered()
        .iter()
        .map(|delivery| {
            let event = delivery.json();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&event["type"]), text(&event["data"]["id"]))
        })
        .collect();
    let processed = rows
        .texts(
            "SELECT managed_id FROM files WHERE status = 'processed' AND purpose <> 'batch_output'",
        )
        .await;
    let ended = rows.query("SELECT managed_id, status FROM batches").await;
    let ended = ended.iter().map(|row| {
        let status: String = row.try_get_by_index(1).unwrap();
        (format!("batch.{status}"), row.try_get_by_index::<String>(0).unwrap())
    });
    let processed = processed.into_iter().map(|id| ("file.processed".to_owned(), id));
    for (kind, subject) in processed.chain(ended) {
        history.checked("event compared");
        if !history.has_heard(&kind, &subject) {
            history.violation(format_args!("the stream did not tell of {kind} {subject}"));
        }
        if !delivered.contains(&(kind.clone(), subject.clone())) {
            history.violation(format_args!("no webhook told of {kind} {subject}"));
        }
    }
}

/// Every row's blob is there; and, once what crashes left behind is old enough to be swept, no other.
async fn check_blobs(fleet: &mut Fleet, rows: &Rows, history: &History) {
    let named = || async {
        let sql = "SELECT blob_key FROM files WHERE blob_key IS NOT NULL \
                   UNION SELECT blob_key FROM batch_outputs WHERE blob_key IS NOT NULL";
        rows.texts(sql).await.into_iter().collect::<BTreeSet<String>>()
    };
    let store = fleet.folder().join("blobs");
    for folder in ["uploads", "outputs"] {
        for path in files_below(&store.join(folder)) {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(crate::support::now() - Duration::from_secs(7200)).unwrap();
        }
    }
    // They are swept at the start.
    for place in 0..fleet.members.len() {
        fleet.members[place].clock_ahead = 0;
        fleet.kill(place);
    }
    fleet.all_up().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let named = named().await;
        let kept: BTreeSet<String> = ["uploads", "outputs"]
            .iter()
            .flat_map(|folder| files_below(&store.join(folder)))
            .map(|path| path.strip_prefix(&store).unwrap().to_str().unwrap().to_owned())
            .collect();
        if let Some(lost) = named.difference(&kept).next() {
            return history.violation(format_args!("the bytes of `{lost}` are gone"));
        }
        if kept == named {
            return history.tally("blob compared", |tally| tally.checked += kept.len() as u64);
        }
        if Instant::now() > deadline {
            let orphans: Vec<_> = kept.difference(&named).collect();
            return history.violation(format_args!("blobs without a row: {orphans:?}"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}
