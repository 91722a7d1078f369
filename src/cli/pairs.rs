//! Metadata as it is given on the command line: `--metadata KEY=VALUE`, once for each pair.

use serde_json::Map;
use serde_json::Value;

/// Reads one pair. Only the first `=` divides it.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it should look like `key=value`".to_owned()),
    }
}

/// The pairs as one object, or the key that stands twice.
pub fn object(pairs: &[(String, String)]) -> Result<Map<String, Value>, &str> {
    let mut object = Map::new();
    for (key, value) in pairs {
        if object.insert(key.clone(), Value::from(value.as_str())).is_some() {
            return Err(key);
        }
    }
    Ok(object)
}
