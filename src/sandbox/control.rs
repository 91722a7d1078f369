//! Scripting an account and reading its ledger over HTTP.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::account::Account;
use super::answer::{Answer, Closed};
use super::faults::FaultRule;
use super::files::StoredFile;
use super::ledger::Call;
use super::openai::unknown_path;
use super::purpose::Purpose;
use super::settings::Settings;

const MAX_BODY_BYTES: usize = 16 << 20;

/// How long a control request's body may take.
const MAX_WAIT: Duration = Duration::from_mins(1);

#[derive(Serialize)]
struct LedgerAnswer {
    calls: Vec<Call>,
    files: Vec<StoredFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plant {
    filename: String,
    purpose: Purpose,
    /// The contents as text.
    bytes: String,
}

/// Carries out a control request; `rest` is the path after the account's name.
pub(super) async fn answer(
    account: &Account,
    method: &Method,
    rest: &str,
    body: Incoming,
) -> Result<Answer, Closed> {
    let body = match read(body).await? {
        Ok(body) => body,
        Err(refusal) => return Ok(refusal),
    };
    let outcome = match (method, rest) {
        (&Method::GET, "ledger") => {
            let ledger = LedgerAnswer { calls: account.calls(), files: account.files() };
            Ok(Answer::json(StatusCode::OK, &ledger))
        }
        (&Method::GET, "stats") => Ok(Answer::json(StatusCode::OK, &account.stats())),
        (&Method::PUT, "settings") => parse::<Settings>(&body).map(|settings| {
            account.configure(settings.clone());
            Answer::json(StatusCode::OK, &settings)
        }),
        (&Method::POST, "faults") => parse::<FaultRule>(&body).and_then(|rule| {
            account.add_fault(rule).map_err(|error| refusal(&error.to_string()))?;
            Ok(Answer::empty())
        }),
        (&Method::DELETE, "faults") => {
            account.clear_faults();
            Ok(Answer::empty())
        }
        (&Method::POST, "release") => {
            account.release();
            Ok(Answer::empty())
        }
        (&Method::POST, "files/plant") => parse::<Plant>(&body).map(|plant| {
            let bytes = Bytes::from(plant.bytes);
            Answer::json(StatusCode::OK, &account.plant(&plant.filename, plant.purpose, bytes))
        }),
        _ => Err(unknown_path(rest)),
    };
    Ok(outcome.unwrap_or_else(|refusal| refusal))
}

async fn read(body: Incoming) -> Result<Result<Bytes, Answer>, Closed> {
    match timeout(MAX_WAIT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
        Ok(Ok(whole)) => Ok(Ok(whole.to_bytes())),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body must be no longer than {MAX_BODY_BYTES} bytes");
            Ok(Err(refusal(&message)))
        }
        Ok(Err(_)) | Err(_) => Err(Closed),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    serde_json::from_slice(body).map_err(|error| refusal(&format!("the body is no good: {error}")))
}

fn refusal(message: &str) -> Answer {
    Answer::refusal(StatusCode::BAD_REQUEST, message, None, None)
}
