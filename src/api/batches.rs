//! `/v1/batches`.

mod create;
mod object;
mod results;
mod retry;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Json;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::openapi::Object;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::create::Asked;
use self::create::CreateBatch;
use self::create::ImportBatch;
use self::object::BatchObject;
pub use self::results::Room;
use super::Api;
use super::auth::Authenticated;
use super::description::described;
use super::description::words;
use super::error::Conflict;
use super::error::DiskFull;
use super::error::KeyReused;
use super::error::NotFound;
use super::error::PayloadTooLarge;
use super::error::UnsupportedMediaType;
use super::files;
use super::idempotency::Creation;
use super::idempotency::IdempotencyKey;
use super::json::OptionalJson;
use super::list::Limits;
use super::list::List;
use super::list::ListParameters;
use super::parameters::Path;
use super::parameters::Query;
use super::request::RequestId;
use super::wait;
use super::wait::WaitParameter;
use crate::app::App;
use crate::batches;
use crate::batches::BatchStatus;
use crate::batches::NewBatch;
use crate::batches::create::Dispatch;
use crate::batches::create::Wanted;
use crate::batches::store;
use crate::batches::store::BatchView;
use crate::error::Error;
use crate::files::Purpose;
use crate::ids::BatchId;
use crate::notices::Hint;
use crate::owners::Caller;
use crate::runs;

const PATH: &str = "/v1/batches";
const IMPORT: &str = "/v1/batches/import";
const LIMITS: Limits = Limits { default: 20, most: 100 };

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(import))
        .routes(routes!(retrieve))
        .routes(routes!(cancel))
        .routes(routes!(results::results))
        .routes(routes!(retry::retry))
}

/// Create a batch
///
/// It is durable when this answers. Workers create it at every provider whose model is named, once, watch it there,
/// and fetch what it produces; only then is it `completed`.
#[utoipa::path(post, path = "/v1/batches", operation_id = "create_batch", tag = "Batches", security(("bearer" = [])),
    params(IdempotencyKey),
    request_body = CreateBatch,
    responses(
        (status = 200, description = "The batch, `validating`.", body = BatchObject, headers(
            ("idempotency-replayed" = String, description = "`true` where this is the first answer again."))),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 422, response = KeyReused),
        (status = 507, response = DiskFull),
    ),
)]
async fn create(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    request_id: RequestId,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<CreateBatch>,
) -> Result<Response, Error> {
    let body = body.unwrap_or_default();
    let creation = Creation::new(&caller.owner, PATH, &headers, &body)?;
    let asked = body.check()?;
    let app = &api.app;
    let (file, owner) = input(app, &caller, &asked).await?;
    let Asked {
        input_file_id,
        endpoint,
        completion_window,
        metadata,
        output_expires_after,
        models,
    } = asked;
    let wanted = Wanted { file_id: file, models };
    let new = NewBatch {
        id: BatchId::mint(),
        owner,
        input_file_id: Some(file),
        input_file: input_file_id,
        endpoint,
        completion_window,
        metadata,
        output_expires_after,
        is_imported: false,
        retry_of: None,
        request_id: Some(request_id.0),
    };
    let dispatch = Dispatch {
        installation_id: Arc::clone(&app.installation.id),
        max_attempts: app.config.retry.max_attempts.get(),
    };
    let full = app.backlogs.admit(&app.db, &new.owner, 1).await?;
    let (at, now, all) = (app.clone(), app.clock.now(), Arc::new((new, wanted, dispatch)));
    let response = creation
        .once(&api, move |tx| {
            let (app, all) = (at.clone(), Arc::clone(&all));
            Box::pin(async move {
                if let Some(full) = full {
                    return Err(full.into());
                }
                let (new, wanted, dispatch) = &*all;
                let view = batches::create::create(tx, now, new, wanted, dispatch).await?;
                object::to_text(&app, view)
            })
        })
        .await?;
    app.notices.hint(Hint::Work);
    app.notices.hint(Hint::Change);
    Ok(response)
}

/// The file of a batch, and whose it is: so the batch is that owner's too.
async fn input(
    app: &App,
    caller: &Caller,
    asked: &Asked,
) -> Result<(crate::ids::FileId, String), Error> {
    let found = files::find(app, caller, &asked.input_file_id).await;
    let view = found.map_err(|error| match error {
        Error::NotFound { code, message, .. } => {
            Error::NotFound { param: Some("input_file_id"), code, message }
        }
        error => error,
    })?;
    if view.file.purpose != Purpose::Batch.as_str() {
        return Err(Error::invalid(
            "input_file_id",
            format!(
                "the purpose of the file is `{}`; a batch takes one of `batch`",
                view.file.purpose
            ),
        ));
    }
    Ok((view.file.id, view.file.owner))
}

async fn find(app: &App, caller: &Caller, id: &str) -> Result<BatchView, Error> {
    let found = batches::find(app.db.read(), id).await?;
    let view = found.ok_or_else(|| Error::no_such("batch", "batch_id", id))?;
    if caller.may_touch(&view.batch.owner) {
        Ok(view)
    } else {
        Err(Error::foreign(&caller.owner, "batch", id))
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
}

fn status_filter() -> Object {
    described(words(BatchStatus::ALL.map(BatchStatus::as_str)), "Only batches in this status.")
}

/// List batches
#[utoipa::path(get, path = "/v1/batches", operation_id = "list_batches", tag = "Batches", security(("bearer" = [])),
    params(
        ListQuery,
        ListParameters,
        ("limit" = Option<u32>, Query, description = "How many at most; 20 if it is not said.",
            minimum = 1, maximum = 100),
    ),
    responses((status = 200, description = "A page of the owner's batches.", body = List<BatchObject>)),
)]
async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<BatchObject>>, Error> {
    let after = match query.list.after() {
        None => None,
        Some(after) => {
            let unknown =
                |_| Error::invalid("after", "`after` must be the id of a batch of this list");
            Some(find(&app, &caller, after).await.map_err(unknown)?.batch.id)
        }
    };
    let status = query.status.as_deref().filter(|status| !status.is_empty());
    let status = status.map(str::parse).transpose();
    let status = status.map_err(|message: String| Error::invalid("status", message))?;
    let page = query.list.page(after, LIMITS)?;
    let found = store::list(app.db.scan(), &caller.scope(), status, &page).await?;
    let ids: Vec<BatchId> = found.iter().map(|batch| batch.id).collect();
    let mut all = runs::store::of_batches(app.db.scan(), &ids).await?;
    let mut objects = Vec::with_capacity(found.len());
    for batch in found {
        let (runs, others) = all.into_iter().partition(|run| run.batch_id == batch.id);
        all = others;
        objects.push(BatchObject::new(&app, BatchView { batch, runs })?);
    }
    Ok(Json(List::new(objects, &page, |batch: &BatchObject| batch.id.clone())))
}

/// Retrieve a batch
#[utoipa::path(get, path = "/v1/batches/{id}", operation_id = "retrieve_batch", tag = "Batches",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The batch."), WaitParameter),
    responses(
        (status = 200, description = "The batch.", body = BatchObject),
        (status = 404, response = NotFound),
    ),
)]
async fn retrieve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    Query(query): Query<WaitParameter>,
) -> Result<Json<BatchObject>, Error> {
    let is_final = |view: &BatchView| view.batch.ended_at.is_some();
    let read = || find(&app, &caller, &id);
    let view = wait::until_final(&app, &query, |view| view.batch.id.0, is_final, read).await?;
    Ok(Json(BatchObject::new(&app, *view)?))
}

/// Cancel a batch
///
/// What is not at a provider yet does not go there; the others are asked to stop. What was answered until then is
/// fetched.
#[utoipa::path(post, path = "/v1/batches/{id}/cancel", operation_id = "cancel_batch", tag = "Batches",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The batch.")),
    responses(
        (status = 200, description = "The batch as it is now.", body = BatchObject),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 507, response = DiskFull),
    ),
)]
async fn cancel(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<BatchObject>, Error> {
    let view = find(&app, &caller, &id).await?;
    let (now, batch) = (app.clock.now(), view.batch.id);
    let was_open = app
        .db
        .intake(move |tx| {
            Box::pin(async move { Ok::<_, Error>(batches::cancel::cancel(tx, now, batch).await?) })
        })
        .await?;
    if !was_open {
        return Err(Error::Conflict {
            code: "batch_ended",
            message: format!(
                "the batch has already ended as `{}`: there is nothing left to cancel",
                view.batch.status()?
            ),
            retry_after: None,
        });
    }
    app.notices.hint(Hint::Work);
    app.notices.hint(Hint::Change);
    Ok(Json(BatchObject::new(&app, find(&app, &caller, &id).await?)?))
}

/// Import a batch
///
/// One that was created at its provider by other means. From then on it is watched, and its results are fetched, like
/// the rest.
#[utoipa::path(post, path = "/v1/batches/import", operation_id = "import_batch", tag = "Batches",
    security(("bearer" = [])),
    params(IdempotencyKey),
    request_body = ImportBatch,
    responses(
        (status = 200, description = "The batch. What its provider says of it follows in a moment.",
            body = BatchObject, headers(
            ("idempotency-replayed" = String, description = "`true` where this is the first answer again."))),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 422, response = KeyReused),
        (status = 507, response = DiskFull),
    ),
)]
async fn import(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    request_id: RequestId,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<ImportBatch>,
) -> Result<Response, Error> {
    let asked = body.ok_or_else(|| {
        Error::missing(
            "model",
            "say which batch: `model`, one that is configured, and `provider_batch_id`",
        )
    })?;
    let creation = Creation::new(&caller.owner, IMPORT, &headers, &asked)?;
    asked.check()?;
    let app = &api.app;
    let found = app.destinations(std::slice::from_ref(&asked.model));
    let found = found.map_err(|error| match error {
        Error::Invalid { code, message, .. } => {
            Error::Invalid { param: Some("model"), code, message }
        }
        error => error,
    })?;
    let deployment = match &found[..] {
        [one] => one.clone(),
        _ => {
            return Err(Error::invalid(
                "model",
                format!(
                    "`{}` is at several deployments; import it through a model that is at one",
                    asked.model
                ),
            ));
        }
    };
    let new = NewBatch {
        id: BatchId::mint(),
        owner: caller.owner.clone(),
        input_file_id: None,
        input_file: String::new(),
        endpoint: String::new(),
        completion_window: String::new(),
        metadata: None,
        output_expires_after: None,
        is_imported: true,
        retry_of: None,
        request_id: Some(request_id.0),
    };
    let (at, now) = (app.clone(), app.clock.now());
    let all = Arc::new((caller, new, deployment, asked.provider_batch_id));
    let response = creation
        .once(&api, move |tx| {
            let (app, all) = (at.clone(), Arc::clone(&all));
            Box::pin(async move {
                let (caller, new, deployment, id) = &*all;
                let view = batches::import::import(tx, now, caller, new, deployment, id).await?;
                object::to_text(&app, view)
            })
        })
        .await?;
    app.notices.hint(Hint::Work);
    app.notices.hint(Hint::Change);
    Ok(response)
}
