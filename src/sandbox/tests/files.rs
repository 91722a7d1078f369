//! The files API when nothing goes wrong.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_file_is_uploaded_retrieved_read_and_deleted_once() {
    let blue = Blue::start();
    let created = json(blue.upload("a.jsonl", "batch", LINE)).await;
    let id = created["id"].as_str().unwrap();
    assert!(id.starts_with("file-"));
    assert_eq!(
        created,
        json!({
            "id": id, "object": "file", "bytes": LINE.len(), "created_at": created["created_at"],
            "expires_at": created["created_at"].as_u64().unwrap() + 2_592_000,
            "filename": "a.jsonl", "purpose": "batch", "status": "processed",
            "status_details": null,
        })
    );

    assert_eq!(json(blue.get(&format!("/files/{id}"))).await, created);
    let content = blue.get(&format!("/files/{id}/content")).send().await.unwrap();
    assert_eq!(text(content).await, LINE);

    assert_eq!(json(blue.delete(id)).await, json!({"id": id, "object": "file", "deleted": true}));
    let gone = json!({
        "message": format!("No such File object: {id}"), "type": "invalid_request_error",
        "param": "id", "code": null,
    });
    assert_eq!(error(blue.delete(id)).await, (404, gone.clone()));
    assert_eq!(error(blue.get(&format!("/files/{id}"))).await, (404, gone.clone()));
    assert_eq!(error(blue.get(&format!("/files/{id}/content"))).await, (404, gone));
}

#[tokio::test]
async fn the_ledger_knows_a_file_by_its_hash_and_keeps_it_after_its_deletion() {
    let blue = Blue::start();
    let part = Part::text("abc").file_name("notes.txt").mime_str("text/markdown").unwrap();
    let form = Form::new()
        .part("file", part)
        .text("expires_after[seconds]", "3600")
        .text("expires_after[anchor]", "created_at")
        .text("purpose", "user_data");
    let id = json(blue.post(form)).await["id"].as_str().unwrap().to_owned();
    assert_eq!(status(blue.delete(&id)).await, 200);

    assert!(blue.sandbox.live_files("blue").is_empty());
    let [file] = blue.sandbox.files("blue").try_into().unwrap();
    let expected = StoredFile {
        id,
        filename: "notes.txt".to_owned(),
        purpose: Purpose::UserData,
        bytes: 3,
        sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned(),
        content_type: Some("text/markdown".to_owned()),
        created_at: file.created_at,
        deleted: true,
        expires_after_seconds: Some(3600),
    };
    assert_eq!(file, expected);
}

#[tokio::test]
async fn following_after_pages_through_all_files_newest_first() {
    let blue = Blue::start();
    for name in ["1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl", "5.jsonl"] {
        blue.uploaded(name).await;
    }
    blue.sandbox.plant("blue", "6.jsonl", Purpose::BatchOutput, Bytes::new());

    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let path = format!("/files?limit=2&purpose=batch{after}");
        let page = json(blue.get(&path)).await;
        let data = page["data"].as_array().unwrap();
        assert_eq!(page["object"], "list");
        assert_eq!(page["first_id"], data.first().unwrap()["id"]);
        assert_eq!(page["last_id"], data.last().unwrap()["id"]);
        names.extend(data.iter().map(|file| file["filename"].as_str().unwrap().to_owned()));
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
    assert_eq!(names, ["5.jsonl", "4.jsonl", "3.jsonl", "2.jsonl", "1.jsonl"]);

    let ascending = json(blue.get("/files?order=asc")).await;
    assert_eq!(ascending["data"][0]["filename"], "1.jsonl");
    assert_eq!(ascending["data"][5]["filename"], "6.jsonl");

    let empty = json(blue.get("/files?purpose=vision")).await;
    assert_eq!(
        empty,
        json!({"object": "list", "data": [], "first_id": null, "last_id": null, "has_more": false})
    );
}

#[tokio::test]
async fn a_list_query_that_makes_no_sense_is_refused_by_its_parameter() {
    let blue = Blue::start();
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=x", "limit"),
        ("order=newest", "order"),
        ("purpose=fun", "purpose"),
        ("after=file-gone", "after"),
    ] {
        let (status, error) = error(blue.get(&format!("/files?{query}"))).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{query}");
    }
}

#[tokio::test]
async fn an_upload_that_breaks_the_rules_is_refused_and_stores_nothing() {
    let blue = Blue::start();
    let part = || Part::text(LINE).file_name("a.jsonl");
    let expiry = |anchor: &'static str, seconds: &'static str| {
        form("a.jsonl", "batch", LINE)
            .text("expires_after[anchor]", anchor)
            .text("expires_after[seconds]", seconds)
    };
    for (form, param) in [
        (Form::new().part("file", part()), "purpose"),
        (Form::new().text("purpose", "batch"), "file"),
        (Form::new().text("purpose", "batch").text("file", LINE), "file"),
        (form("a.jsonl", "fun", LINE), "purpose"),
        (form("a.jsonl", "batch_output", LINE), "purpose"),
        (form("a.jsonl", "batch", LINE).text("purpose", "batch"), "purpose"),
        (form("a.jsonl", "batch", LINE).part("file", part()), "file"),
        (form("a.jsonl", "batch", LINE).text("color", "blue"), "color"),
        (
            form("a.jsonl", "batch", LINE).text("expires_after[anchor]", "created_at"),
            "expires_after[seconds]",
        ),
        (expiry("created_at", "3599"), "expires_after[seconds]"),
        (expiry("created_at", "2592001"), "expires_after[seconds]"),
        (expiry("now", "3600"), "expires_after[anchor]"),
    ] {
        let (status, error) = error(blue.post(form)).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
    assert_eq!(error(blue.client.post(blue.url("/files")).bearer_auth("k").body("x")).await.0, 400);

    let refused = blue.upload("a.txt", "batch", LINE).send().await.unwrap();
    assert_eq!(refused.status(), 400);
    let message = "Invalid file format for Batch API. Must be .jsonl";
    assert_eq!(
        refused.json::<Value>().await.unwrap(),
        json!({
            "error": {
                "message": message, "type": "invalid_request_error", "param": null, "code": null,
            },
            "detail": {"message": message, "code": null},
        })
    );
    assert!(blue.sandbox.files("blue").is_empty());
}

#[tokio::test]
async fn a_file_over_the_size_limit_is_refused_and_one_at_it_is_not() {
    let blue = Blue::start();
    blue.configure(Settings { max_file_bytes: 4, ..Settings::default() });
    assert_eq!(status(blue.upload("a.jsonl", "batch", "1234")).await, 200);
    let (status, error) = error(blue.upload("b.jsonl", "batch", "12345")).await;
    assert_eq!((status, &error["message"]), (400, &json!("File is too large.")));
    assert_eq!(blue.live_names(), ["a.jsonl"]);
}

#[tokio::test]
async fn contents_are_refused_by_purpose_and_where_they_were_not_kept() {
    let blue = Blue::start();
    for purpose in ["assistants", "vision", "user_data"] {
        let file = json(blue.upload("a.bin", purpose, "abc")).await;
        let path = format!("/files/{}/content", file["id"].as_str().unwrap());
        let message = format!("Not allowed to download files of purpose: {purpose}");
        let (status, error) = error(blue.get(&path)).await;
        assert_eq!((status, &error["message"]), (400, &json!(message)));
    }

    blue.configure(Settings { keep_bytes: 3, ..Settings::default() });
    let kept = json(blue.upload("a", "evals", "abc")).await["id"].as_str().unwrap().to_owned();
    let large = json(blue.upload("a", "evals", "abcd")).await["id"].as_str().unwrap().to_owned();
    assert_eq!(status(blue.get(&format!("/files/{kept}/content"))).await, 200);
    let (status, error) = error(blue.get(&format!("/files/{large}/content"))).await;
    assert_eq!(status, 400);
    assert!(error["message"].as_str().unwrap().contains("keep_bytes"), "{error}");
}

#[tokio::test]
async fn an_upload_cut_short_by_its_client_stores_nothing() {
    let blue = Blue::start();
    let head = "POST /blue/v1/files HTTP/1.1\r\nhost: sandbox\r\nauthorization: Bearer k\r\n\
                content-type: multipart/form-data; boundary=edge\r\n";
    let parts = "--edge\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nevals\r\n\
                 --edge\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc";

    // The form has no closing boundary, though the body is whole.
    let request =
        format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n{parts}", parts.len());
    let answer = rest_of(blue.dial(request.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");

    // The form is complete, but the body was announced to be longer.
    let request = format!("{head}content-length: 5000\r\n\r\n{parts}\r\n--edge--\r\n");
    drop(blue.dial(request.as_bytes()).await);
    blue.reached(Operation::Upload, 2).await;
    eventually(|| blue.sandbox.stats("blue").in_flight == 0).await;

    assert!(blue.sandbox.files("blue").is_empty());
    let calls = blue.sandbox.calls("blue");
    assert_eq!((calls[0].status, calls[1].status), (Some(400), None));
    assert_eq!(calls[1].content_length, Some(5000));

    // Neither is to blame on the bytes: sent whole, they are a file.
    let parts = format!("{parts}\r\n--edge--\r\n");
    let request =
        format!("{head}connection: close\r\ncontent-length: {}\r\n\r\n{parts}", parts.len());
    let answer = rest_of(blue.dial(request.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(blue.live_names(), ["a"]);
}

#[tokio::test]
async fn a_part_whose_head_never_ends_is_not_buffered() {
    let blue = Blue::start();
    let head = "POST /blue/v1/files HTTP/1.1\r\nhost: sandbox\r\nauthorization: Bearer k\r\n\
                content-type: multipart/form-data; boundary=edge\r\ncontent-length: 99999999\r\n\r\n\
                --edge\r\nx-endless: ";
    let mut stream = blue.dial(head.as_bytes()).await;
    let filler = [b'a'; 64 << 10];
    within(async { while stream.write_all(&filler).await.is_ok() {} }).await;
    eventually(|| blue.sandbox.stats("blue").in_flight == 0).await;
    assert_eq!(blue.last_call().status, None);
}

#[tokio::test]
async fn a_chunked_upload_of_many_megabytes_is_hashed_and_told_from_a_counted_one() {
    let blue = Blue::start();
    let chunk = Bytes::from(vec![7_u8; 64 << 10]);
    let chunks = futures_util::stream::iter((0..128).map(move |_| Ok::<_, Closed>(chunk.clone())));
    let part = Part::stream(reqwest::Body::wrap_stream(chunks)).file_name("big.bin");
    let form = Form::new().text("purpose", "evals").part("file", part);
    assert_eq!(status(blue.post(form)).await, 200);

    let [file] = blue.sandbox.live_files("blue").try_into().unwrap();
    assert_eq!(file.bytes, 8 << 20);
    use sha2::Digest;
    let expected = sha2::Sha256::digest(vec![7_u8; 8 << 20]);
    assert_eq!(file.sha256, data_encoding::HEXLOWER.encode(&expected));
    assert_eq!(blue.last_call().content_length, None);

    blue.uploaded("small.jsonl").await;
    assert!(blue.last_call().content_length.unwrap() > LINE.len() as u64);
}

#[tokio::test]
async fn a_new_file_shows_only_after_the_lag_but_can_be_deleted() {
    let blue = Blue::start();
    blue.configure(Settings { list_lag_ms: 3_600_000, ..Settings::default() });
    let late = blue.uploaded("late.jsonl").await;
    assert_eq!(status(blue.get(&format!("/files/{late}"))).await, 404);
    assert_eq!(json(blue.get("/files")).await["data"], json!([]));
    assert_eq!(blue.live_names(), ["late.jsonl"]);
    assert_eq!(status(blue.delete(&late)).await, 200);

    blue.configure(Settings { list_lag_ms: 40, ..Settings::default() });
    let before = std::time::Instant::now();
    let soon = blue.uploaded("soon.jsonl").await;
    within(async { while status(blue.get(&format!("/files/{soon}"))).await == 404 {} }).await;
    assert!(before.elapsed() >= Duration::from_millis(40));
    assert_eq!(json(blue.get("/files")).await["data"][0]["id"], soon);
}

#[tokio::test]
async fn only_the_expected_key_is_let_in() {
    let blue = Blue::start();
    let refused = json!({
        "message": "Incorrect API key provided.", "type": "invalid_request_error", "param": null,
        "code": "invalid_api_key",
    });
    let list = || blue.client.get(blue.url("/files"));
    assert_eq!(error(list()).await, (401, refused.clone()));
    assert_eq!(status(list().bearer_auth("anything")).await, 200);

    blue.configure(Settings { expected_key: Some("sk-one".to_owned()), ..Settings::default() });
    assert_eq!(error(list().bearer_auth("anything")).await, (401, refused.clone()));
    assert_eq!(error(blue.upload("a.jsonl", "batch", LINE)).await, (401, refused));
    assert_eq!(status(list().bearer_auth("sk-one")).await, 200);

    assert!(blue.sandbox.files("blue").is_empty());
    let accepted: Vec<_> =
        blue.sandbox.calls("blue").iter().map(|call| call.authorization_ok).collect();
    assert_eq!(accepted, [false, true, false, false, true]);
}

#[tokio::test]
async fn accounts_share_nothing_but_the_port() {
    let blue = Blue::start();
    let id = blue.uploaded("a.jsonl").await;
    blue.sandbox.configure(
        "green",
        Settings { expected_key: Some("sk-green".to_owned()), ..Settings::default() },
    );

    let green = format!("{}/files/{id}", blue.sandbox.base_url("green"));
    assert_eq!(status(blue.client.get(&green).bearer_auth("sk-blue")).await, 401);
    assert_eq!(status(blue.client.get(&green).bearer_auth("sk-green")).await, 404);
    assert_eq!(status(blue.get(&format!("/files/{id}"))).await, 200);
    assert!(blue.sandbox.files("green").is_empty());
}

#[tokio::test]
async fn what_does_not_exist_is_404_in_the_shape_of_the_api() {
    let blue = Blue::start();
    let (status, error_body) = error(blue.get("/models")).await;
    assert_eq!((status, &error_body["type"]), (404, &json!("invalid_request_error")));
    assert_eq!(blue.last_call().operation, Operation::Other);

    let nowhere = format!("http://{}/", blue.sandbox.local_addr());
    assert_eq!(error(blue.client.get(nowhere)).await.0, 404);
}
