//! `/openapi.json` and `/docs`: that the description is one, and that the server is what it says.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use reqwest::Method;
use reqwest::Response;
use serde_json::Value;

use crate::support::ADMIN_KEY;
use crate::support::Env;
use crate::support::Options;
use crate::support::answer;
use crate::support::batches::WATCHFUL;
use crate::support::script;

/// What somebody without a key gets.
async fn anybody(env: &Env, path: &str) -> Response {
    env.client.http.get(format!("{}{path}", env.client.base)).send().await.unwrap()
}

async fn description(env: &Env) -> Value {
    let (status, description) = answer(anybody(env, "/openapi.json").await).await;
    assert_eq!(status, 200, "{description}");
    description
}

/// Every path with the methods that are described for it.
fn paths(description: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let paths = description["paths"].as_object().unwrap().iter();
    paths
        .map(|(path, item)| {
            let methods = item.as_object().unwrap().keys().map(|method| method.to_uppercase());
            (path.clone(), methods.collect())
        })
        .collect()
}

#[tokio::test]
async fn the_description_is_valid_and_needs_no_key() {
    let env = Env::start().await;
    let path = env.folder().join("openapi.json");
    let description = description(&env).await;
    std::fs::write(&path, description.to_string()).unwrap();
    assert_eq!(description["openapi"], "3.1.0");
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(script("valid.py", &[path.to_str().unwrap()], &[]).await, "ok\n");
}

#[tokio::test]
async fn every_path_answers_the_methods_that_are_described_for_it_and_no_other() {
    let env = Env::start().await;
    let admin = env.as_key(ADMIN_KEY);
    let described = paths(&description(&env).await);
    for (path, methods) in &described {
        let concrete = path.replace("{id}", "x").replace("{name}", "x");
        let concrete = concrete.replace("{model}", "x").replace("{file}", "x");
        let concrete = concrete.replace("{provider}", "x");
        assert!(!concrete.contains('{'), "{path}: a parameter that this test does not know");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let request = admin.request(Method::from_bytes(method.as_bytes()).unwrap(), &concrete);
            let response = request.send().await.unwrap();
            let is_stream = response.headers()["content-type"] == "text/event-stream";
            // A stream goes on; its head says enough.
            let (status, answer) =
                if is_stream { (200, Value::Null) } else { answer(response).await };
            let is_there = status != 405 && answer["error"]["code"] != "unknown_url";
            assert_eq!(is_there, methods.contains(method), "{method} {path}: {status} {answer}");
        }
    }
}

#[tokio::test]
async fn the_server_answers_as_its_description_says() {
    let extra = format!("{WATCHFUL}[webhooks]\nallow_private_addresses = true\n");
    let env = Env::with(Options { extra, ..Options::default() }).await;
    env.treat_batches("a", |batches| batches.failing_percent = 50);
    let file = env.client.upload_requests(&["a"], 4).await;
    let batch = env.client.batch_ended(&env.client.batch_on(&file).await).await;
    assert_eq!(batch["request_counts"]["failed"], 2, "{batch}");
    let operations: usize = paths(&description(&env).await).values().map(BTreeSet::len).sum();
    let notes = tempfile::tempdir().unwrap();
    let id = |thing: &Value| thing["id"].as_str().unwrap().to_owned();
    let (file, batch) = (id(&file), id(&batch));
    let notes_path = notes.path().to_str().unwrap();
    let arguments = [env.client.base.as_str(), ADMIN_KEY, notes_path, &file, &batch];
    let said = script("conformance.py", &arguments, &[]).await;
    // The path that the description itself came from it leaves to the tests beside this one, and the stream of events,
    // which does not end, to those of streams.
    assert!(said.contains(&format!("Tested: {}\n", operations - 2)), "{said}");
}

#[tokio::test]
async fn whatever_needs_a_key_says_so_and_the_rest_does_not() {
    let env = Env::start().await;
    let description = description(&env).await;
    for (path, methods) in paths(&description) {
        for method in methods {
            let operation = &description["paths"][&path][method.to_lowercase()];
            let needs_key = !operation["security"].is_null();
            let url = format!("{}{}", env.client.base, path.replace(['{', '}'], ""));
            let request = env.client.http.request(method.parse().unwrap(), url);
            let status = request.send().await.unwrap().status().as_u16();
            assert_eq!(status == 401, needs_key, "{method} {path}: {status}");
            assert_eq!(!operation["responses"]["401"].is_null(), needs_key, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn the_page_and_all_that_it_loads_come_from_here_and_need_no_key() {
    let env = Env::start().await;
    let page = anybody(&env, "/docs").await;
    assert_eq!(page.status(), 200);
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("http"), "{policy}");
    let page = page.text().await.unwrap();
    let links: Vec<&str> = page
        .split(['"', '\''])
        .zip(page.split(['"', '\'']).skip(1))
        .filter(|(before, _)| before.ends_with("src=") || before.ends_with("href="))
        .map(|(_, link)| link)
        .collect();
    assert!(links.len() >= 6, "{links:?}");
    for link in links {
        let file = anybody(&env, &format!("/{link}")).await;
        assert_eq!(file.status(), 200, "{link}");
        assert!(!link.contains("://") && !link.starts_with('/'), "{link}");
        let kind = file.headers()["content-type"].to_str().unwrap().to_owned();
        let expected = match link.rsplit('.').next().unwrap() {
            "css" => "text/css",
            "js" => "text/javascript",
            "png" => "image/png",
            "json" => "application/json",
            _ => panic!("{link}"),
        };
        assert_eq!(kind, expected, "{link}");
    }
    let start = anybody(&env, "/docs/swagger-initializer.js").await.text().await.unwrap();
    assert!(start.contains("\"openapi.json\"") && !start.contains("://"), "{start}");
    assert!(start.contains("\"persistAuthorization\": false"), "{start}");
    let (status, error) = answer(anybody(&env, "/docs/nothing.js").await).await;
    assert_eq!((status, error["error"]["code"].as_str()), (404, Some("not_found")));
}
