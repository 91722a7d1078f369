//! JSON bodies: a rejection in OpenAI's form, and no body where a client sends none.

use axum::body::Bytes;
use axum::extract::FromRequest;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// The body, if there is one. `Content-Type: application/json` without a body (the Python SDK) is none.
pub struct OptionalJson<T>(pub Option<T>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let content_type =
            request.headers().get(CONTENT_TYPE).and_then(|header| header.to_str().ok());
        let is_json = content_type
            .is_none_or(|text| text.to_ascii_lowercase().starts_with("application/json"));
        let body = Bytes::from_request(request, state).await.map_err(|_| {
            Error::TooLarge(
                "the JSON body is longer than 2 MB, or it broke off; send it whole, and shorter"
                    .to_owned(),
            )
        })?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        if !is_json {
            return Err(Error::UnsupportedMediaType(
                "the body must be JSON (`Content-Type: application/json`)".to_owned(),
            ));
        }
        serde_json::from_slice(&body).map(|body| Self(Some(body))).map_err(|error| Error::Invalid {
            param: None,
            code: Some("invalid_json"),
            message: format!("the body is not the JSON that is expected here: {error}"),
        })
    }
}
