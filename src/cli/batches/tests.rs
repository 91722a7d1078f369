//! The tests of `batches` against a scripted server.

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
    command: BatchesCommand,
}

fn parse(arguments: &[&str]) -> Result<BatchesCommand, clap::Error> {
    let arguments = std::iter::once("batches").chain(arguments.iter().copied());
    CommandLine::try_parse_from(arguments).map(|line| line.command)
}

async fn run_as(
    server: &Server,
    json: bool,
    arguments: &[&str],
) -> (anyhow::Result<ExitCode>, Kept) {
    let kept = Kept::default();
    let mut output = Output::kept(json, kept.clone());
    let command = parse(arguments).unwrap();
    (command.run_to(&server.client(), &mut output).await, kept)
}

async fn run(server: &Server, arguments: &[&str]) -> (anyhow::Result<ExitCode>, Kept) {
    run_as(server, false, arguments).await
}

fn batch(status: &str, completed: u64) -> Value {
    let counts = json!({"total": 10, "completed": completed, "failed": 1});
    json!({
        "id": "batch_1", "object": "batch", "status": status, "endpoint": "/v1/responses",
        "input_file_id": "f1", "output_file_id": "f2", "error_file_id": null, "errors": null,
        "created_at": 1_795_392_000, "expires_at": 1_795_478_400, "completed_at": null,
        "request_counts": counts, "usage": null, "metadata": {"team": "a"}, "surprise": 1,
        "runs": [{"model": "m", "deployment_id": "dep_1", "provider": "p", "status": status,
            "provider_batch_id": "batch_far", "request_counts": counts, "usage": null,
            "error": null}],
    })
}

fn ok(json: &Value) -> Step {
    Step::json(200, json)
}

fn bodies(server: &Server) -> Vec<Value> {
    let posts = server.seen().into_iter().filter(|seen| seen.line == "POST /v1/batches");
    posts.map(|seen| serde_json::from_slice(&seen.body).unwrap()).collect()
}

const RESPONSES: [&str; 2] = ["--endpoint", "/v1/responses"];

fn create<'a>(input: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["create", input][..], &RESPONSES, more].concat()
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_asked_for_again_with_the_same_key_and_content() {
    let server = Server::start([Step::HangUp, ok(&batch("validating", 0))]).await;
    let (code, kept) = run(&server, &create("f1", &[])).await;
    assert_eq!((code.unwrap(), kept.text().as_str()), (ExitCode::SUCCESS, "batch_1\n"));
    let seen = server.seen();
    let key = seen[0].header("idempotency-key").unwrap();
    assert!(key.parse::<uuid::Uuid>().is_ok(), "{key}");
    assert_eq!((seen[1].header("idempotency-key"), &seen[1].body), (Some(key), &seen[0].body));

    let server = Server::start((0..9).map(|_| Step::HangUp)).await;
    let message = run(&server, &create("f1", &[])).await.0.unwrap_err().to_string();
    assert!(message.contains("may have made it: `longshore batches ls`"), "{message}");
    assert_eq!(server.lines().len(), 4);
}

#[tokio::test]
async fn options_become_fields_of_the_request_and_what_is_not_said_is_left_out() {
    let plain =
        json!({"input_file_id": "f1", "endpoint": "/v1/responses", "completion_window": "24h"});
    let options = [
        "--model=a,b",
        "--model=c",
        "--metadata=team=a",
        "--metadata=run=1=2",
        "--output-expires-after=2h",
    ];
    let mut full = plain.clone();
    full["target_model_names"] = json!(["a", "b", "c"]);
    full["metadata"] = json!({"team": "a", "run": "1=2"});
    full["output_expires_after"] = json!({"anchor": "created_at", "seconds": 7200});
    for (options, body) in [(&[][..], plain), (&options[..], full)] {
        let server = Server::start([ok(&batch("validating", 0))]).await;
        assert_eq!(run(&server, &create("f1", options)).await.0.unwrap(), ExitCode::SUCCESS);
        assert_eq!(bodies(&server), [body]);
    }
}

#[tokio::test]
async fn a_file_on_disk_is_uploaded_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in.jsonl");
    std::fs::write(&path, "{}\n").unwrap();
    let path = path.to_str().unwrap();
    let uploaded = json!({"id": "f9", "status": "uploaded"});
    let server = Server::start([ok(&uploaded), ok(&batch("validating", 0))]).await;
    let (code, kept) = run(&server, &create(path, &["--model", "m"])).await;
    assert_eq!((code.unwrap(), kept.text().as_str()), (ExitCode::SUCCESS, "batch_1\n"));
    assert_eq!(server.lines(), ["POST /v1/files", "POST /v1/batches"]);
    let form = String::from_utf8_lossy(&server.seen()[0].body).into_owned();
    for part in ["name=\"purpose\"\r\n\r\nbatch\r\n", "\r\n\r\nm\r\n", "filename=\"in.jsonl\""] {
        assert!(form.contains(part), "{part} is not in {form}");
    }
    assert_eq!(bodies(&server)[0]["input_file_id"], "f9");

    let server = Server::start([Step::error(400, vec![], "invalid_jsonl")]).await;
    assert!(run(&server, &create(path, &[])).await.0.is_err());
    assert_eq!(server.lines(), ["POST /v1/files"], "no batch without its file");
}

#[tokio::test]
async fn a_name_that_is_neither_on_disk_nor_an_id_costs_nothing() {
    let server = Server::start([]).await;
    for input in ["/nowhere/in.jsonl", "nowhere.jsonl", "two words"] {
        let message = format!("{:#}", run(&server, &create(input, &[])).await.0.unwrap_err());
        assert!(message.contains(&format!("cannot open `{input}`")), "{message}");
    }
    let twice = create("f1", &["--metadata", "a=1", "--metadata", "a=2"]);
    assert_eq!(run(&server, &twice).await.0.unwrap(), ExitCode::from(2));
    assert!(server.lines().is_empty());
}

#[tokio::test]
async fn a_wait_outlasts_a_restart_and_ends_as_the_batch_does() {
    let script = [
        ok(&batch("validating", 0)),
        ok(&batch("in_progress", 4)),
        Step::HangUp,
        ok(&batch("completed", 9)),
    ];
    let server = Server::start(script).await;
    let (code, kept) = run_as(&server, true, &create("f1", &["--wait"])).await;
    assert_eq!(
        code.unwrap(),
        ExitCode::SUCCESS,
        "that a request failed is no failure of the batch"
    );
    assert_eq!(kept.json(), batch("completed", 9), "what this program does not know is kept");
    assert_eq!(server.lines()[1..], ["GET /v1/batches/batch_1?wait=60"; 3]);

    for status in ["failed", "expired", "cancelled"] {
        let server = Server::start([ok(&batch(status, 2))]).await;
        let (code, kept) = run(&server, &["wait", "batch_1"]).await;
        assert_eq!(code.unwrap(), ExitCode::FAILURE, "{status}");
        assert!(kept.text().contains(status), "{}", kept.text());
    }
    let server = Server::start((0..5000).map(|_| ok(&batch("in_progress", 4)))).await;
    let (code, _) = run(&server, &["wait", "batch_1", "--timeout", "30ms"]).await;
    assert_eq!(code.unwrap(), ExitCode::FAILURE);
}

#[tokio::test]
async fn a_batch_is_shown_with_its_runs_and_what_holds_them_up() {
    let mut shown = batch("failed", 2);
    shown["errors"] = json!({"object": "list", "data": [
        {"code": "invalid_json_line", "message": "no \u{1b}[2J", "line": 7, "param": null},
        {"code": null, "message": null, "line": null}]});
    shown["usage"] = json!({"input_tokens": 5, "output_tokens": 2, "total_tokens": 7});
    shown["runs"][0]["blocked_by"] = json!("capacity");
    shown["runs"][0]["error"] = json!({"code": "provider_capacity", "message": "full"});
    let server = Server::start([ok(&shown)]).await;
    let (code, kept) = run(&server, &["show", "batch_1"]).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS, "to show it is no failure");
    let text = kept.text();
    for part in [
        "3 of 10, 1 failed",
        "7 (5 in, 2 out)",
        "line 7: invalid_json_line: no \\u{1b}[2J",
        "metadata team",
        "output file",
        "batch_far",
        "waits for room at the provider; provider_capacity: full",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[tokio::test]
async fn batches_are_listed_in_pages_that_the_server_gives() {
    let page = |has_more| {
        json!({"object": "list", "data": [batch("completed", 9)], "last_id": "batch_1",
            "has_more": has_more})
    };
    let server = Server::start([ok(&page(true)), ok(&page(false))]).await;
    let (_, kept) = run(&server, &["ls", "--status", "completed", "--all"]).await;
    assert_eq!(kept.text().matches("10/10").count(), 2, "{}", kept.text());
    assert_eq!(
        server.lines(),
        [
            "GET /v1/batches?status=completed&limit=100",
            "GET /v1/batches?status=completed&limit=100&after=batch_1",
        ]
    );
}

fn result(id: &str, custom_id: &str) -> Value {
    let body = json!({"choices": [{"message": {"content": "Lima\nPeru"}}]});
    json!({"id": id, "custom_id": custom_id, "model": "m", "status": "succeeded", "error": null,
        "response": {"status_code": 200, "request_id": "r", "body": body}})
}

#[tokio::test]
async fn results_come_to_their_end_by_themselves() {
    let page = |line: Value, has_more| json!({"object": "list", "last_id": line["id"], "data": [line], "has_more": has_more});
    let script = || [ok(&page(result("r1", "t-1"), true)), ok(&page(result("r2", "t-2"), false))];
    let server = Server::start(script()).await;
    let (code, kept) = run(&server, &["results", "batch_1", "--model", "m", "--failed"]).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS);
    let lines: Vec<_> = kept.text().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("CUSTOM ID") && lines[2].ends_with("Lima Peru"), "{lines:?}");
    let path = "GET /v1/batches/batch_1/results?model=m&status=failed&limit=100";
    assert_eq!(server.lines(), [path.to_owned(), format!("{path}&after=r1")]);

    let server = Server::start(script()).await;
    let (_, kept) = run_as(&server, true, &["results", "batch_1", "--custom-id", "t-1"]).await;
    let lines: Vec<Value> =
        kept.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, [result("r1", "t-1"), result("r2", "t-2")]);

    let same = page(result("r1", "t-1"), true);
    let server = Server::start([ok(&same), ok(&same)]).await;
    let message = run(&server, &["results", "batch_1"]).await.0.unwrap_err().to_string();
    assert!(message.contains("not whole"), "{message}");
}

#[tokio::test]
async fn cancel_is_sent_once_and_retry_and_import_make_a_batch() {
    let server = Server::start([ok(&batch("cancelling", 4)), Step::HangUp]).await;
    let (code, kept) = run(&server, &["cancel", "batch_1"]).await;
    assert_eq!(code.unwrap(), ExitCode::SUCCESS);
    assert!(kept.text().contains("cancelling"), "{}", kept.text());
    assert!(run(&server, &["cancel", "batch_1"]).await.0.is_err());
    assert_eq!(server.lines(), ["POST /v1/batches/batch_1/cancel"; 2]);

    let cases: [(&[&str], &str, Value); 3] = [
        (&["retry", "batch_0"], "POST /v1/batches/batch_0/retry", json!({})),
        (
            &["retry", "batch_0", "--model", "m"],
            "POST /v1/batches/batch_0/retry",
            json!({"model": "m"}),
        ),
        (
            &["import", "--model", "m", "batch_far"],
            "POST /v1/batches/import",
            json!({"model": "m", "provider_batch_id": "batch_far"}),
        ),
    ];
    for (arguments, line, body) in cases {
        let server = Server::start([ok(&batch("validating", 0))]).await;
        let (code, kept) = run(&server, arguments).await;
        assert_eq!((code.unwrap(), kept.text().as_str()), (ExitCode::SUCCESS, "batch_1\n"));
        let seen = server.seen();
        assert_eq!(seen[0].line, line);
        assert_eq!(serde_json::from_slice::<Value>(&seen[0].body).unwrap(), body);
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for wrong in [
        &["create", "f1"][..],
        &["create", "--endpoint", "/v1/responses"],
        &["create", "f1", "--endpoint", "/v1/responses", "--metadata", "team"],
        &["import", "batch_far"],
        &["ls", "--status", "done"],
        &["results"],
        &["wait", "a b"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}
