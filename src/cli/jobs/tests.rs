//! The tests of `jobs` against a scripted server.

use clap::Parser;
use serde_json::json;

use super::*;
use crate::cli::scripted::{Kept, Server, Step};

#[derive(Parser)]
struct CommandLine {
    #[command(subcommand)]
    command: JobsCommand,
}

async fn run(server: &Server, json: bool, arguments: &[&str]) -> (anyhow::Result<()>, Kept) {
    let kept = Kept::default();
    let arguments = std::iter::once("jobs").chain(arguments.iter().copied());
    let command = CommandLine::try_parse_from(arguments).unwrap().command;
    let result = command.run_to(&server.client(), &mut Output::kept(json, kept.clone())).await;
    (result, kept)
}

fn job(status: &str) -> Value {
    json!({
        "id": "job_1", "object": "job", "kind": "upload_file", "status": status, "attempt": 2, "max_attempts": 30,
        "created_at": 1_795_392_000, "run_at": null, "started_at": null, "finished_at": null,
        "progress": {"done": 1_048_576, "total": 4_194_304, "unit": "bytes"},
        "error": {"code": "provider_rate_limited", "message": "slow\u{1b}[2J down", "http_status": 429, "retryable": true},
        "file_id": "file-x", "batch_id": null, "model": "m", "provider": "p", "request_id": "r", "surprise": [1]
    })
}

#[tokio::test]
async fn a_list_is_filtered_by_the_server() {
    let page = json!({"object": "list", "data": [job("retrying")], "has_more": false});
    let server = Server::start([Step::json(200, &page)]).await;
    let (result, kept) = run(
        &server,
        false,
        &["ls", "--status", "retrying", "--kind", "upload_file", "--file", "file-x"],
    )
    .await;
    result.unwrap();
    assert_eq!(
        server.lines(),
        ["GET /v1/jobs?status=retrying&kind=upload_file&file_id=file-x&limit=20"]
    );
    let text = kept.text();
    assert!(text.lines().nth(1).unwrap().ends_with("provider_rate_limited  job_1"), "{text}");
}

#[tokio::test]
async fn a_job_is_shown_with_its_progress_and_without_what_a_terminal_would_obey() {
    let server = Server::start([Step::json(200, &job("retrying"))]).await;
    let (result, kept) = run(&server, false, &["show", "job_1"]).await;
    result.unwrap();
    let text = kept.text();
    assert!(text.contains("1.0 MiB of 4.0 MiB") && text.contains("2 of 30"), "{text}");
    assert!(text.contains("slow\\u{1b}[2J down"), "{text}");
}

#[tokio::test]
async fn a_script_gets_a_job_and_its_attempts_in_one_document() {
    let attempts = json!({"object": "list", "data": [{"attempt": 1}, {"attempt": 2}]});
    let server = Server::start([Step::json(200, &job("failed")), Step::json(200, &attempts)]).await;
    let (result, kept) = run(&server, true, &["show", "job_1", "--attempts"]).await;
    result.unwrap();
    let json = kept.json();
    assert_eq!(json["surprise"], json!([1]), "what this program does not know is kept");
    assert_eq!(json["attempts"].as_array().unwrap().len(), 2);
    assert_eq!(server.lines(), ["GET /v1/jobs/job_1", "GET /v1/jobs/job_1/attempts"]);
}

#[tokio::test]
async fn retry_and_cancel_are_sent_once_even_when_their_answer_is_lost() {
    let server = Server::start([Step::json(200, &job("queued")), Step::HangUp]).await;
    run(&server, false, &["retry", "job_1"]).await.0.unwrap();
    assert!(run(&server, false, &["cancel", "job_1"]).await.0.is_err());
    assert_eq!(server.lines(), ["POST /v1/jobs/job_1/retry", "POST /v1/jobs/job_1/cancel"]);
}

#[tokio::test]
async fn a_person_sees_how_each_attempt_ended_and_what_a_job_waits_for() {
    let attempts =
        json!({"object": "list", "data": [{"attempt": 1, "outcome": "retried"}, {"attempt": 2}]});
    let mut waiting = job("retrying");
    waiting["blocked_by"] = json!("outage");
    let server = Server::start([Step::json(200, &waiting), Step::json(200, &attempts)]).await;
    let (_, kept) = run(&server, false, &["show", "job_1", "--attempts"]).await;
    let text = kept.text();
    assert!(text.contains("for the provider to answer again"), "{text}");
    assert!(text.contains("1        retried"), "{text}");
}
