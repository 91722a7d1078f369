//! Intake: the HTTP API. It knows axum; it calls no worker, and of the providers it only asks for
//! content that is no longer kept here.

mod admin;
mod auth;
pub mod body;
mod description;
mod disposition;
mod error;
pub mod files;
mod health;
mod idempotency;
mod jobs;
mod json;
mod list;
mod models;
mod parameters;
mod request;
mod rest;
pub mod server;
mod wait;

use axum::Extension;
use axum::Router;
use axum::extract::FromRef;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;

/// What handlers share.
#[derive(Clone)]
pub struct Api {
    app: App,
    requests: idempotency::Requests,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

impl FromRef<Api> for App {
    fn from_ref(api: &Api) -> Self {
        api.app.clone()
    }
}

/// Every path there is. Each is routed by its description, so that none can be without one.
fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .merge(files::routes())
        .merge(jobs::routes())
        .merge(models::routes())
        .merge(admin::routes())
        .merge(health::routes())
        .merge(description::routes())
}

impl Api {
    pub fn new(app: App) -> Self {
        Self { app, requests: idempotency::Requests::new() }
    }

    /// The paths, and what every request passes on its way to them.
    ///
    /// # Errors
    ///
    /// When the description of the paths cannot be written as JSON.
    pub fn router(&self) -> anyhow::Result<Router> {
        let (router, description) = routes().split_for_parts();
        let description = description::write(description)?;
        Ok(router
            .fallback(error::no_such_path)
            .method_not_allowed_fallback(error::no_such_method)
            .layer(Extension(description))
            .layer(CatchPanicLayer::custom(error::panicked))
            .layer(axum::middleware::from_fn(rest::read))
            .layer(axum::middleware::from_fn(request::identify))
            .with_state(self.clone()))
    }

    /// What runs beside the requests, until it is dropped.
    pub async fn run(&self) {
        tokio::join!(
            self.requests.run(self.app.clone()),
            self.app.notices.run(self.app.db.clone())
        );
    }
}
