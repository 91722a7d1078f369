//! `/v1/jobs`.

use axum::Router;
use axum::extract::State;
use axum::response::Json;
use axum::routing::get;
use axum::routing::post;
use serde::Deserialize;
use serde::Serialize;

use super::Api;
use super::auth::Authenticated;
use super::list::Limits;
use super::list::List;
use super::list::ListParameters;
use super::parameters::Path;
use super::parameters::Query;
use super::wait;
use super::wait::WaitParameter;
use crate::app::App;
use crate::error::Error;
use crate::files;
use crate::ids::JobId;
use crate::jobs;
use crate::jobs::Failure;
use crate::jobs::JobStatus;
use crate::jobs::Progress;
use crate::jobs::lanes::FOR_EVER;
use crate::jobs::store;
use crate::jobs::store::Attempt;
use crate::jobs::store::Filter;
use crate::jobs::store::Job;
use crate::notices::Hint;
use crate::owners::Caller;

const LIMITS: Limits = Limits { default: 20, most: 1000 };

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/jobs", get(list))
        .route("/v1/jobs/{id}", get(retrieve))
        .route("/v1/jobs/{id}/cancel", post(cancel))
        .route("/v1/jobs/{id}/retry", post(retry))
        .route("/v1/jobs/{id}/attempts", get(attempts))
}

/// A job, as it is sent.
#[derive(Debug, Serialize)]
struct JobObject {
    id: String,
    object: &'static str,
    kind: String,
    status: String,
    attempt: i32,
    max_attempts: i32,
    created_at: i64,
    run_at: i64,
    started_at: Option<i64>,
    finished_at: Option<i64>,
    progress: Option<Progress>,
    error: Option<Failure>,
    file_id: Option<String>,
    batch_id: Option<String>,
    model: Option<String>,
    provider: Option<String>,
    request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<i64>,
}

impl From<Job> for JobObject {
    fn from(job: Job) -> Self {
        let waits = matches!(job.status(), Ok(JobStatus::Queued | JobStatus::Retrying));
        let paused_until = job.paused_until.filter(|until| *until < FOR_EVER);
        Self {
            progress: job.progress(),
            error: job.failure(),
            provider: job.lane.strip_prefix("provider:").map(str::to_owned),
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
            batch_id: job.batch_id.map(|id| id.to_string()),
            model: job.model,
            request_id: job.request_id,
            blocked_by: job.pause_reason.filter(|_| waits),
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

#[derive(Debug, Deserialize)]
struct ListQuery {
    #[serde(flatten)]
    list: ListParameters,
    status: Option<String>,
    kind: Option<String>,
    file_id: Option<String>,
    batch_id: Option<String>,
}

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
        return Err(Error::no_such("batch", "batch_id", &batch));
    }
    let jobs = store::list(app.db.scan(), &caller.scope(), &filter, &page).await?;
    let jobs = jobs.into_iter().map(JobObject::from).collect();
    Ok(Json(List::new(jobs, &page, |job: &JobObject| job.id.clone())))
}

async fn retrieve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    Query(query): Query<WaitParameter>,
) -> Result<Json<JobObject>, Error> {
    let job = find(&app, &caller, &id).await?;
    let is_final = |job: &Job| job.status().is_ok_and(JobStatus::is_final);
    let subject = job.id.0;
    let job = wait::until_final(&app, subject, query.duration()?, job, is_final, || {
        find(&app, &caller, &id)
    })
    .await?;
    Ok(Json(job.into()))
}

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
    Ok(Json(find(&app, &caller, &id).await?.into()))
}

async fn retry(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<JobObject>, Error> {
    let job = find(&app, &caller, &id).await?;
    app.db
        .intake(move |tx| {
            let job = job.clone();
            Box::pin(async move { jobs::control::retry(tx, &job).await })
        })
        .await?;
    app.notices.hint(Hint::Work);
    Ok(Json(find(&app, &caller, &id).await?.into()))
}

/// One ended attempt, as it is sent.
#[derive(Debug, Serialize)]
struct AttemptObject {
    object: &'static str,
    attempt: i32,
    worker: String,
    outcome: String,
    error: Option<Failure>,
    started_at: i64,
    finished_at: i64,
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
