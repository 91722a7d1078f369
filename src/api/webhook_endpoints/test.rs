//! `POST /v1/webhook_endpoints/{id}/test`: whether an endpoint answers, before anything depends on it.

use std::time::Duration;

use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use super::fields::checked_type;
use super::fields::given;
use super::find;
use super::object::event_type;
use super::vault;
use crate::api::auth::Authenticated;
use crate::api::description::words;
use crate::api::error::Conflict;
use crate::api::error::NotFound;
use crate::api::error::PayloadTooLarge;
use crate::api::error::TooManyRequests;
use crate::api::error::UnsupportedMediaType;
use crate::api::json::OptionalJson;
use crate::api::parameters::Path;
use crate::app::App;
use crate::error::Error;
use crate::events;
use crate::ids::EventId;
use crate::webhooks;
use crate::webhooks::sender::Message;

/// What a test says that it is about: nothing that exists.
const SAMPLE: &str = "sample";

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = TestWebhookEndpoint)]
pub struct Test {
    /// What the sample says that it is.
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = event_type, required = true)]
    event_type: Option<String>,
}

/// How a test went.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookEndpointTest)]
pub struct TestObject {
    #[schema(schema_with = is_test)]
    object: &'static str,
    webhook_endpoint_id: String,
    #[schema(schema_with = event_type)]
    event_type: String,
    /// Whether there was an answer. `status_code` is what it said.
    success: bool,
    status_code: u16,
}

fn is_test() -> Object {
    words(["webhook_endpoint.test"])
}

/// Test a webhook endpoint
///
/// A sample is sent at once and once, with the id `sample` in `data`. An endpoint that cannot be reached is 409.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{id}/test", operation_id = "test_webhook_endpoint",
    tag = "Webhooks", security(("bearer" = [])),
    params(("id" = String, Path, description = "The endpoint.")),
    request_body = Test,
    responses(
        (status = 200, description = "What the endpoint answered.", body = TestObject),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 429, response = TooManyRequests),
    ),
)]
pub async fn test(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    OptionalJson(body): OptionalJson<Test>,
) -> Result<Json<TestObject>, Error> {
    let endpoint = find(&app, &caller, &id).await?;
    let missing = || {
        Error::missing(
            "event_type",
            "`event_type` is missing; send `{\"event_type\": \"file.processed\"}`",
        )
    };
    let event_type = body.unwrap_or_default().event_type.ok_or_else(missing)?;
    let event_type = checked_type("event_type", &event_type)?;
    let _place = app.webhooks.place_for_test().ok_or_else(|| Error::Limited {
        code: "too_many_tests",
        message: "too many webhook endpoints are being tested; try again".to_owned(),
        retry_after: Duration::from_secs(1),
    })?;
    let (event, now) = (EventId::mint(), app.clock.now());
    let body = events::to_json(event, event_type.as_str(), now, SAMPLE);
    let body = body.map_err(|error| Error::Internal(error.into()))?;
    let secrets = webhooks::secrets(vault(&app)?, &endpoint, now);
    let secrets = secrets.map_err(|error| Error::Internal(error.into()))?;
    let message = Message { id: event.to_string(), body };
    let answered = app.webhooks.send(&endpoint.url, message, &secrets, now).await;
    let status_code = answered.map_err(|unsent| Error::Conflict {
        code: unsent.code(),
        message: format!("no answer from the endpoint: {unsent}"),
        retry_after: None,
    })?;
    Ok(Json(TestObject {
        object: "webhook_endpoint.test",
        webhook_endpoint_id: id,
        event_type: event_type.to_string(),
        success: true,
        status_code,
    }))
}
