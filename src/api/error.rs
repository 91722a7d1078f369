//! Errors as OpenAI's clients know them. The only place that knows HTTP statuses and their body.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::Json;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::IntoResponse;
use axum::response::Response;
use futures_util::FutureExt as _;
use serde::Serialize;
use utoipa::PartialSchema as _;
use utoipa::ToResponse;
use utoipa::ToSchema;
use utoipa::openapi::ContentBuilder;
use utoipa::openapi::HeaderBuilder;
use utoipa::openapi::Object;
use utoipa::openapi::Ref;
use utoipa::openapi::RefOr;
use utoipa::openapi::Response as Description;
use utoipa::openapi::ResponseBuilder;
use utoipa::openapi::Schema;
use utoipa::openapi::schema::Type;

use super::description::words;
use crate::db;
use crate::error::Error;

/// How long a client is asked to wait for a database or blob store that is away.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(2);

/// How long one is that finds too many others before it.
const OVERLOADED_FOR: Duration = Duration::from_secs(1);

/// The body of every refusal and failure.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ErrorDetail)]
pub struct Detail<'a> {
    /// What is wrong, and what would be right.
    message: &'a str,
    #[schema(schema_with = types)]
    r#type: &'a str,
    /// The field or parameter at fault.
    #[schema(required = true)]
    param: Option<&'a str>,
    /// What is wrong, in a word for programs.
    #[schema(required = true)]
    code: Option<&'a str>,
}

fn types() -> Object {
    words([
        INVALID,
        "authentication_error",
        "permission_error",
        "not_found_error",
        "conflict_error",
        "rate_limit_error",
        "server_error",
    ])
}

/// The schemas that the answers below refer to.
pub fn schemas() -> Vec<(String, RefOr<Schema>)> {
    let mut schemas = vec![(Body::name().into_owned(), Body::schema())];
    Body::schemas(&mut schemas);
    schemas
}

/// The answers that are errors, each with its name in the description of the API. A handler's own
/// description names those that it may give.
macro_rules! answers {
    ($($name:ident $(with $header:ident)?, $description:literal;)*) => {
        $(
            pub struct $name;

            impl<'r> ToResponse<'r> for $name {
                fn response() -> (&'r str, RefOr<Description>) {
                    let response = ResponseBuilder::new()
                        .description($description)
                        .content("application/json", ContentBuilder::new()
                            .schema(Some(Ref::from_schema_name(Body::name())))
                            .build());
                    $(let response = $header(response);)?
                    (stringify!($name), response.into())
                }
            }
        )*

        /// All of them, by name.
        pub fn descriptions<'r>() -> Vec<(&'r str, RefOr<Description>)> {
            vec![$($name::response()),*]
        }
    };
}

answers! {
    BadRequest, "What was sent is not in order; `error.param` names what.";
    Unauthorized, "No key was sent, or one that is not known.";
    Forbidden, "The key may not do this: the thing is another owner's, or only an admin key may.";
    NotFound, "There is no such thing.";
    RequestTimeout, "The sender was silent for 30 seconds in the middle of the body.";
    Conflict with when_to_repeat, "Not possible in this state.";
    PayloadTooLarge, "The body is too large.";
    TooManyRequests with retry_after, "Too many at once, or more than the key or its owner may.";
    UnsupportedMediaType, "The body is of another content type than the one that is expected.";
    RangeNotSatisfiable with size, "The range lies outside of the file.";
    KeyReused, "The `Idempotency-Key` was used with another file or other fields.";
    InternalError, "Our own fault; the log tells more.";
    ProvidersFailed, "The bytes are no longer kept here, and no provider gave them back.";
    Unavailable with retry_after, "The database or the blob store cannot be reached, or too many wait for it.";
    DiskFull, "The disk of the database or of the blob store is full.";
}

fn retry_after(response: ResponseBuilder) -> ResponseBuilder {
    response.header(
        RETRY_AFTER.as_str(),
        HeaderBuilder::new()
            .schema(Some(Object::with_type(Type::Integer)))
            .description(Some("In how many seconds another try may pass."))
            .build(),
    )
}

fn when_to_repeat(response: ResponseBuilder) -> ResponseBuilder {
    retry_after(response).header(
        SHOULD_RETRY,
        HeaderBuilder::new()
            .schema(Some(words(["false"])))
            .description(Some("There where no further try can pass: official SDKs make none then."))
            .build(),
    )
}

fn size(response: ResponseBuilder) -> ResponseBuilder {
    response.header(
        "content-range",
        HeaderBuilder::new()
            .schema(Some(Object::with_type(Type::String)))
            .description(Some("`bytes */SIZE`, with the size of the file."))
            .build(),
    )
}

/// How an error looks from outside.
struct Form {
    status: StatusCode,
    kind: &'static str,
    param: Option<&'static str>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
    /// `false`: official SDKs are told not to repeat a request that cannot pass.
    may_pass: bool,
}

impl Form {
    const fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>) -> Self {
        Self { status, kind, param: None, code, retry_after: None, may_pass: true }
    }
}

const INVALID: &str = "invalid_request_error";
const SHOULD_RETRY: &str = "x-should-retry";

fn form(error: &Error) -> Form {
    match error {
        Error::Invalid { param, code, .. } => {
            Form { param: *param, ..Form::new(StatusCode::BAD_REQUEST, INVALID, *code) }
        }
        Error::Unauthorized(_) => {
            Form::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"))
        }
        Error::Forbidden(_) => {
            Form::new(StatusCode::FORBIDDEN, "permission_error", Some("permission_denied"))
        }
        Error::NotFound { param, code, .. } => Form {
            param: *param,
            ..Form::new(StatusCode::NOT_FOUND, "not_found_error", Some(code))
        },
        Error::Conflict { code, retry_after, .. } => Form {
            retry_after: *retry_after,
            may_pass: retry_after.is_some(),
            ..Form::new(StatusCode::CONFLICT, "conflict_error", Some(code))
        },
        Error::Mismatch(_) => {
            Form::new(StatusCode::UNPROCESSABLE_ENTITY, INVALID, Some("idempotency_key_reused"))
        }
        Error::TooLarge(_) => Form {
            param: Some("file"),
            ..Form::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("file_too_large"))
        },
        Error::BodyTooLarge(_) => {
            Form::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("body_too_large"))
        }
        Error::HeadTooLarge(_) => Form::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            INVALID,
            Some("headers_too_large"),
        ),
        Error::UnsupportedMediaType(_) => {
            Form::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_media_type"))
        }
        Error::SenderTooSlow(_) => {
            Form::new(StatusCode::REQUEST_TIMEOUT, INVALID, Some("request_timeout"))
        }
        Error::Limited { code, retry_after, .. } => Form {
            retry_after: Some(*retry_after),
            ..Form::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some(code))
        },
        Error::ProvidersFailed(_) => {
            Form::new(StatusCode::BAD_GATEWAY, "server_error", Some("providers_failed"))
        }
        Error::Unavailable { .. } => Form {
            retry_after: Some(UNAVAILABLE_FOR),
            ..Form::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("unavailable"))
        },
        Error::Overloaded => Form {
            retry_after: Some(OVERLOADED_FOR),
            ..Form::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("overloaded"))
        },
        Error::DiskFull { .. } => {
            Form::new(StatusCode::INSUFFICIENT_STORAGE, "server_error", Some("disk_full"))
        }
        Error::Internal(_) => {
            Form::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"))
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        // Here an error stops travelling, so here it is logged, once.
        match &self {
            Self::Internal(source) => {
                tracing::error!(error = format!("{source:#}"), "request failed")
            }
            Self::Unavailable { source, .. } if is_said(source) => {
                tracing::debug!(error = format!("{source:#}"), "request failed: {self}");
            }
            Self::Unavailable { source, .. } | Self::DiskFull { source, .. } => {
                tracing::error!(error = format!("{source:#}"), "request failed: {self}");
            }
            _ => tracing::debug!("request refused: {self}"),
        }
        let form = form(&self);
        let message = self.to_string();
        let detail =
            Detail { message: &message, r#type: form.kind, param: form.param, code: form.code };
        let mut response = (form.status, Json(Body { error: detail })).into_response();
        if let Some(wait) = form.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if !form.may_pass {
            response
                .headers_mut()
                .insert(HeaderName::from_static(SHOULD_RETRY), HeaderValue::from_static("false"));
        }
        response
    }
}

/// Whether the log says already that the database is away.
fn is_said(source: &anyhow::Error) -> bool {
    source.downcast_ref().is_some_and(db::is_said)
}

/// Answers of the router itself, in the same form.
pub async fn no_such_path(uri: axum::http::Uri) -> Error {
    let path = uri.path();
    // What a base URL without `/v1`, or with it twice, makes of every path.
    let hint = if path.starts_with("/v1/v1/") {
        "; `/v1` is in it twice: is it in the base URL and in the path?"
    } else if path.starts_with("/v1/") || path == "/" {
        ""
    } else {
        "; the API is below `/v1`, so a client's base URL ends with that"
    };
    Error::NotFound {
        param: None,
        code: "unknown_url",
        message: format!("no such path: `{path}`{hint}"),
    }
}

/// A path that exists, but not for this method.
pub async fn no_such_method(method: axum::http::Method, uri: axum::http::Uri) -> Response {
    let message = format!("`{method}` is not possible on `{}`", uri.path());
    let detail = Detail {
        message: &message,
        r#type: INVALID,
        param: None,
        code: Some("method_not_allowed"),
    };
    (StatusCode::METHOD_NOT_ALLOWED, Json(Body { error: detail })).into_response()
}

/// Answers in place of a panic. The panic itself is in the log.
pub fn catch_panic(answering: impl Future<Output = Response>) -> impl Future<Output = Response> {
    AssertUnwindSafe(answering).catch_unwind().map(|answer| {
        answer.unwrap_or_else(|_| {
            Error::Internal(anyhow::anyhow!("a handler panicked")).into_response()
        })
    })
}
