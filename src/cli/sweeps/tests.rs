//! The tests of `sweeps` against a scripted server.

use clap::Parser;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::cli::scripted::Kept;
use crate::cli::scripted::Server;
use crate::cli::scripted::Step;

#[derive(Debug, Parser)]
struct CommandLine {
    #[command(subcommand)]
    command: SweepsCommand,
}

fn parse(arguments: &[&str]) -> Result<SweepsCommand, clap::Error> {
    let arguments = std::iter::once("sweeps").chain(arguments.iter().copied());
    CommandLine::try_parse_from(arguments).map(|line| line.command)
}

async fn run_with(
    server: &Server,
    mut input: Input,
    json: bool,
    arguments: &[&str],
) -> (anyhow::Result<ExitCode>, Kept) {
    let kept = Kept::default();
    let mut output = Output::kept(json, kept.clone());
    let command = parse(arguments).unwrap();
    (command.run_to(&server.client(), &mut output, &mut input).await, kept)
}

/// Runs a command with nobody to ask.
async fn run(server: &Server, arguments: &[&str]) -> (anyhow::Result<ExitCode>, Kept) {
    run_with(server, Input::kept(false, ""), false, arguments).await
}

fn sweep(status: &str, matched: u64, deleted: u64) -> Value {
    json!({
        "id": "sweep_1", "object": "sweep", "status": status, "dry_run": false, "filter": {"purpose": "batch"},
        "counts": {"matched": matched, "pending": matched - deleted, "deleted": deleted, "failed": 0, "skipped": 0},
        "job_id": "job_1", "error": null, "created_at": 1_795_392_000, "started_at": null, "finished_at": null,
        "surprise": 1
    })
}

fn dry(status: &str, matched: u64) -> Value {
    let mut dry = sweep(status, matched, 0);
    dry["dry_run"] = json!(true);
    dry
}

fn ok(json: &Value) -> Step {
    Step::json(200, json)
}

fn bodies(server: &Server) -> Vec<Value> {
    let posts = server.seen().into_iter().filter(|seen| seen.line.starts_with("POST"));
    posts.map(|seen| serde_json::from_slice(&seen.body).unwrap()).collect()
}

#[tokio::test]
async fn a_sweep_whose_answer_is_lost_is_asked_for_again_with_the_same_key_and_content() {
    let script = [
        Step::HangUp,
        Step::error(409, vec![("retry-after", "0")], "idempotency_key_in_use"),
        ok(&sweep("queued", 0, 0)),
    ];
    let server = Server::start(script).await;
    let (code, kept) =
        run(&server, &["run", "--purpose", "batch", "--created-before", "30d", "--yes"]).await;
    assert_eq!((code.unwrap(), kept.text().as_str()), (ExitCode::SUCCESS, "sweep_1\n"));
    let seen = server.seen();
    assert_eq!(server.lines(), ["POST /v1/sweeps"; 3]);
    let key = seen[0].header("idempotency-key").unwrap();
    assert!(key.parse::<uuid::Uuid>().is_ok(), "{key}");
    for again in &seen {
        assert_eq!((again.header("idempotency-key"), &again.body), (Some(key), &seen[0].body));
    }
}

#[tokio::test]
async fn where_it_cannot_be_known_whether_it_began_that_is_said() {
    let server = Server::start((0..9).map(|_| Step::HangUp)).await;
    let (failed, _) = run(&server, &["run", "--all", "--yes"]).await;
    let message = failed.unwrap_err().to_string();
    assert!(message.contains("may have begun it: `longshore sweeps ls`"), "{message}");
    assert_eq!(server.lines().len(), 4);
}

#[tokio::test]
async fn options_become_fields_of_the_request_and_what_is_not_said_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("ids");
    std::fs::write(&list, "f3\r\n\n  f4\n").unwrap();
    let from = format!("--files-from={}", list.display());
    let cases: [(&[&str], Value); 4] = [
        (
            &[
                "--purpose=batch",
                "--created-before=2026-11-23",
                "--model=m",
                "--metadata=team=a",
                "--metadata=run=1=2",
                "--status=error",
            ],
            json!({"purpose": "batch", "created_before": 1_795_392_000, "model": "m",
                "metadata": {"team": "a", "run": "1=2"}, "status": "error"}),
        ),
        (&["--all"], json!({"all": true})),
        (&["--file", "f1", "--file", "f2", &from], json!({"file_ids": ["f1", "f2", "f3", "f4"]})),
        (&["--files-from", "-"], json!({"file_ids": ["f5"]})),
    ];
    for (options, body) in cases {
        let server = Server::start([ok(&sweep("queued", 0, 0))]).await;
        let arguments = [&["run", "-y"], options].concat();
        let (code, _) = run_with(&server, Input::kept(false, "f5\n"), false, &arguments).await;
        assert_eq!(code.unwrap(), ExitCode::SUCCESS);
        assert_eq!(bodies(&server), [body]);
    }
}

#[tokio::test]
async fn a_list_with_no_id_or_with_something_else_is_refused_before_anything_is_sent() {
    let server = Server::start([]).await;
    for (list, says) in [("\n\n", "lists no id"), ("f1\nno id at all\n", "line 2: an id has only")]
    {
        let arguments = ["run", "--files-from", "-", "--yes"];
        let (failed, _) = run_with(&server, Input::kept(false, list), false, &arguments).await;
        let message = failed.unwrap_err().to_string();
        assert!(message.contains(says), "{message}");
    }
    let (failed, _) = run(&server, &["run", "--files-from", "/nowhere/at/all", "--yes"]).await;
    assert!(format!("{:#}", failed.unwrap_err()).contains("cannot read `/nowhere/at/all`"));
    assert!(server.lines().is_empty());
}

#[tokio::test]
async fn where_nobody_can_be_asked_nothing_is_deleted_without_yes() {
    let server = Server::start([]).await;
    let (code, kept) = run(&server, &["run", "--all"]).await;
    assert_eq!((code.unwrap(), kept.text().as_str()), (ExitCode::from(2), ""));
    assert!(server.lines().is_empty());
}

#[tokio::test]
async fn a_person_is_asked_after_a_dry_run_and_only_a_yes_deletes() {
    for (answer, is_yes) in
        [("y\n", true), (" YES \n", true), ("\n", false), ("n\n", false), ("", false)]
    {
        let script = [ok(&dry("queued", 0)), ok(&dry("succeeded", 30)), ok(&sweep("queued", 0, 0))];
        let server = Server::start(script).await;
        let input = Input::kept(true, answer);
        let (code, kept) = run_with(&server, input, false, &["run", "--purpose", "batch"]).await;
        let counted = json!({"purpose": "batch", "dry_run": true});
        if is_yes {
            assert_eq!((code.unwrap(), kept.text().as_str()), (ExitCode::SUCCESS, "sweep_1\n"));
            assert_eq!(bodies(&server), [counted, json!({"purpose": "batch"})]);
            let seen = server.seen();
            let keys = (seen[0].header("idempotency-key"), seen[2].header("idempotency-key"));
            assert_ne!(keys.0, keys.1);
        } else {
            assert_eq!((code.unwrap(), kept.text().as_str()), (ExitCode::FAILURE, ""));
            assert_eq!(bodies(&server), [counted], "`{answer}`");
        }
    }
}

#[tokio::test]
async fn where_nothing_matches_nobody_is_asked() {
    let server = Server::start([ok(&dry("succeeded", 0))]).await;
    let (code, _) =
        run_with(&server, Input::kept(true, "y\n"), false, &["run", "--status", "error"]).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS);
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_count_that_did_not_end_well_deletes_nothing() {
    let server = Server::start([ok(&dry("queued", 0)), ok(&dry("failed", 3))]).await;
    let (code, _) = run_with(&server, Input::kept(true, "y\n"), false, &["run", "--all"]).await;
    assert_eq!(code.unwrap(), ExitCode::FAILURE);
    assert_eq!(bodies(&server).len(), 1);
}

#[tokio::test]
async fn a_dry_run_waits_for_its_count() {
    let script = [ok(&dry("queued", 0)), ok(&dry("running", 12)), ok(&dry("succeeded", 30))];
    let server = Server::start(script).await;
    let (code, kept) = run(&server, &["run", "--all", "--dry-run"]).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS);
    assert_eq!(server.lines()[1..], ["GET /v1/sweeps/sweep_1?wait=60"; 2]);
    let text = kept.text();
    assert!(text.contains("matched  30") && text.contains("dry run: it only counts"), "{text}");
    assert!(!text.contains("deleted"), "{text}");
}

#[tokio::test]
async fn a_wait_shows_the_counts_and_outlasts_a_restart() {
    let script = [
        ok(&sweep("queued", 0, 0)),
        ok(&sweep("running", 30, 4)),
        Step::HangUp,
        ok(&sweep("succeeded", 30, 30)),
    ];
    let server = Server::start(script).await;
    let arguments = ["run", "--all", "--yes", "--wait"];
    let (code, kept) = run_with(&server, Input::kept(false, ""), true, &arguments).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS);
    assert_eq!(kept.json(), sweep("succeeded", 30, 30), "what this program does not know is kept");
}

#[tokio::test]
async fn a_sweep_that_did_not_delete_all_ends_a_wait_with_1() {
    for status in ["failed", "cancelled"] {
        let server = Server::start([ok(&sweep(status, 30, 28))]).await;
        let (code, kept) = run(&server, &["show", "sweep_1", "--wait"]).await;
        assert_eq!(code.unwrap(), ExitCode::FAILURE, "{status}");
        assert!(kept.text().contains("deleted  28"), "{}", kept.text());
    }
    let server = Server::start((0..5000).map(|_| ok(&sweep("running", 30, 4)))).await;
    let (code, _) = run(&server, &["show", "--wait=30ms", "sweep_1"]).await;
    assert_eq!(code.unwrap(), ExitCode::FAILURE);
}

#[tokio::test]
async fn a_sweep_is_shown_and_listed_with_what_it_is_about() {
    let mut shown = sweep("failed", 30, 27);
    shown["counts"]["failed"] = json!(3);
    shown["counts"]["pending"] = json!(0);
    shown["filter"] =
        json!({"created_before": 1_795_392_000, "metadata": {"team": "\u{1b}[2J"}, "model": "m"});
    let page = json!({"object": "list", "data": [shown, dry("succeeded", 30)], "has_more": false});
    let server = Server::start([ok(&shown), ok(&page)]).await;
    let (code, kept) = run(&server, &["show", "sweep_1"]).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS, "to show it is no failure");
    let text = kept.text();
    for part in [
        "created before 2026-11-23T00:00:00Z, metadata team=\\u{1b}[2J, model m",
        "failed   3",
        "matched  30",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let (_, kept) = run(&server, &["ls", "--limit", "2"]).await;
    let text = kept.text();
    assert!(text.contains("dry run") && text.contains("purpose batch"), "{text}");
    assert_eq!(server.lines(), ["GET /v1/sweeps/sweep_1", "GET /v1/sweeps?limit=2"]);
}

#[tokio::test]
async fn cancel_is_sent_once_and_a_sweep_that_ended_is_a_failure() {
    let ended = Step::error(409, vec![], "sweep_ended");
    let server = Server::start([ok(&sweep("cancelled", 5, 5)), ended, Step::HangUp]).await;
    let (code, kept) = run(&server, &["cancel", "sweep_1"]).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS);
    assert!(kept.text().contains("cancelled"), "{}", kept.text());
    let (failed, _) = run(&server, &["cancel", "sweep_1"]).await;
    assert_eq!(failed.unwrap_err().to_string(), "it was refused (code `sweep_ended`)");
    assert!(run(&server, &["cancel", "sweep_1"]).await.0.is_err());
    assert_eq!(server.lines(), ["POST /v1/sweeps/sweep_1/cancel"; 3]);
}

#[test]
fn a_sweep_says_which_files_and_says_it_in_one_way() {
    for wrong in [
        &["run"][..],
        &["run", "--yes"],
        &["run", "--dry-run"],
        &["run", "--all", "--purpose", "batch"],
        &["run", "--all", "--file", "f1"],
        &["run", "--file", "f1", "--model", "m"],
        &["run", "--files-from", "ids", "--status", "error"],
        &["run", "--purpose", "porpoise"],
        &["run", "--status", "deleted"],
        &["run", "--created-before", "20260131"],
        &["run", "--metadata", "team"],
        &["run", "--file", "a b"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
    for right in [
        &["run", "--all"][..],
        &["run", "--purpose", "batch", "--created-before", "30d", "--wait=5m"],
        &["run", "--file", "f1", "--files-from", "-", "--wait"],
    ] {
        assert!(parse(right).is_ok(), "{right:?}");
    }
}
