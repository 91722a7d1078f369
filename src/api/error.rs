//! Errors as OpenAI's clients know them. The only place that knows HTTP statuses and their body.

use std::time::Duration;

use axum::Json;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Serialize;

use crate::error::Error;

/// How long a client is asked to wait for a database or blob store that is away.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
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
            response.headers_mut().insert(
                HeaderName::from_static("x-should-retry"),
                HeaderValue::from_static("false"),
            );
        }
        response
    }
}

/// Answers of the router itself, in the same form.
pub async fn no_such_path(uri: axum::http::Uri) -> Error {
    Error::NotFound {
        param: None,
        code: "unknown_url",
        message: format!("no such path: `{}`", uri.path()),
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

/// The answer in place of a panic. The panic itself is in the log.
pub fn panicked(_panic: Box<dyn std::any::Any + Send>) -> Response {
    Error::Internal(anyhow::anyhow!("a handler panicked")).into_response()
}
