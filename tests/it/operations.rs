//! What an operator asks: health, metrics, models, keys.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::Client;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::answer;
use crate::support::eventually;

fn anybody(env: &Env, path: &str) -> reqwest::RequestBuilder {
    env.client.http.get(format!("{}{path}", env.client.base))
}

#[tokio::test]
async fn health_and_readiness_need_no_key() {
    let env = Env::start().await;
    assert_eq!(
        answer(anybody(&env, "/healthz").send().await.unwrap()).await,
        (200, json!({"status": "ok"}))
    );
    let (status, ready) = answer(anybody(&env, "/readyz").send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(
        ready,
        json!({"status": "ok", "database": "ok", "blobs": "ok", "redis": "not configured"})
    );
}

#[tokio::test]
async fn a_blob_store_that_is_gone_makes_it_unready_and_uploads_fail_whole() {
    let env = Env::start().await;
    let blobs = env.folder().join("blobs");
    std::fs::rename(&blobs, env.folder().join("elsewhere")).unwrap();
    std::fs::write(&blobs, "not a folder").unwrap();
    let response = anybody(&env, "/readyz").send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "2");
    let (status, ready) = answer(response).await;
    assert_eq!(
        (status, ready["blobs"].as_str(), ready["database"].as_str()),
        (503, Some("unreachable"), Some("ok"))
    );
    let part = crate::support::Part {
        filename: "i",
        purpose: "user_data",
        models: &["a"],
        content: b"x".to_vec(),
    };
    let form = Client::form(part);
    let response =
        env.client.request(Method::POST, "/v1/files").multipart(form).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "2");
    let (status, error) = answer(response).await;
    assert_eq!((status, error["error"]["type"].as_str()), (503, Some("server_error")), "{error}");
    env.holds_nothing().await;
    std::fs::remove_file(&blobs).unwrap();
    std::fs::rename(env.folder().join("elsewhere"), &blobs).unwrap();
    assert_eq!(anybody(&env, "/readyz").send().await.unwrap().status(), 200);
    env.client.upload(&["a"]).await;
}

#[tokio::test]
async fn a_database_that_is_gone_makes_it_unready_and_is_a_503_to_clients() {
    let env = Env::with(Options { command: "serve", ..Options::on(Kind::Postgres) }).await;
    env.database.take_away().await;
    let (status, ready) = answer(anybody(&env, "/readyz").send().await.unwrap()).await;
    assert_eq!(
        (status, ready["database"].as_str(), ready["blobs"].as_str()),
        (503, Some("unreachable"), Some("ok"))
    );
    let response = env.client.request(Method::GET, "/v1/files").send().await.unwrap();
    assert_eq!(
        response.headers().get("retry-after").map(|value| value.to_str().unwrap()),
        Some("2")
    );
    let (status, error) = answer(response).await;
    assert_eq!((status, error["error"]["code"].as_str()), (503, Some("unavailable")), "{error}");
    assert_eq!(anybody(&env, "/healthz").send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn the_promised_metrics_are_there() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let file = env.client.upload(&["a"]).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        let (status, metrics) = env.as_key(ADMIN_KEY).get("/metrics").await;
        assert_eq!(status, 200);
        let metrics = metrics.as_str().unwrap();
        for family in [
            "longshore_attempt_seconds",
            "longshore_attempts_total",
            "longshore_bytes_total",
            "longshore_files_accepted_total 1",
            "longshore_jobs{",
            "longshore_lane_paused{",
            "longshore_oldest_job_age_seconds{",
            "longshore_provider_calls_total",
            "longshore_provider_call_seconds",
            "longshore_request_seconds",
            "longshore_requests_total{",
            "longshore_uploads_total",
            "longshore_waiters 0",
        ] {
            assert!(metrics.contains(family), "no `{family}` in\n{metrics}");
        }
    }
}

#[tokio::test]
async fn the_configured_models_are_listed_and_shown() {
    let env = Env::start().await;
    let (status, list) = env.client.get("/v1/models").await;
    let ids: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!((status, ids), (200, vec![json!("a"), json!("b"), json!("c")]));
    let (status, model) = env.client.get("/v1/models/b").await;
    assert_eq!(
        (status, model),
        (200, json!({"id": "b", "object": "model", "created": 0, "owned_by": "at-b"}))
    );
    let (status, error) = env.client.get("/v1/models/d").await;
    assert_eq!((status, error["error"]["code"].as_str()), (404, Some("model_not_found")));
}

#[tokio::test]
async fn a_key_that_an_admin_makes_works_until_it_is_revoked() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let admin = env.as_key(ADMIN_KEY);
        let (status, made) = admin.post("/v1/admin/keys", json!({"owner": "carol"})).await;
        assert_eq!(
            (status, made["owner"].as_str(), made["is_admin"].as_bool()),
            (200, Some("carol"), Some(false))
        );
        let carol = env.as_key(made["key"].as_str().unwrap());
        carol.upload(&["a"]).await;
        assert_eq!(carol.get("/v1/files").await.1["data"].as_array().unwrap().len(), 1);
        assert_eq!(carol.get("/v1/admin/keys").await.0, 403);
        let listed = admin.get("/v1/admin/keys").await.1;
        assert_eq!((&listed["data"][0]["id"], listed["data"][0].get("key")), (&made["id"], None));
        let stored = env.database.query("SELECT hash FROM api_keys").await[0]
            .try_get_by_index::<Vec<u8>>(0)
            .unwrap();
        assert_eq!(stored.len(), 32);
        for (owner, param) in [
            (json!({}), Value::Null),
            (json!({"owner": " "}), json!("owner")),
            // As little as no body at all.
            (Value::Null, json!("owner")),
        ] {
            let (status, error) = admin.post("/v1/admin/keys", owner).await;
            assert_eq!((status, &error["error"]["param"]), (400, &param), "{error}");
        }
        let path = format!("/v1/admin/keys/{}", made["id"].as_str().unwrap());
        let (status, gone) =
            answer(admin.request(Method::DELETE, &path).send().await.unwrap()).await;
        assert_eq!((status, gone["deleted"].as_bool()), (200, Some(true)));
        eventually(Duration::from_secs(10), async || {
            (carol.get("/v1/files").await.0 == 401).then_some(())
        })
        .await;
        assert_eq!(admin.request(Method::DELETE, &path).send().await.unwrap().status(), 404);
    }
}
