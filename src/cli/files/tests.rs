//! The tests of `files` against a scripted server.

mod get;
mod ls;
mod put;
mod rm;
mod wait;

use std::{fs, path::Path};

use clap::Parser;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::cli::scripted::{Kept, Server, Step};

#[derive(Debug, Parser)]
struct CommandLine {
    #[command(subcommand)]
    command: FilesCommand,
}

fn parse(arguments: &[&str]) -> Result<FilesCommand, clap::Error> {
    CommandLine::try_parse_from(std::iter::once("files").chain(arguments.iter().copied()))
        .map(|line| line.command)
}

struct Ran {
    result: anyhow::Result<ExitCode>,
    kept: Kept,
}

impl Ran {
    fn code(&self) -> ExitCode {
        *self.result.as_ref().unwrap()
    }

    fn message(&self) -> String {
        format!("{:#}", self.result.as_ref().unwrap_err())
    }
}

async fn run_with(server: &Server, change: impl FnOnce(&mut Output), arguments: &[&str]) -> Ran {
    let kept = Kept::default();
    let mut output = Output::kept(false, kept.clone());
    change(&mut output);
    let result = parse(arguments).unwrap().run_to(&server.client(), &mut output).await;
    Ran { result, kept }
}

async fn run(server: &Server, arguments: &[&str]) -> Ran {
    run_with(server, |_| {}, arguments).await
}

async fn run_json(server: &Server, arguments: &[&str]) -> Ran {
    run_with(server, |output| output.json = true, arguments).await
}

fn file(id: &str, status: &str) -> Value {
    let mapping = if status == "processed" { "ready" } else { "uploading" };
    json!({
        "id": id, "object": "file", "bytes": 3, "created_at": 1_795_392_000, "filename": "in.jsonl",
        "purpose": "batch", "status": status, "status_details": null, "metadata": {"team": "a"}, "surprise": 1,
        "mappings": [{"model": "m", "deployment_id": "dep_1", "provider": "p", "status": mapping, "attempts": 1}]
    })
}

fn ok(json: &Value) -> Step {
    Step::json(200, json)
}

fn on_disk(folder: &TempDir, name: &str, content: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn names(folder: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_file_is_shown_with_its_mappings() {
    let mut shown = file("f1", "error");
    shown["status_details"] = json!("`m` failed");
    shown["mappings"][0]["status"] = json!("failed");
    shown["mappings"][0]["error"] =
        json!({"code": "too_large", "message": "512 MB at most", "http_status": 413});
    let server = Server::start([ok(&shown)]).await;
    let text = run(&server, &["show", "f1"]).await.kept.text();
    for part in ["`m` failed", "metadata team", "2026-11-23T00:00:00Z", "too_large: 512 MB at most"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[tokio::test]
async fn retry_is_sent_once() {
    let server = Server::start([ok(&file("f1", "uploaded")), Step::HangUp]).await;
    assert!(run(&server, &["retry", "f1"]).await.kept.text().contains("uploading"));
    assert!(run(&server, &["retry", "f1"]).await.result.is_err());
    assert_eq!(server.lines(), ["POST /v1/files/f1/retry"; 2]);
}
