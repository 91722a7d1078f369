//! Owners: nobody reads, changes or lists what is another's.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::answer;

/// Every path with the id of somebody's thing in it: which thing, the method, and the path as the router
/// has it, with its query.
const PATHS: [(&str, &str, &str); 29] = [
    ("file", "GET", "/v1/files/{id}"),
    ("file", "HEAD", "/v1/files/{id}"),
    ("file", "GET", "/v1/files/{id}?wait=5"),
    ("file", "DELETE", "/v1/files/{id}"),
    ("file", "GET", "/v1/files/{id}/deletion"),
    ("file", "GET", "/v1/files/{id}/content"),
    ("file", "HEAD", "/v1/files/{id}/content"),
    ("file", "POST", "/v1/files/{id}/mappings"),
    ("file", "POST", "/v1/files/{id}/retry"),
    ("file", "GET", "/v1/jobs?file_id={id}"),
    ("job", "GET", "/v1/jobs/{id}"),
    ("job", "GET", "/v1/jobs/{id}?wait=5"),
    ("job", "GET", "/v1/jobs/{id}/attempts"),
    ("job", "POST", "/v1/jobs/{id}/cancel"),
    ("job", "POST", "/v1/jobs/{id}/retry"),
    ("sweep", "GET", "/v1/sweeps/{id}"),
    ("sweep", "GET", "/v1/sweeps/{id}?wait=5"),
    ("sweep", "POST", "/v1/sweeps/{id}/cancel"),
    ("webhook endpoint", "GET", "/v1/webhook_endpoints/{id}"),
    ("webhook endpoint", "POST", "/v1/webhook_endpoints/{id}"),
    ("webhook endpoint", "DELETE", "/v1/webhook_endpoints/{id}"),
    ("webhook endpoint", "POST", "/v1/webhook_endpoints/{id}/rotate_secret"),
    ("webhook endpoint", "POST", "/v1/webhook_endpoints/{id}/test"),
    ("batch", "GET", "/v1/batches/{id}"),
    ("batch", "GET", "/v1/batches/{id}?wait=5"),
    ("batch", "POST", "/v1/batches/{id}/cancel"),
    ("batch", "GET", "/v1/batches/{id}/results"),
    ("batch", "GET", "/v1/batches/{id}/results?custom_id=r-0"),
    ("batch", "POST", "/v1/batches/{id}/retry"),
];

/// Paths whose ids are nobody's: they are in the configuration, or only for admins.
const OF_NOBODY: [&str; 9] = [
    "/docs/{file}",
    "/v1/provider_events/{provider}",
    "/v1/models/{*model}",
    "/v1/admin/keys/{id}",
    "/v1/admin/providers/{name}/pause",
    "/v1/admin/providers/{name}/resume",
    "/v1/admin/providers/{name}/reconcile",
    "/v1/admin/providers/{name}/reconciliations",
    "/v1/admin/reconciliations/{id}",
];

fn sources(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                sources(&path)
            } else {
                vec![std::fs::read_to_string(path).unwrap()]
            }
        })
        .collect()
}

#[test]
fn the_paths_that_are_tried_with_others_ids_are_all_that_take_an_id() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let mut seen = 0;
    for source in sources(&folder) {
        for (at, text) in source.match_indices("path = \"") {
            let (path, _) = source[at + text.len()..].split_once('"').unwrap();
            let is_tried = PATHS.iter().any(|(_, _, tried)| *tried == path);
            assert!(
                !path.contains('{') || is_tried || OF_NOBODY.contains(&path),
                "`{path}` takes an id, and no test tries it with another owner's"
            );
            seen += usize::from(path.contains('{'));
        }
    }
    assert!(seen >= 8, "only {seen} paths with ids were found in the sources");
}

/// Of somebody's things.
#[derive(Clone, Copy)]
struct Ids<'i> {
    file: &'i str,
    job: &'i str,
    sweep: &'i str,
    webhook_endpoint: &'i str,
    batch: &'i str,
}

impl<'i> Ids<'i> {
    fn of(self, thing: &str) -> &'i str {
        match thing {
            "file" => self.file,
            "job" => self.job,
            "batch" => self.batch,
            "sweep" => self.sweep,
            _ => self.webhook_endpoint,
        }
    }
}

/// Sends a request to each path with these ids, and answers what was said, path by path.
async fn try_all(
    client: &Client,
    acting_for: Option<&str>,
    ids: Ids<'_>,
) -> Vec<(&'static str, String, u16, Value)> {
    let mut said = Vec::new();
    for (thing, method, path) in PATHS {
        let id = ids.of(thing);
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = client.request(method.clone(), &path.replace("{id}", id));
        if method == Method::POST {
            request = request.json(&json!({"target_model_names": ["b"]}));
        }
        if let Some(owner) = acting_for {
            request = request.header("X-Longshore-Owner", owner);
        }
        let (status, error) = answer(request.send().await.unwrap()).await;
        said.push((thing, format!("{method} {path}"), status, error));
    }
    said
}

#[tokio::test]
async fn every_path_refuses_another_owners_ids_and_no_list_shows_them() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options { command: "serve", ..Options::on(kind) }).await;
        let file = env.client.upload(&["a"]).await;
        let (id, job) =
            (file["id"].as_str().unwrap(), file["mappings"][0]["job_id"].as_str().unwrap());
        let swept = json!({"purpose": "user_data", "dry_run": true});
        let (_, sweep) = env.client.post("/v1/sweeps", swept).await;
        let hook =
            json!({"name": "n", "url": "https://8.8.8.8/", "event_types": ["file.processed"]});
        let (_, hook) = env.client.post("/v1/webhook_endpoints", hook).await;
        let batch = env.client.batch_on(&env.client.upload_requests(&["a"], 1).await).await;
        let (sweep, webhook_endpoint) =
            (sweep["id"].as_str().unwrap(), hook["id"].as_str().unwrap());
        let batch = batch["id"].as_str().unwrap();
        let ids = Ids { file: id, job, sweep, webhook_endpoint, batch };
        let (bob, admin) = (env.as_key(BOB_KEY), env.as_key(ADMIN_KEY));
        for (client, acting_for) in [(&bob, None), (&admin, Some("bob"))] {
            for (thing, path, status, error) in try_all(client, acting_for, ids).await {
                assert_eq!(status, 403, "{path}: {error}");
                if path.starts_with("HEAD") {
                    continue;
                }
                let id = ids.of(thing);
                // Word for word, so that it gives away nothing.
                let message = format!("User bob does not have access to the {thing} {id}");
                assert_eq!(
                    error,
                    json!({"error": {"message": message, "type": "permission_error", "param": null,
                        "code": "permission_denied"}}),
                    "{path}"
                );
            }
            let list = async |path: &str| {
                let request = client.request(Method::GET, path);
                let request = match acting_for {
                    None => request,
                    Some(owner) => request.header("X-Longshore-Owner", owner),
                };
                answer(request.send().await.unwrap()).await
            };
            for path in [
                "/v1/files",
                "/v1/jobs",
                "/v1/sweeps",
                "/v1/webhook_endpoints",
                "/v1/batches",
                "/v1/files?model=a",
                "/v1/jobs?status=queued",
            ] {
                assert_eq!(list(path).await.1["data"], json!([]), "{path}");
                let mine = env.client.get(path).await.1;
                assert!(!mine["data"].as_array().unwrap().is_empty(), "{path}");
            }
            // Not even as a place in a list.
            assert_eq!(list(&format!("/v1/files?after={id}")).await.0, 400);
            assert_eq!(list(&format!("/v1/jobs?after={job}")).await.0, 400);
            assert_eq!(list(&format!("/v1/batches?after={batch}")).await.0, 400);
        }
        assert_eq!(env.client.file(id).await, file);
    }
}

#[tokio::test]
async fn ids_that_were_forged_truncated_or_are_a_providers_name_nothing() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let file = env.client.upload(&["a", "b"]).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        let (id, job) =
            (file["id"].as_str().unwrap(), file["mappings"][0]["job_id"].as_str().unwrap());
        let raw = file["mappings"][0]["provider_file_id"].as_str().unwrap();
        let calls = |account: &str| env.sandbox.calls(account).len();
        let before = (calls("a"), calls("b"));
        let line = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(id).unwrap()).unwrap();
        let forge = |change: &dyn Fn(&str) -> String| BASE64_URL_SAFE_NO_PAD.encode(change(&line));
        let forged = [
            // Another file's, the same file for other models, and with a provider's file in it.
            forge(&|line| {
                let (_, rest) = line.split_once("unified_id,").unwrap();
                line.replace(&rest[..36], "0193b6b0-0000-7000-8000-000000000000")
            }),
            forge(&|line| line.replace("target_model_names,a,b", "target_model_names,a,b,c")),
            forge(&|line| {
                line.replace("llm_output_file_id,", &format!("llm_output_file_id,{raw}"))
            }),
            forge(&|line| line.replacen("longshore", "litellm_proxy", 1)),
            forge(&|line| format!("{line}\0")),
            // The same one, cut or written in another way.
            id[..id.len() - 1].to_owned(),
            id[..id.len() / 2].to_owned(),
            id[1..].to_owned(),
            format!("{id}="),
            format!("{id}A"),
            format!("%20{id}"),
            id.to_ascii_lowercase(),
            id.to_ascii_uppercase(),
            line.replace(['/', ';', ':', ','], "_"),
            raw.to_owned(),
            "file-abc123".to_owned(),
            file["mappings"][0]["deployment_id"].as_str().unwrap().to_owned(),
            job.to_owned(),
        ];
        let jobs = [
            "job_0193b6b0-0000-7000-8000-000000000000".to_owned(),
            job[..job.len() - 1].to_owned(),
            job.strip_prefix("job_").unwrap().to_owned(),
            job.replace("job_", "we_"),
            format!("{job}0"),
            id.to_owned(),
            raw.to_owned(),
        ];
        for (number, forged) in forged.iter().enumerate() {
            let job = &jobs[number % jobs.len()];
            for client in [&env.client, &env.as_key(BOB_KEY), &env.as_key(ADMIN_KEY)] {
                let ids =
                    Ids { file: forged, job, sweep: job, webhook_endpoint: job, batch: forged };
                for (_, path, status, error) in try_all(client, None, ids).await {
                    assert_eq!(status, 404, "{path} of {forged} or {job}: {error}");
                }
            }
        }
        assert_eq!((calls("a"), calls("b")), before, "a forged id reached a provider");
        assert_eq!(env.client.file(id).await, file);
    }
}

#[tokio::test]
async fn an_admin_sees_everything_and_may_act_for_an_owner() {
    let env = Env::start().await;
    let (admin, bob) = (env.as_key(ADMIN_KEY), env.as_key(BOB_KEY));
    let mine = env.client.upload(&["a"]).await;
    let theirs = bob.upload(&["a"]).await;
    assert_eq!(admin.get("/v1/files").await.1["data"].as_array().unwrap().len(), 2);
    admin.settled(mine["id"].as_str().unwrap()).await;
    let acting = |key: &str, owner: &str| {
        env.as_key(key).request(Method::GET, "/v1/files").header("X-Longshore-Owner", owner)
    };
    let (status, list) = answer(acting(ADMIN_KEY, "bob").send().await.unwrap()).await;
    let ids: Vec<&Value> =
        list["data"].as_array().unwrap().iter().map(|file| &file["id"]).collect();
    assert_eq!((status, ids), (200, vec![&theirs["id"]]));
    for owner in ["bob", "alice"] {
        let (status, error) = answer(acting(ALICE_KEY, owner).send().await.unwrap()).await;
        assert_eq!(status, 403, "{error}");
    }
    for owner in ["", "b\tb"] {
        let (status, error) = answer(acting(ADMIN_KEY, owner).send().await.unwrap()).await;
        assert_eq!((status, error["error"]["param"].as_str()), (400, Some("X-Longshore-Owner")));
    }
    // Acting for an owner, an admin is that owner and no more.
    let path = format!("/v1/files/{}", mine["id"].as_str().unwrap());
    let request = admin.request(Method::GET, &path).header("X-Longshore-Owner", "bob");
    assert_eq!(request.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn only_an_admin_reaches_the_paths_of_admins() {
    let env = Env::start().await;
    for (method, path) in [
        (Method::GET, "/v1/admin/keys"),
        (Method::POST, "/v1/admin/keys"),
        (Method::DELETE, "/v1/admin/keys/key_x"),
        (Method::GET, "/v1/admin/providers"),
        (Method::POST, "/v1/admin/providers/at-a/pause"),
        (Method::POST, "/v1/admin/providers/at-a/resume"),
        (Method::POST, "/v1/admin/providers/at-a/reconcile"),
        (Method::GET, "/v1/admin/providers/at-a/reconciliations"),
        (Method::GET, "/v1/admin/reconciliations/rec_x"),
        (Method::GET, "/metrics"),
    ] {
        let send = async |key: &str| {
            let request = env.as_key(key).request(method.clone(), path);
            request
                .json(&json!({"owner": "eve", "is_admin": true}))
                .send()
                .await
                .unwrap()
                .status()
                .as_u16()
        };
        assert_eq!((send(ALICE_KEY).await, send("none").await), (403, 401), "{path}");
    }
    assert_eq!(env.database.count("SELECT COUNT(*) FROM api_keys").await, 0);
}
