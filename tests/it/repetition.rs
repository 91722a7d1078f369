//! Repeated uploads: with a key, and from an SDK that sends none.

use std::time::Duration;

use longshore::clock::Timestamp;
use longshore::idempotency;
use longshore::idempotency::Begun;
use longshore::idempotency::HOLD;
use longshore::idempotency::KEPT;
use sea_orm::ConnectionTrait as _;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Database;
use crate::support::Env;
use crate::support::Options;
use crate::support::RawForm;
use crate::support::answer;
use crate::support::database::Kind;
use crate::support::eventually;

fn form(content: &str) -> Vec<u8> {
    RawForm::new()
        .field("purpose", "user_data")
        .field("target_model_names", "a,b")
        .file("in.txt", content.as_bytes())
        .end()
}

/// An upload with a key: the status, whether it was a replay, and the text of the answer.
async fn keyed(client: &Client, key: &str, body: Vec<u8>) -> (u16, bool, String) {
    let response = client.raw_upload(body).header("Idempotency-Key", key).send().await.unwrap();
    let is_replay =
        response.headers().get("idempotency-replayed").is_some_and(|value| value == "true");
    if response.status() == 409 {
        assert_eq!(response.headers()["retry-after"], "1");
        assert!(!response.headers().contains_key("x-should-retry"));
    }
    (response.status().as_u16(), is_replay, response.text().await.unwrap())
}

async fn files(env: &Env) -> i64 {
    env.database.count("SELECT COUNT(*) FROM files").await
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_answer_word_for_word_and_makes_nothing() {
    let env = Env::start().await;
    let (status, is_replay, first) = keyed(&env.client, "k", form("one")).await;
    assert_eq!((status, is_replay), (200, false));
    let id = serde_json::from_str::<Value>(&first).unwrap()["id"].as_str().unwrap().to_owned();
    env.client.settled(&id).await;
    assert_eq!(keyed(&env.client, "k", form("one")).await, (200, true, first));
    assert_eq!((files(&env).await, env.blobs()), (1, 1));
}

#[tokio::test]
async fn a_key_with_another_request_is_refused_and_leaves_the_first_answer() {
    let env = Env::start().await;
    let (_, _, first) = keyed(&env.client, "k", form("one")).await;
    let other_name = RawForm::new()
        .field("purpose", "user_data")
        .field("target_model_names", "a,b")
        .file("other.txt", b"one")
        .end();
    for other in [form("two"), other_name] {
        let (status, _, error) = keyed(&env.client, "k", other).await;
        assert_eq!(status, 422, "{error}");
        assert!(error.contains("idempotency_key_reused"), "{error}");
    }
    assert_eq!(keyed(&env.client, "k", form("one")).await, (200, true, first));
    assert_eq!((files(&env).await, env.blobs()), (1, 1));
}

#[tokio::test]
async fn fifty_uploads_with_one_key_at_once_make_one_file() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let uploads = (0..50).map(|_| keyed(&env.client, "k", form("one")));
        let answers = futures_util::future::join_all(uploads).await;
        let fresh: Vec<_> =
            answers.iter().filter(|(status, is_replay, _)| *status == 200 && !is_replay).collect();
        assert_eq!(fresh.len(), 1);
        for (status, is_replay, text) in &answers {
            match status {
                200 => assert_eq!(text, &fresh[0].2, "{is_replay}"),
                409 => assert!(text.contains("still running"), "{text}"),
                _ => panic!("{status}: {text}"),
            }
        }
        assert_eq!(files(&env).await, 1);
        eventually(Duration::from_secs(5), async || (env.blobs() == 1).then_some(())).await;
    }
}

#[tokio::test]
async fn a_refused_upload_frees_its_key_before_it_is_answered() {
    let env = Env::start().await;
    let refused = RawForm::new()
        .field("purpose", "nonsense")
        .field("target_model_names", "a")
        .file("i", b"x");
    for round in 0..20 {
        let key = format!("k{round}");
        assert_eq!(keyed(&env.client, &key, refused.clone().end()).await.0, 400);
        let (status, is_replay, text) = keyed(&env.client, &key, form(&key)).await;
        assert_eq!((status, is_replay), (200, false), "{text}");
    }
}

#[tokio::test]
async fn a_key_means_nothing_to_another_owner() {
    let env = Env::start().await;
    let (_, _, first) = keyed(&env.client, "k", form("one")).await;
    let (status, is_replay, second) = keyed(&env.as_key(BOB_KEY), "k", form("two")).await;
    assert_eq!((status, is_replay), (200, false), "{second}");
    assert_ne!(first, second);
}

#[tokio::test]
async fn a_key_that_is_empty_too_long_or_not_printable_is_refused() {
    let env = Env::start().await;
    for key in ["", "a\tb", &"k".repeat(256)] {
        let (status, _, error) = keyed(&env.client, key, form("one")).await;
        assert_eq!(status, 400);
        assert!(
            error.contains("\"param\":\"Idempotency-Key\"") && error.contains("1 to 255"),
            "{error}"
        );
    }
    env.holds_nothing().await;
    assert_eq!(keyed(&env.client, &"k".repeat(255), form("one")).await.0, 200);
}

#[tokio::test]
async fn a_key_whose_process_died_can_be_taken_over_once_its_hold_has_lapsed() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::of(kind, folder.path()).await;
        let db = database.open().await;
        let request = idempotency::Request { owner: "alice", path: "/v1/files" };
        let begin = async |at: Timestamp, holder: &'static str| {
            let request = request.clone();
            let begun: Result<Begun, sea_orm::DbErr> = db
                .intake(move |tx| {
                    let request = request.clone();
                    Box::pin(async move { idempotency::begin(tx, at, &request, "k", holder).await })
                })
                .await;
            begun.unwrap()
        };
        let start = Timestamp(1_795_392_000_000);
        let Begun::Fresh(first) = begin(start, "dead").await else { panic!("not fresh") };
        assert_eq!(begin(start.after(HOLD), "next").await, Begun::Running);
        let later = start.after(HOLD + Duration::from_millis(1));
        assert_eq!(begin(later, "next").await, Begun::Fresh(first));
        // The dead process was only frozen: what it goes on with may not count.
        let completed: Result<_, sea_orm::DbErr> = db
            .intake(move |tx| {
                Box::pin(async move {
                    let late = idempotency::complete(tx, first, "dead", b"f", "late").await?;
                    Ok((late, idempotency::complete(tx, first, "next", b"f", "{}").await?))
                })
            })
            .await;
        assert_eq!(completed.unwrap(), (false, true));
        let answered = Begun::Answered { fingerprint: b"f".to_vec(), response: "{}".to_owned() };
        assert_eq!(begin(later.after(KEPT - Duration::from_secs(60)), "third").await, answered);
        assert_eq!(begin(later.after(KEPT * 2), "third").await, Begun::Fresh(first));
    }
}

#[tokio::test]
async fn a_server_killed_in_mid_upload_leaves_its_key_held_and_no_file() {
    let mut env = Env::start().await;
    let body = form(&"x".repeat(100_000));
    let mut stream = env.client.connect().await;
    stream.write_all(&env.client.upload_head(body.len(), "Idempotency-Key: k\r\n")).await.unwrap();
    stream.write_all(&body[..50_000]).await.unwrap();
    eventually(Duration::from_secs(10), async || {
        (env.database.count("SELECT COUNT(*) FROM idempotency_keys").await == 1).then_some(())
    })
    .await;
    env.server.kill();
    env.restart();
    assert_eq!(keyed(&env.client, "k", form("one")).await.0, 409);
    // As if the hold had lapsed.
    let db = env.database.open().await;
    db.intake(|tx| {
        Box::pin(async move {
            tx.execute_unprepared("UPDATE idempotency_keys SET held_until = 0").await.map(|_| ())
        })
    })
    .await
    .map_err(|error: sea_orm::DbErr| error)
    .unwrap();
    assert_eq!(keyed(&env.client, "k", form("one")).await.0, 200);
    assert_eq!(files(&env).await, 1);
}

/// An upload as the official SDKs send it, for the `count`-th time.
async fn as_sdk(client: &Client, count: &str, body: Vec<u8>) -> (bool, Value) {
    let response =
        client.raw_upload(body).header("x-stainless-retry-count", count).send().await.unwrap();
    let is_replay = response.headers().contains_key("idempotency-replayed");
    let (status, file) = answer(response).await;
    assert_eq!(status, 200, "{file}");
    (is_replay, file)
}

#[tokio::test]
async fn an_sdk_that_lost_the_answer_gets_it_when_it_repeats_the_upload() {
    let env = Env::with(Options::on(Kind::Postgres)).await;
    // The commit has to wait for this lock, so the client can be gone before there is an answer.
    let own = sea_orm::Database::connect(&env.database.url).await.unwrap();
    let lock = sea_orm::TransactionTrait::begin(&own).await.unwrap();
    lock.execute_unprepared("LOCK TABLE files IN EXCLUSIVE MODE").await.unwrap();
    let body = form("lost");
    let mut stream = env.client.connect().await;
    let mut bytes = env.client.upload_head(body.len(), "x-stainless-retry-count: 0\r\n");
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await.unwrap();
    eventually(Duration::from_secs(10), async || {
        let waiting =
            "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = 'files'::regclass";
        (env.database.count(waiting).await == 1).then_some(())
    })
    .await;
    drop(stream);
    lock.commit().await.unwrap();
    eventually(Duration::from_secs(10), async || (files(&env).await == 1).then_some(())).await;

    let (is_replay, file) = as_sdk(&env.client, "1", body.clone()).await;
    assert!(is_replay);
    assert_eq!((files(&env).await, file["filename"].as_str()), (1, Some("in.txt")));
    assert_eq!(as_sdk(&env.client, "2", body).await, (true, file));
    // Another content, or the same from somebody else, is an upload of its own.
    assert!(!as_sdk(&env.client, "1", form("other")).await.0);
    assert!(!as_sdk(&env.as_key(BOB_KEY), "1", form("lost")).await.0);
    assert_eq!(files(&env).await, 3);
}

#[tokio::test]
async fn an_answer_that_arrived_is_not_given_to_a_later_upload() {
    let env = Env::start().await;
    let (_, first) = as_sdk(&env.client, "0", form("one")).await;
    eventually(Duration::from_secs(10), async || {
        (env.database.count("SELECT COUNT(*) FROM idempotency_keys").await == 0).then_some(())
    })
    .await;
    let (is_replay, second) = as_sdk(&env.client, "1", form("one")).await;
    assert!(!is_replay);
    assert_ne!(first["id"], second["id"]);
    assert_eq!(json!(files(&env).await), 2);
}
