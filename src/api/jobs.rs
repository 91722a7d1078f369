//! `/v1/jobs`.

use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use serde::Serialize;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Authenticated;
use super::description::described;
use super::description::words;
use super::error::Conflict;
use super::error::DiskFull;
use super::error::NotFound;
use super::files::pause_reasons;
use super::list::Limits;
use super::list::List;
use super::list::ListParameters;
use super::parameters::Path;
use super::parameters::Query;
use super::wait;
use super::wait::WaitParameter;
use crate::app::App;
use crate::batches;
use crate::error::Error;
use crate::files;
use crate::ids::JobId;
use crate::jobs;
use crate::jobs::Failure;
use crate::jobs::JobStatus;
use crate::jobs::Lane;
use crate::jobs::Progress;
use crate::jobs::lanes::FOR_EVER;
use crate::jobs::lanes::NOT_CONFIGURED;
use crate::jobs::store;
use crate::jobs::store::Attempt;
use crate::jobs::store::Filter;
use crate::jobs::store::Job;
use crate::notices::Hint;
use crate::owners::Caller;

const LIMITS: Limits = Limits { default: 20, most: 1000 };

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(retrieve))
        .routes(routes!(cancel))
        .routes(routes!(retry))
        .routes(routes!(attempts))
}

/// A durable job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
struct JobObject {
    id: String,
    #[schema(schema_with = is_job)]
    object: &'static str,
    /// What it does: `upload_file` carries a file to a deployment, `verify_upload` looks for copies that an
    /// upload with an unknown outcome left, `delete_file` deletes a copy, `submit_batch` creates a batch at its
    /// provider, `watch_batch` looks how the batches at one provider stand, `cancel_batch` asks it to stop one,
    /// `ingest_batch` fetches and reads what one produced, `merge_batch` writes the outputs of several runs into one
    /// file, `sweep` deletes many files, `reconcile` compares a provider's list with what is known here,
    /// `deliver_webhook` tells an endpoint of an event. Newer versions know more.
    kind: String,
    #[schema(schema_with = job_status)]
    status: String,
    /// How many attempts were spent; waiting for a provider's limit or outage spends none.
    attempt: i32,
    max_attempts: i32,
    created_at: i64,
    /// When it is due.
    run_at: i64,
    #[schema(required = true)]
    started_at: Option<i64>,
    #[schema(required = true)]
    finished_at: Option<i64>,
    #[schema(required = true)]
    progress: Option<Progress>,
    /// The last failure, also while it is still being retried.
    #[schema(required = true)]
    error: Option<Failure>,
    #[schema(required = true)]
    file_id: Option<String>,
    #[schema(required = true)]
    batch_id: Option<String>,
    #[schema(required = true)]
    model: Option<String>,
    #[schema(required = true)]
    provider: Option<String>,
    /// The `x-request-id` of the request that made it.
    #[schema(required = true)]
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = pause_reasons, required = false)]
    blocked_by: Option<String>,
    /// Until when, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = i64, required = false)]
    retry_at: Option<i64>,
}

fn is_job() -> Object {
    words(["job"])
}

fn statuses() -> Object {
    words(JobStatus::ALL.map(JobStatus::as_str))
}

impl JobObject {
    fn new(app: &App, job: Job) -> Self {
        let waits = matches!(job.status(), Ok(JobStatus::Queued | JobStatus::Retrying));
        let provider = Lane(job.lane.clone()).provider().map(str::to_owned);
        let is_served = provider.as_ref().is_none_or(|name| app.providers.get(name).is_some());
        let blocked_by =
            if is_served { job.pause_reason.clone() } else { Some(NOT_CONFIGURED.to_owned()) };
        let paused_until = job.paused_until.filter(|until| *until < FOR_EVER);
        Self {
            progress: job.progress(),
            error: job.failure(),
            provider,
            id: job.id.to_string(),
            object: "job",
            kind: job.kind,
            status: job.status,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            created_at: job.created_at.unix_seconds(),
            run_at: job.run_at.unix_seconds(),
            started_at: job.started_at.map(|at| at.unix_seconds()),
            finished_at: job.finished_at.map(|at| at.unix_seconds()),
            file_id: job.managed_file_id,
            batch_id: job.managed_batch_id,
            model: job.model,
            request_id: job.request_id,
            blocked_by: blocked_by.filter(|_| waits),
            retry_at: paused_until.filter(|_| waits).map(|at| at.unix_seconds()),
        }
    }
}

async fn find(app: &App, caller: &Caller, text: &str) -> Result<Job, Error> {
    let no_such = || Error::no_such("job", "job_id", text);
    let id: JobId = text.parse().map_err(|_| no_such())?;
    let job = store::find(app.db.read(), id).await?.ok_or_else(no_such)?;
    if caller.may_touch(&job.owner) {
        Ok(job)
    } else {
        Err(Error::foreign(&caller.owner, "job", text))
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    #[serde(flatten)]
    #[param(ignore)]
    list: ListParameters,
    #[param(schema_with = status_filter, required = false)]
    status: Option<String>,
    /// Only jobs of this kind.
    kind: Option<String>,
    /// Only the jobs of this file.
    file_id: Option<String>,
    /// Only the jobs of this batch.
    batch_id: Option<String>,
}

fn job_status() -> Object {
    described(statuses(), "`failed` is the dead letter: it stays, and can be retried.")
}

fn status_filter() -> Object {
    described(statuses(), "Only jobs in this state.")
}

/// List jobs
#[utoipa::path(get, path = "/v1/jobs", operation_id = "list_jobs", tag = "Jobs", security(("bearer" = [])),
    params(
        ListParameters,
        ("limit" = Option<u32>, Query, description = "How many at most; 20 if it is not said.",
            minimum = 1, maximum = 1000),
        ListQuery,
    ),
    responses(
        (status = 200, description = "A page of the owner's jobs.", body = List<JobObject>),
        (status = 404, response = NotFound),
    ),
)]
async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<JobObject>>, Error> {
    let after = match query.list.after() {
        None => None,
        Some(after) => {
            let unknown =
                |_| Error::invalid("after", "`after` must be the id of a job of this list");
            Some(find(&app, &caller, after).await.map_err(unknown)?.id)
        }
    };
    let page = query.list.page(after, LIMITS)?;
    let status = query.status.map(|status| status.parse::<JobStatus>()).transpose();
    let mut filter = Filter {
        status: status.map_err(|message| Error::invalid("status", message))?,
        kind: query.kind,
        ..Filter::default()
    };
    if let Some(file) = query.file_id {
        let position = files::store::position(app.db.read(), &file).await?;
        let (id, owner) = position.ok_or_else(|| Error::no_such("file", "file_id", &file))?;
        if !caller.may_touch(&owner) {
            return Err(Error::foreign(&caller.owner, "file", &file));
        }
        filter.file_id = Some(id);
    }
    if let Some(batch) = query.batch_id {
        let found = batches::store::find(app.db.read(), &batch).await?;
        let found = found.ok_or_else(|| Error::no_such("batch", "batch_id", &batch))?;
        if !caller.may_touch(&found.owner) {
            return Err(Error::foreign(&caller.owner, "batch", &batch));
        }
        filter.batch_id = Some(found.id);
    }
    let jobs = store::list(app.db.scan(), &caller.scope(), &filter, &page).await?;
    let jobs = jobs.into_iter().map(|job| JobObject::new(&app, job)).collect();
    Ok(Json(List::new(jobs, &page, |job: &JobObject| job.id.clone())))
}

/// Retrieve a job
#[utoipa::path(get, path = "/v1/jobs/{id}", operation_id = "retrieve_job", tag = "Jobs", security(("bearer" = [])),
    params(("id" = String, Path, description = "The job."), WaitParameter),
    responses(
        (status = 200, description = "The job.", body = JobObject),
        (status = 404, response = NotFound),
    ),
)]
async fn retrieve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    Query(query): Query<WaitParameter>,
) -> Result<Json<JobObject>, Error> {
    let is_final = |job: &Job| job.status().is_ok_and(JobStatus::is_final);
    let read = || find(&app, &caller, &id);
    let job = wait::until_final(&app, &query, |job| job.id.0, is_final, read).await?;
    Ok(Json(JobObject::new(&app, *job)))
}

/// Cancel a job
///
/// What runs is stopped. What it may already have left at the provider is looked for, and deleted.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", operation_id = "cancel_job", tag = "Jobs",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 200, description = "The job as it is now.", body = JobObject),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 507, response = DiskFull),
    ),
)]
async fn cancel(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<JobObject>, Error> {
    let job = find(&app, &caller, &id).await?;
    let now = app.clock.now();
    app.db
        .intake(move |tx| {
            let job = job.clone();
            Box::pin(async move { jobs::control::cancel(tx, now, &job).await })
        })
        .await?;
    app.notices.hint(Hint::Cancel);
    app.notices.hint(Hint::Change);
    Ok(Json(JobObject::new(&app, find(&app, &caller, &id).await?)))
}

/// Retry a job that failed or was cancelled
///
/// With all its attempts anew. An `ingest_batch` job that failed fetches the results that did not come: its batch is
/// `finalizing` again until they are here, or fail to come once more.
#[utoipa::path(post, path = "/v1/jobs/{id}/retry", operation_id = "retry_job", tag = "Jobs",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 200, description = "The job as it is now.", body = JobObject),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 507, response = DiskFull),
    ),
)]
async fn retry(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<JobObject>, Error> {
    let job = find(&app, &caller, &id).await?;
    let now = app.clock.now();
    app.db
        .intake(move |tx| {
            let job = job.clone();
            Box::pin(async move { jobs::control::retry(tx, now, &job).await })
        })
        .await?;
    app.notices.hint(Hint::Work);
    Ok(Json(JobObject::new(&app, find(&app, &caller, &id).await?)))
}

/// An attempt that has ended.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Attempt)]
struct AttemptObject {
    #[schema(schema_with = is_attempt)]
    object: &'static str,
    attempt: i32,
    worker: String,
    outcome: String,
    #[schema(required = true)]
    error: Option<Failure>,
    started_at: i64,
    finished_at: i64,
}

fn is_attempt() -> Object {
    words(["job.attempt"])
}

impl From<Attempt> for AttemptObject {
    fn from(attempt: Attempt) -> Self {
        Self {
            object: "job.attempt",
            attempt: attempt.attempt,
            worker: attempt.worker,
            outcome: attempt.outcome,
            error: attempt.error.as_deref().and_then(|error| serde_json::from_str(error).ok()),
            started_at: attempt.started_at.unix_seconds(),
            finished_at: attempt.finished_at.unix_seconds(),
        }
    }
}

/// List the attempts of a job
#[utoipa::path(get, path = "/v1/jobs/{id}/attempts", operation_id = "list_attempts", tag = "Jobs",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The job.")),
    responses(
        (status = 200, description = "Those that have ended, the first one first.", body = List<AttemptObject>),
        (status = 404, response = NotFound),
    ),
)]
async fn attempts(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<List<AttemptObject>>, Error> {
    let job = find(&app, &caller, &id).await?;
    let attempts = store::attempts(app.db.scan(), job.id).await?;
    let attempts = attempts.into_iter().map(AttemptObject::from).collect();
    Ok(Json(List::whole(attempts, |attempt: &AttemptObject| attempt.attempt.to_string())))
}
