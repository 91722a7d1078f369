//! Who asks: the bearer key, and for an admin the owner that it acts for.

use axum::extract::FromRef;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use utoipa::ToResponse;
use utoipa::openapi::ObjectBuilder;
use utoipa::openapi::Ref;
use utoipa::openapi::RefOr;
use utoipa::openapi::Required;
use utoipa::openapi::path::Operation;
use utoipa::openapi::path::Parameter;
use utoipa::openapi::path::ParameterBuilder;
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::schema::Type;
use utoipa::openapi::security::HttpAuthScheme;
use utoipa::openapi::security::HttpBuilder;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::security::SecurityScheme;

use super::error;
use crate::app::App;
use crate::error::Error;
use crate::owners::Caller;

/// For whom an admin acts.
const OWNER_HEADER: &str = "x-longshore-owner";
const MAX_OWNER: usize = 255;

/// The caller of a request: a handler that takes one cannot be reached without a key.
pub struct Authenticated(pub Caller);

impl<S: Send + Sync> FromRequestParts<S> for Authenticated
where
    App: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        identify(&App::from_ref(state), &parts.headers).await.map(Self)
    }
}

/// A caller with an admin key.
pub struct Admin;

impl<S: Send + Sync> FromRequestParts<S> for Admin
where
    App: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let caller = identify(&App::from_ref(state), &parts.headers).await?;
        if caller.is_admin {
            Ok(Self)
        } else {
            Err(Error::Forbidden(
                "this path needs an admin key; `longshore keys create --owner NAME --admin` makes one"
                    .to_owned(),
            ))
        }
    }
}

/// The name of the scheme in the description. A handler that takes a caller says
/// `security(("bearer" = []))`, one that takes an admin `security(("bearer" = ["admin"]))`.
pub const SCHEME: &str = "bearer";

/// How a caller says who it is.
pub fn scheme() -> SecurityScheme {
    let text = "A key of the configuration, or one that `longshore keys create` or \
                `POST /v1/admin/keys` made. A path that asks for the role `admin` needs an admin key.";
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(text));
    SecurityScheme::Http(scheme.build())
}

/// For whom an admin acts, as a parameter of every path that belongs to an owner.
pub fn owner_parameter() -> Parameter {
    let text = "With an admin key: act as this owner, and see and touch only what is its own. \
                With any other key: 403.";
    ParameterBuilder::new()
        .name("X-Longshore-Owner")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(text))
        .schema(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(MAX_OWNER))
                .pattern(Some("^[ -~]*[!-~][ -~]*$")),
        ))
        .build()
}

/// Adds to a handler's description what asking for a key brings with it.
pub fn describe(operation: &mut Operation) {
    let Some(requirement) = operation.security.as_ref().and_then(|all| all.first()) else { return };
    // An admin who acts for an owner is none: the paths for admins do not take the header.
    if *requirement == SecurityRequirement::new(SCHEME, NO_ROLE) {
        let parameters = operation.parameters.get_or_insert_default();
        parameters.push(RefOr::Ref(Ref::new("#/components/parameters/X-Longshore-Owner")));
    }
    for (status, name) in [
        ("400", error::BadRequest::response().0),
        ("401", error::Unauthorized::response().0),
        ("403", error::Forbidden::response().0),
        ("429", error::TooManyRequests::response().0),
        ("503", error::Unavailable::response().0),
    ] {
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_owned()).or_insert_with(|| Ref::from_response_name(name).into());
    }
}

const NO_ROLE: [&str; 0] = [];

/// The headers that say who asks.
pub fn credentials(headers: &HeaderMap) -> HeaderMap {
    let owner = HeaderName::from_static(OWNER_HEADER);
    let said = [AUTHORIZATION, owner].into_iter();
    said.filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect()
}

/// Who asks.
///
/// # Errors
///
/// When the headers name nobody, or an owner for whom the caller may not act.
pub async fn identify(app: &App, headers: &HeaderMap) -> Result<Caller, Error> {
    let key = key(headers)?;
    let identity = app.keys.identify(&app.db, key).await?.ok_or_else(|| {
        Error::Unauthorized(
            "the key is not known here; `longshore keys create --owner NAME` makes one".to_owned(),
        )
    })?;
    let acts_for = match headers.get(OWNER_HEADER) {
        None => return Ok(Caller { owner: identity.owner, is_admin: identity.is_admin }),
        Some(owner) => owner
            .to_str()
            .ok()
            .map(str::trim)
            .filter(|owner| (1..=MAX_OWNER).contains(&owner.len()))
            .filter(|owner| !owner.chars().any(char::is_control)),
    };
    if !identity.is_admin {
        return Err(Error::Forbidden(
            "only an admin key may act for another owner (`X-Longshore-Owner`)".to_owned(),
        ));
    }
    match acts_for {
        Some(owner) => Ok(Caller { owner: owner.to_owned(), is_admin: false }),
        None => Err(Error::Invalid {
            param: Some("X-Longshore-Owner"),
            code: Some("invalid_value"),
            message: format!("`X-Longshore-Owner` must be 1 to {MAX_OWNER} printable characters"),
        }),
    }
}

/// The key that was sent.
///
/// # Errors
///
/// When there is none.
pub fn key(headers: &HeaderMap) -> Result<&str, Error> {
    let Some(header) = headers.get(AUTHORIZATION) else {
        return Err(Error::Unauthorized(
            "no key was sent; send one in the header `Authorization: Bearer <key>`".to_owned(),
        ));
    };
    header.to_str().ok().and_then(bearer).ok_or_else(|| {
        Error::Unauthorized("the header `Authorization` must read `Bearer <key>`".to_owned())
    })
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, key) = header.split_once(' ')?;
    let key = key.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then_some(key)
}
