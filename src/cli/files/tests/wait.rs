//! `longshore files wait` against a scripted server.

use super::*;

#[tokio::test]
async fn it_asks_again_until_the_file_is_processed_and_outlasts_a_restart() {
    let script = [
        ok(&file("f1", "uploaded")),
        Step::HangUp,
        Step::error(503, vec![], "starting"),
        ok(&file("f1", "uploaded")),
        ok(&file("f1", "processed")),
    ];
    let server = Server::start(script).await;
    let ran = run(&server, &["wait", "f1"]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
    assert_eq!(server.lines(), ["GET /v1/files/f1?wait=60"; 5]);
    assert!(ran.kept.text().contains("ready"), "{}", ran.kept.text());
}

#[tokio::test]
async fn a_failed_file_ends_with_1_and_is_shown() {
    let server = Server::start([ok(&file("f1", "error"))]).await;
    let ran = run_json(&server, &["wait", "f1"]).await;
    assert_eq!(ran.code(), ExitCode::FAILURE);
    assert_eq!(ran.kept.json()["id"], "f1");
}

#[tokio::test]
async fn when_the_time_is_up_it_shows_how_far_the_file_is_and_ends_with_1() {
    let server = Server::start((0..5000).map(|_| ok(&file("f1", "uploaded")))).await;
    let ran = run_json(&server, &["wait", "f1", "--timeout", "30ms"]).await;
    assert_eq!(ran.code(), ExitCode::FAILURE);
    assert_eq!(ran.kept.json()["status"], "uploaded");
    assert!(
        server
            .lines()
            .iter()
            .all(|line| line == "GET /v1/files/f1?wait=1" || line == "GET /v1/files/f1?wait=0")
    );
}

#[tokio::test]
async fn an_unknown_file_is_not_waited_for() {
    let server = Server::start([Step::error(404, vec![], "not_found")]).await;
    let ran = run(&server, &["wait", "f1"]).await;
    assert_eq!(ran.message(), "it was refused (code `not_found`)");
}

#[tokio::test]
async fn a_time_limit_of_centuries_is_no_panic() {
    let server = Server::start([ok(&file("f1", "processed"))]).await;
    let ran = run(&server, &["wait", "f1", "--timeout", "500000000000years"]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
}
