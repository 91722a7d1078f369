//! A webhook endpoint as the API shows it; with its secret, where that was just made.

use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::Object;

use crate::api::description::described;
use crate::api::description::words;
use crate::error::Error;
use crate::webhooks::DisabledReason;
use crate::webhooks::EndpointStatus;
use crate::webhooks::EventType;
use crate::webhooks::Sealed;
use crate::webhooks::store::Endpoint;
use crate::webhooks::vault::Vault;

/// A URL that is told of its owner's events.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = WebhookEndpoint)]
pub struct EndpointObject {
    pub id: String,
    #[schema(schema_with = is_endpoint)]
    object: String,
    name: String,
    url: String,
    /// What it is told of.
    event_types: Vec<String>,
    #[schema(schema_with = status)]
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = disabled_reasons, required = false)]
    disabled_reason: Option<String>,
    /// Since when nothing got through to it.
    #[schema(required = true)]
    failing_since: Option<i64>,
    /// The end of the secret, to tell it from others.
    signing_secret_hint: String,
    /// Until when the secret before this one signs too.
    #[schema(required = true)]
    old_secret_active_until: Option<i64>,
    created_at: i64,
    /// When its owner last changed it, or its secret.
    updated_at: i64,
    /// The secret that deliveries are signed with, in the answer that made it and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    signing_secret: Option<String>,
}

fn is_endpoint() -> Object {
    words(["webhook_endpoint"])
}

pub fn status() -> Object {
    words(EndpointStatus::ALL.map(EndpointStatus::as_str))
}

fn disabled_reasons() -> Object {
    let text = "`gone`: it answered 410. `failing`: for as long as one delivery was tried, some three days, none got \
                through. `by_owner`: its owner said so. An update with the status `enabled` enables it again.";
    described(words(DisabledReason::ALL.map(DisabledReason::as_str)), text)
}

pub fn event_type() -> Object {
    words(EventType::ALL.map(EventType::as_str))
}

impl EndpointObject {
    pub fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        Ok(Self {
            id: endpoint.id.to_string(),
            object: "webhook_endpoint".to_owned(),
            name: endpoint.name.clone(),
            url: endpoint.url.clone(),
            event_types: endpoint.event_types()?,
            status: endpoint.status.clone(),
            disabled_reason: endpoint.disabled_reason().map(str::to_owned),
            failing_since: endpoint.failing_since.map(|at| at.unix_seconds()),
            signing_secret_hint: endpoint.secret_hint.clone(),
            old_secret_active_until: endpoint.previous_until.map(|at| at.unix_seconds()),
            created_at: endpoint.created_at.unix_seconds(),
            updated_at: endpoint.updated_at.unix_seconds(),
            signing_secret: None,
        })
    }
}

/// An answer that may be kept: its secret is sealed.
pub fn sealed(endpoint: &Endpoint, secret: &Sealed) -> Result<String, Error> {
    let signing_secret = Some(data_encoding::BASE64.encode(&secret.bytes));
    let object = EndpointObject { signing_secret, ..EndpointObject::new(endpoint)? };
    serde_json::to_string(&object).map_err(|error| Error::Internal(error.into()))
}

/// The answer as it is sent.
pub fn revealed(vault: &Vault, kept: &str) -> Result<String, Error> {
    let reveal = || -> anyhow::Result<String> {
        let mut object: EndpointObject = serde_json::from_str(kept)?;
        let stored = object.signing_secret.take().unwrap_or_default();
        let stored = data_encoding::BASE64.decode(stored.as_bytes())?;
        let secret = vault.unseal(object.id.parse()?, &stored)?;
        object.signing_secret = Some(secret.expose_secret().to_owned());
        Ok(serde_json::to_string(&object)?)
    };
    reveal().map_err(Error::Internal)
}
