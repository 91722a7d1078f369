//! `/v1/files`.

mod content;
mod create;
mod delete;
pub mod form;
mod object;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa::openapi::ObjectBuilder;
use utoipa::openapi::OneOfBuilder;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::schema::Type;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::object::FileObject;
pub use self::object::file_statuses;
pub use self::object::pause_reasons;
pub use self::object::purposes;
use super::Api;
use super::auth::Authenticated;
use super::description::described;
use super::error::Conflict;
use super::error::DiskFull;
use super::error::NotFound;
use super::error::PayloadTooLarge;
use super::error::UnsupportedMediaType;
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
use crate::error::Error;
use crate::files;
use crate::files::FileStatus;
use crate::files::Purpose;
use crate::files::create::Dispatch;
use crate::files::store;
use crate::files::store::FileView;
use crate::files::store::Filter;
use crate::notices::Hint;
use crate::owners::Caller;

const LIMITS: Limits = Limits { default: 10_000, most: 10_000 };

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(create::create, list))
        .routes(routes!(retrieve, delete::delete))
        .routes(routes!(delete::deletion))
        .routes(routes!(content::content))
        .routes(routes!(send_to_more))
        .routes(routes!(retry))
}

/// A file that the caller may see. A deleted one is as if it had never been.
/// A file of the caller's.
///
/// # Errors
///
/// When there is none of that id, or it is another owner's.
pub async fn find(app: &App, caller: &Caller, id: &str) -> Result<FileView, Error> {
    // PostgreSQL cannot even compare text with a NUL in it.
    if id.contains('\0') {
        return Err(Error::no_such("file", "file_id", id));
    }
    let view = store::find(app.db.read(), id).await?;
    let view =
        view.filter(|view| view.file.deleted_at.is_none() || !caller.may_touch(&view.file.owner));
    let view = view.ok_or_else(|| Error::no_such("file", "file_id", id))?;
    if !caller.may_touch(&view.file.owner) {
        return Err(Error::foreign(&caller.owner, "file", id));
    }
    Ok(view)
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    #[serde(flatten)]
    #[param(ignore)]
    list: ListParameters,
    /// Only files with this purpose.
    purpose: Option<String>,
    #[param(schema_with = status_filter, required = false)]
    status: Option<String>,
    /// Only files that were sent to this model.
    model: Option<String>,
}

fn status_filter() -> Object {
    described(file_statuses(), "Only files in this state.")
}

/// List files
#[utoipa::path(get, path = "/v1/files", operation_id = "list_files", tag = "Files", security(("bearer" = [])),
    params(
        ListParameters,
        ("limit" = Option<u32>, Query, description = "How many at most; 10,000 if it is not said.",
            minimum = 1, maximum = 10_000),
        ListQuery,
    ),
    responses((status = 200, description = "A page of the owner's files.", body = List<FileObject>)),
)]
async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<FileObject>>, Error> {
    let after = match query.list.after() {
        None => None,
        Some(after) => {
            let position = store::position(app.db.read(), after).await?;
            let position = position.filter(|(_, owner)| caller.may_touch(owner));
            Some(
                position
                    .ok_or_else(|| {
                        Error::invalid("after", "`after` must be the id of a file of this list")
                    })?
                    .0,
            )
        }
    };
    let page = query.list.page(after, LIMITS)?;
    let status = query.status.map(|status| status.parse::<FileStatus>()).transpose();
    let status = status.map_err(|message| Error::invalid("status", message))?;
    let filter = Filter { purpose: query.purpose, status, model: query.model };
    let views = store::list(app.db.scan(), &caller.scope(), &filter, &page).await?;
    let files = views.into_iter().map(FileObject::from).collect();
    Ok(Json(List::new(files, &page, |file: &FileObject| file.id.clone())))
}

/// Retrieve a file
#[utoipa::path(get, path = "/v1/files/{id}", operation_id = "retrieve_file", tag = "Files", security(("bearer" = [])),
    params(("id" = String, Path, description = "The file."), WaitParameter),
    responses(
        (status = 200, description = "The file.", body = FileObject),
        (status = 404, response = NotFound),
    ),
)]
async fn retrieve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    Query(query): Query<WaitParameter>,
) -> Result<Json<FileObject>, Error> {
    let is_final = |view: &FileView| view.file.status().is_ok_and(FileStatus::is_final);
    let read = || find(&app, &caller, &id);
    let view = wait::until_final(&app, &query, |view| view.file.id.0, is_final, read).await?;
    Ok(Json((*view).into()))
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CreateMappings)]
struct SendToMore {
    /// Names of configured models.
    #[schema(schema_with = names)]
    target_model_names: Names,
}

/// A list, or one text with commas.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<String>),
    Text(String),
}

fn names() -> OneOfBuilder {
    let name = || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
    let list = ArrayBuilder::new().items(name()).min_items(Some(1));
    OneOfBuilder::new()
        .description(Some("Names of configured models: a list, or one text with commas."))
        .item(list)
        .item(name())
}

/// Send a file to more models
///
/// Models that it was sent to already are left as they are.
#[utoipa::path(post, path = "/v1/files/{id}/mappings", operation_id = "create_mappings", tag = "Files",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The file.")),
    request_body = SendToMore,
    responses(
        (status = 200, description = "The file, with the new mappings.", body = FileObject),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 507, response = DiskFull),
    ),
)]
async fn send_to_more(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    request_id: RequestId,
    Path(id): Path,
    OptionalJson(body): OptionalJson<SendToMore>,
) -> Result<Json<FileObject>, Error> {
    let names = match body.map(|body| body.target_model_names) {
        None => Vec::new(),
        Some(Names::List(names)) => names,
        Some(Names::Text(text)) => form::split_names(&text).collect(),
    };
    if names.is_empty() {
        return Err(Error::missing(
            "target_model_names",
            "`target_model_names` must name at least one model",
        ));
    }
    let destinations: Arc<[_]> = app.destinations(&names)?.into();
    let view = find(&app, &caller, &id).await?;
    if view.file.purpose == Purpose::BatchOutput.as_str() {
        return Err(Error::Conflict {
            code: "not_an_upload",
            message: "a batch produced this file, and no provider takes such a file; download it, and upload it for \
                      another purpose"
                .to_owned(),
            retry_after: None,
        });
    }
    if view.file.blob_key.is_none() {
        return Err(Error::Conflict {
            code: "bytes_gone",
            message: "the bytes of this file are no longer kept (`blobs.keep`); upload it again"
                .to_owned(),
            retry_after: None,
        });
    }
    if view.file.purpose == Purpose::Batch.as_str() {
        let (lines, bytes) = (view.file.lines.unwrap_or(0), view.file.bytes);
        app.check_batch(&destinations, lines.unsigned_abs(), bytes.unsigned_abs())?;
    }
    let dispatch = Arc::new(Dispatch {
        installation_id: Arc::clone(&app.installation.id),
        max_attempts: app.config.retry.max_attempts.get(),
        request_id: Some(request_id.0),
    });
    let now = app.clock.now();
    let full = app.backlogs.admit(&app.db, &view.file.owner, destinations.len()).await?;
    if let Some(full) = full {
        return Err(full.into());
    }
    let view = app
        .db
        .intake(move |tx| {
            let (view, destinations, dispatch) =
                (view.clone(), Arc::clone(&destinations), Arc::clone(&dispatch));
            Box::pin(async move {
                files::create::send_to_more(tx, now, &view, &destinations, &dispatch).await
            })
        })
        .await?;
    app.notices.hint(Hint::Work);
    Ok(Json(view.into()))
}

/// Retry the failed mappings of a file
#[utoipa::path(post, path = "/v1/files/{id}/retry", operation_id = "retry_file", tag = "Files",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "The file.")),
    responses(
        (status = 200, description = "The file; what had failed is queued again.", body = FileObject),
        (status = 404, response = NotFound),
        (status = 507, response = DiskFull),
    ),
)]
async fn retry(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<FileObject>, Error> {
    let view = find(&app, &caller, &id).await?;
    let view = app
        .db
        .intake(move |tx| {
            let view = view.clone();
            Box::pin(async move { files::create::retry(tx, &view).await })
        })
        .await?;
    app.notices.hint(Hint::Work);
    Ok(Json(view.into()))
}
