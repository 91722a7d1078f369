//! Many connections, large heads, and what is compressed: bounded, and refused in the usual form.

use std::time::Duration;
use std::time::Instant;

use longshore::api::server;
use longshore::sandbox::Fault;
use reqwest::Method;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::ADMIN_KEY;
use crate::support::Client;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::RawForm;
use crate::support::answer;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

/// Three quarters of them are for connections, and four fifths of those for requests that wait.
const DESCRIPTORS: u32 = 200;
const CONNECTIONS: usize = 150;
const WAITERS: usize = 120;

async fn cramped() -> Env {
    Env::with(Options { descriptors: Some(DESCRIPTORS), ..Options::default() }).await
}

/// Sends `GET` of a path over a connection of its own.
async fn ask(client: &Client, path: &str) -> TcpStream {
    let mut stream = client.connect().await;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        client.key
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// What comes to its end.
async fn told(mut stream: TcpStream) -> String {
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    String::from_utf8(said).unwrap()
}

async fn waiters(env: &Env) -> usize {
    let (_, metrics) = env.as_key(ADMIN_KEY).get("/metrics").await;
    let mut lines = metrics.as_str().unwrap().lines();
    let waiters = lines.find_map(|line| line.strip_prefix("longshore_waiters "));
    waiters.unwrap().parse().unwrap()
}

async fn waiting(env: &Env, count: usize) {
    let patience = Duration::from_secs(60);
    eventually(patience, async || (waiters(env).await == count).then_some(())).await;
}

async fn waiting_at_least(env: &Env, count: usize) {
    let patience = Duration::from_secs(60);
    eventually(patience, async || (waiters(env).await >= count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_rest_keep_nobody_out_and_those_that_work_are_left_alone() {
    let env = cramped().await;
    env.spoil("a", Fault::Hold { hold_before: false });
    let file = env.client.upload(&["a"]).await;
    env.held("a", 1).await;
    let path = format!("/v1/files/{}?wait=60", file["id"].as_str().unwrap());
    let mut working = Vec::new();
    for _ in 0..10 {
        working.push(ask(&env.client, &path).await);
    }
    waiting(&env, 10).await;
    let mut resting = Vec::new();
    for round in 0..3 {
        for number in 0..CONNECTIONS {
            let mut stream = env.client.connect().await;
            if number % 3 == 0 {
                // The beginning of a head, or a whole request over a connection that is kept.
                let begun = b"GET /healthz HTTP/1.1\r\nHost: te";
                stream.write_all(begun).await.unwrap();
            } else if number % 3 == 1 {
                let request = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n";
                stream.write_all(request).await.unwrap();
            }
            resting.push(stream);
        }
        // A client that comes now is served, and soon.
        let begun = Instant::now();
        let stranger = Client::new(&env.client.base, &env.client.key);
        stranger.upload(&["b"]).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "round {round}: {:?}", begun.elapsed());
    }
    assert!(!env.server.log().contains("could not accept"), "it ran out of descriptors");
    env.sandbox.release("a");
    for stream in working {
        let said = told(stream).await;
        assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("\"processed\""), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_no_place_to_wait_is_asked_to_come_again_and_others_are_served() {
    let env = cramped().await;
    env.spoil("a", Fault::Hold { hold_before: false });
    let file = env.client.upload(&["a"]).await;
    env.held("a", 1).await;
    let path = format!("/v1/files/{}?wait=60", file["id"].as_str().unwrap());
    let mut streams = Vec::new();
    for _ in 0..WAITERS {
        streams.push(ask(&env.client, &path).await);
    }
    waiting(&env, WAITERS).await;
    for _ in 0..10 {
        let response = env.client.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(response.headers()["retry-after"], "1");
        assert!(!response.headers().contains_key("x-should-retry"));
        let (status, error) = answer(response).await;
        assert_eq!(status, 429, "{error}");
        assert_eq!(error["error"]["type"], "rate_limit_error");
        assert_eq!(error["error"]["code"], "too_many_waiting");
    }
    env.client.upload(&["b"]).await;
    env.sandbox.release("a");
    for stream in streams {
        let said = told(stream).await;
        assert!(said.starts_with("HTTP/1.1 200 ") && said.contains("\"processed\""), "{said}");
    }
    waiting(&env, 0).await;
}

/// Asks until it is over, as a client does whose time was up.
async fn poll(client: Client, path: String) {
    loop {
        let said = told(ask(&client, &path).await).await;
        if said.contains("\"succeeded\"") {
            return;
        }
        assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    }
}

/// Transactions in the database of the test so far.
async fn transactions(env: &Env) -> i64 {
    env.database
        .count("SELECT (xact_commit + xact_rollback)::bigint FROM pg_stat_database WHERE datname = current_database()")
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_that_wait_cost_the_database_no_query_each() {
    // Both sides of the connections count, here and there; a machine may allow fewer.
    server::take_descriptors();
    let count = (server::max_connections() / 5 * 4 - 100).min(10_000);
    let env = Env::with(Options { models: &["a"], ..Options::on(Kind::Postgres) }).await;
    env.lane("a", "pause").await;
    let mut paths = Vec::new();
    for _ in 0..50 {
        let file = env.client.upload(&["a"]).await;
        let job = file["mappings"][0]["job_id"].as_str().unwrap().to_owned();
        paths.push(format!("/v1/jobs/{job}?wait=60"));
    }
    let before = transactions(&env).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let idle = transactions(&env).await - before;

    let mut pollers = Vec::new();
    while pollers.len() < count {
        for _ in 0..250.min(count - pollers.len()) {
            let (client, path) = (env.client.clone(), paths[pollers.len() % paths.len()].clone());
            pollers.push(tokio::spawn(poll(client, path)));
        }
        waiting_at_least(&env, pollers.len() * 9 / 10).await;
    }
    waiting_at_least(&env, count / 100 * 95).await;
    // Each has looked once more after it was counted. Then, over more than the slowest of our own looks
    // at what is waited for, it is as quiet as without them.
    let most = i64::try_from(count / 20).unwrap();
    let busy = eventually(Duration::from_secs(120), async || {
        let before = transactions(&env).await;
        tokio::time::sleep(Duration::from_secs(6)).await;
        Some(transactions(&env).await - before).filter(|busy| *busy < idle + most)
    })
    .await;

    env.lane("a", "resume").await;
    let begun = Instant::now();
    for poller in pollers {
        poller.await.unwrap();
    }
    println!("{count} were answered within {:?}; {idle} and {busy} transactions", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    waiting(&env, 0).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_the_server_goes_on() {
    let env = Env::start().await;
    let get = || env.client.request(Method::GET, "/v1/models");
    let many = (0..120).fold(get(), |request, number| request.header(format!("x-{number}"), "v"));
    let large = get().header("x-large", "v".repeat(40_000));
    let long = env.client.request(Method::GET, &format!("/v1/models?q={}", "v".repeat(40_000)));
    for request in [many, large, long] {
        let (status, error) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 431, "{error}");
        assert_eq!(error["error"]["type"], "invalid_request_error");
        assert_eq!(error["error"]["code"], "headers_too_large");
        assert!(error["error"]["message"].as_str().unwrap().contains("32768"), "{error}");
    }
    // Far beyond, the connection is closed on it, with the status or without.
    for head in [
        format!("GET /v1/models HTTP/1.1\r\nHost: test\r\nx-huge: {}\r\n\r\n", "v".repeat(1 << 20)),
        format!("GET /v1/models HTTP/1.1\r\nHost: test\r\n{}\r\n", "x: y\r\n".repeat(10_000)),
        "GET /v1/models HTTP/1.1\r\nHost: te\0st\r\n\r\n".to_owned(),
        "\x16\x03\x01\x02\0\x01\0".to_owned(),
    ] {
        let mut stream = env.client.connect().await;
        // The other side may have closed before all is sent.
        drop(stream.write_all(head.as_bytes()).await);
        let mut said = Vec::new();
        drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.unwrap());
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{said:?}");
    }
    let (_, models) = env.client.get("/v1/models").await;
    assert_eq!(models["data"].as_array().unwrap().len(), 3);
    assert!(!env.server.log().contains("panicked"));
}

#[tokio::test]
async fn a_compressed_body_is_refused_and_a_compressed_file_is_kept_as_it_is() {
    let env = Env::start().await;
    // The beginning of a gzip stream.
    let packed: Vec<u8> = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 3][..], &[0xec; 5000]].concat();
    for encoding in ["gzip", "br", "deflate, gzip", "IDENTITY, zstd", "x"] {
        for request in [
            env.client.raw_upload(packed.clone()),
            env.client.request(Method::POST, "/v1/files/x/mappings").body(packed.clone()),
        ] {
            let request = request.header("Content-Encoding", encoding);
            let (status, error) = answer(request.send().await.unwrap()).await;
            assert_eq!(status, 415, "{encoding}: {error}");
            assert_eq!(error["error"]["code"], "unsupported_media_type");
            let message = error["error"]["message"].as_str().unwrap();
            assert!(message.contains(&format!("`Content-Encoding: {encoding}`")), "{message}");
        }
    }
    env.holds_nothing().await;
    let form = RawForm::new()
        .field("purpose", "user_data")
        .field("target_model_names", "a")
        .part(
            b"Content-Disposition: form-data; name=\"file\"; filename=\"in.gz\"\r\nContent-Encoding: gzip",
            &packed,
        )
        .end();
    let request = env.client.raw_upload(form).header("Content-Encoding", "identity");
    let (status, file) = answer(request.send().await.unwrap()).await;
    assert_eq!((status, &file["bytes"]), (200, &Value::from(packed.len())), "{file}");
    let path = format!("/v1/files/{}/content", file["id"].as_str().unwrap());
    let content = env.client.request(Method::GET, &path).send().await.unwrap();
    assert!(!content.headers().contains_key("content-encoding"));
    assert_eq!(content.bytes().await.unwrap(), packed);
}
