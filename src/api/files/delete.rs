//! `DELETE /v1/files/{id}`, and the receipt of it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse as _;
use axum::response::Json;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use utoipa::IntoParams;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::find;
use super::object::mapping_statuses;
use super::object::pause_reasons;
use crate::api::auth::Authenticated;
use crate::api::description::described;
use crate::api::description::words;
use crate::api::error::Conflict;
use crate::api::error::DiskFull;
use crate::api::error::NotFound;
use crate::api::idempotency;
use crate::api::idempotency::Repetition;
use crate::api::parameters::Path;
use crate::api::parameters::Query;
use crate::api::request::RequestId;
use crate::api::wait;
use crate::api::wait::WaitParameter;
use crate::app::App;
use crate::batches;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::error::Error;
use crate::files::Deletion;
use crate::files::deletion;
use crate::files::deletion::Order;
use crate::files::deletion::receipts;
use crate::files::deletion::receipts::CopyReceipt;
use crate::files::deletion::receipts::FileReceipt;
use crate::idempotency::KEPT_WITHOUT_KEY;
use crate::ids::FileId;
use crate::jobs::Failure;
use crate::mappings;
use crate::mappings::receipt::Receipt;
use crate::notices::Hint;
use crate::owners::Caller;

/// Batches that a refusal names.
const NAMED: usize = 10;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct DeleteQuery {
    /// Cancels the unfinished batches that run on the file first. Without it, a file in use is a conflict. Its copies
    /// go when those batches have ended.
    #[serde(default)]
    force: bool,
}

/// OpenAI's answer to a delete.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FileDeleted)]
pub struct DeletedObject {
    id: String,
    #[schema(schema_with = is_file)]
    object: &'static str,
    deleted: bool,
}

fn is_file() -> Object {
    words(["file"])
}

/// Delete a file
///
/// It is gone at once; jobs delete its copies at every provider, for as long as that takes. An upload that
/// is under way is called off. `GET /v1/files/{id}/deletion` says how far that is.
#[utoipa::path(delete, path = "/v1/files/{id}", operation_id = "delete_file", tag = "Files",
    security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "The file."),
        DeleteQuery,
        ("x-stainless-retry-count" = Option<String>, Header, description = "How often an official SDK has sent this \
            request before. With 1 or more, a file that was deleted within the last 15 minutes is no 404."),
    ),
    responses(
        (status = 200, description = "It is deleted.", body = DeletedObject),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 507, response = DiskFull),
    ),
)]
pub async fn delete(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    request_id: RequestId,
    headers: HeaderMap,
    Path(id): Path,
    Query(query): Query<DeleteQuery>,
) -> Result<Response, Error> {
    let view = match find(&app, &caller, &id).await {
        Err(error @ Error::NotFound { .. }) if is_repeated(&headers) => {
            return repeated(&app, &caller, id, error).await;
        }
        found => found?,
    };
    let (now, file) = (app.clock.now(), view.file.id);
    let even_in_use = query.force;
    let order = Arc::new(Order { request_id: Some(request_id.0), even_in_use, ..Order::default() });
    let is_deleted = app
        .db
        .intake(move |tx| {
            let order = Arc::clone(&order);
            Box::pin(async move { delete_unless_in_use(tx, now, file, &order).await })
        })
        .await?;
    if !is_deleted {
        // Another request was first.
        return Err(Error::no_such("file", "file_id", &id));
    }
    app.notices.hint(Hint::Work);
    app.notices.hint(Hint::Cancel);
    app.notices.hint(Hint::Change);
    metrics::counter!("longshore_files_deleted_total").increment(1);
    tracing::info!(file.id = %file, "deleted file");
    Ok(Json(DeletedObject { id, object: "file", deleted: true }).into_response())
}

/// `false` when it is deleted already.
async fn delete_unless_in_use(
    tx: &Transaction,
    now: Timestamp,
    file: FileId,
    order: &Order,
) -> Result<bool, Error> {
    if order.even_in_use {
        // Held, so that no batch comes meanwhile.
        mappings::deletion::lock(tx, &[file]).await?;
        for (_, batch, _) in batches::store::open_on(tx, &[file]).await? {
            batches::cancel::cancel(tx, now, batch).await?;
        }
    }
    if !deletion::delete(tx, now, &[file], order).await?.is_empty() {
        return Ok(true);
    }
    let open = batches::store::open_on(tx, &[file]).await?;
    if open.is_empty() || order.even_in_use {
        return Ok(false);
    }
    let names: Vec<_> =
        open.iter().take(NAMED).map(|(_, _, managed_id)| format!("`{managed_id}`")).collect();
    let more = match open.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(Error::Conflict {
        code: "file_in_use",
        message: format!(
            "the file is in use by unfinished batches: {}{more}; wait for them, or cancel them with `?force=true`",
            names.join(", ")
        ),
        retry_after: None,
    })
}

/// Whether an official SDK has sent this request before.
fn is_repeated(headers: &HeaderMap) -> bool {
    matches!(Repetition::of(headers), Ok(Repetition::Sdk { is_retry: true }))
}

/// The answer of the first time, which was lost, to a request that an SDK repeats.
async fn repeated(app: &App, caller: &Caller, id: String, error: Error) -> Result<Response, Error> {
    let since = app.clock.now().before(KEPT_WITHOUT_KEY);
    let receipt = receipts::find(app.db.read(), &id).await?;
    let is_first_answer = receipt
        .is_some_and(|receipt| caller.may_touch(&receipt.owner) && receipt.deleted_at >= since);
    if !is_first_answer {
        return Err(error);
    }
    let text = serde_json::to_string(&DeletedObject { id, object: "file", deleted: true })
        .map_err(|error| Error::Internal(error.into()))?;
    Ok(idempotency::replay(text))
}

/// How far a deletion is, and what each provider said.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FileDeletion)]
pub struct DeletionObject {
    /// Of the file.
    id: String,
    #[schema(schema_with = is_deletion)]
    object: &'static str,
    #[schema(schema_with = statuses)]
    status: &'static str,
    /// When the file was deleted here.
    deleted_at: i64,
    mappings: Vec<CopyObject>,
}

/// What became of one copy.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MappingDeletion)]
struct CopyObject {
    model: String,
    deployment_id: String,
    provider: String,
    #[schema(required = true)]
    provider_file_id: Option<String>,
    #[schema(schema_with = mapping_statuses)]
    status: String,
    /// When the provider was known not to have it any more.
    #[schema(required = true)]
    deleted_at: Option<i64>,
    /// The job that deletes it; none where nothing was ever sent.
    #[schema(required = true)]
    job_id: Option<String>,
    #[schema(required = true)]
    receipt: Option<Receipt>,
    /// The last failure, also while it is still being retried.
    #[schema(required = true)]
    error: Option<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = pause_reasons, required = false)]
    blocked_by: Option<String>,
}

fn is_deletion() -> Object {
    words(["file.deletion"])
}

fn statuses() -> Object {
    let text = "`pending` while some copy is still to be deleted, `done` when no provider has any, `failed` when \
                nothing is tried any more and some copy may be left.";
    described(words(Deletion::ALL.map(Deletion::as_str)), text)
}

impl DeletionObject {
    fn new(app: &App, receipt: FileReceipt) -> Self {
        let FileReceipt { managed_id, deletion, deleted_at, copies, .. } = receipt;
        Self {
            id: managed_id,
            object: "file.deletion",
            status: deletion.as_str(),
            deleted_at: deleted_at.unix_seconds(),
            mappings: copies.into_iter().map(|copy| CopyObject::new(app, copy)).collect(),
        }
    }
}

impl CopyObject {
    fn new(app: &App, copy: CopyReceipt) -> Self {
        let is_served = app.providers.get(&copy.provider).is_some();
        Self {
            receipt: copy.receipt(),
            error: copy.failure(),
            blocked_by: copy.blocked_by(is_served).map(str::to_owned),
            model: copy.model,
            deployment_id: copy.deployment_id,
            provider: copy.provider,
            provider_file_id: copy.provider_file_id,
            status: copy.status,
            deleted_at: copy.deleted_at.map(|at| at.unix_seconds()),
            job_id: copy.delete_job_id.map(|id| id.to_string()),
        }
    }
}

/// Retrieve the deletion of a file
///
/// Also after years: the receipt of each copy is kept.
#[utoipa::path(get, path = "/v1/files/{id}/deletion", operation_id = "retrieve_file_deletion", tag = "Files",
    security(("bearer" = [])),
    params(("id" = String, Path, description = "A file that was deleted."), WaitParameter),
    responses(
        (status = 200, description = "How far it is.", body = DeletionObject),
        (status = 404, response = NotFound),
    ),
)]
pub async fn deletion(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    Query(query): Query<WaitParameter>,
) -> Result<Json<DeletionObject>, Error> {
    let is_final = |receipt: &FileReceipt| receipt.deletion != Deletion::Pending;
    let read = || find_receipt(&app, &caller, &id);
    let receipt = wait::until_final(&app, &query, |receipt| receipt.id.0, is_final, read).await?;
    Ok(Json(DeletionObject::new(&app, *receipt)))
}

async fn find_receipt(app: &App, caller: &Caller, id: &str) -> Result<FileReceipt, Error> {
    match receipts::find(app.db.read(), id).await? {
        Some(receipt) if caller.may_touch(&receipt.owner) => Ok(receipt),
        Some(_) => Err(Error::foreign(&caller.owner, "file", id)),
        None => {
            // One that is not deleted has no deletion, and one of somebody else's is told apart.
            find(app, caller, id).await?;
            Err(Error::NotFound {
                param: Some("file_id"),
                code: "not_found",
                message: "the file is not deleted".to_owned(),
            })
        }
    }
}
