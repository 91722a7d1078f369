//! `/v1/models`: the configured models, in OpenAI's shape.

use axum::Router;
use axum::extract::State;
use axum::response::Json;
use axum::routing::get;
use serde::Serialize;

use super::Api;
use super::auth::Authenticated;
use super::list::List;
use super::parameters::Path;
use crate::app::App;
use crate::error::Error;

pub fn routes() -> Router<Api> {
    // A model's name may hold slashes.
    Router::new().route("/v1/models", get(list)).route("/v1/models/{*model}", get(retrieve))
}

#[derive(Debug, Serialize)]
struct ModelObject {
    id: String,
    object: &'static str,
    created: i64,
    /// The provider, or the first of them where several deployments share the name.
    owned_by: String,
}

fn models(app: &App) -> Vec<ModelObject> {
    let mut models: Vec<ModelObject> = Vec::new();
    for model in &app.config.models {
        if !models.iter().any(|known| known.id == model.name) {
            let owned_by = model.provider.clone();
            // There is no such moment for a configured name.
            models.push(ModelObject {
                id: model.name.clone(),
                object: "model",
                created: 0,
                owned_by,
            });
        }
    }
    models
}

async fn list(State(app): State<App>, _: Authenticated) -> Json<List<ModelObject>> {
    Json(List::whole(models(&app), |model| model.id.clone()))
}

async fn retrieve(
    State(app): State<App>,
    _: Authenticated,
    Path(name): Path,
) -> Result<Json<ModelObject>, Error> {
    let model = models(&app).into_iter().find(|model| model.id == name);
    model.map(Json).ok_or_else(|| {
        let message = app.unknown_model(&name).to_string();
        Error::NotFound { param: Some("model"), code: "model_not_found", message }
    })
}
