//! One span and one id for each request: the caller's id if it sent a sane one, else a new one. The
//! same id is on every log line of the request and on the jobs it made.

use axum::extract::FromRequestParts;
use axum::extract::MatchedPath;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tracing::Instrument as _;
use utoipa::openapi::Header;
use utoipa::openapi::HeaderBuilder;
use utoipa::openapi::Object;
use utoipa::openapi::Required;
use utoipa::openapi::path::Parameter;
use utoipa::openapi::path::ParameterBuilder;
use utoipa::openapi::path::ParameterIn;
use utoipa::openapi::schema::Type;

use crate::error::Error;
use crate::traces::Description;
use crate::traces::KeyValue;
use crate::traces::Origin;
use crate::traces::Span;
use crate::traces::SpanKind;
use crate::traces::Traces;

pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
const MAX_LENGTH: usize = 128;

/// The id of the request that is being answered.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let id = parts.extensions.get::<Self>().cloned();
        id.ok_or_else(|| Error::Internal(anyhow::anyhow!("a request without an id")))
    }
}

/// Gives the request its id and its span, and counts and times it.
pub async fn identify(State(traces): State<Traces>, mut request: Request, next: Next) -> Response {
    let sent = request.headers().get(&HEADER).and_then(|id| id.to_str().ok());
    let id = sent
        .filter(|id| is_sane(id))
        .map_or_else(|| format!("req_{}", uuid::Uuid::now_v7().simple()), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let route =
        request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let trace = begin_trace(&traces, &request, &id, &route);
    let span = tracing::info_span!(
        "request", request.id = %id, http.method = %method, http.route = %route, trace_id = tracing::field::Empty
    );
    if let Some(trace_id) = trace.trace_id() {
        span.record("trace_id", trace_id);
    }
    let started = Instant::now();
    let mut response = trace.hold(next.run(request).instrument(span.clone())).await;
    let (status, seconds) = (response.status().as_u16(), started.elapsed().as_secs_f64());
    trace.answered(status);
    if response.status().is_server_error() {
        trace.fail(response.status().as_str());
    }
    drop(trace);
    let _entered = span.entered();
    tracing::debug!(http.status = status, duration_ms = seconds * 1000.0, "answered");
    metrics::counter!("longshore_requests_total", "method" => label(&method), "route" => route.clone(),
        "status" => status.to_string())
    .increment(1);
    metrics::histogram!("longshore_request_seconds", "route" => route).record(seconds);
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HEADER, id);
    }
    response
}

/// The span of a request, in its caller's trace or one of its own. It ends with the head of the answer.
fn begin_trace(traces: &Traces, request: &Request, id: &str, route: &str) -> Span {
    // Balancers and monitors ask for these every few seconds, for ever.
    if ["/healthz", "/readyz", "/metrics"].contains(&route) {
        return Span::default();
    }
    traces.begin(0, || {
        let method = label(request.method());
        let mut attributes = vec![
            KeyValue::new("http.request.method", if method == "other" { "_OTHER" } else { method }),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("request.id", id.to_owned()),
        ];
        let method = if method == "other" { "HTTP" } else { method };
        let is_known = request.extensions().get::<MatchedPath>().is_some();
        let name = if is_known { format!("{method} {route}") } else { method.to_owned() };
        attributes.extend(is_known.then(|| KeyValue::new("http.route", route.to_owned())));
        let origin = Origin::of_headers(request.headers());
        (origin, Description::new(name, SpanKind::Server, attributes))
    })
}

/// The id that a caller may send, for the description of every path.
pub fn parameter() -> Parameter {
    let text = "An id for this request: at most 128 letters, digits, `-`, `_`, `.` and `:`. It comes \
                back in the answer, and is on every log line and job of the request. Without a \
                usable one, the request gets a new one.";
    ParameterBuilder::new()
        .name(HEADER.as_str())
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(text))
        .schema(Some(Object::with_type(Type::String)))
        .build()
}

/// The id that every answer has, for its description.
pub fn header() -> Header {
    HeaderBuilder::new()
        .schema(Some(Object::with_type(Type::String)))
        .description(Some("The id of the request; the log and the jobs it made have the same."))
        .build()
}

/// The method as a metric's label: clients may make up methods, and each label takes memory for good.
fn label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

fn is_sane(id: &str) -> bool {
    (1..=MAX_LENGTH).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'))
}
