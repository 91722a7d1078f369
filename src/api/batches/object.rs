//! The batch object: OpenAI's, with what is ours added.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use crate::api::description::described;
use crate::api::description::words;
use crate::app::App;
use crate::batches::BatchStatus;
use crate::batches::store::Batch;
use crate::batches::store::BatchView;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::files::store::Metadata;
use crate::jobs::Failure;
use crate::jobs::lanes::NOT_CONFIGURED;
use crate::runs::RunStatus;
use crate::runs::Usage;
use crate::runs::store::Run;

/// A batch, and how far its runs are.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Batch)]
pub struct BatchObject {
    /// Opaque, and longer than OpenAI's.
    pub id: String,
    #[schema(schema_with = is_batch)]
    object: &'static str,
    /// Where each request goes. Empty for an imported batch that its provider has not shown yet.
    endpoint: String,
    /// What a provider found wrong with the input, and what kept a run from its provider.
    #[schema(required = true)]
    errors: Option<BatchErrors>,
    /// Of an imported batch whose input is no file here: the provider's own id.
    input_file_id: String,
    completion_window: String,
    #[schema(schema_with = statuses)]
    status: String,
    /// The results, once the status is final. Of several runs: all of them, each line with its `model`.
    #[schema(required = true)]
    output_file_id: Option<String>,
    /// Likewise, of requests that failed without an answer.
    #[schema(required = true)]
    error_file_id: Option<String>,
    created_at: i64,
    #[schema(required = true)]
    in_progress_at: Option<i64>,
    #[schema(required = true)]
    expires_at: Option<i64>,
    #[schema(required = true)]
    finalizing_at: Option<i64>,
    #[schema(required = true)]
    completed_at: Option<i64>,
    #[schema(required = true)]
    failed_at: Option<i64>,
    #[schema(required = true)]
    expired_at: Option<i64>,
    #[schema(required = true)]
    cancelling_at: Option<i64>,
    #[schema(required = true)]
    cancelled_at: Option<i64>,
    request_counts: Counts,
    /// Once the results are here.
    #[schema(required = true)]
    usage: Option<Usage>,
    #[schema(required = true, value_type = Option<BTreeMap<String, String>>)]
    metadata: Option<Metadata>,
    /// One for each deployment.
    runs: Vec<RunObject>,
}

/// As OpenAI lists what is wrong with a batch.
#[derive(Debug, Serialize, ToSchema)]
struct BatchErrors {
    #[schema(schema_with = is_list)]
    object: &'static str,
    #[schema(value_type = Vec<BatchError>)]
    data: Vec<Value>,
}

/// One reason.
#[derive(Debug, Serialize, ToSchema)]
struct BatchError {
    #[schema(required = true)]
    code: Option<String>,
    #[schema(required = true)]
    message: Option<String>,
    #[schema(required = true)]
    param: Option<String>,
    /// Of the input; the first is 1.
    #[schema(required = true)]
    line: Option<u64>,
}

/// Requests. Before the results are here they are the provider's own count.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchRequestCounts)]
struct Counts {
    total: i64,
    completed: i64,
    failed: i64,
}

/// A batch at one deployment.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchRun)]
struct RunObject {
    /// The model, as clients name it.
    model: String,
    deployment_id: String,
    /// The provider, as it is named in the configuration.
    provider: String,
    #[schema(schema_with = run_statuses)]
    status: String,
    /// The provider's own id of the batch, once there is one.
    #[schema(required = true)]
    provider_batch_id: Option<String>,
    request_counts: Counts,
    #[schema(required = true)]
    usage: Option<Usage>,
    #[schema(required = true)]
    output_file_id: Option<String>,
    #[schema(required = true)]
    error_file_id: Option<String>,
    /// The last failure, also while it is still being retried.
    #[schema(required = true)]
    error: Option<Failure>,
    /// Lines of the output that are not as they should be. They are kept, and count as nothing else.
    irregular_lines: Irregular,
    /// What a run that is not at its provider yet waits for: `upload` for its input, `capacity` for room at the
    /// provider, `outcome` for certainty about a create whose answer was lost, or why the provider is left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = String)]
    blocked_by: Option<String>,
    /// Until when, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, value_type = i64)]
    retry_at: Option<i64>,
}

/// Lines of an output that are not as they should be.
#[derive(Debug, Serialize, ToSchema)]
struct Irregular {
    /// No result at all.
    broken: i64,
    /// With a `custom_id` that an earlier line has.
    duplicate: i64,
    /// With a `custom_id` that the input does not have.
    unknown: i64,
}

fn is_batch() -> Object {
    words(["batch"])
}

fn is_list() -> Object {
    words(["list"])
}

pub fn statuses() -> Object {
    let text =
        "`finalizing` while the results are fetched. Of several runs: how the best of them ended.";
    described(words(BatchStatus::ALL.map(BatchStatus::as_str)), text)
}

fn run_statuses() -> Object {
    let text = "As a batch's. With `needs_attention` nobody here can find out whether the provider has the batch; \
                `error` says what to do.";
    described(words(RunStatus::ALL.map(RunStatus::as_str)), text)
}

impl BatchObject {
    pub fn new(app: &App, view: BatchView) -> Result<Self, Error> {
        let BatchView { batch, runs } = view;
        let ended_as = |as_this: BatchStatus| {
            batch.ended_at.filter(|_| batch.status == as_this.as_str()).map(Timestamp::unix_seconds)
        };
        let seconds = |at: Option<Timestamp>| at.map(Timestamp::unix_seconds);
        Ok(Self {
            object: "batch",
            errors: errors(&batch)?,
            status: batch.status.clone(),
            created_at: batch.created_at.unix_seconds(),
            in_progress_at: seconds(batch.in_progress_at),
            expires_at: seconds(batch.expires_at),
            finalizing_at: seconds(batch.finalizing_at),
            completed_at: ended_as(BatchStatus::Completed),
            failed_at: ended_as(BatchStatus::Failed),
            expired_at: ended_as(BatchStatus::Expired),
            cancelling_at: seconds(batch.cancelling_at),
            cancelled_at: ended_as(BatchStatus::Cancelled),
            request_counts: Counts {
                total: batch.total,
                completed: batch.completed,
                failed: batch.failed,
            },
            usage: batch.usage(),
            metadata: batch.metadata(),
            runs: runs.into_iter().map(|run| RunObject::new(app, run)).collect(),
            id: batch.managed_id,
            endpoint: batch.endpoint,
            input_file_id: batch.input_file,
            completion_window: batch.completion_window,
            output_file_id: batch.managed_output_file,
            error_file_id: batch.managed_error_file,
        })
    }
}

fn errors(batch: &Batch) -> Result<Option<BatchErrors>, Error> {
    let Some(errors) = &batch.errors else { return Ok(None) };
    let data = serde_json::from_str(errors).map_err(|error| Error::Internal(error.into()))?;
    Ok(Some(BatchErrors { object: "list", data }))
}

impl RunObject {
    fn new(app: &App, run: Run) -> Self {
        let is_served = app.providers.get(&run.provider).is_some();
        let (blocked_by, retry_at) = if run.ended_at.is_none() && !is_served {
            (Some(NOT_CONFIGURED), None)
        } else {
            run.blocked()
        };
        Self {
            usage: run.usage(),
            error: run.failure(),
            blocked_by: blocked_by.map(str::to_owned),
            retry_at: retry_at.map(Timestamp::unix_seconds),
            status: run.status.clone(),
            request_counts: Counts {
                total: run.total,
                completed: run.completed,
                failed: run.failed,
            },
            irregular_lines: Irregular {
                broken: run.broken,
                duplicate: run.duplicates,
                unknown: run.strangers,
            },
            model: run.model,
            deployment_id: run.deployment_id,
            provider: run.provider,
            provider_batch_id: run.provider_batch_id,
            output_file_id: run.managed_output_file,
            error_file_id: run.managed_error_file,
        }
    }
}

/// The object as it is answered.
pub fn to_text(app: &App, view: BatchView) -> Result<String, Error> {
    serde_json::to_string(&BatchObject::new(app, view)?)
        .map_err(|error| Error::Internal(error.into()))
}
