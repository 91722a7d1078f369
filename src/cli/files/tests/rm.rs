//! `longshore files rm` against a scripted server.

use super::*;

fn gone(id: &str) -> Step {
    ok(&json!({"id": id, "object": "file", "deleted": true}))
}

fn unknown() -> Step {
    Step::error(404, vec![], "not_found")
}

fn deletion(id: &str, status: &str) -> Value {
    let copy = match status {
        "done" => "deleted",
        "failed" => "undeletable",
        _ => "deleting",
    };
    let receipt = json!({"proof": "deleted", "http_status": 200, "is_verified": true});
    let error =
        json!({"code": "provider_unsupported", "message": "it has no delete", "http_status": 405});
    json!({
        "id": id, "object": "file.deletion", "status": status, "deleted_at": 1_795_392_000, "surprise": 1,
        "mappings": [{
            "model": "m", "deployment_id": "dep_1", "provider": "p", "provider_file_id": "file-x", "status": copy,
            "deleted_at": null, "job_id": "job_1",
            "receipt": if status == "done" { receipt } else { Value::Null },
            "error": if status == "failed" { error } else { Value::Null },
        }]
    })
}

#[tokio::test]
async fn each_file_is_deleted_once_and_its_id_printed() {
    let server = Server::start([gone("f1"), gone("f2")]).await;
    let ran = run(&server, &["rm", "f1", "f2", "f1", "--force"]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
    assert_eq!(ran.kept.text(), "f1\nf2\n");
    assert_eq!(
        server.lines(),
        ["DELETE /v1/files/f1?force=true", "DELETE /v1/files/f2?force=true"]
    );
}

#[tokio::test]
async fn a_script_gets_one_answer_in_each_line() {
    let server = Server::start([gone("f1"), unknown(), ok(&deletion("f2", "done"))]).await;
    let ran = run_json(&server, &["rm", "f1", "f2"]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
    let text = ran.kept.text();
    let answers: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[0], json!({"id": "f1", "object": "file", "deleted": true}));
    assert_eq!(answers[1], deletion("f2", "done"));
    assert_eq!(answers.len(), 2);
}

#[tokio::test]
async fn a_wait_shows_what_became_of_each_copy() {
    let script = [
        gone("f1"),
        gone("f2"),
        ok(&deletion("f1", "pending")),
        Step::HangUp,
        ok(&deletion("f1", "done")),
        ok(&deletion("f2", "done")),
    ];
    let server = Server::start(script).await;
    let ran = run(&server, &["rm", "--wait", "f1", "f2"]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
    let lines = server.lines();
    assert_eq!(lines[..2], ["DELETE /v1/files/f1", "DELETE /v1/files/f2"]);
    assert_eq!(lines[2..5], ["GET /v1/files/f1/deletion?wait=60"; 3]);
    let text = ran.kept.text();
    let rows: Vec<_> = text.lines().collect();
    assert_eq!((rows[0], rows[4]), ("f1", "f2"), "{text}");
    assert!(rows[1].starts_with("MODEL") && rows[2].starts_with("m "), "{text}");
    assert!(rows[2].contains("deleted, answered 200, checked"), "{text}");
}

#[tokio::test]
async fn a_script_that_waits_gets_the_deletions() {
    let server = Server::start([gone("f1"), ok(&deletion("f1", "done"))]).await;
    let ran = run_json(&server, &["rm", "--wait=90", "f1"]).await;
    assert_eq!(ran.kept.text(), format!("{}\n", deletion("f1", "done")));
}

#[tokio::test]
async fn a_copy_that_cannot_be_deleted_ends_with_1_and_is_shown_with_its_reason() {
    let server = Server::start([gone("f1"), ok(&deletion("f1", "failed"))]).await;
    let ran = run(&server, &["rm", "--wait", "f1"]).await;
    assert_eq!(ran.code(), ExitCode::FAILURE);
    let text = ran.kept.text();
    assert!(text.contains("undeletable  provider_unsupported: it has no delete"), "{text}");
}

#[tokio::test]
async fn when_the_time_is_up_it_shows_how_far_it_is_and_ends_with_1() {
    let pending = (0..5000).map(|_| ok(&deletion("f1", "pending")));
    let server = Server::start(std::iter::once(gone("f1")).chain(pending)).await;
    let ran = run_json(&server, &["rm", "--wait=30ms", "f1"]).await;
    assert_eq!(ran.code(), ExitCode::FAILURE);
    assert_eq!(ran.kept.json()["status"], "pending");
}

#[tokio::test]
async fn a_file_that_never_was_is_told_from_one_that_is_deleted_already() {
    let server = Server::start([unknown(), unknown()]).await;
    let ran = run(&server, &["rm", "f1"]).await;
    assert_eq!(ran.message(), "it was refused (code `not_found`)");
    assert_eq!(server.lines(), ["DELETE /v1/files/f1", "GET /v1/files/f1/deletion"]);

    let server = Server::start([unknown(), ok(&deletion("f1", "pending"))]).await;
    let ran = run(&server, &["rm", "f1"]).await;
    assert_eq!((ran.code(), ran.kept.text().as_str()), (ExitCode::SUCCESS, ""));

    // A wait goes on with it.
    let script = [unknown(), ok(&deletion("f1", "pending")), ok(&deletion("f1", "done"))];
    let server = Server::start(script).await;
    assert_eq!(run(&server, &["rm", "f1", "--wait"]).await.code(), ExitCode::SUCCESS);
}

#[tokio::test]
async fn a_delete_whose_answer_was_lost_is_repeated_and_counts_as_done_when_the_file_is_gone() {
    let server = Server::start([Step::HangUp, unknown(), ok(&deletion("f1", "pending"))]).await;
    let ran = run(&server, &["rm", "f1"]).await;
    assert_eq!((ran.code(), ran.kept.text().as_str()), (ExitCode::SUCCESS, "f1\n"));

    // A server that refuses has deleted nothing: the file went in another way.
    let busy = Step::error(503, vec![("retry-after", "0")], "busy");
    let server = Server::start([busy, unknown(), ok(&deletion("f1", "pending"))]).await;
    let ran = run(&server, &["rm", "f1"]).await;
    assert_eq!((ran.code(), ran.kept.text().as_str()), (ExitCode::SUCCESS, ""));

    let server = Server::start((0..9).map(|_| Step::HangUp)).await;
    let message = run(&server, &["rm", "f1"]).await.message();
    assert!(message.contains("it may be deleted: the same command tells"), "{message}");
    assert_eq!(server.lines().len(), 4);
}

#[tokio::test]
async fn one_file_that_fails_does_not_keep_the_others_but_shows_in_the_exit_code() {
    let in_use = Step::error(409, vec![], "file_in_use");
    let server = Server::start([in_use, unknown(), unknown(), gone("f3")]).await;
    let ran = run(&server, &["rm", "f1", "f2", "f3"]).await;
    assert_eq!(ran.code(), ExitCode::FAILURE);
    assert_eq!(ran.kept.text(), "f3\n");
}

#[tokio::test]
async fn a_key_that_is_not_known_ends_it_at_the_first_file() {
    let server = Server::start([Step::error(401, vec![], "invalid_api_key")]).await;
    let message = run(&server, &["rm", "f1", "f2", "f3"]).await.message();
    assert!(message.contains("2 more were not deleted"), "{message}");
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_reader_that_went_away_does_not_end_the_deleting() {
    let server = Server::start([gone("f1"), gone("f2")]).await;
    let mut output = Output::kept(false, Gone);
    let command = parse(&["rm", "f1", "f2"]).unwrap();
    let code = command.run_to(&server.client(), &mut output).await.unwrap();
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!(server.lines().len(), 2);
}

struct Gone;

impl std::io::Write for Gone {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_id_after_wait_is_an_id_and_not_a_number_of_seconds() {
    assert!(parse(&["rm", "--wait", "60"]).is_ok());
    assert!(parse(&["rm", "--wait=1m", "f1"]).is_ok());
    assert!(parse(&["rm", "--wait=60"]).is_err(), "no id");
    assert!(parse(&["rm"]).is_err());
}
