//! `/healthz`, `/readyz` and `/metrics`.

use axum::Router;
use axum::extract::FromRequestParts;
use axum::extract::Request;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::response::Json;
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;

use super::Api;
use super::auth::Admin;
use crate::app::App;
use crate::error::Error;
use crate::telemetry;

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/healthz", get(|| async { Json(Health { status: "ok" }) }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// What each part says. `error` never tells more than that it is away: anybody may ask.
#[derive(Serialize)]
struct Readiness {
    status: &'static str,
    database: &'static str,
    blobs: &'static str,
    redis: &'static str,
}

async fn ready(State(app): State<App>) -> Response {
    let (database, blobs) = tokio::join!(app.db.ping(), app.blobs.ping());
    if let Err(error) = &database {
        tracing::warn!(error = %error, "not ready: the database cannot be reached");
    }
    if let Err(error) = &blobs {
        tracing::warn!(error = %error, "not ready: the blob store cannot be reached");
    }
    let word = |is_up: bool| if is_up { "ok" } else { "unreachable" };
    let is_ready = database.is_ok() && blobs.is_ok();
    let is_degraded = app.notices.is_degraded();
    let body = Readiness {
        status: match (is_ready, is_degraded) {
            (true, false) => "ok",
            (true, true) => "degraded",
            (false, _) => "unavailable",
        },
        database: word(database.is_ok()),
        blobs: word(blobs.is_ok()),
        redis: match (&app.config.redis.url, is_degraded) {
            (None, _) => "not configured",
            (Some(_), false) => "ok",
            (Some(_), true) => "unreachable",
        },
    };
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = (status, Json(body)).into_response();
    if !is_ready {
        response.headers_mut().insert("retry-after", 2.into());
    }
    response
}

async fn metrics(State(app): State<App>, request: Request) -> Result<Response, Error> {
    if !app.config.server.open_metrics {
        let (mut parts, _) = request.into_parts();
        Admin::from_request_parts(&mut parts, &app).await?;
    }
    telemetry::observe(&app).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], telemetry::render()).into_response())
}
