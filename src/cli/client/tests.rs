//! The tests of `client` against a scripted server.

use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::cli::scripted::{Server, Step};

fn base(url: &str) -> String {
    Client::from_env(Some(url.to_owned()), None).unwrap().base.to_string()
}

fn refusal(url: &str) -> String {
    Client::from_env(Some(url.to_owned()), None).unwrap_err().to_string()
}

#[test]
fn the_version_is_appended_where_it_is_missing() {
    assert_eq!(base(""), "http://127.0.0.1:4700/v1");
    assert_eq!(base("http://files.example"), "http://files.example/v1");
    assert_eq!(base("http://files.example:81/v1/"), "http://files.example:81/v1");
    assert_eq!(base("https://example.com/longshore/"), "https://example.com/longshore/v1");
    assert_eq!(Client::from_env(None, None).unwrap().base.as_str(), "http://127.0.0.1:4700/v1");
}

#[test]
fn a_url_that_is_none_of_a_server_is_refused_without_being_repeated() {
    for url in
        ["127.0.0.1:4700", "nonsense", "ftp://host", "http://host?key=secret", "http://host#secret"]
    {
        let message = refusal(url);
        assert!(
            message.contains("LONGSHORE_URL") && !message.contains("secret"),
            "{url}: {message}"
        );
    }
    let message = refusal("http://me:secret@host");
    assert!(message.contains("LONGSHORE_API_KEY") && !message.contains("secret"), "{message}");
}

#[test]
fn a_key_is_shown_nowhere() {
    let client = Client::from_env(None, Some("sk-secret".to_owned().into())).unwrap();
    assert!(!format!("{client:?}").contains("sk-secret"));
    let message =
        Client::from_env(None, Some("sk\nsecret".to_owned().into())).unwrap_err().to_string();
    assert!(message.contains("LONGSHORE_API_KEY") && !message.contains("secret"), "{message}");
}

#[tokio::test]
async fn the_key_is_sent_and_an_id_stays_one_segment_of_the_path() {
    let server = Server::start([Step::json(200, &json!({"id": "x"}))]).await;
    server.client().get::<Value>(&["files", "a/../b?c"], &[]).await.unwrap();
    let seen = &server.seen()[0];
    assert_eq!(seen.line, "GET /v1/files/a%2F..%2Fb%3Fc");
    assert_eq!(seen.header("authorization"), Some("Bearer sk-test"));
}

#[tokio::test]
async fn where_nobody_listens_the_failure_says_how_to_start_a_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::from_env(Some(url.clone()), None).unwrap();
    let failure = client.get::<Value>(&["files"], &[]).await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        format!(
            "no server answers at `{url}/v1`: start one with `longshore up`, or name another with LONGSHORE_URL or `--url`"
        )
    );
}

#[tokio::test]
async fn a_refusal_of_the_server_is_told_plainly() {
    let server = Server::start([Step::error(404, vec![], "not_found")]).await;
    let failure = server.client().get::<Value>(&["files", "x"], &[]).await.unwrap_err();
    assert_eq!(failure.to_string(), "it was refused (code `not_found`)");
}

#[tokio::test]
async fn a_page_instead_of_json_is_no_answer() {
    let page = Step::Answer(200, vec![], "<html>welcome</html>".into());
    let server = Server::start([page]).await;
    let failure = server.client().get::<Value>(&["files"], &[]).await.unwrap_err();
    assert!(matches!(failure, Failure::Nonsense { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_server_that_hangs_up_is_told_from_one_that_is_not_there() {
    let server = Server::start([Step::HangUp]).await;
    let failure = server.client().get::<Value>(&["files"], &[]).await.unwrap_err();
    assert!(matches!(failure, Failure::Lost { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_transfer_in_silence_is_given_up() {
    let server = Server::start([Step::Hold, Step::Hold]).await;
    let client = server.client().paced(Duration::from_millis(1), Duration::from_millis(50));
    let failure = client.download(&["files", "x", "content"]).await.unwrap_err();
    assert!(matches!(failure, Failure::Silent { .. }), "{failure:?}");
    let failure = client.transfer::<Value>(client.upload(&["files"]), || 7).await.unwrap_err();
    assert!(matches!(failure, Failure::Silent { .. }), "{failure:?}");
}

#[tokio::test]
async fn a_transfer_that_moves_is_not_given_up() {
    let server = Server::start([Step::Hold]).await;
    let client = server.client().paced(Duration::from_millis(1), Duration::from_millis(10));
    let asked = std::cell::Cell::new(0);
    let moving_for_a_while = || {
        asked.set(asked.get() + 1);
        asked.get().min(10)
    };
    let failure =
        client.transfer::<Value>(client.upload(&["files"]), moving_for_a_while).await.unwrap_err();
    assert!(matches!(failure, Failure::Silent { .. }), "{failure:?}");
    assert_eq!(asked.get(), 11, "it was given up while it moved");
}
