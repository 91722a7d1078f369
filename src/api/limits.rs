//! What a request's head may hold. hyper has limits of its own, beyond these: what it refuses it
//! answers without a body, so whoever is only somewhat over is told here, and in the usual form.

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use axum::response::Response;

use super::error;
use super::quota;
use super::quota::Quota;
use crate::error::Error;

const MAX_HEADERS: usize = 100;
const MAX_BYTES: usize = 32 * 1024;

/// Refuses a head that is too large, a body that is compressed, and what is more than its key may ask.
pub async fn check(quota: &Quota, request: Request, next: Next) -> Response {
    if let Some(error) = refusal(&request) {
        return error.into_response();
    }
    let taken = match quota.key(&request) {
        Some(key) => Box::pin(quota.take(&key)).await,
        None => None,
    };
    let refusal = taken.as_ref().and_then(quota::refusal);
    let mut response = match refusal {
        Some(refusal) => refusal,
        None => error::catch_panic(next.run(request)).await,
    };
    if let Some(taken) = taken {
        quota::announce(&taken, response.headers_mut());
    }
    response
}

fn refusal(request: &Request) -> Option<Error> {
    let headers = request.headers();
    let address = request.uri().path_and_query().map_or(0, |text| text.as_str().len());
    let bytes =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    if headers.len() > MAX_HEADERS || address + bytes > MAX_BYTES {
        return Some(Error::HeadTooLarge(format!(
            "the request has {} headers, and they have {} bytes with its address; it may have {MAX_HEADERS} and {MAX_BYTES}",
            headers.len(),
            address + bytes
        )));
    }
    // Bytes are kept as they are sent. Unpacking them would store something else than was hashed at the
    // client, and let a small request become a large file.
    let encoding = compression(headers)?;
    Some(Error::UnsupportedMediaType(format!(
        "the body is sent with `Content-Encoding: {encoding}`; send it as it is, without that header"
    )))
}

fn compression(headers: &HeaderMap) -> Option<String> {
    let encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
        .find(|value| !value.is_empty() && !value.eq_ignore_ascii_case("identity"))
        .map(|value| value.chars().take(100).collect())
}
