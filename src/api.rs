//! Intake: the HTTP API. It knows axum; it calls no worker, and of the providers it only asks for
//! content that is no longer kept here.

mod admin;
mod auth;
mod batches;
pub mod body;
mod description;
mod disposition;
mod error;
mod events;
pub mod files;
mod health;
mod idempotency;
mod jobs;
mod json;
mod limits;
mod list;
mod models;
mod parameters;
mod provider_events;
mod quota;
mod reconciliations;
mod request;
mod rest;
pub mod server;
mod sweeps;
mod wait;
mod webhook_endpoints;
mod workers;

use std::ops::Deref;
use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::extract::FromRef;
use tokio::sync::Mutex;
use utoipa_axum::router::OpenApiRouter;

use self::quota::Quota;
use crate::app::App;
use crate::db::Db;
use crate::traces::Traces;

/// Requests that use the database or wait for it: an eighth of the connections, within these. Of a database that does
/// a few thousand things a second, the last of them has its turn within a second.
const MIN_WAITING: usize = 32;
const MAX_WAITING: usize = 2048;

/// What handlers share. Each request that waits holds it a few times, so it is no larger than a pointer.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

impl Deref for Api {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

pub struct Shared {
    /// Its database turns requests away when too many wait for it.
    app: App,
    /// The same database, for what runs beside them.
    db: Db,
    requests: idempotency::Requests,
    looks: health::Looks,
    /// Held by whoever reads which requests of a batch have succeeded: in memory are those of one batch at most.
    retries: Arc<Mutex<()>>,
    large_results: batches::Room,
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
        .merge(batches::routes())
        .merge(provider_events::routes())
        .merge(jobs::routes())
        .merge(sweeps::routes())
        .merge(webhook_endpoints::routes())
        .merge(events::routes())
        .merge(models::routes())
        .merge(admin::routes())
        .merge(workers::routes())
        .merge(reconciliations::routes())
        .merge(health::routes())
        .merge(description::routes())
}

impl Api {
    pub fn new(app: App) -> Self {
        let db = app.db.clone();
        let places = (server::max_connections() / 8).clamp(MIN_WAITING, MAX_WAITING);
        Self(Arc::new(Shared {
            app: app.with_db(db.bounded(places)),
            db,
            requests: idempotency::Requests::new(),
            looks: health::Looks::default(),
            retries: Arc::default(),
            large_results: batches::Room::default(),
        }))
    }

    /// The paths, and what every request passes on its way to them.
    ///
    /// # Errors
    ///
    /// When the description of the paths cannot be written as JSON.
    pub fn router(&self) -> anyhow::Result<Router> {
        let (router, description) = routes().split_for_parts();
        let description = description::write(description)?;
        let router = router.layer(Extension(description));
        Ok(with_border(router, self.app.traces.clone(), Quota::of(&self.app))
            .with_state(self.clone()))
    }

    /// What a process that only runs jobs answers: whether it is well, and its metrics.
    pub fn health_router(&self) -> Router {
        let (router, _) = health::routes().split_for_parts();
        with_border(router, self.app.traces.clone(), Quota::default()).with_state(self.clone())
    }

    /// What runs beside the requests, until it is dropped.
    pub async fn run(&self) {
        let app = self.app.with_db(self.db.clone());
        tokio::join!(self.requests.run(app.clone()), app.notices.run(app.db.clone()));
    }
}

/// What stands around every path: the fallbacks, the limits, the request's id and trace, and what a panic becomes.
fn with_border<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    traces: Traces,
    quota: Quota,
) -> Router<S> {
    routes
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        // It checks the limits and catches panics too: each layer is a kilobyte or two of every request that waits.
        .layer(axum::middleware::from_fn_with_state(quota, rest::read))
        .layer(axum::middleware::from_fn_with_state(traces, request::identify))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::routing::get;
    use axum::routing::post;
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    async fn panics() {
        panic!("canary of a panic");
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_in_the_usual_form_and_the_connection_goes_on() {
        let routes = Router::new()
            .route("/panics", get(panics).post(panics))
            .route("/fine", post(|body: axum::body::Bytes| async move { body.len().to_string() }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let end = async { drop(stopped.await) };
        let router = with_border(routes, Traces::default(), Quota::default());
        let ending = server::Ending { delay: Duration::ZERO, drain: Duration::from_secs(5) };
        let server =
            tokio::spawn(async move { server::serve(listener, router, end, ending).await });
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        for body in [None, Some(vec![b'x'; 3 << 20])] {
            let request = match body {
                None => client.get(format!("{base}/panics")),
                Some(body) => client.post(format!("{base}/panics")).body(body),
            };
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 500);
            assert!(response.headers().contains_key("x-request-id"));
            assert_eq!(
                response.json::<Value>().await.unwrap(),
                json!({"error": {"message": "internal error; the server's log says more under the `x-request-id` of this answer", "type": "server_error", "param": null,
                    "code": "internal_error"}})
            );
        }
        let response = client.post(format!("{base}/fine")).body("four").send().await.unwrap();
        assert_eq!(response.text().await.unwrap(), "4");
        drop(client);
        stop.send(()).unwrap();
        server.await.unwrap();
    }
}
