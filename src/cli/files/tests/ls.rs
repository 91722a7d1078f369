//! `longshore files ls` against a scripted server.

use super::*;

fn page(ids: &[&str], has_more: bool) -> Step {
    let data: Vec<_> = ids.iter().map(|id| file(id, "processed")).collect();
    let (first, last) = (ids.first(), ids.last());
    ok(
        &json!({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}),
    )
}

#[tokio::test]
async fn all_pages_are_one_table_with_one_heading() {
    let server = Server::start([page(&["f1", "f2"], true), page(&["f3"], false)]).await;
    let ran = run(&server, &["ls", "--all", "--purpose", "batch"]).await;
    ran.result.unwrap();
    let text = ran.kept.text();
    let last_columns: Vec<_> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(last_columns, ["ID", "f1", "f2", "f3"]);
    assert_eq!(
        server.lines(),
        ["GET /v1/files?purpose=batch&limit=200", "GET /v1/files?purpose=batch&limit=200&after=f2"]
    );
}

#[tokio::test]
async fn all_pages_are_one_document_for_a_script() {
    let server = Server::start([page(&["f1", "f2"], true), page(&["f3"], false)]).await;
    let json = run_json(&server, &["ls", "--all"]).await.kept.json();
    let ids: Vec<_> =
        json["data"].as_array().unwrap().iter().map(|file| file["id"].clone()).collect();
    assert_eq!(ids, ["f1", "f2", "f3"]);
    assert_eq!(json["data"][0]["surprise"], 1, "what this program does not know is kept");
    assert_eq!((&json["first_id"], &json["last_id"]), (&json!("f1"), &json!("f3")));
    assert_eq!(json["has_more"], false);
}

#[tokio::test]
async fn no_files_are_an_empty_list() {
    let server = Server::start([page(&[], false), page(&[], false), page(&[], false)]).await;
    assert_eq!(run(&server, &["ls"]).await.kept.text(), "");
    for arguments in [&["ls"][..], &["ls", "--all"]] {
        let json = run_json(&server, arguments).await.kept.json();
        assert_eq!((&json["data"], &json["first_id"]), (&json!([]), &Value::Null));
    }
}

#[tokio::test]
async fn one_page_is_what_was_asked_for_even_when_there_are_more() {
    let server = Server::start([page(&["f1"], true)]).await;
    run(&server, &["ls", "--limit", "1", "--after", "f0", "--status", "error", "--model", "a&b"])
        .await
        .result
        .unwrap();
    assert_eq!(server.lines(), ["GET /v1/files?status=error&model=a%26b&limit=1&after=f0"]);
}

#[tokio::test]
async fn a_list_that_does_not_advance_is_not_followed_for_ever_nor_taken_for_a_whole_one() {
    let server = Server::start([page(&["f1"], true), page(&["f1"], true)]).await;
    let ran = run_json(&server, &["ls", "--all"]).await;
    assert!(ran.message().contains("not whole"), "{}", ran.message());
    assert!(serde_json::from_slice::<Value>(&ran.kept.bytes()).is_err());
}
