//! What `POST /v1/batches` and its kin are asked.

use std::borrow::Cow;

use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use utoipa::PartialSchema;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::Schema;

use crate::api::files::form::check_metadata;
use crate::error::Error;
use crate::files::store::Metadata;

/// The only window that OpenAI knows.
const WINDOW: &str = "24h";
const MOST_ENDPOINT: usize = 100;
/// Seconds: an hour to thirty days.
const SHORTEST_LIFE: i64 = 3600;
const LONGEST_LIFE: i64 = 2_592_000;

/// A batch, as it is asked for. What a client leaves out and what it says to be `null` is the same.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CreateBatch {
    input_file_id: Option<String>,
    endpoint: Option<String>,
    completion_window: Option<String>,
    metadata: Option<Metadata>,
    output_expires_after: Option<ExpiresAfter>,
    model: Option<String>,
    target_model_names: Option<Names>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ExpiresAfter {
    anchor: String,
    seconds: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Names {
    List(Vec<String>),
    Separated(String),
}

/// The same, checked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub input_file_id: String,
    pub endpoint: String,
    pub completion_window: String,
    pub metadata: Option<Metadata>,
    /// Seconds.
    pub output_expires_after: Option<i64>,
    /// The models to run on; none means all that the file was sent to.
    pub models: Option<Vec<String>>,
}

impl CreateBatch {
    /// # Errors
    ///
    /// Names the first field that is not as it should be.
    pub fn check(self) -> Result<Asked, Error> {
        let models = self.models()?;
        let input_file_id = self.input_file_id.ok_or_else(|| {
            Error::missing(
                "input_file_id",
                "say which file: `input_file_id`, the id of an uploaded file",
            )
        })?;
        let endpoint = self.endpoint.ok_or_else(|| {
            Error::missing(
                "endpoint",
                "say where the requests go: `endpoint`, like `/v1/chat/completions`",
            )
        })?;
        if !is_endpoint(&endpoint) {
            return Err(Error::invalid(
                "endpoint",
                "`endpoint` must be a path of the provider's API, like `/v1/chat/completions`",
            ));
        }
        match self.completion_window.as_deref() {
            Some(WINDOW) => {}
            None => {
                let message = "`completion_window` must be given; it is `24h`";
                return Err(Error::missing("completion_window", message));
            }
            Some(_) => {
                return Err(Error::invalid(
                    "completion_window",
                    "`completion_window` must be `24h`",
                ));
            }
        }
        if let Some(metadata) = &self.metadata {
            check_metadata(metadata)?;
        }
        let output_expires_after = self.output_expires_after.map(seconds).transpose()?;
        Ok(Asked {
            input_file_id,
            endpoint,
            completion_window: WINDOW.to_owned(),
            metadata: self.metadata,
            output_expires_after,
            models,
        })
    }

    fn models(&self) -> Result<Option<Vec<String>>, Error> {
        let names = match (&self.model, &self.target_model_names) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid(
                    "model",
                    "`model` and `target_model_names` exclude each other: name one model, or several",
                ));
            }
            (Some(model), None) => vec![model.clone()],
            (None, Some(Names::List(names))) => names.clone(),
            (None, Some(Names::Separated(text))) => {
                text.split(',').map(|name| name.trim().to_owned()).collect()
            }
            (None, None) => return Ok(None),
        };
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(Error::invalid(
                "target_model_names",
                "`target_model_names` must name at least one model, and no empty one",
            ));
        }
        Ok(Some(names))
    }
}

fn is_endpoint(text: &str) -> bool {
    text.len() <= MOST_ENDPOINT
        && text.strip_prefix("/v1/").is_some_and(|rest| {
            !rest.is_empty()
                && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-/.".contains(&byte))
        })
}

fn seconds(asked: ExpiresAfter) -> Result<i64, Error> {
    let ExpiresAfter { anchor, seconds } = asked;
    if anchor != "created_at" {
        return Err(Error::invalid(
            "output_expires_after.anchor",
            "`output_expires_after.anchor` must be `created_at`",
        ));
    }
    // JSON knows one kind of numbers only: `3600.0` is whole too.
    let is_whole = seconds.fract() == 0.0;
    let seconds = seconds as i64;
    if !is_whole || !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&seconds) {
        return Err(Error::invalid(
            "output_expires_after.seconds",
            format!(
                "`output_expires_after.seconds` must be a whole number from {SHORTEST_LIFE} to {LONGEST_LIFE}"
            ),
        ));
    }
    Ok(seconds)
}

/// Written by hand: what is left out and what is `null` is the same, and limits are said.
impl PartialSchema for CreateBatch {
    fn schema() -> RefOr<Schema> {
        let text = |description: &str| json!({"type": ["string", "null"], "description": description, "minLength": 1});
        let schema = json!({
            "type": "object",
            "description": "A batch: a file of requests, and where they go.",
            "required": ["input_file_id", "endpoint", "completion_window"],
            "properties": {
                "input_file_id": {"type": "string", "description": "A file with the purpose `batch`."},
                "endpoint": {
                    "type": "string",
                    "description": "Where each request goes, as its line says too.",
                    "pattern": "^/v1/[A-Za-z0-9_./-]+$",
                    "maxLength": MOST_ENDPOINT,
                },
                "completion_window": {"type": "string", "enum": [WINDOW]},
                "metadata": {
                    "type": ["object", "null"],
                    "description": "Kept here, with the batch.",
                    "maxProperties": 16,
                    "propertyNames": {"type": "string", "minLength": 1, "maxLength": 64},
                    "additionalProperties": {"type": "string", "maxLength": 512},
                },
                "output_expires_after": {
                    "type": ["object", "null"],
                    "description": "How long what the batch produces is kept.",
                    "required": ["anchor", "seconds"],
                    "properties": {
                        "anchor": {"type": "string", "enum": ["created_at"]},
                        "seconds": {"type": "integer", "minimum": SHORTEST_LIFE, "maximum": LONGEST_LIFE},
                    },
                },
                "model": text("One model that the file was sent to, in place of `target_model_names`. Without either: all of them."),
                "target_model_names": {
                    "description": "Several of them, in a list or separated by commas.",
                    "oneOf": [
                        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                        {"type": "string", "minLength": 1},
                        {"type": "null"},
                    ],
                },
            },
        });
        serde_json::from_value(schema).expect("the schema is one")
    }
}

impl ToSchema for CreateBatch {
    fn name() -> Cow<'static, str> {
        "CreateBatch".into()
    }
}

/// A batch that was created at its provider by other means.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ImportBatch {
    /// The configured model that it runs on.
    #[schema(min_length = 1)]
    pub model: String,
    /// What the provider calls it.
    #[schema(min_length = 1, max_length = 256, pattern = "^[!-~]+$")]
    pub provider_batch_id: String,
}

impl ImportBatch {
    /// # Errors
    ///
    /// When the id can be nobody's.
    pub fn check(&self) -> Result<(), Error> {
        let id = &self.provider_batch_id;
        let is_id = (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
        if is_id {
            return Ok(());
        }
        Err(Error::invalid(
            "provider_batch_id",
            "`provider_batch_id` must be what the provider calls the batch, like `batch_abc123`",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(more: &str) -> Result<Asked, Error> {
        let text = format!(
            r#"{{"input_file_id": "f", "endpoint": "/v1/responses", "completion_window": "24h"{more}}}"#
        );
        serde_json::from_str::<CreateBatch>(&text).unwrap().check()
    }

    #[test]
    fn models_are_named_one_by_one_in_a_list_or_separated_by_commas() {
        let models = |more: &str| asked(more).unwrap().models;
        assert_eq!(models(""), None);
        assert_eq!(models(r#", "model": null, "target_model_names": null"#), None);
        assert_eq!(models(r#", "model": "a""#), Some(vec!["a".to_owned()]));
        let both = Some(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(models(r#", "target_model_names": ["a", "b"]"#), both);
        assert_eq!(models(r#", "target_model_names": "a, b""#), both);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = [
            (r#", "model": "a", "target_model_names": "b""#, "model"),
            (r#", "target_model_names": []"#, "target_model_names"),
            (r#", "target_model_names": "a,,b""#, "target_model_names"),
            (
                r#", "output_expires_after": {"anchor": "x", "seconds": 3600}"#,
                "output_expires_after.anchor",
            ),
            (
                r#", "output_expires_after": {"anchor": "created_at", "seconds": 1}"#,
                "output_expires_after.seconds",
            ),
        ];
        for (more, name) in wrong {
            let error = asked(more).unwrap_err();
            assert!(
                matches!(error, Error::Invalid { param: Some(param), .. } if param == name),
                "{more}"
            );
        }
    }

    #[test]
    fn an_endpoint_is_a_path_of_the_providers_api() {
        for endpoint in ["/v1/chat/completions", "/v1/images/edits", "/v1/ocr"] {
            assert!(is_endpoint(endpoint), "{endpoint}");
        }
        for endpoint in ["", "/v1/", "/v2/chat", "https://x/v1/chat", "/v1/a b", "/v1/ä"] {
            assert!(!is_endpoint(endpoint), "{endpoint}");
        }
    }
}
