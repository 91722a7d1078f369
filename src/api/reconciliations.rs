//! `/v1/admin/providers/{name}/reconcile`, and the reports of it.

use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Admin;
use super::description::words;
use super::error::DiskFull;
use super::error::NotFound;
use super::error::PayloadTooLarge;
use super::error::UnsupportedMediaType;
use super::json::OptionalJson;
use super::list::List;
use super::parameters::Path;
use super::request::RequestId;
use crate::app::App;
use crate::error::Error;
use crate::ids::ReconciliationId;
use crate::jobs::Failure;
use crate::notices::Hint;
use crate::reconciliations;
use crate::reconciliations::Report;
use crate::reconciliations::store;
use crate::reconciliations::store::Reconciliation;

/// Reports that one list shows.
const SHOWN: u32 = 20;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(reconcile))
        .routes(routes!(list))
        .routes(routes!(retrieve))
}

/// A comparison of a provider's list with what is known here.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Reconciliation)]
struct ReconciliationObject {
    id: String,
    #[schema(schema_with = is_reconciliation)]
    object: &'static str,
    /// The provider's name in the configuration.
    provider: String,
    #[schema(schema_with = statuses)]
    status: String,
    /// Whether it only says what it would delete.
    dry_run: bool,
    /// The job that does it. It can be waited for.
    job_id: String,
    #[schema(required = true)]
    report: Option<Report>,
    #[schema(required = true)]
    error: Option<Failure>,
    created_at: i64,
    #[schema(required = true)]
    finished_at: Option<i64>,
}

fn is_reconciliation() -> Object {
    words(["reconciliation"])
}

fn statuses() -> Object {
    words(["queued", "succeeded", "failed"])
}

impl From<Reconciliation> for ReconciliationObject {
    fn from(stored: Reconciliation) -> Self {
        Self {
            report: stored.report(),
            error: stored.failure(),
            id: stored.id.to_string(),
            object: "reconciliation",
            provider: stored.provider,
            status: stored.status,
            dry_run: stored.is_dry_run,
            job_id: stored.job_id.to_string(),
            created_at: stored.created_at.unix_seconds(),
            finished_at: stored.finished_at.map(|at| at.unix_seconds()),
        }
    }
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct Reconcile {
    /// Only say what would be deleted, and what would count as lost.
    dry_run: bool,
}

/// Reconcile a provider
///
/// Its list is compared with what is known here. What was deleted or superseded and is still there is deleted;
/// nothing else is touched. While one is not over, it is answered again instead of another being made.
#[utoipa::path(post, path = "/v1/admin/providers/{name}/reconcile", operation_id = "reconcile_provider",
    tag = "Admin", security(("bearer" = ["admin"])),
    params(("name" = String, Path, description = "The provider's name in the configuration.")),
    request_body = Option<Reconcile>,
    responses(
        (status = 200, description = "The reconciliation, `queued`.", body = ReconciliationObject),
        (status = 404, response = NotFound),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 507, response = DiskFull),
    ),
)]
async fn reconcile(
    State(app): State<App>,
    _: Admin,
    request_id: RequestId,
    Path(name): Path,
    OptionalJson(body): OptionalJson<Reconcile>,
) -> Result<Json<ReconciliationObject>, Error> {
    let is_dry_run = body.unwrap_or_default().dry_run;
    if app.providers.get(&name).is_none() {
        return Err(Error::no_such("provider", "name", &name));
    }
    let (now, most) = (app.clock.now(), app.config.retry.max_attempts.get());
    let request = Some(request_id.0);
    let stored = app
        .db
        .intake(move |tx| {
            let (name, request) = (name.clone(), request.clone());
            Box::pin(async move {
                reconciliations::create(tx, now, &name, is_dry_run, most, request).await
            })
        })
        .await?;
    app.notices.hint(Hint::Work);
    Ok(Json(stored.into()))
}

/// List the reconciliations of a provider
///
/// The last 20, the last one first.
#[utoipa::path(get, path = "/v1/admin/providers/{name}/reconciliations", operation_id = "list_reconciliations",
    tag = "Admin", security(("bearer" = ["admin"])),
    params(("name" = String, Path, description = "The provider's name in the configuration.")),
    responses((status = 200, description = "Its reconciliations.", body = List<ReconciliationObject>)),
)]
async fn list(
    State(app): State<App>,
    _: Admin,
    Path(name): Path,
) -> Result<Json<List<ReconciliationObject>>, Error> {
    let stored = store::list(app.db.scan(), &name, SHOWN).await?;
    let all = stored.into_iter().map(ReconciliationObject::from).collect();
    Ok(Json(List::whole(all, |one: &ReconciliationObject| one.id.clone())))
}

/// Retrieve a reconciliation
#[utoipa::path(get, path = "/v1/admin/reconciliations/{id}", operation_id = "retrieve_reconciliation",
    tag = "Admin", security(("bearer" = ["admin"])),
    params(("id" = String, Path, description = "The reconciliation.")),
    responses(
        (status = 200, description = "It, with its report once it has ended.", body = ReconciliationObject),
        (status = 404, response = NotFound),
    ),
)]
async fn retrieve(
    State(app): State<App>,
    _: Admin,
    Path(id): Path,
) -> Result<Json<ReconciliationObject>, Error> {
    let no_such = || Error::no_such("reconciliation", "reconciliation_id", &id);
    let parsed: ReconciliationId = id.parse().map_err(|_| no_such())?;
    let stored = store::find(app.db.read(), parsed).await?.ok_or_else(no_such)?;
    Ok(Json(stored.into()))
}
