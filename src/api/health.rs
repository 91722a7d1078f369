//! `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::extract::Request;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Json;
use axum::response::Response;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Admin;
use super::description::words;
use crate::app::App;
use crate::db::warn_of;
use crate::error::Error;
use crate::telemetry;

/// How long a part may take to answer.
const PATIENCE: Duration = Duration::from_secs(6);

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(alive)).routes(routes!(ready)).routes(routes!(metrics))
}

#[derive(Serialize, ToSchema)]
struct Health {
    #[schema(schema_with = is_ok)]
    status: &'static str,
}

fn is_ok() -> Object {
    words(["ok"])
}

/// Whether it is alive
///
/// It needs no key.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "Operation", responses(
    (status = 200, description = "It is.", body = Health),
))]
async fn alive() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// What each part says. It never tells more than that a part is away: anybody may ask.
#[derive(Serialize, ToSchema)]
struct Readiness {
    #[schema(schema_with = whole)]
    status: &'static str,
    #[schema(schema_with = part)]
    database: &'static str,
    #[schema(schema_with = part)]
    blobs: &'static str,
    #[schema(schema_with = part_or_none)]
    redis: &'static str,
}

fn whole() -> Object {
    words(["ok", "degraded", "unavailable", "draining"])
}

fn part() -> Object {
    words(["ok", "unreachable"])
}

fn part_or_none() -> Object {
    words(["ok", "unreachable", "not configured"])
}

/// What was found last. Anybody may ask, and as often as they like: one asks for all who wait meanwhile.
#[derive(Clone, Default)]
pub struct Looks {
    last: Arc<Mutex<Option<(Instant, Found)>>>,
}

#[derive(Clone, Copy)]
struct Found {
    database: bool,
    blobs: bool,
}

impl Looks {
    async fn look(&self, app: &App) -> Found {
        let asked_at = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((found_at, found)) = *last
            && found_at >= asked_at
        {
            return found;
        }
        let (database, blobs) =
            tokio::join!(timeout(PATIENCE, app.db.ping()), timeout(PATIENCE, app.blobs.ping()));
        let found = Found {
            database: is_reached("the database", &database, warn_of),
            blobs: is_reached("the blob store", &blobs, |error, what| {
                tracing::warn!(error = %error, "{what}");
            }),
        };
        *last = Some((Instant::now(), found));
        found
    }
}

fn is_reached<T, E>(
    what: &str,
    answer: &Result<Result<T, E>, Elapsed>,
    warn: impl FnOnce(&E, &str),
) -> bool {
    match answer {
        Ok(Ok(_)) => return true,
        Ok(Err(error)) => warn(error, &format!("not ready: {what} cannot be reached")),
        Err(_) => tracing::warn!("not ready: {what} does not answer"),
    }
    false
}

/// Whether it can do its work
///
/// It needs no key. Without Redis it can, only slower: 200, with `degraded`. One that was told to stop cannot for long:
/// 503, with `draining`.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "Operation", responses(
    (status = 200, description = "It can.", body = Readiness),
    (status = 503, description = "The database or the blob store cannot be reached, or it is about to end.", body = Readiness,
        headers(("retry-after" = u64, description = "In how many seconds to ask again."))),
))]
async fn ready(State(api): State<Api>) -> Response {
    let app = &api.app;
    if app.notices.is_closing() {
        // At once: whoever asks is to send it nothing more, however its database is.
        return draining(app);
    }
    let Found { database, blobs } = api.looks.look(app).await;
    let word = |is_up: bool| if is_up { "ok" } else { "unreachable" };
    let is_ready = database && blobs;
    let body = Readiness {
        status: match (is_ready, app.notices.is_degraded()) {
            // It was told to stop meanwhile.
            _ if app.notices.is_closing() => return draining(app),
            (true, false) => "ok",
            (true, true) => "degraded",
            (false, _) => "unavailable",
        },
        database: word(database),
        blobs: word(blobs),
        redis: redis(app),
    };
    if is_ready { Json(body).into_response() } else { not_ready(body) }
}

/// What an instance says that was told to stop. Of the parts it does not ask any more, and says nothing against them.
fn draining(app: &App) -> Response {
    not_ready(Readiness { status: "draining", database: "ok", blobs: "ok", redis: redis(app) })
}

fn redis(app: &App) -> &'static str {
    match (&app.config.redis.url, app.notices.is_degraded()) {
        (None, _) => "not configured",
        (Some(_), false) => "ok",
        (Some(_), true) => "unreachable",
    }
}

fn not_ready(body: Readiness) -> Response {
    let mut response = (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    response.headers_mut().insert("retry-after", 2.into());
    response
}

/// Metrics, for Prometheus
///
/// With an admin key; or with none, where `server.open_metrics` says so.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "Operation",
    security(("bearer" = ["admin"])),
    responses((status = 200, description = "In Prometheus' text format.", body = String)),
)]
async fn metrics(State(app): State<App>, request: Request) -> Result<Response, Error> {
    if !app.config.server.open_metrics {
        let (mut parts, _) = request.into_parts();
        Admin::from_request_parts(&mut parts, &app).await?;
    }
    telemetry::observe(&app).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry::render()).into_response())
}
