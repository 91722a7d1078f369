//! Lists of files and jobs: pages, order, filters.

use serde_json::Value;

use crate::support::Client;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;

fn ids(list: &Value) -> Vec<String> {
    list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|thing| thing["id"].as_str().unwrap().to_owned())
        .collect()
}

/// All ids of a list, page by page.
async fn all(client: &Client, path: &str) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let (status, page) = client.get(&format!("{path}&after={after}")).await;
        assert_eq!(status, 200, "{page}");
        let ids = ids(&page);
        assert_eq!(page["object"], "list");
        assert_eq!(page["first_id"].as_str(), ids.first().map(String::as_str));
        assert_eq!(page["last_id"].as_str(), ids.last().map(String::as_str));
        found.extend(ids);
        if page["has_more"] == false {
            return found;
        }
        after = found.last().unwrap().clone();
    }
}

#[tokio::test]
async fn pages_neither_skip_nor_repeat_in_either_order() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options { command: "serve", ..Options::on(kind) }).await;
        let mut made = Vec::new();
        for _ in 0..7 {
            made.push(env.client.upload(&["a"]).await["id"].as_str().unwrap().to_owned());
        }
        assert_eq!(all(&env.client, "/v1/files?limit=2&order=asc").await, made);
        assert_eq!(all(&env.client, "/v1/files?limit=7&order=asc").await, made);
        assert_eq!(all(&env.client, "/v1/jobs?limit=3").await.len(), 7);
        made.reverse();
        assert_eq!(all(&env.client, "/v1/files?limit=3").await, made);
        assert_eq!(all(&env.client, "/v1/files?order=desc").await, made);
    }
}

#[tokio::test]
async fn filters_narrow_a_list() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options { command: "serve", ..Options::on(kind) }).await;
        let one = env.client.upload(&["a"]).await;
        let content = b"{\"messages\": []}\n".to_vec();
        let part = Part { filename: "t.jsonl", purpose: "fine-tune", models: &["b"], content };
        let two = env.client.try_upload(part).await.1;
        let (one, two) = (one["id"].as_str().unwrap(), two["id"].as_str().unwrap());
        for (query, expected) in [
            ("purpose=user_data", vec![one]),
            ("purpose=fine-tune", vec![two]),
            ("purpose=batch", vec![]),
            ("model=b", vec![two]),
            ("model=b&purpose=user_data", vec![]),
            ("status=uploaded", vec![two, one]),
            ("status=processed", vec![]),
            ("unknown=ignored", vec![two, one]),
        ] {
            let (status, list) = env.client.get(&format!("/v1/files?{query}")).await;
            assert_eq!(
                (status, ids(&list)),
                (200, expected.into_iter().map(str::to_owned).collect()),
                "{query}"
            );
        }
        let jobs = env
            .client
            .get(&format!("/v1/jobs?file_id={two}&kind=upload_file&status=queued"))
            .await
            .1;
        assert_eq!(jobs["data"].as_array().unwrap().len(), 1);
        assert_eq!(jobs["data"][0]["file_id"], two);
    }
}

#[tokio::test]
async fn a_page_that_cannot_be_is_refused_by_its_parameter() {
    let env = Env::start().await;
    let file = env.client.upload(&["a"]).await;
    let job = file["mappings"][0]["job_id"].as_str().unwrap();
    for (path, param) in [
        ("/v1/files?limit=0", "limit"),
        ("/v1/files?limit=10001", "limit"),
        ("/v1/files?limit=-1", "limit"),
        ("/v1/files?limit=ten", "limit"),
        ("/v1/jobs?limit=1001", "limit"),
        ("/v1/files?order=up", "order"),
        ("/v1/files?after=nothing", "after"),
        (&format!("/v1/files?after={job}"), "after"),
        ("/v1/jobs?after=job_nothing", "after"),
        ("/v1/files?status=lost", "status"),
        ("/v1/jobs?status=lost", "status"),
        ("/v1/files/x?wait=soon", ""),
    ] {
        let (status, error) = env.client.get(path).await;
        if param.is_empty() {
            assert_eq!(status, 404);
            continue;
        }
        assert_eq!(
            (status, error["error"]["param"].as_str()),
            (400, Some(param)),
            "{path}: {error}"
        );
    }
    assert_eq!(env.client.get("/v1/files?limit=10000").await.0, 200);
}
