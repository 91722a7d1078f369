//! Downloads: the bytes, whole and in parts, from here or from a provider.

use reqwest::Method;
use reqwest::Response;
use reqwest::header::HeaderMap;

use crate::support::Env;
use crate::support::Part;
use crate::support::answer;

async fn fetch(env: &Env, method: Method, id: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = env.client.request(method, &format!("/v1/files/{id}/content"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

async fn stored(env: &Env, purpose: &str, content: &[u8]) -> String {
    let part = Part { filename: "in.bin", purpose, models: &["a"], content: content.to_vec() };
    let (status, file) = env.client.try_upload(part).await;
    assert_eq!(status, 200, "{file}");
    file["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn content_comes_back_whole_and_in_parts() {
    let env = Env::start().await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|place| (place % 251) as u8).collect();
    let id = stored(&env, "user_data", &content).await;
    let sha256 = env.client.file(&id).await["sha256"].as_str().unwrap().to_owned();
    let etag = format!("\"{sha256}\"");

    let response = fetch(&env, Method::GET, &id, &[]).await;
    let headers = response.headers().clone();
    assert_eq!(response.status(), 200);
    assert_eq!(header(&headers, "etag"), etag);
    assert_eq!(header(&headers, "content-length"), "3000000");
    assert_eq!(header(&headers, "accept-ranges"), "bytes");
    assert_eq!(header(&headers, "content-type"), "application/octet-stream");
    assert_eq!(header(&headers, "x-content-type-options"), "nosniff");
    assert_eq!(
        header(&headers, "content-disposition"),
        "attachment; filename=\"in.bin\"; filename*=UTF-8''in.bin"
    );
    assert!(!headers.contains_key("content-encoding"));
    assert_eq!(response.bytes().await.unwrap(), content);

    for (range, expected, place) in [
        ("bytes=0-0", &content[..1], "bytes 0-0/3000000"),
        ("bytes=1000000-2000000", &content[1_000_000..=2_000_000], "bytes 1000000-2000000/3000000"),
        ("bytes=2999990-", &content[2_999_990..], "bytes 2999990-2999999/3000000"),
        ("bytes=-5", &content[2_999_995..], "bytes 2999995-2999999/3000000"),
        ("bytes=2999999-99999999", &content[2_999_999..], "bytes 2999999-2999999/3000000"),
    ] {
        let response = fetch(&env, Method::GET, &id, &[("range", range)]).await;
        assert_eq!(response.status(), 206, "{range}");
        assert_eq!(header(response.headers(), "content-range"), place);
        assert_eq!(response.bytes().await.unwrap(), expected, "{range}");
    }
    let response = fetch(&env, Method::GET, &id, &[("range", "bytes=3000000-")]).await;
    assert_eq!(header(response.headers(), "content-range"), "bytes */3000000");
    let (status, error) = answer(response).await;
    assert_eq!((status, error["error"]["code"].as_str()), (416, Some("range_not_satisfiable")));

    for not_changed in [etag.as_str(), "*", &format!("\"other\", {etag}"), &format!("W/{etag}")] {
        let response = fetch(&env, Method::GET, &id, &[("if-none-match", not_changed)]).await;
        assert_eq!(response.status(), 304, "{not_changed}");
        assert_eq!(header(response.headers(), "etag"), etag);
    }
    let response = fetch(&env, Method::GET, &id, &[("if-none-match", "\"other\"")]).await;
    assert_eq!(response.status(), 200);
    let response =
        fetch(&env, Method::GET, &id, &[("range", "bytes=0-0"), ("if-range", "\"other\"")]).await;
    assert_eq!(response.status(), 200);

    let response = fetch(&env, Method::HEAD, &id, &[]).await;
    assert_eq!(
        (response.status().as_u16(), header(response.headers(), "content-length")),
        (200, "3000000")
    );
}

#[tokio::test]
async fn an_empty_file_has_an_empty_content() {
    let env = Env::start().await;
    let id = stored(&env, "user_data", b"").await;
    let response = fetch(&env, Method::GET, &id, &[]).await;
    assert_eq!((response.status().as_u16(), response.bytes().await.unwrap().len()), (200, 0));
    assert_eq!(fetch(&env, Method::GET, &id, &[("range", "bytes=0-")]).await.status(), 416);
}

#[tokio::test]
async fn content_that_nobody_can_give_back_is_a_502_that_says_why() {
    let env = Env::start().await;
    let line = br#"{"custom_id": "1", "method": "POST", "url": "/v1/x", "body": {}}"#;
    for (purpose, says) in [
        ("user_data", "`at-a` does not give back files of this purpose"),
        ("evals", "`at-a` does not give back files of this purpose"),
        ("batch", "with their own model names"),
        ("fine-tune", "with their own model names"),
    ] {
        let id = stored(&env, purpose, line).await;
        env.client.settled(&id).await;
        std::fs::remove_dir_all(env.folder().join("blobs").join("uploads")).unwrap();
        let (status, error) = answer(fetch(&env, Method::GET, &id, &[]).await).await;
        let message = error["error"]["message"].as_str().unwrap();
        assert_eq!(status, 502, "{error}");
        assert_eq!(error["error"]["code"], "providers_failed");
        assert!(message.contains("no longer kept here") && message.contains(says), "{message}");
    }
}
