//! Filenames are data: they come back as they were, and never become a path or a header.

use crate::support::Env;
use crate::support::Options;
use crate::support::RawForm;
use crate::support::answer;
use crate::support::database::Kind;

/// Uploads a file whose part has this `filename` parameter, and answers the file object.
async fn upload(env: &Env, parameter: &[u8]) -> (u16, serde_json::Value) {
    let header =
        [b"Content-Disposition: form-data; name=\"file\"; ".as_slice(), parameter].concat();
    let form = RawForm::new()
        .field("purpose", "user_data")
        .field("target_model_names", "a")
        .part(&header, b"data");
    answer(env.client.raw_upload(form.end()).send().await.unwrap()).await
}

async fn survive_on(kind: Kind) {
    let env = Env::with(Options::on(kind)).await;
    let long = "ü".repeat(2048);
    for (parameter, expected) in [
        (r#"filename="../../../etc/passwd""#.to_owned(), "../../../etc/passwd".to_owned()),
        (r#"filename="/etc/passwd""#.to_owned(), "/etc/passwd".to_owned()),
        (r#"filename="..""#.to_owned(), "..".to_owned()),
        (r#"filename="C:\temp\in.txt""#.to_owned(), r"C:\temp\in.txt".to_owned()),
        (r#"filename="a%22b%0D%0AX-Evil: 1.txt""#.to_owned(), "a\"b\r\nX-Evil: 1.txt".to_owned()),
        (r#"filename="a\"b.txt""#.to_owned(), "a\"b.txt".to_owned()),
        (r#"filename="naïve – 文件.txt""#.to_owned(), "naïve – 文件.txt".to_owned()),
        ("filename=\"old\"; filename*=UTF-8''%00%0A.txt".to_owned(), "\u{fffd}\n.txt".to_owned()),
        (r#"filename=";;=;""#.to_owned(), ";;=;".to_owned()),
        (format!("filename=\"{long}\""), long),
    ] {
        let (status, file) = upload(&env, parameter.as_bytes()).await;
        assert_eq!(status, 200, "{parameter}: {file}");
        assert_eq!(file["filename"], expected.as_str());
        let id = file["id"].as_str().unwrap();
        let path = format!("/v1/files/{id}/content");
        let response = env.client.request(reqwest::Method::GET, &path).send().await.unwrap();
        assert!(!response.headers().contains_key("x-evil"));
        let disposition = response.headers()["content-disposition"].to_str().unwrap().to_owned();
        assert!(disposition.starts_with("attachment; filename=\""), "{disposition}");
        assert_eq!(response.bytes().await.unwrap(), "data");
        let settled = env.client.settled(id).await;
        assert_eq!(settled["status"], "processed", "{expected}: {settled}");
    }
    assert!(!env.server.log().contains("panicked"));
}

#[tokio::test]
async fn hostile_filenames_travel_as_data_on_sqlite() {
    survive_on(Kind::Sqlite).await;
}

#[tokio::test]
async fn hostile_filenames_travel_as_data_on_postgres() {
    survive_on(Kind::Postgres).await;
}

#[tokio::test]
async fn bytes_that_are_no_text_in_a_filename_are_replaced_or_refused() {
    let env = Env::start().await;
    let (status, file) = upload(&env, b"filename=\"a\xff\xfe.txt\"").await;
    assert_eq!((status, file["filename"].as_str()), (200, Some("a\u{fffd}\u{fffd}.txt")));
    for parameter in [&b"filename=\"a\0b\""[..], b"filename=\"a\rb\"", b"filename=\"a\nb\""] {
        let (status, error) = upload(&env, parameter).await;
        assert_eq!(
            (status, &error["error"]["code"]),
            (400, &"invalid_multipart".into()),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_content_type_and_metadata_with_control_characters_are_stored() {
    let env = Env::with(Options::on(Kind::Postgres)).await;
    let form = RawForm::new()
        .field("purpose", "user_data")
        .field("target_model_names", "a")
        .field("metadata[a]", "x\0y")
        .part(
            b"Content-Disposition: form-data; name=\"file\"; filename=\"in.txt\"\r\n\
              Content-Type: text/plain; charset=utf-8; x=\"a,b:c%\"",
            b"data",
        );
    let (status, file) = answer(env.client.raw_upload(form.end()).send().await.unwrap()).await;
    assert_eq!(status, 200, "{file}");
    assert_eq!(file["metadata"]["a"], "x\0y");
    let id = file["id"].as_str().unwrap();
    let path = format!("/v1/files/{id}/content");
    let response = env.client.request(reqwest::Method::GET, &path).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8; x=\"a,b:c%\"");
}
