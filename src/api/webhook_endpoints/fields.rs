//! The fields of a webhook endpoint that its owner sets: how they are described, and whether they are in order.

use serde::Deserialize;
use serde::Deserializer;
use utoipa::openapi::Object;
use utoipa::openapi::ObjectBuilder;
use utoipa::openapi::SchemaFormat;
use utoipa::openapi::schema::Array;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::schema::Type;

use super::object::event_type;
use crate::app::App;
use crate::error::Error;
use crate::webhooks::EventType;
use crate::webhooks::address;
use crate::webhooks::address::MAX_URL;

const MAX_NAME: usize = 256;

/// What is said has a value: a `null` may have been meant to be one.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

pub fn name() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("What you call it."))
        .min_length(Some(1))
        .max_length(Some(MAX_NAME))
        .pattern(Some(r"^[^\x00-\x1f\x7f-\x9f]*$"))
        .build()
}

pub fn url() -> Object {
    let text = "Where deliveries go: https, without user, password and fragment, at a public address. The server may \
                allow others (`webhooks.allow_private_addresses`).";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(text))
        .format(Some(SchemaFormat::Custom("uri".to_owned())))
        .min_length(Some(1))
        .max_length(Some(MAX_URL))
        .build()
}

pub fn event_types() -> Array {
    ArrayBuilder::new()
        .description(Some("All that it is told of."))
        .items(event_type())
        .min_items(Some(1))
        .build()
}

pub fn checked_name(name: &str) -> Result<String, Error> {
    let is_short = (1..=MAX_NAME).contains(&name.chars().count());
    if !is_short || name.chars().any(char::is_control) {
        let message =
            format!("`name` must be 1 to {MAX_NAME} characters, none of them a control character");
        return Err(Error::invalid("name", message));
    }
    Ok(name.to_owned())
}

pub async fn checked_url(app: &App, url: &str) -> Result<String, Error> {
    let refused = |refused: address::Refused| Error::invalid("url", refused.to_string());
    let reach = app.webhooks.reach();
    let parsed = address::parse(url, reach).map_err(refused)?;
    address::check_resolved(&parsed, reach).await.map_err(refused)?;
    Ok(url.to_owned())
}

/// Each once, in the order in which they were named.
pub fn checked_types(names: &[String]) -> Result<Vec<EventType>, Error> {
    let mut types = Vec::new();
    for name in names {
        let event_type = checked_type("event_types", name)?;
        if !types.contains(&event_type) {
            types.push(event_type);
        }
    }
    if types.is_empty() {
        return Err(Error::invalid("event_types", "`event_types` is empty; name at least one"));
    }
    Ok(types)
}

pub fn checked_type(param: &'static str, name: &str) -> Result<EventType, Error> {
    name.parse().map_err(|message: String| Error::invalid(param, message))
}
