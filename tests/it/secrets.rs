//! Secrets: no key appears anywhere but where it was configured.

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use sea_orm::ConnectionTrait as _;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Env;
use crate::support::PROVIDER_KEY;
use crate::support::eventually;

const KEYS: [&str; 4] = [ADMIN_KEY, ALICE_KEY, BOB_KEY, PROVIDER_KEY];

fn is_clean(what: &str, text: &str) {
    for key in KEYS {
        assert!(!text.contains(key), "`{key}` is in {what}");
    }
}

/// Every file below `folder` but the configuration, as text.
fn contents(folder: &std::path::Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().is_none_or(|name| name != "longshore.toml") {
            let bytes = std::fs::read(&path).unwrap();
            found.push((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    found
}

#[tokio::test]
async fn no_key_is_in_a_log_a_metric_an_answer_or_the_database() {
    let env = Env::start().await;
    let (admin, bob) = (env.as_key(ADMIN_KEY), env.as_key(BOB_KEY));
    // A provider that repeats the key it was sent, in each of its refusals.
    let refusal = json!({"error": {"message": format!("Incorrect API key provided: {PROVIDER_KEY}."),
        "type": "invalid_request_error", "param": PROVIDER_KEY, "code": "invalid_api_key"}});
    for (account, status) in [("a", 401), ("b", 400), ("c", 500)] {
        let rule = FaultRule::new(Operation::Upload, Fault::status(status, refusal.clone()));
        env.sandbox.add_fault(account, rule).unwrap();
    }
    let mut answers = Vec::new();
    let file = env.client.upload(&["a", "b", "c"]).await;
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    eventually(std::time::Duration::from_secs(30), async || {
        let file = env.client.get(&path).await.1;
        let has_ended = file["mappings"][0]["error"].is_object()
            && file["mappings"][1]["status"] == "failed"
            && file["mappings"][2]["status"] == "ready";
        has_ended.then_some(())
    })
    .await;
    bob.upload(&["b"]).await;
    for path in [
        &path,
        "/v1/files",
        "/v1/jobs",
        "/v1/models",
        "/v1/admin/keys",
        "/v1/admin/providers",
        "/metrics",
        "/readyz",
    ] {
        answers.push(admin.get(path).await.1.to_string());
    }
    for job in admin.get("/v1/jobs").await.1["data"].as_array().unwrap().iter() {
        answers.push(
            admin
                .get(&format!("/v1/jobs/{}/attempts", job["id"].as_str().unwrap()))
                .await
                .1
                .to_string(),
        );
    }
    for key in [&format!("{ALICE_KEY}x"), &PROVIDER_KEY.to_owned()] {
        let (status, error) = env.as_key(key).get("/v1/files").await;
        assert_eq!(status, 401);
        answers.push(error.to_string());
    }
    answers.push(bob.get(&path).await.1.to_string());
    is_clean("an answer", &answers.join("\n"));
    is_clean("the log", &env.server.log());
    is_clean("the output", &env.server.output());
    let db = env.database.open().await;
    db.read().execute_unprepared("PRAGMA wal_checkpoint(FULL)").await.unwrap();
    let files = contents(&env.folder());
    assert!(
        files
            .iter()
            .any(|(name, text)| name.ends_with("longshore.db") && text.contains("invalid_api_key")
                || name.ends_with("-wal") && text.contains("credential_rejected")),
        "the search found no database"
    );
    for (name, text) in files {
        is_clean(&name, &text);
    }
}
