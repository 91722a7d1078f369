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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &[u8]) -> Option<RemoteBatch> {
        batch(body, str::to_owned)
    }

    fn file(id: &str) -> Option<ProviderFileId> {
        Some(ProviderFileId(id.to_owned()))
    }

    #[test]
    fn a_batch_object_is_read_whole() {
        let expected = RemoteBatch {
            id: ProviderBatchId("batch_6a41f09c77e84b1d".to_owned()),
            state: RemoteBatchState::Completed,
            status: "completed".to_owned(),
            endpoint: "/v1/chat/completions".to_owned(),
            completion_window: "24h".to_owned(),
            input_file_id: file("file-Qm4tZ9wK2bX7"),
            output_file_id: file("file-Out5hR8yLp3"),
            error_file_id: file("file-Err1dC6vNs0"),
            marker: None,
            created_at: Some(1_793_000_010),
            in_progress_at: Some(1_793_000_040),
            expires_at: Some(1_793_086_410),
            finalizing_at: Some(1_793_003_000),
            completed_at: Some(1_793_003_020),
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            counts: Some(RemoteCounts { total: 3, completed: 2, failed: 1 }),
            errors: Vec::new(),
            model: Some("gpt-test-mini".to_owned()),
        };
        assert_eq!(read(include_bytes!("../fixtures/openai-batch-completed.json")), Some(expected));
    }

    #[test]
    fn every_documented_state_is_known_and_its_files_are_told() {
        use RemoteBatchState::*;
        macro_rules! fixture {
            ($name:literal) => {
                read(include_bytes!(concat!("../fixtures/openai-batch-", $name, ".json"))).unwrap()
            };
        }
        let table = [
            (fixture!("validating"), Validating, false, false),
            (fixture!("in-progress"), InProgress, false, false),
            (fixture!("completed"), Completed, true, true),
            (fixture!("completed-all-lines-failed"), Completed, false, true),
            (fixture!("failed-validation"), Failed, false, false),
            (fixture!("expired"), Expired, true, true),
            (fixture!("cancelling"), Cancelling, false, false),
            (fixture!("cancelled"), Cancelled, true, false),
        ];
        for (batch, state, has_output, has_errors) in table {
            assert_eq!(batch.state, state);
            assert_eq!(batch.output_file_id.is_some(), has_output, "{state:?}");
            assert_eq!(batch.error_file_id.is_some(), has_errors, "{state:?}");
        }
    }

    #[test]
    fn why_a_batch_failed_is_told_line_by_line() {
        let body = include_bytes!("../fixtures/openai-batch-failed-validation.json");
        let errors = read(body).unwrap().errors;
        let told: Vec<_> =
            errors.iter().map(|error| (error.code.as_deref().unwrap(), error.line)).collect();
        assert_eq!(told, [("invalid_json_line", Some(2)), ("duplicate_custom_id", Some(3))]);
        assert_eq!(errors[1].param.as_deref(), Some("custom_id"));
        assert_eq!(errors[1].message.as_deref(), Some("custom_id t-1 is used twice."));

        let body = include_bytes!("../fixtures/openai-batch-failed-token-limit.json");
        let errors = read(body).unwrap().errors;
        assert_eq!(errors[0].code.as_deref(), Some("token_limit_exceeded"));

        let plain = r#"{"id":"b","object":"batch","status":"failed","errors":[{"code":429},7]}"#;
        let coded = RemoteBatchError { code: Some("429".to_owned()), ..Default::default() };
        assert_eq!(read(plain.as_bytes()).unwrap().errors, [coded, RemoteBatchError::default()]);
    }

    #[test]
    fn a_batch_that_says_little_or_says_it_oddly_is_still_a_batch() {
        let little = read(br#"{"id":"b","status":"Canceled","endpoint":"/v1/responses"}"#).unwrap();
        assert_eq!((little.state, little.counts), (RemoteBatchState::Cancelled, None));
        assert_eq!(little.status, "Canceled");

        let odd =
            br#"{"id":"b","object":"batch","status":"paused","created_at":"2026-01-01T00:00:00Z",
            "expires_at":0,"completed_at":1793003020.0,"request_counts":{"total":3.0,"failed":null},
            "metadata":{"longshore":"m"},"errors":{},"output_file_id":"","model":7}"#;
        let odd = read(odd).unwrap();
        assert_eq!((odd.state, odd.status.as_str()), (RemoteBatchState::Unknown, "paused"));
        assert_eq!((odd.created_at, odd.expires_at), (None, None));
        assert_eq!(odd.completed_at, Some(1_793_003_020));
        assert_eq!(odd.counts, Some(RemoteCounts { total: 3, completed: 0, failed: 0 }));
        assert_eq!((odd.marker.as_deref(), odd.output_file_id, odd.model), (Some("m"), None, None));

        let capitals = include_bytes!("../fixtures/azure-batch-odd-types.json");
        assert_eq!(read(capitals).unwrap().counts, None);
    }

    #[test]
    fn what_is_not_a_batch_is_not_taken_for_one() {
        for body in [
            "",
            "null",
            "<html></html>",
            r#"{"ok":true}"#,
            r#"{"id":"req-1","status":"ok"}"#,
            r#"{"id":"f","object":"file","status":"processed"}"#,
            r#"{"id":"b","object":"batch"}"#,
            r#"{"object":"batch","status":"completed"}"#,
            r#"{"id":"","object":"batch","status":"completed"}"#,
            r#"{"id":"b\u0000","object":"batch","status":"completed"}"#,
            r#"{"id":"b","object":"batch","status":""}"#,
            r#"{"id":"b","object":"batch","status":null}"#,
            r#"{"id":"b","object":"batch","status":"completed""#,
        ] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_page_is_whole_or_none() {
        let page = |body: &str| batch_page(body.as_bytes(), str::to_owned);
        let first = page(include_str!("../fixtures/openai-batch-list.json")).unwrap();
        assert_eq!((first.batches.len(), first.next), (2, None));

        let one = r#"{"id":"b","object":"batch","status":"completed"}"#;
        let next = |rest: &str| page(&format!(r#"{{"data":[{one}]{rest}}}"#)).unwrap().next;
        assert_eq!(next(""), Some(ProviderBatchId("b".to_owned())));
        assert_eq!(next(r#","has_more":false"#), None);
        assert_eq!(page(r#"{"data":[],"has_more":true}"#).unwrap().next, None);
        for body in [
            format!(r#"{{"data":[{one},{{"id":"c","object":"batch"}}]}}"#),
            r#"{"data":null}"#.to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(page(&body), None, "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_body_makes_a_reader_panic(body in "[\\[\\]{}:,\"a-z0-9.e-]{0,80}") {
            let _ = (read(body.as_bytes()), batch_page(body.as_bytes(), str::to_owned));
        }
    }
}
