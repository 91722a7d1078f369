//! `longshore files put` against a scripted server.

use super::*;

#[tokio::test]
async fn a_repeat_after_a_lost_connection_has_the_same_key_and_the_same_content() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in.jsonl", "{\"a\": 1}\n");
    let script = [
        Step::HangUp,
        Step::error(503, vec![("retry-after", "0")], "busy"),
        ok(&file("f1", "uploaded")),
    ];
    let server = Server::start(script).await;
    let ran =
        run(&server, &["put", &path, "--purpose", "batch", "--model", "a,b", "--model", "c"]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
    assert_eq!(ran.kept.text(), "f1\n");

    let seen = server.seen();
    assert_eq!(server.lines(), ["POST /v1/files"; 3]);
    let key = seen[0].header("idempotency-key").unwrap();
    assert!(key.parse::<uuid::Uuid>().is_ok(), "{key}");
    for seen in &seen {
        assert_eq!(seen.header("idempotency-key"), Some(key));
        assert_eq!(seen.header("content-length"), Some(seen.body.len().to_string().as_str()));
        assert_eq!(seen.header("transfer-encoding"), None);
        let body = String::from_utf8(seen.body.to_vec()).unwrap();
        assert_eq!(body.matches("{\"a\": 1}\n").count(), 1, "{body}");
        assert!(
            body.contains("filename=\"in.jsonl\"\r\nContent-Type: application/jsonl"),
            "{body}"
        );
        assert_eq!(body.matches("name=\"target_model_names\"").count(), 3, "{body}");
        assert!(
            body.find("name=\"purpose\"").unwrap() < body.find("name=\"file\"").unwrap(),
            "{body}"
        );
    }
}

#[tokio::test]
async fn each_file_has_a_key_of_its_own() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (on_disk(&folder, "1", "1"), on_disk(&folder, "2", "2"));
    let server = Server::start([ok(&file("f1", "uploaded")), ok(&file("f2", "uploaded"))]).await;
    let ran = run(&server, &["put", &one, &two, "--purpose", "user_data"]).await;
    assert_eq!(ran.kept.text(), "f1\nf2\n");
    let seen = server.seen();
    assert_ne!(seen[0].header("idempotency-key"), seen[1].header("idempotency-key"));
}

#[tokio::test]
async fn a_refusal_that_would_be_repeated_for_ever_is_not_repeated() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in.jsonl", "{}");
    let server = Server::start([Step::error(400, vec![], "invalid_jsonl")]).await;
    let ran = run(&server, &["put", &path, "--purpose", "batch"]).await;
    assert_eq!(ran.message(), "it was refused (code `invalid_jsonl`)");
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_connection_that_always_breaks_is_given_up_after_three_repeats() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in.jsonl", "{}");
    let server = Server::start((0..9).map(|_| Step::HangUp)).await;
    let ran = run(&server, &["put", &path, "--purpose", "batch"]).await;
    assert!(ran.message().starts_with("lost the connection"), "{}", ran.message());
    assert_eq!(server.lines().len(), 4);
}

#[tokio::test]
async fn a_wrong_file_name_is_found_before_anything_is_sent() {
    let folder = TempDir::new().unwrap();
    let good = on_disk(&folder, "good", "1");
    let server = Server::start([]).await;
    for bad in [folder.path().join("absent"), folder.path().to_owned()] {
        let ran = run(&server, &["put", &good, bad.to_str().unwrap(), "--purpose", "batch"]).await;
        assert!(ran.message().contains(bad.to_str().unwrap()), "{}", ran.message());
    }
    assert!(server.lines().is_empty());
}

#[tokio::test]
async fn one_file_that_fails_does_not_keep_the_others_but_shows_in_the_exit_code() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (on_disk(&folder, "1", "1"), on_disk(&folder, "2", "2"));
    let server = Server::start([Step::error(400, vec![], "x"), ok(&file("f2", "uploaded"))]).await;
    let ran = run_json(&server, &["put", &one, &two, "--purpose", "batch"]).await;
    assert_eq!(ran.code(), ExitCode::FAILURE);
    let json = ran.kept.json();
    assert_eq!(json["data"][0]["id"], "f2");
    assert_eq!(json["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn wrong_usage_sends_nothing_and_ends_with_2() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (on_disk(&folder, "1", "1"), on_disk(&folder, "2", "2"));
    let server = Server::start([]).await;
    let key_for_two = ["put", &one, &two, "--purpose", "batch", "--idempotency-key", "k"];
    assert_eq!(run(&server, &key_for_two).await.code(), ExitCode::from(2));
    let key_twice = ["put", &one, "--purpose", "batch", "--metadata", "a=1", "--metadata", "a=2"];
    assert_eq!(run(&server, &key_twice).await.code(), ExitCode::from(2));
    assert!(server.lines().is_empty());
}

#[tokio::test]
async fn options_become_fields_of_the_form() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in\n\"ü.pdf", "1");
    let server = Server::start([ok(&file("f1", "uploaded"))]).await;
    let arguments = [
        "put",
        &path,
        "--purpose",
        "user_data",
        "--expires-after",
        "1d 1h",
        "--metadata",
        "a=b=c",
        "--idempotency-key",
        "mine",
    ];
    assert_eq!(run(&server, &arguments).await.code(), ExitCode::SUCCESS);
    let seen = &server.seen()[0];
    assert_eq!(seen.header("idempotency-key"), Some("mine"));
    let body = String::from_utf8(seen.body.to_vec()).unwrap();
    for part in [
        "name=\"expires_after[anchor]\"\r\n\r\ncreated_at\r\n",
        "name=\"expires_after[seconds]\"\r\n\r\n90000\r\n",
        "name=\"metadata\"\r\n\r\n{\"a\":\"b=c\"}\r\n",
        "filename=\"in%0A\\\"ü.pdf\"\r\nContent-Type: application/pdf\r\n",
    ] {
        assert!(body.contains(part), "{part} is not in {body}");
    }
}

#[tokio::test]
async fn waiting_brings_the_last_state_and_a_failed_file_ends_with_1() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in.jsonl", "{}");
    let server = Server::start([ok(&file("f1", "uploaded")), ok(&file("f1", "error"))]).await;
    let ran = run_json(&server, &["put", &path, "--purpose", "batch", "--wait"]).await;
    assert_eq!(ran.code(), ExitCode::FAILURE);
    assert_eq!(ran.kept.json()["status"], "error");
    assert_eq!(server.lines(), ["POST /v1/files", "GET /v1/files/f1?wait=60"]);
}

#[tokio::test]
async fn waiting_prints_the_id_and_where_the_file_is() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in.jsonl", "{}");
    let server = Server::start([ok(&file("f1", "uploaded")), ok(&file("f1", "processed"))]).await;
    let ran = run(&server, &["put", &path, "--purpose", "batch", "--wait=90"]).await;
    assert_eq!(ran.code(), ExitCode::SUCCESS);
    let text = ran.kept.text();
    let rows: Vec<_> = text.lines().collect();
    assert_eq!(rows[0], "f1");
    assert!(rows[1].starts_with("FILENAME") && rows[2].starts_with("in.jsonl"), "{text}");
    assert!(rows[2].contains("ready"), "{text}");
}

#[test]
fn a_file_after_wait_is_a_file_and_not_a_number_of_seconds() {
    for arguments in [
        ["put", "--wait", "in.jsonl", "--purpose", "batch"],
        ["put", "in.jsonl", "--wait", "--purpose", "batch"],
    ] {
        assert!(parse(&arguments).is_ok());
    }
    for wait in ["--wait=90", "--wait=5m"] {
        assert!(parse(&["put", "in.jsonl", "--purpose", "batch", wait]).is_ok());
    }
    for wrong in ["--wait=soon", "--metadata=x", "--metadata==x", "--expires-after=soon"] {
        assert!(parse(&["put", "in.jsonl", "--purpose", "batch", wrong]).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_file_that_is_cut_while_it_waits_is_a_fault_of_this_side_and_not_repeated() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in.jsonl", "{\"a\": 1}");
    let source = crate::cli::files::put::source::Source::check(Path::new(&path)).await.unwrap();
    fs::write(&path, "{").unwrap();
    let failure = source.open(&indicatif::ProgressBar::hidden()).await.err().unwrap();
    assert!(failure.to_string().contains("changed while it was being sent"), "{failure}");
}

#[tokio::test]
async fn a_file_that_is_cut_while_it_is_sent_breaks_the_upload_off() {
    let folder = TempDir::new().unwrap();
    let path = on_disk(&folder, "in.jsonl", &"x".repeat(100));
    let source = crate::cli::files::put::source::Source::check(Path::new(&path)).await.unwrap();
    let sending = source.open(&indicatif::ProgressBar::hidden()).await.unwrap();
    fs::write(&path, "x").unwrap();
    let server = Server::start([ok(&file("f1", "uploaded"))]).await;
    let form = reqwest::multipart::Form::new().part("file", sending.part);
    let client = server.client();
    let answer = client.transfer::<Value>(client.upload(&["files"]).multipart(form), || 0).await;
    assert!(answer.is_err());
    assert!(sending.state.fault().unwrap().contains("changed"), "{:?}", sending.state);
}
