//! Senders that are slow, silent, gone, or say something else than they send.

use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::support::Env;
use crate::support::Options;
use crate::support::RawForm;

fn form(size: usize) -> Vec<u8> {
    let fields = RawForm::new().field("purpose", "user_data").field("target_model_names", "a");
    fields.file("in.bin", &vec![b'x'; size]).end()
}

async fn impatient() -> Env {
    let server = "body_timeout = \"1s\"".to_owned();
    Env::with(Options { server, command: "serve", ..Options::default() }).await
}

fn assert_answer(said: &str, status: u16, code: &str, says: &str) {
    assert!(said.starts_with(&format!("HTTP/1.1 {status} ")), "{said}");
    let (_, body) = said.split_once("\r\n\r\n").unwrap();
    let error: Value = serde_json::from_str(body).unwrap();
    assert_eq!(error["error"]["code"], code, "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
}

#[tokio::test]
async fn a_sender_that_falls_silent_is_told_so_and_leaves_nothing() {
    let env = impatient().await;
    let whole = form(300_000);
    for sent in [0, 100, 200_000, whole.len()] {
        // The length lies: more is announced than comes.
        let mut bytes = env.client.upload_head(whole.len() + 1, "Idempotency-Key: silent\r\n");
        bytes.extend_from_slice(&whole[..sent]);
        let begun = Instant::now();
        let said = env.client.converse(&bytes, false).await;
        assert_answer(&said, 408, "request_timeout", "nothing arrived for 1s");
        assert!(said.contains("\"type\":\"invalid_request_error\""), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        env.holds_nothing().await;
    }
}

#[tokio::test]
async fn a_json_body_that_does_not_come_is_not_waited_for() {
    let env = impatient().await;
    let head = format!(
        "POST /v1/files/x/mappings HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{\"target",
        env.client.key
    );
    let said = env.client.converse(head.as_bytes(), false).await;
    assert_answer(&said, 408, "request_timeout", "nothing arrived");
}

/// Sends a whole upload in pieces of a size, one each interval, and answers what came back.
async fn drip(env: &Env, body: &[u8], size: usize, interval: Duration) -> String {
    let stream = env.client.connect().await;
    let (mut reader, mut writer) = stream.into_split();
    let head = env.client.upload_head(body.len(), "Connection: close\r\n");
    let pieces: Vec<Vec<u8>> = body.chunks(size).map(<[u8]>::to_vec).collect();
    let writing = tokio::spawn(async move {
        writer.write_all(&head).await?;
        for piece in pieces {
            writer.write_all(&piece).await?;
            tokio::time::sleep(interval).await;
        }
        std::io::Result::Ok(writer)
    });
    let mut said = Vec::new();
    // A reset after the answer is as good an end as any.
    drop(reader.read_to_end(&mut said).await);
    writing.abort();
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn a_sender_that_drips_is_given_up_and_one_that_is_merely_slow_is_not() {
    let env = impatient().await;
    let begun = Instant::now();
    let said = drip(&env, &form(100_000), 1, Duration::from_millis(50)).await;
    assert_answer(&said, 408, "request_timeout", "less than 1 KiB/s");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    env.holds_nothing().await;
    // Four times as long as the patience, at 5 KiB/s.
    let said = drip(&env, &form(20_000), 1000, Duration::from_millis(200)).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
}

#[tokio::test]
async fn a_client_may_hang_up_at_any_byte() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    let body = form(40);
    let mut whole = env.client.upload_head(body.len(), "Idempotency-Key: gone\r\n");
    whole.extend_from_slice(&body);
    for length in 0..whole.len() {
        let mut stream = env.client.connect().await;
        stream.write_all(&whole[..length]).await.unwrap();
        if length % 2 == 0 {
            // Half closed: it could still read an answer.
            stream.shutdown().await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            assert!(!said.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&said));
        }
    }
    env.holds_nothing().await;
    assert!(!env.server.log().contains("panicked"));
    // The key is free, and the whole of it makes one file.
    let said = env.client.converse(&whole, false).await;
    assert!(said.starts_with("HTTP/1.1 200 ") && !said.contains("idempotency-replayed"), "{said}");
}

#[tokio::test]
async fn lengths_that_contradict_each_other_are_refused_or_read_one_way() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    let body = form(1000);
    let head = |lines: &str| {
        format!(
            "POST /v1/files HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\nContent-Type: {}\r\n{lines}\r\n",
            env.client.key,
            crate::support::form_type()
        )
        .into_bytes()
    };
    let length = body.len();
    for lines in [
        format!("Content-Length: {length}\r\nContent-Length: {}\r\n", length - 10),
        "Content-Length: -1\r\n".to_owned(),
        "Content-Length: 99999999999999999999999\r\n".to_owned(),
        format!("Content-Length: {length}, {length}1\r\n"),
        "Content-Length: ten\r\n".to_owned(),
        "Transfer-Encoding: gzip\r\n".to_owned(),
        "Transfer-Encoding: chunked, gzip\r\n".to_owned(),
        // Without a length there is no body.
        String::new(),
    ] {
        let said = env.client.converse(&[head(&lines), body.clone()].concat(), true).await;
        assert!(said.starts_with("HTTP/1.1 4"), "{lines}: {said}");
        // What follows is not taken for a second request.
        assert!(!said.contains("HTTP/1.1 2"), "{lines}: {said}");
    }
    // Larger than any file may be.
    let said = env.client.converse(&head("Content-Length: 99999999999999\r\n"), false).await;
    assert_answer(&said, 413, "file_too_large", "8MiB");
    env.holds_nothing().await;
    // Both: chunks count (RFC 9112), and nothing behind them is a request.
    let chunked = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let both = head("Content-Length: 10\r\nTransfer-Encoding: chunked\r\n");
    let said = env.client.converse(&[both, chunked].concat(), false).await;
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
    let files = env.database.count("SELECT count(*) FROM files").await;
    assert_eq!(files, i64::from(said.starts_with("HTTP/1.1 200 ")), "{said}");
}
