//! `/v1/admin`: keys and providers, for admin keys only.

use axum::extract::State;
use axum::response::Json;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use utoipa::openapi::OneOfBuilder;
use utoipa::openapi::schema::SchemaType;
use utoipa::openapi::schema::Type;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Admin;
use super::description::words;
use super::error::DiskFull;
use super::error::NotFound;
use super::error::PayloadTooLarge;
use super::error::UnsupportedMediaType;
use super::files::pause_reasons;
use super::json::OptionalJson;
use super::list::List;
use super::parameters::Path;
use crate::app::App;
use crate::error::Error;
use crate::ids::ApiKeyId;
use crate::jobs;
use crate::jobs::lanes;
use crate::jobs::lanes::FOR_EVER;
use crate::jobs::lanes::Pause;
use crate::jobs::lanes::PauseReason;
use crate::keys;
use crate::keys::Identity;
use crate::keys::StoredKey;
use crate::notices::Hint;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(list_keys, create_key))
        .routes(routes!(revoke_key))
        .routes(routes!(list_providers))
        .routes(routes!(pause))
        .routes(routes!(resume))
}

#[derive(Serialize, ToSchema)]
#[schema(as = ApiKey)]
struct KeyObject {
    id: String,
    #[schema(schema_with = is_key)]
    object: &'static str,
    owner: String,
    is_admin: bool,
    /// The first characters of the key.
    hint: String,
    created_at: i64,
    #[schema(required = true)]
    revoked_at: Option<i64>,
    /// The key itself, in the answer that made it and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    key: Option<String>,
}

fn is_key() -> Object {
    words(["api_key"])
}

impl From<StoredKey> for KeyObject {
    fn from(stored: StoredKey) -> Self {
        Self {
            id: stored.id.to_string(),
            object: "api_key",
            owner: stored.owner,
            is_admin: stored.is_admin,
            hint: stored.hint,
            created_at: stored.created_at.unix_seconds(),
            revoked_at: stored.revoked_at.map(|at| at.unix_seconds()),
            key: None,
        }
    }
}

/// List the stored keys
///
/// Those of the configuration are not among them.
#[utoipa::path(get, path = "/v1/admin/keys", operation_id = "list_keys", tag = "Admin",
    security(("bearer" = ["admin"])),
    responses((status = 200, description = "All stored keys, also revoked ones.", body = List<KeyObject>)),
)]
async fn list_keys(State(app): State<App>, _: Admin) -> Result<Json<List<KeyObject>>, Error> {
    let stored = keys::list(app.db.scan()).await?;
    Ok(Json(List::whole(stored.into_iter().map(KeyObject::from).collect(), |key: &KeyObject| {
        key.id.clone()
    })))
}

#[derive(Debug, Deserialize, ToSchema)]
struct CreateKey {
    /// Whose key it is: a name of your choice.
    #[schema(
        min_length = 1,
        max_length = 255,
        pattern = r"^[^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\xa0][^\x00-\x1f\x7f-\x9f]*$"
    )]
    owner: String,
    /// Whether it sees all, and may act for any owner.
    #[serde(default)]
    is_admin: bool,
}

/// Make a key
#[utoipa::path(post, path = "/v1/admin/keys", operation_id = "create_key", tag = "Admin",
    security(("bearer" = ["admin"])),
    request_body = CreateKey,
    responses(
        (status = 200, description = "The key. It is shown this once; only its hash is stored.", body = KeyObject),
        (status = 413, response = PayloadTooLarge),
        (status = 415, response = UnsupportedMediaType),
        (status = 507, response = DiskFull),
    ),
)]
async fn create_key(
    State(app): State<App>,
    _: Admin,
    OptionalJson(body): OptionalJson<CreateKey>,
) -> Result<Json<KeyObject>, Error> {
    let body = body.ok_or_else(|| {
        Error::missing("owner", "`owner` is missing; send `{\"owner\": \"NAME\"}`")
    })?;
    let identity = Identity { owner: keys::check_owner(&body.owner)?, is_admin: body.is_admin };
    let now = app.clock.now();
    let (stored, key) = app
        .db
        .intake(move |tx| {
            let identity = identity.clone();
            Box::pin(async move { keys::create(tx, now, &identity).await })
        })
        .await?;
    let key = Some(key.expose_secret().to_owned());
    Ok(Json(KeyObject { key, ..KeyObject::from(stored) }))
}

#[derive(Serialize, ToSchema)]
#[schema(as = ApiKeyDeleted)]
struct Deleted {
    id: String,
    #[schema(schema_with = is_deleted_key)]
    object: &'static str,
    deleted: bool,
}

fn is_deleted_key() -> Object {
    words(["api_key.deleted"])
}

/// Revoke a key
///
/// It is refused within 5 seconds by every process.
#[utoipa::path(delete, path = "/v1/admin/keys/{id}", operation_id = "revoke_key", tag = "Admin",
    security(("bearer" = ["admin"])),
    params(("id" = String, Path, description = "The id of the key (`key_…`), not the key itself.")),
    responses(
        (status = 200, description = "It is revoked.", body = Deleted),
        (status = 404, response = NotFound),
        (status = 507, response = DiskFull),
    ),
)]
async fn revoke_key(
    State(app): State<App>,
    _: Admin,
    Path(id): Path,
) -> Result<Json<Deleted>, Error> {
    let no_such = || Error::no_such("key", "key_id", &id);
    let key: ApiKeyId = id.parse().map_err(|_| no_such())?;
    let now = app.clock.now();
    let revoked =
        app.db.intake(move |tx| Box::pin(async move { keys::revoke(tx, now, key).await })).await?;
    app.keys.forget();
    if revoked {
        Ok(Json(Deleted { id, object: "api_key.deleted", deleted: true }))
    } else {
        Err(no_such())
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Provider)]
struct ProviderObject {
    /// Its name in the configuration.
    id: String,
    #[schema(schema_with = is_provider)]
    object: &'static str,
    kind: String,
    base_url: String,
    max_concurrency: u32,
    requests_per_minute: u32,
    /// Jobs that run, over all workers.
    running: i64,
    /// Jobs that wait.
    waiting: i64,
    /// Failures in a row that speak against the provider.
    failures: i32,
    #[schema(schema_with = pause_reasons_or_null, required = true)]
    paused_by: Option<String>,
    #[schema(required = true)]
    paused_since: Option<i64>,
    /// `null` while paused means until somebody resumes it, or configures another key.
    #[schema(required = true)]
    paused_until: Option<i64>,
}

fn is_provider() -> Object {
    words(["provider"])
}

fn pause_reasons_or_null() -> OneOfBuilder {
    let null = Object::with_type(SchemaType::Type(Type::Null));
    OneOfBuilder::new().item(null).item(pause_reasons())
}

/// List the providers
#[utoipa::path(get, path = "/v1/admin/providers", operation_id = "list_providers", tag = "Admin",
    security(("bearer" = ["admin"])),
    responses((status = 200, description = "All configured providers.", body = List<ProviderObject>)),
)]
async fn list_providers(
    State(app): State<App>,
    _: Admin,
) -> Result<Json<List<ProviderObject>>, Error> {
    let lanes = lanes::list(app.db.scan()).await?;
    let providers = app.providers.iter().map(|account| {
        let settings = &account.settings;
        let lane = lanes.iter().find(|lane| lane.name == account.lane().0);
        ProviderObject {
            id: settings.name.clone(),
            object: "provider",
            kind: settings.kind.to_string(),
            base_url: settings.base_url.to_string(),
            max_concurrency: settings.max_concurrency.get(),
            requests_per_minute: settings.requests_per_minute.get(),
            running: lane.map_or(0, |lane| lane.running),
            waiting: lane.map_or(0, |lane| lane.waiting),
            failures: lane.map_or(0, |lane| lane.failures),
            paused_by: lane.and_then(|lane| lane.pause_reason.clone()),
            paused_since: lane.and_then(|lane| lane.paused_at).map(|at| at.unix_seconds()),
            paused_until: lane
                .and_then(|lane| lane.paused_until)
                .filter(|until| *until < FOR_EVER)
                .map(|at| at.unix_seconds()),
        }
    });
    Ok(Json(List::whole(providers.collect(), |provider: &ProviderObject| provider.id.clone())))
}

/// Pause a provider
///
/// Nothing new is sent to it until it is resumed; what is under way goes on. Its jobs wait, and spend no attempt.
#[utoipa::path(post, path = "/v1/admin/providers/{name}/pause", operation_id = "pause_provider", tag = "Admin",
    security(("bearer" = ["admin"])),
    params(("name" = String, Path, description = "The provider's name in the configuration.")),
    responses(
        (status = 200, description = "All providers as they are now.", body = List<ProviderObject>),
        (status = 404, response = NotFound),
        (status = 507, response = DiskFull),
    ),
)]
async fn pause(
    state: State<App>,
    _: Admin,
    Path(name): Path,
) -> Result<Json<List<ProviderObject>>, Error> {
    let pause = Pause { until: FOR_EVER, reason: PauseReason::Paused };
    set_pause(&state, &name, Some(pause)).await?;
    list_providers(state, Admin).await
}

/// Resume a provider
///
/// Whatever it was paused by: also an outage, a limit or a rejected key.
#[utoipa::path(post, path = "/v1/admin/providers/{name}/resume", operation_id = "resume_provider", tag = "Admin",
    security(("bearer" = ["admin"])),
    params(("name" = String, Path, description = "The provider's name in the configuration.")),
    responses(
        (status = 200, description = "All providers as they are now.", body = List<ProviderObject>),
        (status = 404, response = NotFound),
        (status = 507, response = DiskFull),
    ),
)]
async fn resume(
    state: State<App>,
    _: Admin,
    Path(name): Path,
) -> Result<Json<List<ProviderObject>>, Error> {
    set_pause(&state, &name, None).await?;
    state.notices.hint(Hint::Work);
    list_providers(state, Admin).await
}

async fn set_pause(app: &App, name: &str, pause: Option<Pause>) -> Result<(), Error> {
    let account =
        app.providers.get(name).ok_or_else(|| Error::no_such("provider", "name", name))?;
    let ([lane, others @ ..], now) = (account.lanes(), app.clock.now());
    app.db
        .intake(move |tx| {
            let (lane, others) = (lane.clone(), others.clone());
            Box::pin(async move {
                lanes::ensure(tx, &lane).await?;
                lanes::save(tx, &lane, now, pause, 0).await?;
                if pause.is_none() {
                    // They rest while their provider is left alone.
                    for lane in &others {
                        jobs::store::hasten_lane(tx, lane).await?;
                    }
                }
                Ok::<_, Error>(())
            })
        })
        .await?;
    Ok(())
}
