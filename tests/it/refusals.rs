//! Uploads that are refused: with which words, and that nothing of them stays.

use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use serde_json::json;

use crate::support::Env;
use crate::support::Options;
use crate::support::RawForm;
use crate::support::answer;

/// A form with all that an upload needs but the file.
fn fields() -> RawForm {
    RawForm::new().field("purpose", "user_data").field("target_model_names", "a")
}

fn batch() -> RawForm {
    RawForm::new().field("purpose", "batch").field("target_model_names", "a")
}

fn request(custom_id: &str) -> String {
    json!({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}})
        .to_string()
        + "\n"
}

fn assert_refusal(error: &Value, kind: &str, param: Value, code: &str, says: &str) {
    let detail = &error["error"];
    assert_eq!(detail["type"], kind, "{error}");
    assert_eq!(detail["param"], param, "{error}");
    assert_eq!(detail["code"], code, "{error}");
    let message = detail["message"].as_str().unwrap();
    assert!(message.contains(says), "`{message}` does not say `{says}`");
}

/// Sends each form and checks the refusal: `(form, param, code, what the message says)`.
async fn are_refused(env: &Env, cases: Vec<(RawForm, Value, &str, &str)>) {
    for (form, param, code, says) in cases {
        let (status, error) = answer(env.client.raw_upload(form.end()).send().await.unwrap()).await;
        assert_eq!(status, 400, "{says}: {error}");
        assert_refusal(&error, "invalid_request_error", param, code, says);
    }
    env.holds_nothing().await;
    assert!(!env.server.log().contains("panicked"));
}

#[tokio::test]
async fn a_form_that_is_not_in_order_is_refused_by_the_field_at_fault_and_leaves_nothing() {
    let env = Env::start().await;
    let file = || fields().file("in.txt", b"some bytes");
    let without_models = RawForm::new().field("purpose", "user_data").file("in.txt", b"x");
    let with_models = |names: &str| without_models.clone().field("target_model_names", names);
    let long = "n".repeat(4097);
    let many = (0..300).fold(file(), |form, number| form.field(&format!("f{number}"), "x"));
    are_refused(
        &env,
        vec![
            (fields(), json!("file"), "missing_required_parameter", "`file` is missing"),
            (file().file("again.txt", b"x"), json!("file"), "invalid_value", "exactly one"),
            (fields().field("file", "text"), json!("file"), "invalid_value", "with a filename"),
            (fields().file("", b"x"), json!("file"), "invalid_value", "empty filename"),
            (fields().file(&long, b"x"), json!("file"), "invalid_value", "4096"),
            (
                RawForm::new().field("target_model_names", "a").file("in.txt", b"x"),
                json!("purpose"),
                "missing_required_parameter",
                "`fine-tune`",
            ),
            (
                RawForm::new()
                    .field("purpose", "mystery")
                    .field("target_model_names", "a")
                    .file("i", b"x"),
                json!("purpose"),
                "invalid_value",
                "`mystery` is not a purpose; it is one of `assistants`",
            ),
            (
                without_models.clone(),
                json!("target_model_names"),
                "missing_required_parameter",
                "name the models",
            ),
            (
                with_models(" , "),
                json!("target_model_names"),
                "missing_required_parameter",
                "name the models",
            ),
            (
                with_models("a,nowhere"),
                json!("target_model_names"),
                "model_not_found",
                "no model is called `nowhere`; configured: `a`, `b`, `c`",
            ),
            (many, Value::Null, "invalid_multipart", "too many"),
            (
                file().part(b"Content-Disposition: form-data; name=\"metadata\"", b"\xff\xfe"),
                Value::Null,
                "invalid_value",
                "`metadata` is not UTF-8",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn an_expiry_out_of_bounds_is_refused() {
    let env = Env::start().await;
    let expiry = |anchor: &str, seconds: &str| {
        fields()
            .file("in.txt", b"x")
            .field("expires_after[anchor]", anchor)
            .field("expires_after[seconds]", seconds)
    };
    let file = || fields().file("in.txt", b"x");
    let (anchor, seconds) = (json!("expires_after[anchor]"), json!("expires_after[seconds]"));
    let bounds = "3600 (an hour) to 2592000 (30 days)";
    are_refused(
        &env,
        vec![
            (expiry("created_at", "3599"), seconds.clone(), "invalid_value", bounds),
            (expiry("created_at", "2592001"), seconds.clone(), "invalid_value", bounds),
            (expiry("created_at", "3600.5"), seconds.clone(), "invalid_value", bounds),
            (expiry("created_at", "-3600"), seconds.clone(), "invalid_value", bounds),
            (expiry("last_used", "3600"), anchor.clone(), "invalid_value", "must be `created_at`"),
            (
                file().field("expires_after[seconds]", "3600"),
                anchor,
                "invalid_value",
                "`created_at`",
            ),
            (
                file().field("expires_after[anchor]", "created_at"),
                seconds,
                "missing_required_parameter",
                "is missing",
            ),
        ],
    )
    .await;
    for (seconds, expected) in [("3600", 3600), ("2592000", 2_592_000)] {
        let form = expiry("created_at", seconds).end();
        let (status, file) = answer(env.client.raw_upload(form).send().await.unwrap()).await;
        assert_eq!(status, 200, "{file}");
        let time = |key: &str| file[key].as_i64().unwrap();
        assert_eq!(time("expires_at") - time("created_at"), expected);
    }
}

#[tokio::test]
async fn metadata_beyond_its_limits_is_refused_in_both_spellings() {
    let env = Env::start().await;
    let file = || fields().file("in.txt", b"x");
    let json_text = |value: Value| file().field("metadata", &value.to_string());
    let pairs = |count: usize| -> Value {
        (0..count)
            .map(|number| (format!("k{number}"), json!("v")))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let fields_of = |count: usize| {
        (0..count).fold(file(), |form, number| form.field(&format!("metadata[k{number}]"), "v"))
    };
    let (key, value) = ("k".repeat(65), "v".repeat(513));
    let param = || json!("metadata");
    are_refused(
        &env,
        vec![
            (
                json_text(json!(["a"])),
                param(),
                "invalid_value",
                "JSON object whose values are strings",
            ),
            (
                json_text(json!({"a": 1})),
                param(),
                "invalid_value",
                "JSON object whose values are strings",
            ),
            (file().field("metadata", "{broken"), param(), "invalid_value", "JSON object"),
            (json_text(pairs(17)), param(), "invalid_value", "17 pairs; it may have 16"),
            (fields_of(17), param(), "invalid_value", "17 pairs; it may have 16"),
            (
                file().field(&format!("metadata[{key}]"), "v"),
                param(),
                "invalid_value",
                "64 characters",
            ),
            (file().field("metadata[]", "v"), param(), "invalid_value", "64 characters"),
            (file().field("metadata[a]", &value), param(), "invalid_value", "`a`"),
            (json_text(json!({"a": value})), param(), "invalid_value", "512 characters"),
        ],
    )
    .await;
    for form in [json_text(pairs(16)), fields_of(16)] {
        let (status, file) = answer(env.client.raw_upload(form.end()).send().await.unwrap()).await;
        assert_eq!((status, &file["metadata"]), (200, &pairs(16)));
    }
}

#[tokio::test]
async fn a_batch_file_that_is_not_in_order_is_refused_by_its_line() {
    let small = "[[providers]]\nname = \"at-small\"\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\n\
                 api_key = \"k\"\nmax_batch_requests = 3\nmax_batch_bytes = \"1KB\"\n\
                 [[models]]\nname = \"small\"\nprovider = \"at-small\"\n";
    let env = Env::with(Options {
        extra: small.to_owned(),
        provider: "max_batch_requests = 5".to_owned(),
        ..Options::default()
    })
    .await;
    let file = |content: &str| batch().file("in.jsonl", content.as_bytes());
    let lines =
        |count: usize| (0..count).map(|number| request(&number.to_string())).collect::<String>();
    let to_small = |content: &str| file(content).field("target_model_names", "small");
    let param = || json!("file");
    are_refused(
        &env,
        vec![
            (
                file(&(request("1") + "{oops\n")),
                param(),
                "invalid_jsonl",
                "line 2: not valid JSON at column 2",
            ),
            (
                file(&(request("1") + "\n" + &request("1"))),
                param(),
                "invalid_jsonl",
                "line 3: `custom_id` `1`",
            ),
            (file("[]\n"), param(), "invalid_jsonl", "line 1: must be a JSON object"),
            (file(&request("")), param(), "invalid_jsonl", "`custom_id` is empty"),
            (
                file("{\"custom_id\": \"1\"}\n"),
                param(),
                "invalid_jsonl",
                "line 1: `method` is missing",
            ),
            (file(""), param(), "invalid_jsonl", "no requests"),
            (
                // The purpose comes last, so the lines were read before anybody knew what they are for.
                RawForm::new()
                    .field("target_model_names", "a")
                    .file("in.jsonl", (request("1") + "oops").as_bytes())
                    .field("purpose", "batch"),
                param(),
                "invalid_jsonl",
                "line 2",
            ),
            (
                to_small(&lines(4)),
                param(),
                "too_many_requests_in_batch",
                "has 4 requests, but `small` takes 3",
            ),
            (
                to_small(&(request(&"x".repeat(1000)))),
                param(),
                "batch_too_large",
                "but `small` takes 1",
            ),
            (file(&lines(6)), param(), "too_many_requests_in_batch", "more than 5 requests"),
        ],
    )
    .await;
    // What is sent on later is held to the same limits.
    let sent = env.client.raw_upload(file(&lines(4)).field("target_model_names", "a").end()).send();
    let (_, stored) = answer(sent.await.unwrap()).await;
    let path = format!("/v1/files/{}/mappings", stored["id"].as_str().unwrap());
    let (status, refusal) = env.client.post(&path, json!({"target_model_names": ["small"]})).await;
    assert_eq!((status, &refusal["error"]["code"]), (400, &json!("too_many_requests_in_batch")));
}

#[tokio::test]
async fn a_purpose_that_is_sent_twice_does_not_pass_by_the_line_check() {
    let env = Env::start().await;
    let form = fields().file("in.jsonl", b"not a request\n").field("purpose", "batch");
    are_refused(&env, vec![(form, json!("purpose"), "invalid_value", "`purpose` was sent twice")])
        .await;
}

#[tokio::test]
async fn a_file_over_the_limit_is_refused_whether_its_length_is_told_or_not() {
    let env = Env::start().await;
    let told = fields().file("in.bin", &vec![b'x'; 10 << 20]).end();
    let barely = fields().file("in.bin", &vec![b'x'; (8 << 20) + 1]).end();
    for (body, is_chunked) in [(told.clone(), false), (told, true), (barely, false)] {
        let request = env.client.raw_upload(Vec::new());
        let request = if is_chunked {
            let chunks: Vec<_> =
                body.chunks(65536).map(|chunk| std::io::Result::Ok(chunk.to_vec())).collect();
            request.body(reqwest::Body::wrap_stream(futures_util::stream::iter(chunks)))
        } else {
            request.body(body)
        };
        let (status, error) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 413, "{error}");
        assert_refusal(&error, "invalid_request_error", json!("file"), "file_too_large", "8MiB");
    }
    env.holds_nothing().await;
    let most = fields().file("in.bin", &vec![b'x'; 8 << 20]).end();
    assert_eq!(env.client.raw_upload(most).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_upload_refused_by_its_head_is_answered_to_a_client_that_sends_all_of_it_first() {
    let env = Env::start().await;
    let body = fields().file("in.bin", &vec![b'x'; 6 << 20]).end();
    let stranger = env.as_key("nobody's");
    for _ in 0..5 {
        let (status, error) = answer(stranger.raw_upload(body.clone()).send().await.unwrap()).await;
        assert_eq!(status, 401, "{error}");
        let request =
            env.client.raw_upload(body.clone()).header("Idempotency-Key", "k".repeat(256));
        let (status, error) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 400, "{error}");
    }
    for path in ["/v1/models", "/v1/nowhere"] {
        let request = env.client.request(reqwest::Method::POST, path).body(body.clone());
        let (status, error) = answer(request.send().await.unwrap()).await;
        assert!(matches!(status, 404 | 405), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_form_is_an_unsupported_media_type() {
    let env = Env::start().await;
    for content_type in [
        None,
        Some("application/json"),
        Some("multipart/form-data"),
        Some("multipart/mixed; boundary=x"),
    ] {
        let request = env.client.request(reqwest::Method::POST, "/v1/files").body("{}");
        let request = match content_type {
            None => request,
            Some(content_type) => request.header(CONTENT_TYPE, content_type),
        };
        let (status, error) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 415, "{content_type:?}: {error}");
        let says = "multipart/form-data with a boundary";
        assert_refusal(
            &error,
            "invalid_request_error",
            Value::Null,
            "unsupported_media_type",
            says,
        );
    }
    env.holds_nothing().await;
}

#[tokio::test]
async fn a_form_that_breaks_off_is_refused_and_leaves_nothing() {
    let env = Env::start().await;
    let content = vec![b'x'; 300_000];
    let whole = fields().file("in.bin", &content).end();
    let open = fields().file("in.bin", &content).0;
    // Without a closing boundary, though the body is complete as HTTP has it.
    let (status, error) = answer(env.client.raw_upload(open).send().await.unwrap()).await;
    assert_eq!(status, 400);
    let says = "before the closing boundary";
    assert_refusal(&error, "invalid_request_error", Value::Null, "invalid_multipart", says);
    // The client hangs up: in the head of the form, in the file, and in front of the last bytes.
    for sent in [10, 150, 100_000, whole.len() - 10] {
        let mut bytes = env.client.upload_head(whole.len(), "Idempotency-Key: broken\r\n");
        bytes.extend_from_slice(&whole[..sent]);
        env.client.converse(&bytes, true).await;
        env.holds_nothing().await;
    }
    // A length that is shorter than the form.
    let mut bytes = env.client.upload_head(whole.len() - 10, "");
    bytes.extend_from_slice(&whole);
    let said = env.client.converse(&bytes, true).await;
    assert!(said.starts_with("HTTP/1.1 400"), "{said}");
    env.holds_nothing().await;
    assert!(!env.server.log().contains("panicked"));
}

#[tokio::test]
async fn junk_around_a_form_is_bounded() {
    let env = Env::start().await;
    let form = fields().file("in.txt", b"x").end();
    let with_preamble = |length: usize| {
        let mut body = vec![b'j'; length];
        body.extend_from_slice(b"\r\n");
        body.extend_from_slice(&form);
        body
    };
    let (status, error) =
        answer(env.client.raw_upload(with_preamble(3 << 20)).send().await.unwrap()).await;
    assert_eq!(status, 400, "{error}");
    assert_eq!(error["error"]["code"], "invalid_multipart");
    for junk in [&b""[..], b"--", b"\r\n\r\n", b"\0\0\0\0", &[0xff; 5000]] {
        let (status, error) =
            answer(env.client.raw_upload(junk.to_vec()).send().await.unwrap()).await;
        assert_eq!(status, 400, "{error}");
    }
    let header =
        [b"Content-Disposition: form-data; name=\"file\"; x=".as_slice(), &vec![b'h'; 1 << 20]]
            .concat();
    let body = RawForm::new().part(&header, b"x").end();
    let (status, error) = answer(env.client.raw_upload(body).send().await.unwrap()).await;
    assert_eq!(status, 400, "{error}");
    env.holds_nothing().await;
    // A preamble is allowed, and ignored (RFC 2046).
    assert_eq!(env.client.raw_upload(with_preamble(100)).send().await.unwrap().status(), 200);
}
