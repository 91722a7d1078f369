//! What every answer has: the error envelope, the request id, and no 500 whatever is asked.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::Env;
use crate::support::Options;
use crate::support::answer;
use crate::support::database::Kind;
use crate::support::eventually;

fn is_envelope(error: &Value) -> bool {
    let detail = &error["error"];
    detail["message"].as_str().is_some_and(|message| !message.is_empty())
        && detail["type"].is_string()
        && detail.get("param").is_some()
        && detail.get("code").is_some()
}

#[tokio::test]
async fn every_refusal_has_the_envelope_of_openai() {
    let env = Env::start().await;
    let get = |path: &str| env.client.request(Method::GET, path);
    let file = env.client.upload(&["a"]).await;
    let id = file["id"].as_str().unwrap();
    for (request, expected, kind) in [
        (get("/nowhere"), 404, "not_found_error"),
        (get("/v1/files/nothing"), 404, "not_found_error"),
        (get("/v1/files/%ff%fe"), 404, "not_found_error"),
        (get("/v1/jobs/%ff"), 404, "not_found_error"),
        (get("/v1/models/%ff"), 404, "not_found_error"),
        (get("/v1/models/none"), 404, "not_found_error"),
        (get("/v1/jobs/job_nothing"), 404, "not_found_error"),
        (get("/v1/files?limit=1&limit=2"), 400, "invalid_request_error"),
        (get("/v1/files?limit=%ff"), 400, "invalid_request_error"),
        (get("/v1/jobs?status=queued&status=queued"), 400, "invalid_request_error"),
        (get(&format!("/v1/files/{id}?wait=1&wait=2")), 400, "invalid_request_error"),
        (env.client.request(Method::PUT, "/v1/files"), 405, "invalid_request_error"),
        (env.client.request(Method::PATCH, "/v1/files/x"), 405, "invalid_request_error"),
        (env.client.request(Method::POST, "/v1/models"), 405, "invalid_request_error"),
        (
            env.client.request(Method::POST, &format!("/v1/files/{id}/mappings")).body("{nope"),
            400,
            "invalid_request_error",
        ),
        (
            env.client
                .request(Method::POST, &format!("/v1/files/{id}/mappings"))
                .header("content-type", "text/plain")
                .body("hello"),
            415,
            "invalid_request_error",
        ),
        (
            env.client
                .request(Method::POST, &format!("/v1/files/{id}/mappings"))
                .body(vec![b' '; 3 << 20]),
            413,
            "invalid_request_error",
        ),
        (env.as_key("nobody's").request(Method::GET, "/v1/files"), 401, "authentication_error"),
        (env.client.http.get(format!("{}/v1/files", env.client.base)), 401, "authentication_error"),
        (
            env.client
                .http
                .get(format!("{}/v1/files", env.client.base))
                .basic_auth("alice", Some("x")),
            401,
            "authentication_error",
        ),
        (get("/v1/admin/keys"), 403, "permission_error"),
        (get("/metrics"), 403, "permission_error"),
    ] {
        let response = request.send().await.unwrap();
        assert!(response.headers().contains_key("x-request-id"));
        let (url, (status, error)) = (response.url().clone(), answer(response).await);
        assert_eq!(status, expected, "{url}: {error}");
        assert!(is_envelope(&error), "{url}: {error}");
        assert_eq!(error["error"]["type"], kind, "{url}");
    }
}

#[tokio::test]
async fn ids_and_filters_with_any_bytes_are_never_an_error_of_the_server() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let admin = env.as_key(ADMIN_KEY);
        for junk in [
            "%00",
            "a%00b",
            "%ff",
            "%F0%9F%9A%A2",
            "..%2F..",
            "%25",
            "'%20OR%201=1--",
            &"x".repeat(9000),
        ] {
            for path in [
                "/v1/files/{}",
                "/v1/files/{}/content",
                "/v1/jobs/{}",
                "/v1/jobs/{}/attempts",
                "/v1/models/{}",
                "/v1/files?purpose={}",
                "/v1/files?model={}",
                "/v1/files?after={}",
                "/v1/files?status={}",
                "/v1/files?order={}",
                "/v1/jobs?kind={}",
                "/v1/jobs?file_id={}",
                "/v1/jobs?after={}",
                "/v1/jobs?batch_id={}",
            ] {
                let (status, error) = admin.get(&path.replace("{}", junk)).await;
                assert!(status < 500, "{kind:?} {path} {junk}: {error}");
                assert!(status == 200 || is_envelope(&error), "{path} {junk}: {error}");
            }
            for path in [
                "/v1/files/{}/mappings",
                "/v1/files/{}/retry",
                "/v1/jobs/{}/cancel",
                "/v1/jobs/{}/retry",
                "/v1/admin/providers/{}/pause",
            ] {
                let body = json!({"target_model_names": ["a"]});
                let (status, error) = admin.post(&path.replace("{}", junk), body).await;
                assert!((400..500).contains(&status), "{kind:?} {path} {junk}: {error}");
                assert!(is_envelope(&error), "{path} {junk}: {error}");
            }
        }
        let owner = json!({"owner": "a\0b"});
        assert_eq!(admin.post("/v1/admin/keys", owner).await.0, 400);
        assert!(!env.server.log().contains("panicked"));
    }
}

#[tokio::test]
async fn a_sane_request_id_is_kept_and_reaches_the_jobs() {
    let env = Env::start().await;
    let form = || {
        crate::support::Client::form(crate::support::Part {
            filename: "in.txt",
            purpose: "user_data",
            models: &["a"],
            content: b"x".to_vec(),
        })
    };
    let request =
        env.client.request(Method::POST, "/v1/files").header("x-request-id", "mine-1.2:3_4");
    let response = request.multipart(form()).send().await.unwrap();
    assert_eq!(response.headers()["x-request-id"], "mine-1.2:3_4");
    let (_, file) = answer(response).await;
    let job = file["mappings"][0]["job_id"].as_str().unwrap();
    assert_eq!(env.client.get(&format!("/v1/jobs/{job}")).await.1["request_id"], "mine-1.2:3_4");
    let is_logged = |line: &str| line.contains("mine-1.2:3_4") && line.contains("accepted file");
    eventually(Duration::from_secs(10), async || {
        env.server.log().lines().any(is_logged).then_some(())
    })
    .await;
    let long = "x".repeat(129);
    for insane in ["", "two words", "a\"b", "<script>", long.as_str()] {
        let request = env.client.request(Method::GET, "/v1/models").header("x-request-id", insane);
        let response = request.send().await.unwrap();
        let id = response.headers()["x-request-id"].to_str().unwrap();
        assert!(id.starts_with("req_") && id.len() == 36, "{id}");
    }
}

#[tokio::test]
async fn methods_that_nobody_knows_do_not_grow_the_metrics() {
    let env = Env::start().await;
    for number in 0..5 {
        let method = Method::from_bytes(format!("BREW{number}").as_bytes()).unwrap();
        let (status, error) =
            answer(env.client.request(method, "/v1/files").send().await.unwrap()).await;
        assert_eq!(status, 405, "{error}");
        assert!(is_envelope(&error));
    }
    let (_, metrics) = env.as_key(ADMIN_KEY).get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(metrics.contains("longshore_requests_total{method=\"other\""), "{metrics}");
    assert!(!metrics.contains("BREW"));
}
