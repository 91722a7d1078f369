//! OpenAI's JSON of batches.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::Loose;
use super::text;
use super::time;
use super::whole;
use crate::providers::BatchPage;
use crate::providers::NewBatch;
use crate::providers::ProviderBatchId;
use crate::providers::ProviderFileId;
use crate::providers::RemoteBatch;
use crate::providers::RemoteBatchError;
use crate::providers::RemoteBatchState;
use crate::providers::RemoteCounts;

/// The key of our marker among a batch's metadata.
const MARKER: &str = "longshore";

/// The request that creates `batch`, whose output lives for `output_life`.
pub(in crate::providers::openai) fn new_batch(
    batch: &NewBatch,
    output_life: Option<Duration>,
) -> Bytes {
    let mut body = json!({
        "input_file_id": batch.input_file_id,
        "endpoint": batch.endpoint,
        "completion_window": batch.completion_window,
        "metadata": {MARKER: batch.marker},
    });
    if let Some(life) = output_life {
        body["output_expires_after"] = json!({"anchor": "created_at", "seconds": life.as_secs()});
    }
    body.to_string().into()
}

/// `presentable` makes texts fit to be stored and shown.
pub(in crate::providers::openai) fn batch(
    body: &[u8],
    presentable: impl Fn(&str) -> String,
) -> Option<RemoteBatch> {
    serde_json::from_slice::<BatchObject>(body).ok()?.into_batch(&presentable)
}

/// The page, or none if any entry cannot be read: callers conclude from an entry's absence.
pub(in crate::providers::openai) fn batch_page(
    body: &[u8],
    presentable: impl Fn(&str) -> String,
) -> Option<BatchPage> {
    let BatchList { data, has_more } = serde_json::from_slice(body).ok()?;
    let read = |batch: BatchObject| batch.into_batch(&presentable);
    let batches: Vec<_> = data.into_iter().map(read).collect::<Option<_>>()?;
    // Where the server does not say, there may be more until a page is empty.
    let more = has_more.and_then(Loose::value).unwrap_or(true);
    let next = batches.last().filter(|_| more).map(|batch| batch.id.clone());
    Some(BatchPage { batches, next })
}

#[derive(Deserialize)]
struct BatchList {
    data: Vec<BatchObject>,
    has_more: Option<Loose<bool>>,
}

#[derive(Deserialize)]
struct BatchObject {
    id: String,
    status: String,
    object: Option<Loose<String>>,
    endpoint: Option<Loose<String>>,
    completion_window: Option<Loose<String>>,
    model: Option<Loose<String>>,
    input_file_id: Option<Loose<String>>,
    output_file_id: Option<Loose<String>>,
    error_file_id: Option<Loose<String>>,
    created_at: Option<Loose<f64>>,
    in_progress_at: Option<Loose<f64>>,
    expires_at: Option<Loose<f64>>,
    finalizing_at: Option<Loose<f64>>,
    completed_at: Option<Loose<f64>>,
    failed_at: Option<Loose<f64>>,
    expired_at: Option<Loose<f64>>,
    cancelling_at: Option<Loose<f64>>,
    cancelled_at: Option<Loose<f64>>,
    request_counts: Option<Loose<CountsObject>>,
    errors: Option<Value>,
    metadata: Option<Loose<Map<String, Value>>>,
}

#[derive(Deserialize)]
struct CountsObject {
    total: Option<Loose<f64>>,
    completed: Option<Loose<f64>>,
    failed: Option<Loose<f64>>,
}

impl BatchObject {
    /// None where this is no batch: without an id and a status, or without anything else that only a
    /// batch has.
    fn into_batch(self, presentable: &impl Fn(&str) -> String) -> Option<RemoteBatch> {
        let endpoint = self.endpoint.and_then(Loose::value);
        let input_file_id = file_id(self.input_file_id);
        let is_batch = match self.object.and_then(Loose::value) {
            Some(object) => object == "batch",
            None => endpoint.is_some() || input_file_id.is_some(),
        };
        if !is_batch || !is_name(&self.id) || self.status.is_empty() {
            return None;
        }
        let shown = |text: Option<Loose<String>>| {
            text.and_then(Loose::value).map(|text| presentable(&text))
        };
        Some(RemoteBatch {
            id: ProviderBatchId(self.id),
            state: state(&self.status),
            status: presentable(&self.status),
            endpoint: presentable(&endpoint.unwrap_or_default()),
            completion_window: shown(self.completion_window).unwrap_or_default(),
            input_file_id,
            output_file_id: file_id(self.output_file_id),
            error_file_id: file_id(self.error_file_id),
            marker: self.metadata.and_then(Loose::value).and_then(|map| text(map.get(MARKER))),
            created_at: time(self.created_at),
            in_progress_at: time(self.in_progress_at),
            expires_at: time(self.expires_at),
            finalizing_at: time(self.finalizing_at),
            completed_at: time(self.completed_at),
            failed_at: time(self.failed_at),
            expired_at: time(self.expired_at),
            cancelling_at: time(self.cancelling_at),
            cancelled_at: time(self.cancelled_at),
            counts: self.request_counts.and_then(Loose::value).and_then(counts),
            errors: errors(self.errors.as_ref(), presentable),
            model: shown(self.model).filter(|model| !model.is_empty()),
        })
    }
}

/// Whether `text` can name something: it is stored, and becomes part of an address.
fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}

fn file_id(value: Option<Loose<String>>) -> Option<ProviderFileId> {
    value.and_then(Loose::value).filter(|id| is_name(id)).map(ProviderFileId)
}

fn state(status: &str) -> RemoteBatchState {
    match status.to_ascii_lowercase().as_str() {
        "validating" => RemoteBatchState::Validating,
        "in_progress" => RemoteBatchState::InProgress,
        "finalizing" => RemoteBatchState::Finalizing,
        "completed" => RemoteBatchState::Completed,
        "failed" => RemoteBatchState::Failed,
        "expired" => RemoteBatchState::Expired,
        "cancelling" | "canceling" => RemoteBatchState::Cancelling,
        "cancelled" | "canceled" => RemoteBatchState::Cancelled,
        _ => RemoteBatchState::Unknown,
    }
}

/// None where there is no number at all.
fn counts(object: CountsObject) -> Option<RemoteCounts> {
    let [total, completed, failed] =
        [object.total, object.completed, object.failed].map(|count| count.and_then(whole));
    total.or(completed).or(failed)?;
    Some(RemoteCounts {
        total: total.unwrap_or_default(),
        completed: completed.unwrap_or_default(),
        failed: failed.unwrap_or_default(),
    })
}

/// `{"object":"list","data":[…]}`, and a plain array from servers that have not read so far.
fn errors(value: Option<&Value>, presentable: &impl Fn(&str) -> String) -> Vec<RemoteBatchError> {
    let list = match value {
        Some(Value::Object(object)) => object.get("data").and_then(Value::as_array),
        Some(Value::Array(list)) => Some(list),
        _ => None,
    };
    let shown = |value: Option<&Value>| text(value).map(|text| presentable(&text));
    let error = |error: &Value| RemoteBatchError {
        code: shown(error.get("code")),
        message: shown(error.get("message")),
        param: shown(error.get("param")),
        line: error.get("line").and_then(Value::as_u64),
    };
    list.into_iter().flatten().map(error).collect()
}
