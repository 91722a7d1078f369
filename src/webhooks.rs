//! Webhooks: an owner's endpoints, and the deliveries that tell them of its events.
//!
//! A delivery is a durable job, written in the transaction that changes what it tells of.

pub mod address;
pub mod sender;
pub mod signature;
pub mod store;
pub mod vault;

use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;

use self::store::Endpoint;
use self::store::Listener;
use self::vault::Vault;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::ids::EventId;
use crate::ids::WebhookEndpointId;
use crate::jobs::DeliverWebhook;
use crate::jobs::deliveries;
use crate::words::words;

/// Endpoints that one owner may have.
pub const MOST_ENDPOINTS: i64 = 20;
/// How long a replaced secret may go on signing beside the new one.
pub const OLD_SECRET: Duration = Duration::from_hours(24);
/// Deliveries that the transaction which ends their endpoint cancels with it. Maintenance cancels the others.
pub const CANCELLED_AT_ONCE: u32 = 500;
/// How much later than a delivery its endpoint may have begun to fail, to have failed for the whole of it: that is
/// noted at the end of the first attempt.
const FIRST_ATTEMPT: Duration = Duration::from_mins(1);

words! {
    /// What an endpoint can be told of. Those of batches and of fine-tuning are OpenAI's.
    EventType, "a webhook event type" {
        BatchCompleted = "batch.completed",
        BatchFailed = "batch.failed",
        BatchExpired = "batch.expired",
        BatchCancelled = "batch.cancelled",
        FineTuningJobSucceeded = "fine_tuning.job.succeeded",
        FineTuningJobFailed = "fine_tuning.job.failed",
        FineTuningJobCancelled = "fine_tuning.job.cancelled",
        FileProcessed = "file.processed",
        FileFailed = "file.failed",
        FileDeleted = "file.deleted",
        JobFailed = "job.failed",
        SweepCompleted = "sweep.completed",
    }
}

words! {
    /// Whether an endpoint is told of anything.
    EndpointStatus, "a status of a webhook endpoint" {
        Enabled = "enabled",
        Disabled = "disabled",
    }
}

words! {
    /// Why an endpoint is told of nothing.
    DisabledReason, "a reason why a webhook endpoint is disabled" {
        /// It answered 410.
        Gone = "gone",
        /// Nothing was delivered for as long as one delivery was tried.
        Failing = "failing",
        ByOwner = "by_owner",
    }
}

/// An endpoint to be written. The secret is sealed with the id.
#[derive(Clone, Debug)]
pub struct NewEndpoint {
    pub id: WebhookEndpointId,
    pub owner: String,
    pub name: String,
    pub url: String,
    pub event_types: Vec<EventType>,
    pub secret: Sealed,
}

/// A secret as it is stored, and the part of it that is shown.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub bytes: Vec<u8>,
    pub hint: String,
}

impl Sealed {
    /// Makes a secret for an endpoint.
    ///
    /// # Errors
    ///
    /// When it cannot be sealed.
    pub fn new(vault: &Vault, of: WebhookEndpointId) -> anyhow::Result<Self> {
        let secret = signature::new_secret();
        let bytes = vault.seal(of, secret.expose_secret())?;
        Ok(Self { bytes, hint: signature::hint(&secret) })
    }
}

/// What an owner changes of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub name: Option<String>,
    pub url: Option<String>,
    pub event_types: Option<Vec<EventType>>,
    pub status: Option<EndpointStatus>,
}

/// Writes an endpoint, and answers it as stored.
///
/// # Errors
///
/// When the owner has as many as one may have.
pub async fn create(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    new: &NewEndpoint,
) -> Result<Endpoint, Error> {
    if store::count(tx, &new.owner).await? >= MOST_ENDPOINTS {
        return Err(Error::Conflict {
            code: "too_many_webhook_endpoints",
            message: format!(
                "an owner may have {MOST_ENDPOINTS} webhook endpoints; delete one, or send more event types to one"
            ),
            retry_after: None,
        });
    }
    store::insert(tx, now, new).await?;
    let endpoint = store::find(tx, new.id).await?;
    endpoint.ok_or_else(|| Error::Internal(anyhow::anyhow!("`{}` was not stored", new.id)))
}

/// Changes an endpoint. `None` when it is deleted by now.
///
/// # Errors
///
/// What the database says.
pub async fn update(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: WebhookEndpointId,
    change: &Change,
) -> Result<Option<Endpoint>, Error> {
    let Some(before) = store::lock(tx, id).await? else { return Ok(None) };
    let mut after = before.clone();
    if let Some(name) = &change.name {
        after.name.clone_from(name);
    }
    if let Some(url) = &change.url {
        after.url.clone_from(url);
    }
    if let Some(types) = &change.event_types {
        after.set_event_types(types)?;
    }
    match change.status {
        Some(EndpointStatus::Enabled) if before.status()? == EndpointStatus::Disabled => {
            after.enable()
        }
        Some(EndpointStatus::Disabled) if before.status()? == EndpointStatus::Enabled => {
            after.disable(DisabledReason::ByOwner);
            deliveries::cancel_waiting(tx, now, id, CANCELLED_AT_ONCE).await?;
        }
        _ => {}
    }
    if after != before {
        after.updated_at = now;
        store::save(tx, &after).await?;
    }
    Ok(Some(after))
}

/// Gives an endpoint another secret. `None` when it is deleted by now.
///
/// # Errors
///
/// What the database says.
pub async fn rotate(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: WebhookEndpointId,
    secret: &Sealed,
    keeps_old: bool,
) -> Result<Option<Endpoint>, Error> {
    let Some(mut endpoint) = store::lock(tx, id).await? else { return Ok(None) };
    let old = endpoint.secret.replace(secret.bytes.clone());
    endpoint.secret_hint.clone_from(&secret.hint);
    (endpoint.previous_secret, endpoint.previous_until) = match old {
        Some(old) if keeps_old => (Some(old), Some(now.after(OLD_SECRET))),
        _ => (None, None),
    };
    endpoint.updated_at = now;
    store::save(tx, &endpoint).await?;
    Ok(Some(endpoint))
}

/// Deletes an endpoint, and calls off what it was still to be told. `false` when it is deleted already.
///
/// # Errors
///
/// What the database says.
pub async fn delete(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: WebhookEndpointId,
) -> Result<bool, Error> {
    deliveries::cancel_waiting(tx, now, id, CANCELLED_AT_ONCE).await?;
    Ok(store::bury(tx, now, id).await?)
}

/// The secrets that sign what an endpoint is told at `now`: the one that its owner has, and for a while the one before.
///
/// # Errors
///
/// When the one that its owner has cannot be read with this key.
pub fn secrets(
    vault: &Vault,
    endpoint: &Endpoint,
    now: Timestamp,
) -> Result<Vec<SecretString>, vault::Unreadable> {
    let mut secrets = Vec::with_capacity(2);
    if let Some(stored) = &endpoint.secret {
        secrets.push(vault.unseal(endpoint.id, stored)?);
    }
    let is_active = endpoint.previous_until.is_some_and(|until| now < until);
    if let Some(stored) = endpoint.previous_secret.as_ref().filter(|_| is_active) {
        match vault.unseal(endpoint.id, stored) {
            Ok(secret) => secrets.push(secret),
            // It was sealed with another key: what is signed with the new one alone is as good.
            Err(error) => tracing::warn!(
                webhook_endpoint.id = %endpoint.id, error = %error,
                "an endpoint's secret before the last rotation cannot be read; it is left out"
            ),
        }
    }
    Ok(secrets)
}

/// An event that endpoints can be told of.
#[derive(Clone, Debug)]
pub struct Announcement<'e> {
    pub id: EventId,
    pub owner: &'e str,
    pub event_type: EventType,
    pub subject: uuid::Uuid,
}

/// Queues the deliveries of these events to the endpoints that listen to them.
///
/// # Errors
///
/// What the database says.
pub async fn announce(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    announcements: &[Announcement<'_>],
    listeners: &[Listener],
) -> Result<(), DbErr> {
    let mut due = Vec::new();
    for event in announcements {
        let wanted = |listener: &&Listener| {
            listener.owner == event.owner && listener.listens_to(event.event_type)
        };
        due.extend(listeners.iter().filter(wanted).map(|listener| deliveries::Delivery {
            owner: event.owner.to_owned(),
            work: DeliverWebhook {
                event_id: event.id,
                endpoint_id: listener.id,
                event_type: event.event_type.to_string(),
                subject: event.subject,
                created_at: now,
            },
        }));
    }
    deliveries::enqueue(tx, now, &due).await
}

/// A delivery was tried for the last time: the endpoint is disabled if nothing else got through meanwhile either.
///
/// # Errors
///
/// What the database says.
pub async fn give_up(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: WebhookEndpointId,
    first_attempt: Timestamp,
) -> Result<(), DbErr> {
    store::note_failure(tx, id).await?;
    let since = first_attempt.after(FIRST_ATTEMPT);
    if store::disable(tx, id, DisabledReason::Failing, Some(since)).await? {
        tracing::warn!(webhook_endpoint.id = %id, "disabled a webhook endpoint: nothing was delivered for days");
        deliveries::cancel_waiting(tx, now, id, CANCELLED_AT_ONCE).await?;
    }
    Ok(())
}

/// An endpoint answered that it is gone for good.
///
/// # Errors
///
/// What the database says.
pub async fn gone(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: WebhookEndpointId,
) -> Result<(), DbErr> {
    if store::disable(tx, id, DisabledReason::Gone, None).await? {
        tracing::warn!(webhook_endpoint.id = %id, "disabled a webhook endpoint: it answered 410");
        deliveries::cancel_waiting(tx, now, id, CANCELLED_AT_ONCE).await?;
    }
    Ok(())
}
