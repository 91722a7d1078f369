//! Owners: nobody reads, changes or lists what is another's.

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Env;
use crate::support::Options;
use crate::support::answer;

#[tokio::test]
async fn every_path_refuses_another_owners_ids_and_no_list_shows_them() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    let file = env.client.upload(&["a"]).await;
    let (id, job) = (file["id"].as_str().unwrap(), file["mappings"][0]["job_id"].as_str().unwrap());
    let bob = env.as_key(BOB_KEY);
    let body = json!({"target_model_names": ["b"]});
    for (thing, method, path) in [
        ("file", Method::GET, format!("/v1/files/{id}")),
        ("file", Method::GET, format!("/v1/files/{id}?wait=5")),
        ("file", Method::GET, format!("/v1/files/{id}/content")),
        ("file", Method::POST, format!("/v1/files/{id}/mappings")),
        ("file", Method::POST, format!("/v1/files/{id}/retry")),
        ("file", Method::GET, format!("/v1/jobs?file_id={id}")),
        ("job", Method::GET, format!("/v1/jobs/{job}")),
        ("job", Method::GET, format!("/v1/jobs/{job}?wait=5")),
        ("job", Method::GET, format!("/v1/jobs/{job}/attempts")),
        ("job", Method::POST, format!("/v1/jobs/{job}/cancel")),
        ("job", Method::POST, format!("/v1/jobs/{job}/retry")),
    ] {
        let request = bob.request(method, &path).json(&body);
        let (status, error) = answer(request.send().await.unwrap()).await;
        let id = if thing == "file" { id } else { job };
        assert_eq!(status, 403, "{path}: {error}");
        assert_eq!(
            error["error"]["message"],
            format!("User bob does not have access to the {thing} {id}"),
            "{path}"
        );
        assert_eq!(error["error"]["type"], "permission_error");
    }
    for path in ["/v1/files", "/v1/jobs", "/v1/files?model=a", "/v1/jobs?status=queued"] {
        let list = bob.get(path).await.1;
        assert_eq!(list["data"], json!([]), "{path}");
        assert_eq!(env.client.get(path).await.1["data"].as_array().unwrap().len(), 1, "{path}");
    }
    // Not even as a place in a list.
    assert_eq!(bob.get(&format!("/v1/files?after={id}")).await.0, 400);
    assert_eq!(bob.get(&format!("/v1/jobs?after={job}")).await.0, 400);
    assert_eq!(env.client.file(id).await, file);
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
