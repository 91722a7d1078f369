//! What a key's limit says of a request, before its path is looked at and its body is read: a refusal, or the
//! headers that OpenAI has for it, on every answer.

use std::time::Duration;

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::response::IntoResponse as _;
use axum::response::Response;
use utoipa::openapi::Header;
use utoipa::openapi::HeaderBuilder;
use utoipa::openapi::Object;
use utoipa::openapi::schema::Type;

use super::auth;
use crate::app::App;
use crate::error::Error;
use crate::keys;
use crate::limits::requests::Taken;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");

/// Paths that are never limited: a balancer asks them, and who asks too often may ask how things are.
const HEALTH: [&str; 2] = ["/healthz", "/readyz"];

/// Where the limits are looked up. `Default` has none.
#[derive(Clone, Default)]
pub struct Quota(Option<App>);

impl Quota {
    pub fn of(app: &App) -> Self {
        Self(app.request_limits.is_any().then(|| app.clone()))
    }

    /// Takes the request out of what its key may make. `None` when nothing limits it.
    pub async fn take(&self, key: &str) -> Option<Taken> {
        let app = self.0.as_ref()?;
        // Nobody's key, and a database that is away, are for the handler to tell: some paths need no key.
        let identity = app.keys.identify(&app.db, key).await.ok()??;
        app.request_limits.take(&keys::hash(key), &identity).await
    }

    /// The key of a request, if it may be limited.
    pub fn key(&self, request: &Request) -> Option<String> {
        let may_be = self.0.is_some() && !HEALTH.contains(&request.uri().path());
        let key = may_be.then(|| auth::key(request.headers()).ok())??;
        Some(key.to_owned())
    }
}

/// The refusal, where it is one.
pub fn refusal(taken: &Taken) -> Option<Response> {
    let wait = Duration::from_secs(taken.retry_after?.as_millis().div_ceil(1000).try_into().ok()?);
    let error = Error::Limited {
        code: "rate_limit_exceeded",
        message: format!(
            "this key may make {} requests per minute; come again in {} s",
            taken.limit,
            wait.as_secs()
        ),
        retry_after: wait,
    };
    Some(error.into_response())
}

/// Says on an answer where its key stands.
pub fn announce(taken: &Taken, headers: &mut HeaderMap) {
    headers.insert(LIMIT, taken.limit.into());
    headers.insert(REMAINING, taken.remaining.into());
    if let Ok(reset) = HeaderValue::from_str(&words(taken.resets_in)) {
        headers.insert(RESET, reset);
    }
}

/// As OpenAI writes times here: `120ms`, `1.5s`, `1m0s`.
fn words(time: Duration) -> String {
    let millis = time.as_micros().div_ceil(1000);
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => format!("{}s", millis as f64 / 1000.0),
        _ => format!("{}m{}s", millis / 60_000, (millis % 60_000).div_ceil(1000)),
    }
}

/// The headers, for the description of every path that takes a key.
pub fn headers() -> [(HeaderName, Header); 3] {
    let header = |kind, text: &str| {
        HeaderBuilder::new()
            .schema(Some(Object::with_type(kind)))
            .description(Some(format!("Where the key has a limit: {text}")))
            .build()
    };
    [
        (LIMIT, header(Type::Integer, "requests that it may make in a minute.")),
        (REMAINING, header(Type::Integer, "requests that may still come at once.")),
        (RESET, header(Type::String, "how soon all of them may, as `120ms`, `1.5s` or `1m0s`.")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_writes_them() {
        for (micros, text) in [
            (0, "0ms"),
            (1, "1ms"),
            (119_001, "120ms"),
            (1_500_000, "1.5s"),
            (8_640_000, "8.64s"),
            (60_000_000, "1m0s"),
        ] {
            assert_eq!(words(Duration::from_micros(micros)), text);
        }
    }
}
