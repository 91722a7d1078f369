//! What a request's address says, with a refusal in OpenAI's form where axum's own would be plain text.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// The variable part of a path. What is no text, or holds a NUL, names nothing.
pub struct Path(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let no_such = || Error::NotFound {
            param: None,
            code: "not_found",
            message: "no such thing: the path is not valid UTF-8".to_owned(),
        };
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        let path = path.map_err(|_| no_such())?.0;
        // PostgreSQL cannot even compare text with a NUL in it.
        if path.contains('\0') { Err(no_such()) } else { Ok(Self(path)) }
    }
}

/// The parameters behind the `?`.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let invalid =
            |message| Error::Invalid { param: None, code: Some("invalid_value"), message };
        if parts.uri.query().is_some_and(|query| query.contains("%00")) {
            return Err(invalid("a query parameter holds a NUL character".to_owned()));
        }
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|rejection| invalid(rejection.body_text()))
    }
}
