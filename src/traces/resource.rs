//! What the spans of this process are of: the service, its version, this instance, and what the environment adds.

use std::collections::BTreeMap;

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::TelemetryResourceDetector;
use percent_encoding::percent_decode_str;

/// Reads `OTEL_RESOURCE_ATTRIBUTES` (`key=value,…`, percent-encoded) and `OTEL_SERVICE_NAME`, which goes before it.
///
/// # Errors
///
/// When the attributes are not of that form.
pub(super) fn resource(environment: &BTreeMap<String, String>) -> anyhow::Result<Resource> {
    let mut attributes = vec![
        KeyValue::new("service.name", "longshore"),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
    ];
    if let Some(text) = environment.get("OTEL_RESOURCE_ATTRIBUTES") {
        attributes.extend(parse(text).ok_or_else(|| {
            anyhow::anyhow!(
                "`OTEL_RESOURCE_ATTRIBUTES` is not of the form `key=value,key=value`, with what is not plain \
                 percent-encoded"
            )
        })?);
    }
    let name = environment.get("OTEL_SERVICE_NAME").filter(|name| !name.is_empty());
    attributes.extend(name.map(|name| KeyValue::new("service.name", name.clone())));
    Ok(Resource::builder_empty()
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_attributes(attributes)
        .build())
}

fn parse(text: &str) -> Option<Vec<KeyValue>> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            let key = key.trim();
            (!key.is_empty()).then(|| KeyValue::new(key.to_owned(), value.into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> anyhow::Result<BTreeMap<String, String>> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let resource = resource(&pairs.collect())?;
        Ok(resource.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn the_environment_adds_attributes_and_may_name_the_service() {
        let plain = read(&[]).unwrap();
        assert_eq!(plain["service.name"], "longshore");
        assert_eq!(plain["service.version"], env!("CARGO_PKG_VERSION"));
        assert_ne!(plain["service.instance.id"], read(&[]).unwrap()["service.instance.id"]);
        let more = "deployment.environment.name=a%20b, service.name=other,";
        let more = [("OTEL_RESOURCE_ATTRIBUTES", more)];
        assert_eq!(read(&more).unwrap()["deployment.environment.name"], "a b");
        assert_eq!(read(&more).unwrap()["service.name"], "other");
        let named = read(&[more[0], ("OTEL_SERVICE_NAME", "files")]).unwrap();
        assert_eq!(named["service.name"], "files");
        for wrong in ["x", "=y", "a=1,b"] {
            assert!(read(&[("OTEL_RESOURCE_ATTRIBUTES", wrong)]).is_err(), "{wrong}");
        }
    }
}
