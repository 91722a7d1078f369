//! `/v1/webhook_endpoints` and `/v1/webhook_event_types`, as the OpenAI SDKs' `client.webhooks` has them.

mod fields;
mod object;
mod test;

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Json;
use axum::response::Response;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::fields::checked_name;
use self::fields::checked_types;
use self::fields::checked_url;
use self::fields::event_types;
use self::fields::given;
use self::fields::name;
use self::fields::url;
use self::object::EndpointObject;
use self::object::revealed;
use self::object::sealed;
use self::object::status;
use super::Api;
use super::auth::Authenticated;
use super::description::words;
use super::error::Conflict;
use super::error::DiskFull;
use super::error::KeyReused;
use super::error::NotFound;
use super::error::PayloadTooLarge;
use super::error::UnsupportedMediaType;
use super::idempotency::Creation;
use super::idempotency::IdempotencyKey;
use super::json::OptionalJson;
use super::list::Limits;
use super::list::List;
use super::list::ListParameters;
use super::parameters::Path;
use super::parameters::Query;
use crate::app::App;
use crate::error::Error;
use crate::ids::WebhookEndpointId;
use crate::owners::Caller;
use crate::webhooks;
use crate::webhooks::Change;
use crate::webhooks::EndpointStatus;
use crate::webhooks::EventType;
use crate::webhooks::NewEndpoint;
use crate::webhooks::Sealed;
use crate::webhooks::store;
use crate::webhooks::store::Endpoint;
use crate::webhooks::vault::Vault;

const PATH: &str = "/v1/webhook_endpoints";
const ROTATE_PATH: &str = "/v1/webhook_endpoints/{id}/rotate_secret";
const LIMITS: Limits = Limits { default: 20, most: 100 };

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(create, list))
        .routes(routes!(retrieve, update, delete))
        .routes(routes!(rotate_secret))
        .routes(routes!(test::test))
        .routes(routes!(list_event_types))
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = CreateWebhookEndpoint)]
struct Create {
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = name, required = true)]
    name: Option<String>,
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = url, required = true)]
    url: Option<String>,
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = event_types, required = true)]
    event_types: Option<Vec<String>>,
}

/// What is not said stays.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = UpdateWebhookEndpoint)]
struct Update {
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = name, required = false)]
    name: Option<String>,
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = url, required = false)]
    url: Option<String>,
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = event_types, required = false)]
    event_types: Option<Vec<String>>,
    /// A disabled one is told of nothing, and what it still had to be told is called off.
    #[serde(deserialize_with = "given")]
    #[schema(schema_with = status, required = false)]
    status: Option<String>,
}

fn vault(app: &App) -> Result<&Vault, Error> {
    app.vault.as_ref().ok_or_else(|| Error::Conflict {
        code: "encryption_key_missing",
        message: "this server cannot store the secrets of webhooks, which are encrypted: set `auth.encryption_key` \
                  (LONGSHORE_ENCRYPTION_KEY) to the same 32 bytes in base64 for every process, as \
                  `openssl rand -base64 32` makes them"
            .to_owned(),
        retry_after: None,
    })
}

/// Create a webhook endpoint
///
/// Deliveries are Standard Webhooks: `webhook-id`, `webhook-timestamp`, and a `webhook-signature` that the official
/// SDKs' `webhooks.unwrap` checks. The secret is shown this once.
#[utoipa::path(post, path = "/v1/webhook_endpoints", operation_id = "create_webhook_endpoint", tag = "Webhooks",
    security(("bearer" = [])),
    params(IdempotencyKey),
    request_body = Create,
    responses(
        (status = 200, description = "The endpoint, with its secret.", body = EndpointObject, headers(
            ("idempotency-replayed" = String, description = "`true` where this is the first answer again."))),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 422, response = KeyReused),
        (status = 507, response = DiskFull),
    ),
)]
async fn create(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<Create>,
) -> Result<Response, Error> {
    let asked = body.unwrap_or_default();
    let creation = Creation::new(&caller.owner, PATH, &headers, &asked)?;
    let (Some(name), Some(url), Some(types)) = (&asked.name, &asked.url, &asked.event_types) else {
        return Err(what_is_missing(&asked));
    };
    let app = &api.app;
    let (id, vault) = (WebhookEndpointId::mint(), vault(app)?);
    let new = Arc::new(NewEndpoint {
        id,
        name: checked_name(name)?,
        event_types: checked_types(types)?,
        url: checked_url(app, url).await?,
        owner: caller.owner,
        secret: Sealed::new(vault, id).map_err(Error::Internal)?,
    });
    let now = app.clock.now();
    let create = creation.once_sealed(
        &api,
        move |tx| {
            let new = Arc::clone(&new);
            Box::pin(async move {
                let endpoint = webhooks::create(tx, now, &new).await?;
                sealed(&endpoint, &new.secret)
            })
        },
        |kept| revealed(vault, kept),
    );
    create.await
}

fn what_is_missing(asked: &Create) -> Error {
    let param = match asked {
        Create { name: None, .. } => "name",
        Create { url: None, .. } => "url",
        Create { .. } => "event_types",
    };
    let message = format!(
        "`{param}` is missing; send `{{\"name\": \"…\", \"url\": \"https://…\", \"event_types\": [\"file.processed\"]}}`"
    );
    Error::missing(param, message)
}

async fn find(app: &App, caller: &Caller, text: &str) -> Result<Endpoint, Error> {
    let id: WebhookEndpointId = text.parse().map_err(|_| no_such(text))?;
    let endpoint = store::find(app.db.read(), id).await?.ok_or_else(|| no_such(text))?;
    if caller.may_touch(&endpoint.owner) {
        Ok(endpoint)
    } else {
        Err(Error::foreign(&caller.owner, "webhook endpoint", text))
    }
}

fn no_such(text: &str) -> Error {
    Error::no_such("webhook endpoint", "webhook_endpoint_id", text)
}

/// List webhook endpoints
#[utoipa::path(get, path = "/v1/webhook_endpoints", operation_id = "list_webhook_endpoints", tag = "Webhooks",
    security(("bearer" = [])),
    params(
        ListParameters,
        ("limit" = Option<u32>, Query, description = "How many at most; 20 if it is not said.",
            minimum = 1, maximum = 100),
    ),
    responses((status = 200, description = "A page of the owner's endpoints.", body = List<EndpointObject>)),
)]
async fn list(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Query(query): Query<ListParameters>,
) -> Result<Json<List<EndpointObject>>, Error> {
    let after = match query.after() {
        None => None,
        Some(after) => Some(place(&app, &caller, after).await?),
    };
    let page = query.page(after, LIMITS)?;
    let endpoints = store::list(app.db.scan(), &caller.scope(), &page).await?;
    let endpoints: Result<Vec<_>, _> = endpoints.iter().map(EndpointObject::new).collect();
    Ok(Json(List::new(endpoints?, &page, |endpoint: &EndpointObject| endpoint.id.clone())))
}

/// Where a list is to go on: behind an endpoint that may be deleted since.
async fn place(app: &App, caller: &Caller, after: &str) -> Result<WebhookEndpointId, Error> {
    let unknown =
        || Error::invalid("after", "`after` must be the id of a webhook endpoint of this list");
    let id: WebhookEndpointId = after.parse().map_err(|_| unknown())?;
    let owner = store::owner(app.db.read(), id).await?;
    owner.filter(|owner| caller.may_touch(owner)).map(|_| id).ok_or_else(unknown)
}

/// Retrieve a webhook endpoint
#[utoipa::path(get, path = "/v1/webhook_endpoints/{id}", operation_id = "retrieve_webhook_endpoint",
    tag = "Webhooks", security(("bearer" = [])),
    params(("id" = String, Path, description = "The endpoint.")),
    responses(
        (status = 200, description = "The endpoint.", body = EndpointObject),
        (status = 404, response = NotFound),
    ),
)]
async fn retrieve(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<EndpointObject>, Error> {
    Ok(Json(EndpointObject::new(&find(&app, &caller, &id).await?)?))
}

/// Change a webhook endpoint
///
/// With the status `enabled` one that was disabled is told of what happens from now on.
#[utoipa::path(post, path = "/v1/webhook_endpoints/{id}", operation_id = "update_webhook_endpoint",
    tag = "Webhooks", security(("bearer" = [])),
    params(("id" = String, Path, description = "The endpoint.")),
    request_body = Option<Update>,
    responses(
        (status = 200, description = "The endpoint as it is now.", body = EndpointObject),
        (status = 404, response = NotFound),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 507, response = DiskFull),
    ),
)]
async fn update(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
    OptionalJson(body): OptionalJson<Update>,
) -> Result<Json<EndpointObject>, Error> {
    let endpoint = find(&app, &caller, &id).await?;
    let asked = body.unwrap_or_default();
    let status = asked.status.as_deref().map(|status| {
        status.parse::<EndpointStatus>().map_err(|message| Error::invalid("status", message))
    });
    let mut change = Change {
        name: asked.name.as_deref().map(checked_name).transpose()?,
        event_types: asked.event_types.as_deref().map(checked_types).transpose()?,
        status: status.transpose()?,
        url: None,
    };
    if let Some(url) = &asked.url {
        change.url = Some(checked_url(&app, url).await?);
    }
    let (now, change) = (app.clock.now(), Arc::new(change));
    let changed = app
        .db
        .intake(move |tx| {
            let change = Arc::clone(&change);
            Box::pin(async move { webhooks::update(tx, now, endpoint.id, &change).await })
        })
        .await?;
    Ok(Json(EndpointObject::new(&changed.ok_or_else(|| no_such(&id))?)?))
}

#[derive(Serialize, ToSchema)]
#[schema(as = WebhookEndpointDeleted)]
struct Deleted {
    id: String,
    #[schema(schema_with = is_deleted_endpoint)]
    object: &'static str,
    deleted: bool,
}

fn is_deleted_endpoint() -> Object {
    words(["webhook_endpoint.deleted"])
}

/// Delete a webhook endpoint
///
/// What it still had to be told is called off.
#[utoipa::path(delete, path = "/v1/webhook_endpoints/{id}", operation_id = "delete_webhook_endpoint",
    tag = "Webhooks", security(("bearer" = [])),
    params(("id" = String, Path, description = "The endpoint.")),
    responses(
        (status = 200, description = "It is deleted, and its secrets with it.", body = Deleted),
        (status = 404, response = NotFound),
        (status = 507, response = DiskFull),
    ),
)]
async fn delete(
    State(app): State<App>,
    Authenticated(caller): Authenticated,
    Path(id): Path,
) -> Result<Json<Deleted>, Error> {
    let endpoint = find(&app, &caller, &id).await?;
    let now = app.clock.now();
    let was_there = app
        .db
        .intake(move |tx| Box::pin(async move { webhooks::delete(tx, now, endpoint.id).await }))
        .await?;
    if !was_there {
        return Err(no_such(&id));
    }
    Ok(Json(Deleted { id, object: "webhook_endpoint.deleted", deleted: true }))
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = RotateWebhookSecret)]
struct Rotate {
    /// Whether deliveries of the next 24 hours are signed with both secrets, so that receivers can be changed one after
    /// another. Otherwise the old one is good for nothing at once.
    keep_old_secret_active_for_24_hours: bool,
}

/// Replace the secret of a webhook endpoint
#[utoipa::path(post, path = "/v1/webhook_endpoints/{id}/rotate_secret", operation_id = "rotate_webhook_secret",
    tag = "Webhooks", security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "The endpoint."),
        IdempotencyKey,
    ),
    request_body = Option<Rotate>,
    responses(
        (status = 200, description = "The endpoint, with its new secret. It is shown this once.",
            body = EndpointObject, headers(
            ("idempotency-replayed" = String, description = "`true` where this is the first answer again."))),
        (status = 404, response = NotFound),
        (status = 409, response = Conflict),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 422, response = KeyReused),
        (status = 507, response = DiskFull),
    ),
)]
async fn rotate_secret(
    State(api): State<Api>,
    Authenticated(caller): Authenticated,
    Path(text): Path,
    headers: HeaderMap,
    OptionalJson(body): OptionalJson<Rotate>,
) -> Result<Response, Error> {
    let asked = body.unwrap_or_default();
    let app = &api.app;
    let id = find(app, &caller, &text).await?.id;
    // An SDK that lost the answer asks again: a second new secret would put the first one in the old one's place.
    let creation = Creation::new(&caller.owner, ROTATE_PATH, &headers, &(&text, &asked))?;
    let vault = vault(app)?;
    let secret = Arc::new(Sealed::new(vault, id).map_err(Error::Internal)?);
    let (now, keeps_old) = (app.clock.now(), asked.keep_old_secret_active_for_24_hours);
    let rotate = creation.once_sealed(
        &api,
        move |tx| {
            let (secret, text) = (Arc::clone(&secret), text.clone());
            Box::pin(async move {
                let rotated = webhooks::rotate(tx, now, id, &secret, keeps_old).await?;
                sealed(&rotated.ok_or_else(|| no_such(&text))?, &secret)
            })
        },
        |kept| revealed(vault, kept),
    );
    rotate.await
}

/// What endpoints can be told of.
#[derive(Serialize, ToSchema)]
#[schema(as = WebhookEventTypes)]
struct EventTypes {
    #[schema(schema_with = is_list)]
    object: &'static str,
    data: Vec<&'static str>,
}

fn is_list() -> Object {
    words(["list"])
}

/// List the webhook event types
#[utoipa::path(get, path = "/v1/webhook_event_types", operation_id = "list_webhook_event_types", tag = "Webhooks",
    security(("bearer" = [])),
    responses((status = 200, description = "All of them.", body = EventTypes)),
)]
async fn list_event_types(_: Authenticated) -> Json<EventTypes> {
    Json(EventTypes { object: "list", data: EventType::ALL.map(EventType::as_str).to_vec() })
}
