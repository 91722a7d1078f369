//! What tests of batches do: a file of requests, a batch on it, and how it stands.

use std::time::Duration;

use longshore::sandbox::BatchSettings;
use serde_json::Value;
use serde_json::json;

use super::Client;
use super::Env;
use super::Part;
use super::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

/// Settings of an installation that looks often.
pub const WATCHFUL: &str = "[batches]\npoll = \"200ms\"\npoll_max = \"400ms\"\n";

/// Requests `r-0`, `r-1`, … as a file.
pub fn requests(count: usize) -> Vec<u8> {
    (0..count)
        .map(|number| {
            let line = json!({
                "custom_id": format!("r-{number}"), "method": "POST", "url": "/v1/chat/completions",
                "body": {"model": "gpt", "messages": [{"role": "user", "content": "Hello"}]},
            });
            format!("{line}\n")
        })
        .collect::<String>()
        .into_bytes()
}

/// The run of a batch on a model.
pub fn run<'b>(batch: &'b Value, model: &str) -> &'b Value {
    let runs = batch["runs"].as_array().unwrap();
    runs.iter().find(|run| run["model"] == model).unwrap()
}

impl Client {
    /// Uploads as many requests, whether they have got to the models yet or not.
    pub async fn upload_requests(&self, models: &[&str], count: usize) -> Value {
        let part =
            Part { filename: "in.jsonl", purpose: "batch", models, content: requests(count) };
        let (status, file) = self.try_upload(part).await;
        assert_eq!(status, 200, "{file}");
        file
    }

    /// `POST /v1/batches` on a file, whatever comes of it.
    pub async fn try_batch(&self, file: &Value, more: Value) -> (u16, Value) {
        let mut body = json!({
            "input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h",
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.post("/v1/batches", body).await
    }

    pub async fn batch_on(&self, file: &Value) -> Value {
        let (status, batch) = self.try_batch(file, json!({})).await;
        assert_eq!(status, 200, "{batch}");
        batch
    }

    /// The batch as it is now.
    pub async fn batch(&self, batch: &Value) -> Value {
        let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
        let (status, batch) = self.get(&path).await;
        assert_eq!(status, 200, "{batch}");
        batch
    }

    /// The batch once it is as `is_so` says.
    pub async fn batch_when(&self, batch: &Value, is_so: impl Fn(&Value) -> bool) -> Value {
        eventually(PATIENCE, async || Some(self.batch(batch).await).filter(&is_so)).await
    }

    /// The batch once it has ended.
    pub async fn batch_ended(&self, batch: &Value) -> Value {
        let path = format!("/v1/batches/{}?wait=10", batch["id"].as_str().unwrap());
        eventually(PATIENCE, async || {
            let (status, batch) = self.get(&path).await;
            let is_final = ["completed", "failed", "expired", "cancelled"]
                .contains(&batch["status"].as_str().unwrap_or_default());
            (status == 200 && is_final).then_some(batch)
        })
        .await
    }

    pub async fn cancel_batch(&self, batch: &Value) -> (u16, Value) {
        self.post(&format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap()), json!({})).await
    }

    /// The content of a file.
    pub async fn content(&self, id: &Value) -> Vec<u8> {
        let path = format!("/v1/files/{}/content", id.as_str().unwrap());
        let answer = self.request(reqwest::Method::GET, &path).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap().to_vec()
    }
}

impl Env {
    /// Changes how an account treats the batches that are created from now on.
    pub fn treat_batches(&self, account: &str, change: impl FnOnce(&mut BatchSettings)) {
        let mut settings = self.sandbox.settings(account);
        change(&mut settings.batches);
        self.sandbox.configure(account, settings);
    }

    /// Waits until an account has as many batches.
    pub async fn has_batches(&self, account: &str, count: usize) {
        eventually(PATIENCE, async || (self.sandbox.batches(account).len() >= count).then_some(()))
            .await;
    }

    /// Makes the jobs of a kind due that rest.
    pub async fn bring_on(&self, kind: &str) {
        let sql = format!(
            "UPDATE jobs SET run_at = 0 WHERE kind = '{kind}' AND status IN ('queued', 'retrying')"
        );
        self.database.execute(&sql).await;
    }
}
