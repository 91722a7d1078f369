//! `longshore batches`, against a running server: what a person sees, what a script gets, and exit codes.
//!
//! The sandbox lives in this process and has to answer while a command is waited for: hence the runtime of
//! several threads.

use longshore::sandbox::BatchEnd;
use longshore::sandbox::BatchState;
use longshore::sandbox::PlantedBatch;
use serde_json::Value;

use crate::support::ALICE_KEY;
use crate::support::Done;
use crate::support::Env;
use crate::support::Options;
use crate::support::batches::WATCHFUL;
use crate::support::batches::requests;
use crate::support::run;

const CHAT: [&str; 2] = ["--endpoint", "/v1/chat/completions"];

/// Where the model `a` fails one request, and three requests lie on disk.
async fn started() -> Env {
    let env = Env::with(Options { extra: WATCHFUL.to_owned(), ..Options::default() }).await;
    env.treat_batches("a", |batches| batches.failing = [("r-1".to_owned(), 429)].into());
    std::fs::write(env.folder().join("in.jsonl"), requests(3)).unwrap();
    env
}

/// Runs a client's command as alice.
fn batches(env: &Env, arguments: &[&str]) -> Done {
    let environment =
        [("LONGSHORE_URL", env.client.base.as_str()), ("LONGSHORE_API_KEY", ALICE_KEY)];
    run(&env.folder(), &[&["batches"], arguments].concat(), &environment)
}

fn create<'a>(input: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["create", input][..], &CHAT, more].concat()
}

/// The id behind this mark, up to where it ends.
fn named<'l>(log: &'l str, mark: &str) -> &'l str {
    let (_, rest) = log.split_once(mark).unwrap();
    rest.split(|character: char| character.is_whitespace() || character == '`').next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_on_disk_becomes_a_batch_and_its_results_are_shown() {
    let env = started().await;
    let done =
        batches(&env, &create("in.jsonl", &["--model", "a,b", "--metadata", "k=v", "--wait"]));
    assert_eq!(done.code, 0, "{}", done.log);
    for says in ["completed", "6 of 6, 1 failed", "at-a", "at-b", "metadata k", "tokens"] {
        assert!(done.output.contains(says), "`{says}` is not in {}", done.output);
    }
    assert!(done.log.contains("uploaded as "), "{}", done.log);
    assert!(done.log.contains("warning: 1 of 6 requests failed"), "{}", done.log);
    let id = named(&done.log, "created ");

    let all = batches(&env, &["results", id]);
    assert_eq!((all.code, all.output.lines().count()), (0, 7), "{}{}", all.output, all.log);
    assert!(all.output.starts_with("CUSTOM ID"), "{}", all.output);
    assert!(all.output.contains("Answer to r-2"), "{}", all.output);
    let rows = |arguments: &[&str]| {
        let done = batches(&env, &[&["results", id], arguments].concat());
        assert_eq!(done.code, 0, "{}", done.log);
        let rows = done.output.lines().skip(1);
        rows.map(|row| row.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    assert_eq!(rows(&["--failed"]), ["r-1 a failed"]);
    assert_eq!(rows(&["--custom-id", "r-1"]), ["r-1 a failed", "r-1 b succeeded"]);
    assert_eq!(rows(&["--model", "b", "--custom-id", "r-0"]), ["r-0 b succeeded"]);
    let none = batches(&env, &["results", id, "--custom-id", "nobody"]);
    assert_eq!((none.code, none.output.as_str(), none.log.trim()), (0, "", "no results"));
    let lines = batches(&env, &["--json", "results", id, "--model", "a"]);
    let lines: Vec<Value> =
        lines.output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line["model"] == "a" && line["response"]["body"].is_object()));

    // What the end of the batch said can be pasted as it stands.
    env.treat_batches("a", |batches| batches.failing.clear());
    let retried = batches(&env, &["retry", named(&done.log, "longshore batches retry ")]);
    assert_eq!(retried.code, 0, "{}", retried.log);
    let waited = batches(&env, &["wait", retried.output.trim()]);
    assert_eq!(waited.code, 0, "{}", waited.log);
    assert!(waited.output.contains("1 of 1") && !waited.log.contains("warning"), "{}", waited.log);
    let nothing = batches(&env, &["retry", retried.output.trim()]);
    assert_eq!((nothing.code, nothing.output.as_str()), (1, ""));
    assert!(nothing.log.contains("nothing to retry"), "{}", nothing.log);

    let listed = batches(&env, &["ls"]);
    assert_eq!(listed.output.lines().count(), 3, "{}", listed.output);
    assert!(listed.output.contains(id) && listed.output.contains("a,b"), "{}", listed.output);
    let shown: Value =
        serde_json::from_str(&batches(&env, &["--json", "show", id]).output).unwrap();
    assert_eq!((&shown["id"], &shown["metadata"]["k"]), (&id.into(), &"v".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_cancelled_and_its_wait_ends_with_1() {
    let env = started().await;
    env.treat_batches("c", |batches| batches.hold_at = Some(BatchState::InProgress));
    let file = env.client.upload_requests(&["c"], 3).await;
    let created = batches(&env, &create(file["id"].as_str().unwrap(), &[]));
    assert_eq!((created.code, created.log.as_str()), (0, ""));
    let id = created.output.trim();
    let late = batches(&env, &["wait", id, "--timeout", "1s"]);
    assert_eq!(late.code, 1);
    assert!(late.log.contains(&format!("`longshore batches wait {id}`")), "{}", late.log);
    env.has_batches("c", 1).await;
    let cancelled = batches(&env, &["cancel", id]);
    assert_eq!(cancelled.code, 0, "{}", cancelled.log);
    assert!(cancelled.output.contains("cancelling"), "{}", cancelled.output);
    let waited = batches(&env, &["wait", id]);
    assert_eq!(waited.code, 1);
    assert!(waited.log.contains("error: the batch ended as `cancelled`"), "{}", waited.log);
    let again = batches(&env, &["cancel", id]);
    assert_eq!((again.code, again.output.as_str()), (1, ""));
    assert!(again.log.contains("has already ended as `cancelled`"), "{}", again.log);
    assert!(batches(&env, &["ls", "--status", "cancelled"]).output.contains(id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_fails_at_its_provider_says_why_and_ends_with_1() {
    let env = started().await;
    env.treat_batches("b", |batches| {
        batches.end = BatchEnd::Failed {
            code: "invalid_request".to_owned(),
            message: Some("The model does not exist.".to_owned()),
            line: Some(2),
        };
    });
    let done = batches(&env, &create("in.jsonl", &["--model", "b", "--wait"]));
    assert_eq!(done.code, 1, "{}", done.output);
    let says =
        "error: the batch ended as `failed`: line 2: invalid_request: The model does not exist.";
    assert!(done.log.contains(says), "{}", done.log);
    assert!(done.output.contains("failed"), "{}", done.output);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_made_elsewhere_is_imported_once() {
    let env = started().await;
    let file = env.client.upload_requests(&["b"], 2).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    let copy = file["mappings"][0]["provider_file_id"].as_str().unwrap();
    let there = env.sandbox.plant_batch("b", PlantedBatch::over(copy)).id;
    let imported = batches(&env, &["import", &there, "--model", "b", "--wait"]);
    assert_eq!(imported.code, 0, "{}", imported.log);
    assert!(imported.output.contains("2 of 2"), "{}", imported.output);
    let again = batches(&env, &["import", &there, "--model", "b"]);
    assert_eq!((again.code, again.output.as_str()), (1, ""));
    let id = named(&imported.log, "created ");
    assert!(again.log.contains("is known here already") && again.log.contains(id), "{}", again.log);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_says_what_is_wrong() {
    let env = started().await;
    std::fs::write(env.folder().join("bad.jsonl"), "{\"custom_id\": 1}\n").unwrap();
    let cases: [(i32, Vec<&str>, &str); 10] = [
        (2, vec!["create", "in.jsonl"], "--endpoint"),
        (2, vec!["create"], "<FILE_ID|PATH>"),
        (2, create("in.jsonl", &["--metadata", "k=1", "--metadata", "k=2"]), "is given twice"),
        (1, create("absent.jsonl", &["--model", "a"]), "cannot open `absent.jsonl`"),
        (1, create("bad.jsonl", &["--model", "a"]), "line 1"),
        (1, create("in.jsonl", &["--model", "z"]), "no model is called `z`"),
        (1, create("file-unknown", &[]), "no such file: `file-unknown`"),
        (1, vec!["show", "batch_unknown"], "no such batch: `batch_unknown`"),
        (1, vec!["results", "batch_unknown"], "no such batch: `batch_unknown`"),
        (2, vec!["ls", "--status", "odd"], "possible values"),
    ];
    for (code, arguments, says) in cases {
        let done = batches(&env, &arguments);
        assert_eq!((done.code, done.output.as_str()), (code, ""), "{arguments:?}: {}", done.log);
        assert!(done.log.contains(says), "{arguments:?}: `{says}` is not in {}", done.log);
    }
    assert_eq!(env.database.count("SELECT COUNT(*) FROM batches").await, 0);
}
