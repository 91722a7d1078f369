//! `/v1/admin`: keys and providers, for admin keys only.

use axum::Router;
use axum::extract::State;
use axum::response::Json;
use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde::Serialize;

use super::Api;
use super::auth::Admin;
use super::json::OptionalJson;
use super::list::List;
use super::parameters::Path;
use crate::app::App;
use crate::error::Error;
use crate::ids::ApiKeyId;
use crate::jobs::Lane;
use crate::jobs::lanes;
use crate::jobs::lanes::FOR_EVER;
use crate::jobs::lanes::Pause;
use crate::jobs::lanes::PauseReason;
use crate::keys;
use crate::keys::Identity;
use crate::keys::StoredKey;
use crate::notices::Hint;

pub fn routes() -> Router<Api> {
    Router::new()
        .route("/v1/admin/keys", get(list_keys).post(create_key))
        .route("/v1/admin/keys/{id}", delete(revoke_key))
        .route("/v1/admin/providers", get(list_providers))
        .route("/v1/admin/providers/{name}/pause", post(pause))
        .route("/v1/admin/providers/{name}/resume", post(resume))
}

#[derive(Serialize)]
struct KeyObject {
    id: String,
    object: &'static str,
    owner: String,
    is_admin: bool,
    /// The first characters of the key.
    hint: String,
    created_at: i64,
    revoked_at: Option<i64>,
    /// The key itself, in the answer that made it and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
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

async fn list_keys(State(app): State<App>, _: Admin) -> Result<Json<List<KeyObject>>, Error> {
    let stored = keys::list(app.db.scan()).await?;
    Ok(Json(List::whole(stored.into_iter().map(KeyObject::from).collect(), |key: &KeyObject| {
        key.id.clone()
    })))
}

#[derive(Debug, Deserialize)]
struct CreateKey {
    owner: String,
    #[serde(default)]
    is_admin: bool,
}

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

#[derive(Serialize)]
struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

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

#[derive(Serialize)]
struct ProviderObject {
    id: String,
    object: &'static str,
    kind: String,
    base_url: String,
    max_concurrency: u32,
    requests_per_minute: u32,
    running: i64,
    waiting: i64,
    /// Failures in a row that speak against the provider.
    failures: i32,
    paused_by: Option<String>,
    paused_since: Option<i64>,
    /// `null` while paused means until somebody resumes it, or configures another key.
    paused_until: Option<i64>,
}

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

async fn pause(
    state: State<App>,
    _: Admin,
    Path(name): Path,
) -> Result<Json<List<ProviderObject>>, Error> {
    let pause = Pause { until: FOR_EVER, reason: PauseReason::Paused };
    set_pause(&state, &name, Some(pause)).await?;
    list_providers(state, Admin).await
}

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
    let (lane, now): (Lane, _) = (account.lane(), app.clock.now());
    app.db
        .intake(move |tx| {
            let lane = lane.clone();
            Box::pin(async move {
                lanes::ensure(tx, &lane).await?;
                lanes::save(tx, &lane, now, pause, 0).await
            })
        })
        .await?;
    Ok(())
}
