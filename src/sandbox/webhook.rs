//! Tells a client of a batch's end, as OpenAI does: signed by Standard Webhooks, more than once if need be.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use reqwest::Client;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use sha2::Sha256;
use tokio::time::sleep;
use tracing::warn;

use super::account::Account;
use super::account::unix_now;

/// The waits between the attempts at one event.
const WAITS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where an account sends its events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    pub url: String,
    /// `whsec_` and base64; anything else is the key itself.
    pub secret: String,
}

/// Sends the event of a batch's end, if the account has a webhook.
pub(super) async fn tell(account: &Account, batch_id: &str) {
    let Some(webhook) = account.settings().webhook else { return };
    let Some(state) = account.batch_state(batch_id) else { return };
    let event = Event::new(&format!("batch.{}", state.as_str()), batch_id);
    let client = match Client::builder().timeout(PATIENCE).no_proxy().build() {
        Ok(client) => client,
        Err(error) => return warn!(%error, "cannot send events"),
    };
    for wait in [Duration::ZERO].into_iter().chain(WAITS) {
        sleep(wait).await;
        let is_taken = event.send(&client, &webhook).await;
        account.note(|ledger| ledger.event(is_taken));
        if is_taken {
            return;
        }
    }
}

/// An event on its way, the same at each attempt, and when it is sent again.
struct Event {
    id: String,
    body: String,
}

impl Event {
    fn new(kind: &str, batch_id: &str) -> Self {
        let body = json!({
            "id": format!("evt_{batch_id}"),
            "object": "event",
            "created_at": unix_now(),
            "type": kind,
            "data": {"id": batch_id},
        });
        Self { id: format!("wh_{batch_id}"), body: body.to_string() }
    }

    /// Whether the receiver took it.
    async fn send(&self, client: &Client, webhook: &Webhook) -> bool {
        let timestamp = unix_now().to_string();
        let signature = sign(&webhook.secret, &self.id, &timestamp, &self.body);
        let request = client
            .post(&webhook.url)
            .header("content-type", "application/json")
            .header("user-agent", "OpenAI/1.0 (+https://platform.openai.com/docs/webhooks)")
            .header("webhook-id", &self.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(self.body.clone());
        request.send().await.is_ok_and(|response| response.status().is_success())
    }
}

/// The value of `webhook-signature`.
fn sign(secret: &str, id: &str, timestamp: &str, body: &str) -> String {
    let key = secret
        .strip_prefix("whsec_")
        .and_then(|key| BASE64_STANDARD.decode(key).ok())
        .unwrap_or_else(|| secret.as_bytes().to_vec());
    let mut hmac = Hmac::<Sha256>::new_from_slice(&key).expect("a key of any length will do");
    for part in [id, ".", timestamp, ".", body] {
        hmac.update(part.as_bytes());
    }
    format!("v1,{}", BASE64_STANDARD.encode(hmac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_standard_webhooks_say() {
        let body = r#"{"id":"evt_vec1","object":"event","created_at":1793000000,"type":"batch.completed","data":{"id":"batch_6a41f09c77e84b1d"}}"#;
        let secret = "whsec_K5zEqdtHHb6QDwn75GmvMO/dinQPk44yUSCQP7J0M50=";
        assert_eq!(
            sign(secret, "wh_vec1", "1793000000", body),
            "v1,uIi95EOVB31N5jkTZgs21be6W6CkOCnSBieyw+zvYfU="
        );
    }
}
