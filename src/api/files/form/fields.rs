//! The fields of the form other than the file: texts, few and short.

use std::collections::BTreeMap;
use std::time::Duration;

use super::malformed;
use crate::error::Error;
use crate::files::Purpose;
use crate::files::store::Metadata;

/// All together, in bytes and in number.
const MAX_FIELDS_BYTES: usize = 128 * 1024;
const MAX_FIELDS: usize = 256;

/// The text fields so far.
#[derive(Default)]
pub struct Fields {
    values: Vec<(String, String)>,
    bytes: usize,
}

impl Fields {
    pub fn count(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > MAX_FIELDS_BYTES || self.values.len() >= MAX_FIELDS {
            return Err(malformed("its fields other than `file` are too many or too long"));
        }
        Ok(())
    }

    pub fn add(&mut self, name: String, value: Vec<u8>) -> Result<(), Error> {
        self.count(name.len())?;
        let value = String::from_utf8(value).map_err(|_| {
            let message = format!(
                "the field `{}` is not UTF-8 text",
                name.chars().take(100).collect::<String>()
            );
            Error::Invalid { param: None, code: Some("invalid_value"), message }
        })?;
        // The lines of a batch are checked as they come, for the purpose that was said first.
        if name == "purpose" && self.get("purpose").is_some() {
            return Err(Error::invalid(
                "purpose",
                "`purpose` was sent twice; a file has exactly one",
            ));
        }
        self.values.push((name, value));
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.trim())
    }

    /// The purpose, if it came already and is one.
    pub fn purpose(&self) -> Option<Purpose> {
        self.get("purpose").and_then(|purpose| Purpose::of_upload(purpose).ok())
    }

    pub fn required_purpose(&self) -> Result<Purpose, Error> {
        match self.get("purpose") {
            None => {
                let names: Vec<_> =
                    Purpose::UPLOADED.iter().map(|purpose| format!("`{purpose}`")).collect();
                Err(Error::missing(
                    "purpose",
                    format!("`purpose` is missing; it is one of {}", names.join(", ")),
                ))
            }
            Some(purpose) => {
                Purpose::of_upload(purpose).map_err(|message| Error::invalid("purpose", message))
            }
        }
    }

    pub fn target_model_names(&self) -> Vec<String> {
        let named = self.values.iter().filter(|(name, _)| is_target_model_names(name));
        named.flat_map(|(_, value)| split_names(value)).collect()
    }

    pub fn expires_after(&self) -> Result<Option<Duration>, Error> {
        let (anchor, seconds) =
            (self.get("expires_after[anchor]"), self.get("expires_after[seconds]"));
        match (anchor, seconds) {
            (None, None) => Ok(None),
            (Some("created_at"), Some(seconds)) => {
                let seconds =
                    seconds.parse().ok().filter(|seconds| (3600..=2_592_000).contains(seconds));
                let seconds = seconds.ok_or_else(|| {
                    Error::invalid(
                        "expires_after[seconds]",
                        "`expires_after[seconds]` must be a whole number from 3600 (an hour) to 2592000 (30 days)",
                    )
                })?;
                Ok(Some(Duration::from_secs(seconds)))
            }
            (Some("created_at"), None) => Err(Error::missing(
                "expires_after[seconds]",
                "`expires_after[seconds]` is missing beside the anchor",
            )),
            _ => Err(Error::invalid(
                "expires_after[anchor]",
                "`expires_after[anchor]` must be `created_at`",
            )),
        }
    }

    pub fn metadata(&self) -> Result<Metadata, Error> {
        let mut metadata = match self.get("metadata").filter(|text| !text.is_empty()) {
            None => BTreeMap::new(),
            Some(text) => serde_json::from_str::<Metadata>(text).map_err(|_| {
                Error::invalid(
                    "metadata",
                    "`metadata` must be a JSON object whose values are strings",
                )
            })?,
        };
        for (name, value) in &self.values {
            if let Some(key) =
                name.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']'))
            {
                metadata.insert(key.to_owned(), value.clone());
            }
        }
        check_metadata(&metadata)?;
        Ok(metadata)
    }
}

/// At most 16 pairs, keys of at most 64 characters, values of at most 512: OpenAI's limits.
///
/// # Errors
///
/// Names the pair that is over them.
pub fn check_metadata(metadata: &Metadata) -> Result<(), Error> {
    if metadata.len() > 16 {
        return Err(Error::invalid(
            "metadata",
            format!("`metadata` has {} pairs; it may have 16", metadata.len()),
        ));
    }
    for (key, value) in metadata {
        if key.is_empty() || key.chars().count() > 64 {
            return Err(Error::invalid(
                "metadata",
                "a key in `metadata` must have 1 to 64 characters",
            ));
        }
        if value.chars().count() > 512 {
            return Err(Error::invalid(
                "metadata",
                format!("the value of `{key}` in `metadata` is longer than 512 characters"),
            ));
        }
    }
    Ok(())
}

/// How clients spell the parameter, as a field of a form or in the query.
pub fn is_target_model_names(name: &str) -> bool {
    let index = name.strip_prefix("target_model_names");
    index.is_some_and(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Names separated by commas.
pub fn split_names(value: &str) -> impl Iterator<Item = String> {
    value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_come_under_every_spelling_that_clients_use() {
        for name in ["target_model_names", "target_model_names[]", "target_model_names[0]"] {
            assert!(is_target_model_names(name), "{name}");
        }
        for name in ["target_model_name", "target_model_names[x]", "target_model_names]"] {
            assert!(!is_target_model_names(name), "{name}");
        }
        assert_eq!(split_names(" a, b ,,c").collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
