//! The stream of events: in order, of one's own, and resumed without a gap or a repetition.

use std::time::Duration;
use std::time::Instant;

use longshore::events::Cursor;
use reqwest::Response;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::answer;

const BOTH: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];
const PATIENCE: Duration = Duration::from_secs(30);

/// One block of a stream.
#[derive(Clone, Debug, Default)]
struct Block {
    id: String,
    event: String,
    data: String,
    retry: String,
}

struct Stream {
    response: Response,
    text: String,
    /// The last id that was received.
    id: String,
}

impl Stream {
    async fn open(client: &Client, after: Option<&str>) -> Self {
        let mut request = client.request(reqwest::Method::GET, "/v1/events");
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after);
        }
        Self::of(request.send().await.unwrap()).await
    }

    async fn of(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut stream = Self { response, text: String::new(), id: String::new() };
        let first = stream.block().await.unwrap();
        assert!(first.event.is_empty() && first.data.is_empty(), "{first:?}");
        assert_eq!(first.retry, "3000");
        stream
    }

    /// The next block; `None` at the end.
    async fn block(&mut self) -> Option<Block> {
        let read = async {
            loop {
                if let Some((block, rest)) = self.text.split_once("\n\n") {
                    let (block, rest) = (block.to_owned(), rest.to_owned());
                    self.text = rest;
                    return Some(block);
                }
                let bytes = self.response.chunk().await.ok()??;
                self.text.push_str(std::str::from_utf8(&bytes).unwrap());
            }
        };
        let text = tokio::time::timeout(PATIENCE, read).await.unwrap()?;
        let mut block = Block::default();
        for line in text.lines() {
            let (field, value) = line.split_once(':').unwrap();
            match field {
                "id" => value.trim_start().clone_into(&mut block.id),
                "event" => value.trim_start().clone_into(&mut block.event),
                "data" => value.trim_start().clone_into(&mut block.data),
                "retry" => value.trim_start().clone_into(&mut block.retry),
                field => assert_eq!(field, ""),
            }
        }
        assert!(!block.id.is_empty(), "{text}");
        self.id.clone_from(&block.id);
        Some(block)
    }

    /// The next event.
    async fn event(&mut self) -> (String, Value) {
        loop {
            let block = self.block().await.expect("an event");
            if !block.event.is_empty() {
                return (block.event, serde_json::from_str(&block.data).unwrap());
            }
        }
    }

    /// The next events: of each its type, and what it is about.
    async fn events(&mut self, count: usize) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for _ in 0..count {
            let (kind, data) = self.event().await;
            events.push((kind, data["data"]["id"].as_str().unwrap().to_owned()));
        }
        events
    }
}

impl Stream {
    /// The next events that are about the same things as these, as many as these.
    async fn about(&mut self, these: &[(String, String)]) -> Vec<(String, String)> {
        let mut heard = Vec::new();
        while heard.len() < these.len() {
            let next = self.events(1).await.remove(0);
            if these.iter().any(|(_, subject)| *subject == next.1) {
                heard.push(next);
            }
        }
        heard
    }
}

/// What a file with one model comes to.
fn life(file: &Value) -> Vec<(String, String)> {
    let id = |value: &Value| value.as_str().unwrap().to_owned();
    vec![
        ("file.created".to_owned(), id(&file["id"])),
        ("file.processed".to_owned(), id(&file["id"])),
        ("job.succeeded".to_owned(), id(&file["mappings"][0]["job_id"])),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_tells_an_owner_of_its_own_things_in_their_order() {
    for kind in BOTH {
        let crew = Crew::on(kind).await;
        let env = &crew.env;
        let (bob, admin) = (env.as_key(BOB_KEY), env.as_key(ADMIN_KEY));
        env.client.upload(&["a"]).await;
        let mut alices = Stream::open(&env.client, None).await;
        let mut bobs = Stream::open(&bob, None).await;
        let mut everybodys = Stream::open(&admin, None).await;
        let as_bob =
            admin.request(reqwest::Method::GET, "/v1/events").header("X-Longshore-Owner", "bob");
        let mut as_bob = Stream::of(as_bob.send().await.unwrap()).await;
        let others = bob.upload(&["b"]).await;
        bob.settled(others["id"].as_str().unwrap()).await;
        let file = env.client.upload(&["b"]).await;
        // The upload before may end after a stream began.
        assert_eq!(alices.about(&life(&file)).await, life(&file));
        assert_eq!(bobs.events(3).await, life(&others));
        assert_eq!(as_bob.events(3).await, life(&others));
        let both = [life(&others), life(&file)].concat();
        assert_eq!(everybodys.about(&both).await, both);
        env.client.remove(&file).await;
        let (event, told) = alices.event().await;
        assert_eq!(event, "file.deleted");
        assert_eq!((&told["object"], &told["type"]), (&json!("event"), &json!("file.deleted")));
        assert_eq!(told["data"], json!({"id": file["id"]}));
        assert!(told["id"].as_str().unwrap().starts_with("evt_") && told["created_at"].is_i64());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_lost_again_and_again_is_resumed_without_a_gap_or_a_repetition() {
    for kind in BOTH {
        let mut env = Env::with(Options::on(kind)).await;
        let mut stream = Stream::open(&env.client, None).await;
        // Lost before anything was heard: the place is known all the same.
        let (from, files) = (stream.id.clone(), 40);
        drop(stream);
        let (uploader, bob) = (env.client.clone(), env.as_key(BOB_KEY));
        let uploading = tokio::spawn(async move {
            for number in 0..files {
                uploader.upload(&["a"]).await;
                if number % 4 == 0 {
                    bob.upload(&["b"]).await;
                }
            }
        });
        let (mut heard, mut place) = (Vec::new(), from.clone());
        while heard.len() < files * 3 {
            stream = Stream::open(&env.client, Some(&place)).await;
            let more = (files * 3 - heard.len()).min(7);
            heard.extend(stream.events(more).await);
            place.clone_from(&stream.id);
        }
        uploading.await.unwrap();
        let mut distinct = heard.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), files * 3, "something was said twice");
        // By another process, all at once, by the other way to say the place.
        env.server.kill();
        env.restart();
        let request = env.client.request(reqwest::Method::GET, &format!("/v1/events?after={from}"));
        let mut again = Stream::of(request.send().await.unwrap()).await;
        assert_eq!(again.events(files * 3).await, heard);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_slow_for_what_happens_at_once_misses_nothing() {
    for kind in BOTH {
        let env = Env::with(Options::on(kind)).await;
        let file = env.client.upload(&["a"]).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        let mut stream = Stream::open(&env.client, None).await;
        let (series, id) = if kind == Kind::Postgres {
            ("generate_series(1, 20000) AS series(n)", "gen_random_uuid()")
        } else {
            (
                "(WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < 20000) \
                 SELECT n FROM series) AS series",
                "randomblob(16)",
            )
        };
        let created_at = env.database.count("SELECT max(created_at) FROM events").await;
        let many = format!(
            "INSERT INTO events (id, owner, type, subject, created_at) \
             SELECT {id}, 'alice', 'file.failed', (SELECT id FROM files), {created_at} + n FROM {series} ORDER BY n"
        );
        env.database.execute(&many).await;
        let mut last = 0;
        for _ in 0..20_000 {
            let told = next(&mut stream, "file.failed").await;
            assert_eq!(told["data"]["id"], file["id"]);
            let at = told["created_at"].as_i64().unwrap();
            assert!(at >= last);
            last = at;
        }
        let other = env.client.upload(&["a"]).await;
        assert_eq!(next(&mut stream, "file.created").await["data"]["id"], other["id"]);
    }
}

/// The next event of this type.
async fn next(stream: &mut Stream, kind: &str) -> Value {
    loop {
        let (event, told) = stream.event().await;
        if event == kind {
            return told;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_unknown_or_too_old_is_refused() {
    for kind in BOTH {
        let env = Env::with(Options::on(kind)).await;
        let file = env.client.upload(&["a"]).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        let place = Stream::open(&env.client, None).await.id;
        let (cursor, at) = Cursor::from_text(&place).unwrap();
        let old = cursor.to_text(at.before(Duration::from_hours(24)));
        let ahead = data_encoding::BASE64URL_NOPAD.encode(&[0x7f; 24]);
        let event_id = "evt_0199aaaa-0000-7000-8000-000000000000";
        for (place, code, says) in [
            ("nonsense", "invalid_value", "must be an `id` of this stream"),
            (event_id, "invalid_value", "must be an `id` of this stream"),
            (&old, "cursor_too_old", "is too old"),
            (&ahead, "invalid_value", "is not known here"),
        ] {
            let request = env.client.request(reqwest::Method::GET, "/v1/events");
            let request = request.header("Last-Event-ID", place);
            let (status, error) = answer(request.send().await.unwrap()).await;
            assert_eq!((status, error["error"]["code"].as_str().unwrap()), (400, code), "{error}");
            assert!(error["error"]["message"].as_str().unwrap().contains(says), "{error}");
            let (status, error) = env.client.get(&format!("/v1/events?after={place}")).await;
            assert_eq!((status, &error["error"]["param"]), (400, &json!("after")), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_its_key_is_revoked() {
    let env = Env::start().await;
    let admin = env.as_key(ADMIN_KEY);
    let (status, made) = admin.post("/v1/admin/keys", json!({"owner": "carol"})).await;
    assert_eq!(status, 200, "{made}");
    let carol = env.as_key(made["key"].as_str().unwrap());
    let mut stream = Stream::open(&carol, None).await;
    let path = format!("/v1/admin/keys/{}", made["id"].as_str().unwrap());
    assert_eq!(admin.delete(&path).await.0, 200);
    // At the next sign of life at the latest.
    while stream.block().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_now_and_then_that_it_is_alive_and_ends_with_the_server() {
    let mut env = Env::start().await;
    let mut stream = Stream::open(&env.client, None).await;
    let (begun, first) = (Instant::now(), stream.id.clone());
    let block = stream.block().await.unwrap();
    assert!(block.event.is_empty() && block.data.is_empty(), "{block:?}");
    assert_ne!(block.id, first, "its place is as of now");
    let silent = begun.elapsed();
    assert!(silent > Duration::from_secs(14) && silent < Duration::from_secs(18), "{silent:?}");
    let ended = tokio::spawn(async move { stream.block().await });
    let (status, took) = tokio::task::block_in_place(|| env.server.terminate());
    assert!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}");
    assert!(ended.await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_listeners_cost_the_database_what_one_costs() {
    const LISTENERS: usize = 300;
    let env = Env::start().await;
    let mut streams = Vec::new();
    for _ in 0..LISTENERS {
        streams.push(Stream::open(&env.client, None).await);
    }
    let admin = env.as_key(ADMIN_KEY);
    let reads = async || {
        let metrics = admin.get("/metrics").await.1.as_str().unwrap().to_owned();
        let line = metrics
            .lines()
            .find(|line| line.starts_with("longshore_db_reads_total"))
            .unwrap()
            .to_owned();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    // Each looks into the database once, when it begins.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = reads().await;
    let file = env.client.upload(&["a"]).await;
    for stream in &mut streams {
        assert_eq!(stream.events(3).await, life(&file));
    }
    let cost = reads().await - before;
    assert!(cost < LISTENERS as f64 / 2.0, "{cost} statements");
}
