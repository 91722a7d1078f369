//! What a test of faults does with an installation: script its providers, wait for a moment, bring on
//! what is minutes away, and look whether all is whole in the end.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use reqwest::Method;
use serde_json::Value;

use super::ADMIN_KEY;
use super::Env;
use super::client::answer;
use super::eventually;

/// A file's mapping for a model.
pub fn mapping<'f>(file: &'f Value, model: &str) -> &'f Value {
    let mappings = file["mappings"].as_array().unwrap();
    mappings.iter().find(|mapping| mapping["model"] == model).unwrap()
}

/// A fault that answers with a status and headers, without the call's effect.
pub fn status(status: u16, headers: &[(&str, &str)], body: Value) -> Fault {
    let headers: BTreeMap<_, _> =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Fault::Status { status, headers, body, drain: true }
}

impl Env {
    /// What the next upload to an account meets.
    pub fn spoil(&self, account: &str, fault: Fault) {
        self.spoil_as(account, FaultRule::new(Operation::Upload, fault));
    }

    pub fn spoil_as(&self, account: &str, rule: FaultRule) {
        self.sandbox.add_fault(account, rule).unwrap();
    }

    /// Waits until the sandbox keeps as many calls to the account waiting.
    pub async fn held(&self, account: &str, count: u64) {
        let patience = Duration::from_secs(30);
        eventually(patience, async || (self.sandbox.stats(account).held >= count).then_some(()))
            .await;
    }

    /// How many calls of an operation have reached an account.
    pub fn calls(&self, account: &str, operation: Operation) -> u64 {
        self.sandbox.stats(account).calls.get(&operation).copied().unwrap_or(0)
    }

    pub async fn job(&self, mapping: &Value) -> Value {
        let (status, job) =
            self.client.get(&format!("/v1/jobs/{}", mapping["job_id"].as_str().unwrap())).await;
        assert_eq!(status, 200, "{job}");
        job
    }

    /// How each ended attempt at a mapping's upload ended.
    pub async fn outcomes(&self, mapping: &Value) -> Vec<String> {
        let path = format!("/v1/jobs/{}/attempts", mapping["job_id"].as_str().unwrap());
        let (status, list) = self.client.get(&path).await;
        assert_eq!(status, 200, "{list}");
        let attempts = list["data"].as_array().unwrap();
        attempts.iter().map(|attempt| attempt["outcome"].as_str().unwrap().to_owned()).collect()
    }

    /// `pause` or `resume` of an account's provider.
    pub async fn lane(&self, account: &str, action: &str) {
        let admin = self.as_key(ADMIN_KEY);
        let path = format!("/v1/admin/providers/at-{account}/{action}");
        let (status, text) = answer(admin.request(Method::POST, &path).send().await.unwrap()).await;
        assert_eq!(status, 200, "{text}");
    }

    /// What the admin's list says of an account's provider.
    pub async fn provider(&self, account: &str) -> Value {
        let (status, list) = self.as_key(ADMIN_KEY).get("/v1/admin/providers").await;
        assert_eq!(status, 200, "{list}");
        let name = format!("at-{account}");
        let providers = list["data"].as_array().unwrap();
        providers.iter().find(|provider| provider["id"] == name.as_str()).unwrap().clone()
    }

    /// Brings on every look after an upload with an unknown outcome, and waits until no job is left.
    pub async fn quiet(&self) {
        self.quiet_but(0).await;
    }

    /// As `quiet`, where so many jobs are left to others.
    pub async fn quiet_but(&self, others: i64) {
        eventually(Duration::from_secs(60), async || {
            self.database
                .execute(
                    "UPDATE jobs SET run_at = 0 WHERE kind = 'verify_upload' AND status IN ('queued', 'retrying')",
                )
                .await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let left = "SELECT count(*) FROM jobs WHERE finished_at IS NULL";
            (self.database.count(left).await == others).then_some(())
        })
        .await;
    }

    /// The file has one live copy at the account of each of its models, and it is the mapping's.
    pub fn assert_one_copy(&self, file: &Value) {
        for mapping in file["mappings"].as_array().unwrap() {
            let account = mapping["model"].as_str().unwrap();
            let live = self.sandbox.live_files(account);
            assert_eq!(live.len(), 1, "{account}: {live:?}\n{file}");
            assert_eq!(mapping["provider_file_id"], live[0].id.as_str(), "{file}");
        }
    }
}
