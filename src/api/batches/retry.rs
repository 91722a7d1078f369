//! `POST /v1/batches/{id}/retry`: a new batch of what has come to nothing.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

use super::find;
use super::object;
use super::object::BatchObject;
use crate::api::Api;
use crate::api::auth::Authenticated;
use crate::api::error::Conflict;
use crate::api::error::DiskFull;
use crate::api::error::KeyReused;
use crate::api::error::NotFound;
use crate::api::error::PayloadTooLarge;
use crate::api::error::UnsupportedMediaType;
use crate::api::idempotency::Creation;
use crate::api::idempotency::IdempotencyKey;
use crate::api::idempotency::Start;
use crate::api::idempotency::replay;
use crate::api::json::OptionalJson;
use crate::api::parameters::Path;
use crate::api::request::RequestId;
use crate::batches::create::Dispatch;
use crate::batches::retry;
use crate::batches::retry::Asked;
use crate::error::Error;
use crate::files;
use crate::notices::Hint;

const PATH: &str = "/v1/batches/{id}/retry";

/// Which of the requests to retry.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct RetryBatch {
    /// One model of the batch. It must be said where its models lack different requests.
    model: Option<String>,
    /// One run of the batch, by where it ran: for models that are at several places.
    deployment_id: Option<String>,
    /// Retry also where it is not known what was answered: results were lost, or nobody knows whether the provider has the
    /// batch. It may be paid for twice.
    force: bool,
}

/// Retry what failed of a batch
///
/// Makes a new batch, at the same models, of the requests that failed or never ran, on a file of its own. The batch itself
/// stays as it is. What an earlier retry has answered is not run again; while one is under way, there is no other.
#[utoipa::path(post, path = "/v1/batches/{id}/retry", operation_id = "retry_batch", tag = "Batches",
    security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "A batch that has ended."),
        IdempotencyKey,
    ),
    request_body(content = Option<RetryBatch>),
    responses(
        (status = 200, description = "The new batch.", body = BatchObject, headers(
            ("idempotency-replayed" = String, description = "`true` where this is the first answer again."))),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 422, response = KeyReused),
        (status = 507, response = DiskFull),
    ),
)]
pub async fn retry(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    request_id: RequestId,
    headers: HeaderMap,
    Path(id): Path,
    OptionalJson(body): OptionalJson<RetryBatch>,
) -> Result<Response, Error> {
    let body = body.unwrap_or_default();
    let creation = Creation::new(&caller.owner, PATH, &headers, &(&id, &body))?;
    let app = &api.app;
    let view = find(app, &caller, &id).await?;
    // The key comes before the work: repeated, it finds the first answer, whatever has become of the input.
    let started = match creation.begin(&api).await? {
        Start::First(started) => started,
        Start::Again(text) => return Ok(replay(text)),
    };
    let asked = Asked {
        model: body.model.as_deref(),
        deployment_id: body.deployment_id.as_deref(),
        force: body.force,
    };
    let prepared = {
        let _alone = api.retries.lock().await;
        retry::prepare(app, &view, asked, &request_id.0).await
    };
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            started.let_go().await;
            return Err(error);
        }
    };
    let (installation_id, max_attempts) =
        (Arc::clone(&app.installation.id), app.config.retry.max_attempts.get());
    let sending = files::create::Dispatch {
        installation_id: Arc::clone(&installation_id),
        max_attempts,
        request_id: Some(request_id.0),
    };
    let dispatch = Dispatch { installation_id, max_attempts };
    let (at, now, all) = (app.clone(), app.clock.now(), Arc::new((prepared, sending, dispatch)));
    let prepared = Arc::clone(&all);
    let response = started
        .once(&api, move |tx| {
            let (app, all) = (at.clone(), Arc::clone(&all));
            Box::pin(async move {
                let (prepared, sending, dispatch) = &*all;
                let view = retry::create(tx, now, prepared, sending, dispatch).await?;
                object::to_text(&app, view)
            })
        })
        .await;
    // What was answered may be the first answer again.
    retry::take_back(app, &prepared.0).await;
    let response = response?;
    app.notices.hint(Hint::Work);
    app.notices.hint(Hint::Change);
    Ok(response)
}
