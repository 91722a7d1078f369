//! Names in settings: of models, providers, owners.

use serde::de::{Deserialize, Deserializer, Error};

use super::deserializer::VALUE;

/// A name of any script: not empty, on one line, and no space at its ends, where lists of names are split.
pub(super) fn plain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.is_empty() {
        return Err(D::Error::custom("is empty; give it a name"));
    }
    check(&name).map_err(D::Error::custom)?;
    Ok(name)
}

/// As [`plain`]; empty means none.
pub(super) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    check(&name).map_err(D::Error::custom)?;
    Ok((!name.is_empty()).then_some(name))
}

/// A provider's name, which stands in paths of URLs and in labels of metrics.
pub(super) fn provider<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || !name.bytes().all(fits) {
        return Err(D::Error::custom(format_args!(
            "`{VALUE}` is not a provider's name; use letters, digits, `-` and `_`"
        )));
    }
    Ok(name)
}

fn check(name: &str) -> Result<(), String> {
    if name.chars().any(char::is_control) {
        return Err(format!("`{VALUE}` holds a control character; take it out"));
    }
    if name.trim() != name {
        return Err(format!("`{VALUE}` begins or ends with a space; take it out"));
    }
    Ok(())
}
