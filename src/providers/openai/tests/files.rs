//! Files: uploads, lists, deletes and content.

use futures_util::TryStreamExt;
use tokio::time::timeout;

use super::server::Server;
use super::server::Step;
use super::server::ok;
use super::server::reply;
use super::*;

/// `count` zero bytes in chunks of a size that no piece of the connection has.
fn zeros(count: usize) -> ByteStream {
    let chunk = Bytes::from_static(&[0; 100_003]);
    let chunks = (0..count)
        .step_by(chunk.len())
        .map(move |at| Ok(chunk.slice(..(count - at).min(chunk.len()))));
    stream::iter(chunks.collect::<Vec<_>>()).boxed()
}

fn small() -> Upload {
    upload(4, body(b"{}\n\n"))
}

const LARGE: usize = 32 << 20;

fn large() -> Upload {
    upload(LARGE as u64, zeros(LARGE))
}

/// The error of one upload to a server that does `step`, and whether the request was sent whole.
async fn failed_upload(step: Step, upload: Upload) -> (ProviderError, bool) {
    let server = Server::start([step]).await;
    let sent = upload.sent.clone();
    let error = openai(&server).upload_file(upload).await.unwrap_err();
    assert!(error.message.len() < 700 && !error.message.contains(KEY), "{error}");
    (error, sent.is_set())
}

#[tokio::test]
async fn an_upload_is_exactly_the_documented_request_and_is_not_chunked() {
    let fixture = include_bytes!("../fixtures/openai-file-create.multipart.txt");
    let split = fixture.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let documented = String::from_utf8(fixture[split..].to_vec()).unwrap();
    let line = documented.lines().find(|line| line.starts_with('{')).unwrap().to_owned();

    let mut server = Server::start([Step::Answer(ok(FILE))]).await;
    let sent = SentWhole::default();
    let file = openai(&server)
        .upload_file(Upload {
            filename: "job-17__tickets.jsonl".to_owned(),
            expires_after: Some(Duration::from_secs(604_800)),
            sent: sent.clone(),
            ..upload(
                line.len() as u64,
                stream::iter(line.into_bytes()).map(|byte| Ok(Bytes::from(vec![byte]))).boxed(),
            )
        })
        .await
        .unwrap();
    assert_eq!((file.id, file.bytes), (id("file-Qm4tZ9wK2bX7"), 412));
    assert!(sent.is_set());

    let request = server.seen().await;
    assert_eq!(request.line, "POST /v1/files HTTP/1.1");
    assert_eq!(request.header("authorization"), Some("Bearer sk-test-000"));
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert_eq!(
        request.header("user-agent"),
        Some(concat!("longshore/", env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(request.header("transfer-encoding"), None);
    assert_eq!(request.header("content-length"), Some(request.body.len().to_string().as_str()));
    let boundary = request
        .header("content-type")
        .unwrap()
        .strip_prefix("multipart/form-data; boundary=")
        .unwrap();
    assert_eq!(
        String::from_utf8(request.body.clone()).unwrap(),
        documented.replace("b0undary42", boundary)
    );
}

#[tokio::test]
async fn the_life_of_a_file_is_brought_into_the_limits_of_the_provider() {
    for (life, seconds) in [(1, "3600"), (604_800, "604800"), (315_360_000, "2592000")] {
        let mut server = Server::start([Step::Answer(ok(FILE))]).await;
        let upload = Upload { expires_after: Some(Duration::from_secs(life)), ..small() };
        openai(&server).upload_file(upload).await.unwrap();
        let sent = String::from_utf8(server.seen().await.body).unwrap();
        assert!(
            sent.contains(&format!("name=\"expires_after[seconds]\"\r\n\r\n{seconds}\r\n")),
            "{sent}"
        );
    }
}

#[tokio::test]
async fn a_large_upload_arrives_whole_and_an_empty_one_too() {
    for (count, content) in [(LARGE, zeros(LARGE)), (0, zeros(0))] {
        let mut server = Server::start([Step::Answer(ok(FILE))]).await;
        openai(&server).upload_file(upload(count as u64, content)).await.unwrap();
        let request = server.seen().await;
        assert_eq!(request.header("content-length"), Some(request.body.len().to_string().as_str()));
        assert!(request.body.len() > count && request.body.ends_with(b"--\r\n"));
    }
}

#[tokio::test]
async fn an_upload_may_take_longer_than_the_limit_of_silence_as_long_as_it_moves() {
    let server = Server::start([Step::Sluggish(ok(FILE))]).await;
    // In one chunk: how the file is read must not decide how progress is seen.
    let whole = stream::iter([Ok(Bytes::from(vec![0; LARGE]))]).boxed();
    let started = Instant::now();
    openai(&server).upload_file(upload(LARGE as u64, whole)).await.unwrap();
    assert!(started.elapsed() > SILENCE * 2);
}

#[tokio::test]
async fn after_the_whole_request_only_a_clear_answer_settles_the_outcome() {
    let raw = |text: &str| Step::Answer(text.as_bytes().to_vec());
    let oversized = format!("{{\"id\":\"{}\"}}", "x".repeat(MAX_OBJECT_BYTES));
    let table = [
        ("the answer is lost", Step::HangUp, OUTAGE, None),
        ("silence", Step::Silence, OUTAGE, None),
        ("not HTTP", raw("SSH-2.0-OpenSSH_9.6\r\n\r\n"), OUTAGE, None),
        ("half a head", raw("HTTP/1.1 200 OK\r\ncontent-le"), OUTAGE, None),
        (
            "HTML",
            Step::Answer(ok("<html>Welcome to the hotel</html>")),
            ErrorKind::Garbled,
            Some(200),
        ),
        ("nothing", Step::Answer(ok("")), ErrorKind::Garbled, Some(200)),
        ("no content", Step::Answer(reply(204, &[], "")), ErrorKind::Garbled, Some(204)),
        ("another shape", Step::Answer(ok(r#"{"ok":true}"#)), ErrorKind::Garbled, Some(200)),
        ("too much", Step::Answer(ok(&oversized)), ErrorKind::Garbled, Some(200)),
        (
            "half a body",
            raw("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"id\":"),
            ErrorKind::Garbled,
            Some(200),
        ),
        ("a drip", Step::Drip, OUTAGE, Some(200)),
    ];
    for (what, step, kind, status) in table {
        let (error, sent) = failed_upload(step, small()).await;
        assert_eq!((error.kind, error.http_status), (kind, status), "{what}: {error}");
        assert!(sent && error.outcome_unknown, "{what}: {error}");
    }
}

#[tokio::test]
async fn an_upload_that_was_answered_with_a_status_is_unknown_only_where_a_proxy_may_have_given_up()
{
    for (status, unknown) in [
        (302, false),
        (400, false),
        (401, false),
        (404, false),
        (408, true),
        (409, false),
        (413, false),
        (429, false),
        (500, true),
        (502, true),
        (503, false),
        (504, true),
        (522, true),
        (529, false),
    ] {
        let (error, sent) =
            failed_upload(Step::Answer(reply(status, &[], "<html>")), small()).await;
        assert_eq!((error.http_status, sent), (Some(status), true));
        assert_eq!(error.outcome_unknown, unknown, "{status}");
    }
}

#[tokio::test]
async fn an_upload_that_did_not_go_out_whole_is_a_plain_failure() {
    for (what, step) in [
        ("cut at once", Step::HangUpAfter(0)),
        ("cut in mid-head", Step::HangUpAfter(100)),
        ("cut in mid-body", Step::HangUpAfter(3 << 20)),
        ("not read", Step::Deaf),
    ] {
        let (error, sent) = failed_upload(step, large()).await;
        assert_eq!((error.kind, error.http_status), (OUTAGE, None), "{what}: {error}");
        assert!(!sent && !error.outcome_unknown, "{what}: {error}");
    }
}

#[tokio::test]
async fn nobody_listening_is_a_plain_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let openai = OpenAi::new(settings(&format!("http://{address}/v1"))).unwrap();

    let upload = large();
    let sent = upload.sent.clone();
    let error = openai.upload_file(upload).await.unwrap_err();
    assert_eq!(error.kind, OUTAGE);
    assert!(!error.outcome_unknown && !sent.is_set());
    assert!(error.message.starts_with("cannot connect to openai: "), "{error}");
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_is_heard() {
    let refusal = r#"{"error":{"message":"File is too large.","type":"invalid_request_error"}}"#;
    let (error, sent) = failed_upload(Step::Early(reply(413, &[], refusal)), large()).await;
    assert_eq!(error.kind, ErrorKind::Rejected);
    assert_eq!(error.message, "openai answered 413: File is too large.");
    assert!(!sent && !error.outcome_unknown);

    let (error, sent) = failed_upload(Step::Early(reply(500, &[], "")), large()).await;
    assert!(error.kind == OUTAGE && !sent && !error.outcome_unknown);

    // Whatever it means by that, it may have kept something.
    let (error, sent) = failed_upload(Step::Early(ok(FILE)), large()).await;
    assert!(error.kind == ErrorKind::Garbled && !sent && error.outcome_unknown);
}

#[tokio::test]
async fn a_body_that_fails_or_is_not_as_long_as_declared_never_makes_a_complete_request() {
    let failing =
        stream::iter([Ok(Bytes::from_static(b"{}\n\n")), Err(std::io::Error::other("disk gone"))]);
    let table = [
        ("short", upload(5, body(b"{}\n\n")), "the file ended 1 bytes short of its 5"),
        ("long", upload(3, body(b"{}\n\n")), "the file holds more than its 3 bytes"),
        (
            "long by a chunk",
            upload(4, body(b"{}\n\n").chain(body(b"x")).boxed()),
            "more than its 4 bytes",
        ),
        ("broken", upload(8, failing.boxed()), "the file cannot be read: disk gone"),
        (
            "broken at its end",
            upload(
                4,
                body(b"{}\n\n")
                    .chain(stream::once(async { Err(std::io::Error::other("lease lost")) }))
                    .boxed(),
            ),
            "lease lost",
        ),
        (
            "stuck",
            upload(4, stream::pending().boxed()),
            "nothing of the file could be read for 400ms",
        ),
    ];
    for (what, upload, message) in table {
        let mut server = Server::start([Step::Answer(ok(FILE))]).await;
        let sent = upload.sent.clone();
        let error = openai(&server).upload_file(upload).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Source, "{what}: {error}");
        assert!(error.message.contains(message), "{what}: {error}");
        assert!(!error.outcome_unknown && !sent.is_set(), "{what}");
        assert!(!server.seen().await.is_complete(), "{what}");
    }
}

#[tokio::test]
async fn an_upload_that_is_dropped_on_the_way_hangs_up_and_stays_unsent() {
    let mut server = Server::start([Step::Answer(ok(FILE))]).await;
    let (gate, opened) = tokio::sync::oneshot::channel::<()>();
    let end = stream::once(async {
        opened.await.ok();
        Ok(Bytes::from_static(b"\n"))
    });
    let (reached, at_the_end) = tokio::sync::oneshot::channel::<()>();
    let upload = upload(
        5,
        body(b"{}\n\n")
            .chain(stream::once(async {
                reached.send(()).ok();
                Ok(Bytes::new())
            }))
            .chain(end)
            .boxed(),
    );
    let sent = upload.sent.clone();

    let openai = openai(&server);
    let uploading = async {
        tokio::select! { _ = openai.upload_file(upload) => panic!("it cannot end"), _ = at_the_end => () }
    };
    uploading.await;
    assert!(!sent.is_set());
    drop(gate);

    assert!(!server.seen().await.is_complete());
    assert!(!sent.is_set());
}

#[tokio::test]
async fn an_upload_that_is_dropped_after_its_last_byte_says_so() {
    let mut server = Server::start([Step::Silence]).await;
    let upload = small();
    let sent = upload.sent.clone();
    let openai = openai(&server);
    tokio::select! {
        _ = openai.upload_file(upload) => panic!("nobody answers"),
        request = server.seen() => assert!(request.is_complete()),
    }
    assert!(sent.is_set());
}

#[tokio::test]
async fn a_list_is_paged_until_it_ends() {
    let mut server = Server::start([
        Step::Answer(ok(include_str!("../fixtures/openai-file-list.json"))),
        Step::Answer(ok(include_str!("../fixtures/openai-file-list-empty.json"))),
    ])
    .await;
    let openai = openai(&server);
    let first = openai.list_files(None).await.unwrap();
    assert_eq!(first.files.len(), 2);
    let second = openai.list_files(first.next.as_ref()).await.unwrap();
    assert_eq!(second, Page { files: Vec::new(), next: None });

    assert_eq!(server.seen().await.line, "GET /v1/files?order=desc HTTP/1.1");
    assert_eq!(
        server.seen().await.line,
        "GET /v1/files?order=desc&after=file-Out5hR8yLp3 HTTP/1.1"
    );
}

#[tokio::test]
async fn a_list_larger_than_an_object_is_read_and_one_that_stands_still_is_refused() {
    let files: Vec<_> = (0..10_000)
        .map(|number| json!({"id": format!("file-{number}"), "object": "file", "bytes": 1, "filename": "x".repeat(100)}))
        .collect();
    let page = json!({"data": files, "has_more": true}).to_string();
    assert!(page.len() > MAX_OBJECT_BYTES);
    let server = Server::start([Step::Answer(ok(&page)), Step::Answer(ok(&page))]).await;
    let openai = openai(&server);
    let first = openai.list_files(None).await.unwrap();
    assert_eq!(first.files.len(), 10_000);
    let error = openai.list_files(first.next.as_ref()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Garbled);
    assert_eq!(error.message, "openai answered 200 with the same page of files again");
}

#[tokio::test]
async fn ids_stay_inside_their_path_segment() {
    let mut server = Server::start([Step::Answer(ok(FILE))]).await;
    openai(&server).file(&id("../batches?x=%2e#é")).await.unwrap_err();
    assert_eq!(server.seen().await.line, "GET /v1/files/..%2Fbatches%3Fx=%252e%23%C3%A9 HTTP/1.1");

    for bad in ["", ".", ".."] {
        let error = openai(&server).delete_file(&id(bad)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Rejected);
    }
}

#[tokio::test]
async fn a_delete_succeeds_when_the_file_is_gone_whoever_deleted_it() {
    let deleted = include_str!("../fixtures/openai-file-deleted.json");
    for (step, expected) in [
        (Step::Answer(ok(deleted)), Ok((200, true))),
        (Step::Answer(reply(204, &[], "")), Ok((204, true))),
        (
            Step::Answer(reply(404, &[], r#"{"error":{"message":"No such File object"}}"#)),
            Ok((404, false)),
        ),
        (Step::Answer(reply(410, &[], "")), Ok((410, false))),
        (Step::Answer(ok("<html>")), Err(ErrorKind::Garbled)),
        (Step::Answer(ok(r#"{"deleted":false}"#)), Err(ErrorKind::Garbled)),
        (Step::Answer(reply(405, &[], "")), Err(ErrorKind::Unsupported)),
        (Step::Answer(reply(501, &[], "")), Err(ErrorKind::Unsupported)),
        (Step::Answer(reply(409, &[], "")), Err(ErrorKind::Conflict)),
        (Step::HangUp, Err(OUTAGE)),
    ] {
        let mut server = Server::start([step]).await;
        let result = openai(&server).delete_file(&id("file-1")).await;
        let result = result.map(|deleted| (deleted.http_status, deleted.was_there));
        assert_eq!(result.map_err(|error| error.kind), expected);
        assert_eq!(server.seen().await.line, "DELETE /v1/files/file-1 HTTP/1.1");
    }
}

async fn content(step: Step, range: Option<ByteRange>) -> Result<Content, ProviderError> {
    let server = Server::start([step]).await;
    openai(&server).file_content(&id("file-1"), range).await
}

async fn read(content: Content) -> std::io::Result<Vec<u8>> {
    let reading = content.body.try_fold(Vec::new(), async |mut all, chunk| {
        all.extend_from_slice(&chunk);
        Ok(all)
    });
    timeout(SILENCE * 10, reading).await.unwrap()
}

#[tokio::test]
async fn content_comes_whole_or_as_the_range_that_was_asked_for() {
    let whole = reply(200, &[("content-type", "application/jsonl")], "{}\n{}\n");
    let answer = content(Step::Answer(whole.clone()), None).await.unwrap();
    assert_eq!((answer.bytes, answer.partial), (Some(6), false));
    assert_eq!(answer.content_type.as_deref(), Some("application/jsonl"));
    assert_eq!(read(answer).await.unwrap(), b"{}\n{}\n");

    let mut server =
        Server::start([Step::Answer(reply(206, &[("content-range", "bytes 3-5/6")], "{}\n"))])
            .await;
    let answer = openai(&server).file_content(&id("f"), Some((3, None))).await.unwrap();
    assert_eq!((answer.bytes, answer.partial), (Some(3), true));
    assert_eq!(read(answer).await.unwrap(), b"{}\n");
    let request = server.seen().await;
    assert_eq!(request.line, "GET /v1/files/f/content HTTP/1.1");
    assert_eq!(request.header("range"), Some("bytes=3-"));

    let ignored = content(Step::Answer(whole), Some((3, Some(5)))).await.unwrap();
    assert!(!ignored.partial);
}

#[tokio::test]
async fn content_that_is_not_what_was_asked_for_is_refused() {
    let partial = |range| Step::Answer(reply(206, &[("content-range", range)], "{}\n"));
    for (what, step, range) in [
        ("unasked", partial("bytes 3-5/6"), None),
        ("from elsewhere", partial("bytes 0-2/6"), Some((3, None))),
        ("past the end", partial("bytes 3-5/6"), Some((3, Some(4)))),
        ("backwards", partial("bytes 3-2/6"), Some((3, None))),
        ("garbage", partial("bytes */6"), Some((3, None))),
        ("unnamed", Step::Answer(reply(206, &[], "{}\n")), Some((3, None))),
        ("no content", Step::Answer(reply(204, &[], "")), None),
        ("zipped", Step::Answer(reply(200, &[("content-encoding", "gzip")], "x")), None),
    ] {
        let Err(error) = content(step, range).await else { panic!("{what}: accepted") };
        assert_eq!(error.kind, ErrorKind::Garbled, "{what}: {error}");
    }
    let Err(error) = content(Step::Answer(reply(416, &[], "")), Some((9, None))).await else {
        panic!("accepted")
    };
    assert_eq!((error.kind, error.http_status), (ErrorKind::Rejected, Some(416)));
}

#[tokio::test]
async fn content_that_breaks_off_or_stalls_ends_with_an_error() {
    for (what, step, kind) in [
        (
            "cut",
            Step::Answer(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}\n".to_vec()),
            std::io::ErrorKind::ConnectionAborted,
        ),
        (
            "cut chunk",
            Step::Answer(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{}\n\r\n".to_vec(),
            ),
            std::io::ErrorKind::ConnectionAborted,
        ),
        (
            "stalled",
            Step::Stall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}\n".to_vec()),
            std::io::ErrorKind::TimedOut,
        ),
    ] {
        let server = Server::start([step]).await;
        let answer = openai(&server).file_content(&id("f"), None).await.unwrap();
        assert_eq!(read(answer).await.unwrap_err().kind(), kind, "{what}");
    }
}
