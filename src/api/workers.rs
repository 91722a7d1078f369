//! `/v1/admin/workers`: the processes of this installation.

use axum::extract::State;
use axum::response::Json;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Admin;
use super::description::words;
use super::list::List;
use crate::app::App;
use crate::error::Error;
use crate::jobs::WorkerId;
use crate::processes;
use crate::processes::Seen;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(list_workers))
}

/// A process. All times are by the database's clock.
#[derive(Serialize, ToSchema)]
#[schema(as = Worker)]
struct WorkerObject {
    id: String,
    #[schema(schema_with = is_worker)]
    object: &'static str,
    /// The command that it was started as: `up`, `serve` or `work`; a newer version may have others.
    role: String,
    host: String,
    /// Its process id on that host, or in its container.
    pid: i64,
    version: String,
    #[schema(schema_with = states)]
    status: &'static str,
    /// Jobs that it runs.
    running: i64,
    /// How many milliseconds its clock is ahead of the database's; negative if it is behind. What the heartbeat took is
    /// in it.
    clock_ahead_ms: i64,
    started_at: i64,
    /// Its last heartbeat.
    seen_at: i64,
    /// When it was told to stop.
    #[schema(required = true)]
    draining_at: Option<i64>,
    /// When it had ended, in order.
    #[schema(required = true)]
    stopped_at: Option<i64>,
}

fn is_worker() -> Object {
    words(["worker"])
}

fn states() -> Object {
    words(processes::State::ALL.map(processes::State::as_str))
}

impl WorkerObject {
    fn new(seen: Seen, running: i64) -> Self {
        Self {
            id: seen.id.to_string(),
            object: "worker",
            status: seen.state().as_str(),
            role: seen.role,
            host: seen.host,
            pid: seen.pid,
            version: seen.version,
            running,
            clock_ahead_ms: seen.clock_ahead_ms,
            started_at: seen.started_at.unix_seconds(),
            seen_at: seen.seen_at.unix_seconds(),
            draining_at: seen.draining_at.map(|at| at.unix_seconds()),
            stopped_at: seen.stopped_at.map(|at| at.unix_seconds()),
        }
    }
}

/// List the processes
///
/// Those that take requests as well as those that run jobs; for a day, also those that have ended.
#[utoipa::path(get, path = "/v1/admin/workers", operation_id = "list_workers", tag = "Admin",
    security(("bearer" = ["admin"])),
    responses((status = 200, description = "All processes of the last day, those that have ended last.",
        body = List<WorkerObject>)),
)]
async fn list_workers(State(app): State<App>, _: Admin) -> Result<Json<List<WorkerObject>>, Error> {
    let seen = processes::list(app.db.scan()).await?;
    let running = processes::running(app.db.scan()).await?;
    let workers = seen.into_iter().map(|seen| {
        let running = running.get(&WorkerId(seen.id.to_string())).copied().unwrap_or_default();
        WorkerObject::new(seen, running)
    });
    Ok(Json(List::whole(workers.collect(), |worker: &WorkerObject| worker.id.clone())))
}
