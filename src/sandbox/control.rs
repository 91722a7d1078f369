//! Scripting an account and reading its ledger over HTTP.

use std::sync::Arc;
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
use super::batches::{BatchEnd, BatchFile, PlantedBatch, StoredBatch};
use super::faults::FaultRule;
use super::files::StoredFile;
use super::ledger::Call;
use super::openai::unknown_path;
use super::purpose::Purpose;
use super::settings::Settings;

const MAX_BODY_BYTES: usize = 16 << 20;

/// The content of a batch's file.
const MAX_CONTENT_BYTES: usize = 512 << 20;

/// How long a control request's body may take.
const MAX_WAIT: Duration = Duration::from_mins(1);

#[derive(Serialize)]
struct LedgerAnswer {
    calls: Vec<Call>,
    files: Vec<StoredFile>,
    batches: Vec<StoredBatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plant {
    filename: String,
    purpose: Purpose,
    /// The contents as text.
    bytes: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    /// Null: the true one.
    status: Option<String>,
}

/// Carries out a control request; `rest` is the path after the account's name.
pub(super) async fn answer(
    account: Arc<Account>,
    method: &Method,
    rest: &str,
    body: Incoming,
) -> Result<Answer, Closed> {
    let segments: Vec<&str> = rest.splitn(4, '/').collect();
    let file = match (method, segments.as_slice()) {
        (&Method::PUT, ["batches", _, "output"]) => Some(BatchFile::Output),
        (&Method::PUT, ["batches", _, "error"]) => Some(BatchFile::Error),
        _ => None,
    };
    let max_bytes = if file.is_some() { MAX_CONTENT_BYTES } else { MAX_BODY_BYTES };
    let body = match read(body, max_bytes).await? {
        Ok(body) => body,
        Err(refusal) => return Ok(refusal),
    };
    let outcome = match (method, segments.as_slice()) {
        (_, ["batches", id, action]) => on_batch(account, method, id, action, file, body).await,
        _ => on_account(&account, method, rest, &body),
    };
    Ok(outcome.unwrap_or_else(|refusal| refusal))
}

fn on_account(
    account: &Arc<Account>,
    method: &Method,
    rest: &str,
    body: &[u8],
) -> Result<Answer, Answer> {
    match (method, rest) {
        (&Method::GET, "ledger") => {
            let (calls, files) = (account.calls(), account.files());
            let ledger = LedgerAnswer { calls, files, batches: account.batches() };
            Ok(Answer::json(StatusCode::OK, &ledger))
        }
        (&Method::GET, "stats") => Ok(Answer::json(StatusCode::OK, &account.stats())),
        (&Method::GET, "settings") => Ok(Answer::json(StatusCode::OK, &account.settings())),
        (&Method::PUT, "settings") => parse::<Settings>(body).map(|settings| {
            account.configure(settings.clone());
            Answer::json(StatusCode::OK, &settings)
        }),
        (&Method::POST, "faults") => parse::<FaultRule>(body).and_then(|rule| {
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
        (&Method::POST, "files/plant") => parse::<Plant>(body).map(|plant| {
            let bytes = Bytes::from(plant.bytes);
            Answer::json(StatusCode::OK, &account.plant(&plant.filename, plant.purpose, bytes))
        }),
        (&Method::POST, "batches/plant") => parse::<PlantedBatch>(body)
            .map(|plant| Answer::json(StatusCode::OK, &plant.plant(account))),
        (&Method::POST, "batches/release") => {
            account.release_batches();
            Ok(Answer::empty())
        }
        _ => Err(unknown_path(rest)),
    }
}

async fn on_batch(
    account: Arc<Account>,
    method: &Method,
    id: &str,
    action: &str,
    file: Option<BatchFile>,
    body: Bytes,
) -> Result<Answer, Answer> {
    let named = id.to_owned();
    let work: Box<dyn FnOnce() -> Option<StoredBatch> + Send> = match (method, action, file) {
        (_, _, Some(file)) => Box::new(move || account.set_batch_output(&named, file, body)),
        (&Method::POST, "end", None) => {
            let end = parse::<BatchEnd>(&body)?;
            Box::new(move || account.end_batch(&named, end))
        }
        (&Method::PUT, "status", None) => {
            let Shown { status } = parse(&body)?;
            Box::new(move || account.set_batch_status(&named, status))
        }
        (&Method::POST, "event", None) => Box::new(move || account.tell_again(&named)),
        _ => return Err(unknown_path(action)),
    };
    // Files of hundreds of megabytes are written and hashed there.
    let done = tokio::task::spawn_blocking(work).await;
    let batch = done.ok().flatten().ok_or_else(|| {
        let message = format!("there is no batch `{id}`");
        Answer::refusal(StatusCode::NOT_FOUND, &message, None, None)
    })?;
    Ok(Answer::json(StatusCode::OK, &batch))
}

async fn read(body: Incoming, max_bytes: usize) -> Result<Result<Bytes, Answer>, Closed> {
    match timeout(MAX_WAIT, Limited::new(body, max_bytes).collect()).await {
        Ok(Ok(whole)) => Ok(Ok(whole.to_bytes())),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body must be no longer than {max_bytes} bytes");
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
