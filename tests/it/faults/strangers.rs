//! Files of others in the same accounts, and reconciliation, which deletes by a provider's list and must leave them.

use std::time::Duration;
use std::time::Instant;

use longshore::mappings;
use longshore::mappings::INSTALLATION_LENGTH;
use longshore::mappings::Marker;
use longshore::sandbox::Purpose;
use longshore::sandbox::StoredFile;
use reqwest::Method;
use serde_json::json;

use super::fleet::Fleet;
use super::fleet::MODELS;
use super::history::History;
use super::rows::Rows;
use crate::support::ADMIN_KEY;
use crate::support::Client;

/// How long a reconciliation may take while nothing is in its way.
const PASS: Duration = Duration::from_secs(60);

/// What was at the providers before anything else.
pub struct Strangers(Vec<(&'static str, StoredFile)>);

impl Strangers {
    /// At each provider: a file without a marker, one with another installation's, and one with a marker of ours that
    /// the database does not know.
    pub async fn plant(fleet: &Fleet) -> Self {
        let rows = Rows::of(fleet).await;
        let ours = rows.texts("SELECT id FROM installation").await.remove(0);
        let mut planted = Vec::new();
        for model in MODELS {
            let others = Marker::mint(&mappings::random(INSTALLATION_LENGTH));
            let unknown = Marker::mint(&ours);
            let name = "stranger.txt";
            for name in [name.to_owned(), others.mark(name), unknown.mark(name)] {
                let bytes = name.clone().into_bytes().into();
                let file = fleet.sandbox.plant(model, &name, Purpose::UserData, bytes);
                planted.push((model, file));
            }
        }
        Self(planted)
    }

    pub fn at(&self, model: &str) -> impl Iterator<Item = &StoredFile> {
        self.0.iter().filter(move |(at, _)| *at == model).map(|(_, file)| file)
    }
}

/// Asks for a reconciliation of each provider, whoever answers.
pub async fn ask(clients: Vec<Client>) {
    for client in clients {
        let admin = client.with_key(ADMIN_KEY);
        for model in MODELS {
            let request = admin.request(Method::POST, &path(model));
            let answer = request.timeout(Duration::from_secs(2)).send().await;
            if !answer.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
        }
    }
}

fn path(model: &str) -> String {
    format!("/v1/admin/providers/at-{model}/reconcile")
}

/// Reconciles each provider while all is at rest: everything there is known, or a stranger's.
pub async fn reconcile(client: &Client, history: &History) {
    let admin = client.with_key(ADMIN_KEY);
    for model in MODELS {
        history.checked("provider reconciled");
        let (status, asked) = admin.post(&path(model), json!({})).await;
        let Some(id) = asked["id"].as_str().filter(|_| status == 200) else {
            history.violation(format_args!("reconciliation of `{model}`: {status} {asked}"));
            continue;
        };
        let (path, begun) = (format!("/v1/admin/reconciliations/{id}"), Instant::now());
        let ended = loop {
            let (_, body) = admin.get(&path).await;
            if !body["finished_at"].is_null() || begun.elapsed() > PASS {
                break body;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let report = &ended["report"];
        let is_right = ended["status"] == "succeeded"
            && report["unknown"] == 1
            && report["stopped"].is_null()
            && ["left", "superfluous", "deleted", "failed", "missing", "lost"]
                .iter()
                .all(|count| report[count] == 0);
        if !is_right {
            history.violation(format_args!("reconciliation of `{model}` at rest: {ended}"));
        }
    }
}
