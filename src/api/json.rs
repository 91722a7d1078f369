//! JSON bodies: a rejection in OpenAI's form, and no body where a client sends none.

use axum::extract::FromRef;
use axum::extract::FromRequest;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use futures_util::TryStreamExt as _;
use serde::de::DeserializeOwned;

use super::body::Incoming;
use super::body::Stopped;
use crate::app::App;
use crate::error::Error;

/// The longest JSON body, in MiB, where nothing else is said.
const USUAL: u64 = 2;

/// The body, if there is one. `Content-Type: application/json` without a body (the Python SDK) is none.
pub struct OptionalJson<T, const MEBIBYTES: u64 = USUAL>(pub Option<T>);

impl<T: DeserializeOwned, const MEBIBYTES: u64, S: Send + Sync> FromRequest<S>
    for OptionalJson<T, MEBIBYTES>
where
    App: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let content_type =
            request.headers().get(CONTENT_TYPE).and_then(|header| header.to_str().ok());
        let is_json = content_type
            .is_none_or(|text| text.to_ascii_lowercase().starts_with("application/json"));
        let patience = App::from_ref(state).config.server.body_timeout;
        let incoming = Incoming::new(request.into_body(), MEBIBYTES * 1024 * 1024, patience);
        let body = read(incoming, MEBIBYTES).await?;
        if body.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        if !is_json {
            return Err(Error::UnsupportedMediaType(
                "the body must be JSON (`Content-Type: application/json`)".to_owned(),
            ));
        }
        // `null` says as little as no body.
        serde_json::from_slice(&body).map(Self).map_err(|error| Error::Invalid {
            param: None,
            code: Some("invalid_json"),
            message: format!("the body is not the JSON that is expected here: {error}"),
        })
    }
}

async fn read(mut incoming: Incoming, mebibytes: u64) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(bytes) =
        incoming.try_next().await.map_err(|stopped| refusal(&incoming, stopped, mebibytes))?
    {
        incoming.progress();
        body.extend_from_slice(&bytes);
    }
    Ok(body)
}

fn refusal(incoming: &Incoming, stopped: Stopped, mebibytes: u64) -> Error {
    match stopped {
        Stopped::TooLong => {
            Error::BodyTooLarge(format!("the JSON body is longer than {mebibytes} MiB"))
        }
        Stopped::Silent | Stopped::Slow => incoming.too_slow(stopped),
        Stopped::NoProgress | Stopped::Lost => Error::Invalid {
            param: None,
            code: Some("invalid_json"),
            message: format!("the body is not complete: {stopped}"),
        },
    }
}
