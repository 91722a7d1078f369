//! The batches API in OpenAI's shapes, as it works when nothing goes wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Query;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::Uri;
use serde::Deserialize;
use serde::Serialize;

use super::Input;
use super::NewBatch;
use super::StoredBatch;
use crate::sandbox::Purpose;
use crate::sandbox::account::Account;
use crate::sandbox::answer::Answer;

const MAX_LIMIT: usize = 100;
const DEFAULT_LIMIT: usize = 20;

const MAX_METADATA: usize = 16;
const MAX_KEY_CHARS: usize = 64;
const MAX_VALUE_CHARS: usize = 512;

const LIFE_SECONDS: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

const ENDPOINTS: [&str; 8] = [
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBatch {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    metadata: Option<BTreeMap<String, String>>,
    output_expires_after: Option<OutputExpiry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputExpiry {
    anchor: String,
    seconds: u64,
}

#[derive(Serialize)]
struct BatchList {
    object: &'static str,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
    data: Vec<StoredBatch>,
}

#[derive(Deserialize)]
struct ListQuery {
    after: Option<String>,
    limit: Option<String>,
}

/// Creates a batch; gives its id along with the answer.
pub(in crate::sandbox) async fn create(
    account: &Arc<Account>,
    body: &[u8],
) -> (Answer, Option<String>) {
    match try_create(account, body).await {
        Ok(batch) => (Answer::json(StatusCode::OK, &batch), Some(batch.id)),
        Err(refusal) => (refusal, None),
    }
}

async fn try_create(account: &Arc<Account>, body: &[u8]) -> Result<StoredBatch, Answer> {
    let asked: CreateBatch = serde_json::from_slice(body)
        .map_err(|error| refusal(&format!("the body is no good: {error}")))?;
    check(&asked)?;
    let content = input(account, &asked.input_file_id)?;
    let (endpoint, max_requests) =
        (asked.endpoint.clone(), account.settings().batches.max_requests);
    let reading =
        tokio::task::spawn_blocking(move || Input::read(&content, &endpoint, max_requests));
    // Fails only at the end of the runtime.
    let input = reading.await.unwrap_or_default();
    account.create_batch(NewBatch {
        input_file_id: asked.input_file_id,
        input,
        endpoint: asked.endpoint,
        metadata: asked.metadata,
        output_life_seconds: asked.output_expires_after.map(|expiry| expiry.seconds),
    })
}

fn check(asked: &CreateBatch) -> Result<(), Answer> {
    if !ENDPOINTS.contains(&asked.endpoint.as_str()) {
        let message = format!("`{}` is no endpoint of batches", asked.endpoint);
        return Err(Answer::invalid(&message, "endpoint"));
    }
    if asked.completion_window != "24h" {
        let message = format!("`{}` is no window, use `24h`", asked.completion_window);
        return Err(Answer::invalid(&message, "completion_window"));
    }
    let is_short = |text: &str, most: usize| text.chars().count() <= most;
    let metadata = asked.metadata.iter().flatten();
    if metadata.clone().count() > MAX_METADATA
        || !metadata
            .clone()
            .all(|(key, value)| is_short(key, MAX_KEY_CHARS) && is_short(value, MAX_VALUE_CHARS))
    {
        let message = format!(
            "`metadata` must have no more than {MAX_METADATA} pairs, of {MAX_KEY_CHARS} and \
             {MAX_VALUE_CHARS} characters"
        );
        return Err(Answer::invalid(&message, "metadata"));
    }
    match &asked.output_expires_after {
        Some(expiry)
            if expiry.anchor != "created_at" || !LIFE_SECONDS.contains(&expiry.seconds) =>
        {
            let (least, most) = (LIFE_SECONDS.start(), LIFE_SECONDS.end());
            let message =
                format!("it must be {least} to {most} seconds from the anchor `created_at`");
            Err(Answer::invalid(&message, "output_expires_after"))
        }
        _ => Ok(()),
    }
}

/// The content of a file that can be the input of a batch.
fn input(account: &Account, id: &str) -> Result<Bytes, Answer> {
    let Some((file, content)) = account.content(id) else {
        let message = format!("No such File object: {id}");
        let param = Some("input_file_id");
        return Err(Answer::refusal(StatusCode::NOT_FOUND, &message, param, None));
    };
    if file.purpose != Purpose::Batch {
        let message = format!("`{id}` has the purpose `{}`, not `batch`", file.purpose.as_str());
        return Err(Answer::invalid(&message, "input_file_id"));
    }
    content.ok_or_else(|| {
        let message = format!(
            "the {} bytes of `{id}` were not kept, raise `keep_bytes` or `keep_total_bytes` in the \
             account's settings before the upload",
            file.bytes
        );
        Answer::invalid(&message, "input_file_id")
    })
}

pub(in crate::sandbox) fn get(account: &Account, id: &str) -> Answer {
    account.batch(id).map_or_else(|| not_found(id), |batch| Answer::json(StatusCode::OK, &batch))
}

pub(in crate::sandbox) fn cancel(account: &Account, id: &str) -> Answer {
    match account.cancel_batch(id) {
        None => not_found(id),
        Some((batch, true)) => Answer::json(StatusCode::OK, &batch),
        Some((batch, false)) => {
            let message = format!("Cannot cancel a batch with status '{}'.", batch.status);
            Answer::refusal(StatusCode::CONFLICT, &message, None, None)
        }
    }
}

pub(in crate::sandbox) fn list(account: &Account, uri: &Uri) -> Answer {
    try_list(account, uri).unwrap_or_else(|refusal| refusal)
}

fn try_list(account: &Account, uri: &Uri) -> Result<Answer, Answer> {
    let Query(query) = Query::<ListQuery>::try_from_uri(uri)
        .map_err(|rejection| refusal(&rejection.body_text()))?;
    let limit = parse_limit(query.limit.as_deref())?;
    let after = query.after.as_deref();
    let page = account.batch_page(after, limit).ok_or_else(|| {
        let message = format!("`{}` is no batch to list after", after.unwrap_or_default());
        Answer::invalid(&message, "after")
    })?;
    let answer = BatchList {
        object: "list",
        first_id: page.batches.first().map(|batch| batch.id.clone()),
        last_id: page.batches.last().map(|batch| batch.id.clone()),
        has_more: page.has_more,
        data: page.batches,
    };
    Ok(Answer::json(StatusCode::OK, &answer))
}

fn parse_limit(limit: Option<&str>) -> Result<usize, Answer> {
    let Some(text) = limit else { return Ok(DEFAULT_LIMIT) };
    match text.parse() {
        Ok(number) if (1..=MAX_LIMIT).contains(&number) => Ok(number),
        _ => {
            let message = format!("`{text}` must be a number from 1 to {MAX_LIMIT}");
            Err(Answer::invalid(&message, "limit"))
        }
    }
}

fn refusal(message: &str) -> Answer {
    Answer::refusal(StatusCode::BAD_REQUEST, message, None, None)
}

fn not_found(id: &str) -> Answer {
    let message = format!("No batch found with id '{id}'.");
    Answer::refusal(StatusCode::NOT_FOUND, &message, Some("id"), None)
}
