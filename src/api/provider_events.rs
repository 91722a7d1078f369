//! `POST /v1/provider_events/{provider}`: what a provider tells by its own webhook.
//!
//! It needs no key: the signature over the raw body says who sends. Nothing that it says is believed; it only makes
//! the next look at a batch due.

use axum::body::Bytes;
use axum::extract::FromRef;
use axum::extract::FromRequest;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use futures_util::TryStreamExt as _;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::body::Incoming;
use super::body::Stopped;
use super::error::DiskFull;
use super::error::NotFound;
use super::error::PayloadTooLarge;
use super::parameters::Path;
use crate::app::App;
use crate::error::Error;
use crate::notices::Hint;
use crate::provider_events;
use crate::webhooks::signature;
use crate::webhooks::signature::Signed;

/// An event is a few hundred bytes.
const MAX_BYTES: u64 = 64 * 1024;
const MAX_ID: usize = 256;

pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(receive))
}

/// A body as it was sent: the signature is over its bytes.
struct Raw(Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw
where
    App: FromRef<S>,
{
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let patience = App::from_ref(state).config.server.body_timeout;
        let mut incoming = Incoming::new(request.into_body(), MAX_BYTES, patience);
        let mut body = Vec::new();
        loop {
            match incoming.try_next().await {
                Ok(Some(bytes)) => {
                    incoming.progress();
                    body.extend_from_slice(&bytes);
                }
                Ok(None) => return Ok(Self(body.into())),
                Err(Stopped::TooLong) => {
                    let message = format!("an event is longer than {MAX_BYTES} bytes");
                    return Err(Error::BodyTooLarge(message));
                }
                Err(stopped @ (Stopped::Silent | Stopped::Slow)) => {
                    return Err(incoming.too_slow(stopped));
                }
                Err(stopped @ (Stopped::NoProgress | Stopped::Lost)) => {
                    return Err(unusable(format!("the body is not complete: {stopped}")));
                }
            }
        }
    }
}

/// OpenAI's event: <https://platform.openai.com/docs/api-reference/webhook-events>.
#[derive(Debug, Deserialize)]
struct Event {
    r#type: String,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    #[serde(default)]
    id: Option<String>,
}

/// Receive an event of a provider
///
/// The address to enter at the provider, as where its webhooks go. It needs no key, but the provider's signature
/// (Standard Webhooks), with the secret that is configured as the provider's `webhook_secret`; without one this path is
/// a 404. Events about batches make the next look at that batch due; others are taken, and nothing follows from them.
/// Each event counts once.
#[utoipa::path(post, path = "/v1/provider_events/{provider}", operation_id = "receive_provider_event",
    tag = "Batches",
    params(
        ("provider" = String, Path, description = "The provider's name in the configuration."),
        ("webhook-id" = String, Header, description = "The event's own name, the same for each delivery."),
        ("webhook-timestamp" = String, Header, description = "Unix seconds of this delivery."),
        ("webhook-signature" = String, Header, description = "`v1,` and the signature in base64; several are \
            separated by spaces."),
    ),
    request_body(content = Object, description = "OpenAI's event.", content_type = "application/json"),
    responses(
        (status = 200, description = "It is taken."),
        (status = 404, response = NotFound),
        (status = 413, response = PayloadTooLarge),
        (status = 507, response = DiskFull),
    ),
)]
async fn receive(
    State(app): State<App>,
    Path(provider): Path,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<StatusCode, Error> {
    let account = app.providers.get(&provider);
    let secret = account.and_then(|account| account.settings.webhook_secret.as_ref());
    let secret = secret.ok_or_else(|| Error::NotFound {
        param: Some("provider"),
        code: "not_found",
        message: "no such provider, or it has no `webhook_secret` in the configuration".to_owned(),
    })?;
    let id = header(&headers, "webhook-id")?;
    let signed = Signed {
        id,
        timestamp: header(&headers, "webhook-timestamp")?,
        signature: header(&headers, "webhook-signature")?,
    };
    signature::verify([secret], signed, &body, app.clock.now())
        .map_err(|forged| unusable(forged.to_string()))?;
    if !is_id(id) {
        return Err(unusable(format!(
            "`webhook-id` must have 1 to {MAX_ID} characters, and no spaces"
        )));
    }
    let event: Event = serde_json::from_slice(&body)
        .map_err(|error| unusable(format!("the body is not an event: {error}")))?;
    // What is about nothing that could be looked at is taken all the same: else it would come again for days.
    let batch = event.data.and_then(|data| data.id).filter(|_| event.r#type.starts_with("batch."));
    if let Some(batch) = batch.filter(|batch| is_id(batch)) {
        take(&app, provider, id.to_owned(), batch).await?;
    }
    Ok(StatusCode::OK)
}

fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

async fn take(app: &App, provider: String, id: String, batch: String) -> Result<(), Error> {
    let now = app.clock.now();
    let event = std::sync::Arc::new((provider, id, batch));
    let is_new = app
        .db
        .intake(move |tx| {
            let event = std::sync::Arc::clone(&event);
            Box::pin(async move {
                let (provider, id, batch) = &*event;
                Ok::<_, Error>(provider_events::receive(tx, now, provider, id, batch).await?)
            })
        })
        .await?;
    if is_new {
        app.notices.hint(Hint::Work);
    }
    Ok(())
}

fn header<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, Error> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| unusable(format!("the header `{name}` is missing")))
}

fn unusable(message: String) -> Error {
    Error::Invalid { param: None, code: Some("invalid_event"), message }
}
