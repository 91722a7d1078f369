//! `/v1/models`: the configured models, in OpenAI's shape.

use axum::extract::State;
use axum::response::Json;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Authenticated;
use super::description::words;
use super::error::NotFound;
use super::list::List;
use super::parameters::Path;
use crate::app::App;
use crate::error::Error;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(list)).routes(routes!(retrieve))
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelObject {
    /// The name, as clients write it in `target_model_names`.
    id: String,
    #[schema(schema_with = is_model)]
    object: &'static str,
    /// Always 0: there is no such moment for a configured name.
    created: i64,
    /// The provider, or the first of them where several deployments share the name.
    owned_by: String,
}

fn is_model() -> Object {
    words(["model"])
}

fn models(app: &App) -> Vec<ModelObject> {
    let mut models: Vec<ModelObject> = Vec::new();
    for model in &app.config.models {
        if !models.iter().any(|known| known.id == model.name) {
            let owned_by = model.provider.clone();
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

/// List the models
#[utoipa::path(get, path = "/v1/models", operation_id = "list_models", tag = "Models", security(("bearer" = [])),
    responses((status = 200, description = "All configured models.", body = List<ModelObject>)),
)]
async fn list(State(app): State<App>, _: Authenticated) -> Json<List<ModelObject>> {
    Json(List::whole(models(&app), |model| model.id.clone()))
}

/// Retrieve a model
// Its name may hold slashes.
#[utoipa::path(get, path = "/v1/models/{*model}", operation_id = "retrieve_model", tag = "Models",
    security(("bearer" = [])),
    params(("model" = String, Path, description = "Its name; slashes may stand as they are.")),
    responses(
        (status = 200, description = "The model.", body = ModelObject),
        (status = 404, response = NotFound),
    ),
)]
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
