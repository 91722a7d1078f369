//! Managed ids: one line of text in URL-safe base64 without padding.
//!
//! ```text
//! longshore:{content_type};unified_id,{uuid};target_model_names,{name,name};llm_output_file_id,{id};llm_output_file_model_id,{id}
//! longshore;model_id:{deployment_id};llm_batch_id:{uuid}
//! longshore;model_id:{deployment_id};generic_response_id:{uuid}
//! ```
//!
//! LiteLLM's managed ids have the same grammar with the prefix `litellm_proxy` and no escapes; they
//! are read too. An id is a name, never a permission: rows are found by the exact text of the id,
//! never by what it decodes to.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use percent_encoding::AsciiSet;
use percent_encoding::CONTROLS;
use percent_encoding::percent_decode_str;
use percent_encoding::utf8_percent_encode;
use sha2::Digest;
use sha2::Sha256;
use uuid::Uuid;

/// Reads with and without padding: LiteLLM strips it, other writers of the grammar may not.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What the grammar itself uses, and so cannot stand in a value.
const RESERVED: &AsciiSet = &CONTROLS.add(b';').add(b',').add(b':').add(b'%');

/// Longer content types are written as `application/octet-stream`, so that ids stay short.
const MAX_CONTENT_TYPE: usize = 128;

/// No id that was ever minted is longer; what is longer is not looked up.
pub const MAX_LENGTH: usize = 16 * 1024;

/// Whose grammar an id is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Longshore,
    LiteLlm,
}

impl Origin {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Longshore => "longshore",
            Self::LiteLlm => "litellm_proxy",
        }
    }

    fn unescape(self, value: &str) -> Option<String> {
        match self {
            Self::Longshore => percent_decode_str(value).decode_utf8().ok().map(Cow::into_owned),
            Self::LiteLlm => Some(value.to_owned()),
        }
    }
}

/// What a managed id says. For an output file, `output` holds what the provider calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManagedId {
    File {
        content_type: String,
        uuid: Uuid,
        target_model_names: Vec<String>,
        output: Option<OutputFile>,
    },
    /// `deployment_id` is empty where a batch runs on several deployments.
    Batch {
        deployment_id: String,
        batch: String,
    },
    Object {
        deployment_id: String,
        object: String,
    },
}

/// The provider's side of a file that a provider produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    pub provider_file_id: String,
    pub deployment_id: String,
}

impl ManagedId {
    /// Writes the id in our own grammar.
    pub fn encode(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.to_line())
    }

    fn to_line(&self) -> String {
        match self {
            Self::File { content_type, uuid, target_model_names, output } => {
                let content_type = match content_type.len() {
                    0..=MAX_CONTENT_TYPE => content_type.as_str(),
                    _ => "application/octet-stream",
                };
                let names: Vec<_> =
                    target_model_names.iter().map(|name| escape(name).to_string()).collect();
                let (file, model) = match output {
                    Some(output) => {
                        (output.provider_file_id.as_str(), output.deployment_id.as_str())
                    }
                    None => ("", ""),
                };
                format!(
                    "longshore:{};unified_id,{uuid};target_model_names,{};llm_output_file_id,{};\
                     llm_output_file_model_id,{}",
                    escape(content_type),
                    names.join(","),
                    escape(file),
                    escape(model),
                )
            }
            Self::Batch { deployment_id, batch } => {
                format!(
                    "longshore;model_id:{};llm_batch_id:{}",
                    escape(deployment_id),
                    escape(batch)
                )
            }
            Self::Object { deployment_id, object } => {
                format!(
                    "longshore;model_id:{};generic_response_id:{}",
                    escape(deployment_id),
                    escape(object)
                )
            }
        }
    }

    /// Reads an id of either grammar. `None` for anything else, however long or broken.
    pub fn decode(text: &str) -> Option<(Origin, Self)> {
        if text.len() > MAX_LENGTH {
            return None;
        }
        let line = String::from_utf8(LENIENT.decode(text).ok()?).ok()?;
        [Origin::Longshore, Origin::LiteLlm].into_iter().find_map(|origin| {
            let rest = line.strip_prefix(origin.prefix())?;
            let id = match rest.split_at_checked(1)? {
                (":", fields) => read_file(origin, fields)?,
                (";", fields) => read_object(origin, fields)?,
                _ => return None,
            };
            Some((origin, id))
        })
    }
}

fn escape(value: &str) -> percent_encoding::PercentEncode<'_> {
    utf8_percent_encode(value, RESERVED)
}

fn read_file(origin: Origin, fields: &str) -> Option<ManagedId> {
    // A content type of LiteLLM may itself hold a `;`, so the fields are found by their names.
    let (content_type, rest) = fields.split_once(";unified_id,")?;
    let (uuid, rest) = rest.split_once(";target_model_names,")?;
    let (names, output) = match (origin, rest.split_once(";llm_output_file_id,")) {
        (_, Some((names, rest))) => (names, read_output(origin, rest)?),
        // LiteLLM's oldest ids end here.
        (Origin::LiteLlm, None) => (rest, None),
        (Origin::Longshore, None) => return None,
    };
    let names = names.split(',').filter(|name| !name.is_empty());
    Some(ManagedId::File {
        content_type: origin.unescape(content_type)?,
        uuid: Uuid::try_parse(uuid).ok()?,
        target_model_names: names.map(|name| origin.unescape(name)).collect::<Option<_>>()?,
        output,
    })
}

/// The provider's side: empty, or (LiteLLM) `None`, for a file that a client uploaded.
fn read_output(origin: Origin, fields: &str) -> Option<Option<OutputFile>> {
    let (file, model) = match (origin, fields.split_once(";llm_output_file_model_id,")) {
        (_, Some(both)) => both,
        (Origin::LiteLlm, None) => return Some(None),
        (Origin::Longshore, None) => return None,
    };
    if file.is_empty() || (origin == Origin::LiteLlm && file == "None") {
        return Some(None);
    }
    Some(Some(OutputFile {
        provider_file_id: origin.unescape(file)?,
        deployment_id: origin.unescape(model)?,
    }))
}

fn read_object(origin: Origin, fields: &str) -> Option<ManagedId> {
    let (deployment_id, rest) = fields.strip_prefix("model_id:")?.split_once(';')?;
    let deployment_id = origin.unescape(deployment_id)?;
    match rest.split_once(':')? {
        ("llm_batch_id", batch) => {
            Some(ManagedId::Batch { deployment_id, batch: origin.unescape(batch)? })
        }
        ("generic_response_id", object) => {
            Some(ManagedId::Object { deployment_id, object: origin.unescape(object)? })
        }
        _ => None,
    }
}

/// The key that a managed id is found by in an index; the text itself is compared after it.
pub fn hash(managed_id: &str) -> Vec<u8> {
    Sha256::digest(managed_id).to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_id() -> impl Strategy<Value = ManagedId> {
        let output = (".{1,20}", ".{0,20}").prop_map(|(provider_file_id, deployment_id)| {
            OutputFile { provider_file_id, deployment_id }
        });
        let file = (
            ".{0,60}",
            any::<u128>(),
            prop::collection::vec(".{1,20}", 0..4),
            prop::option::of(output),
        )
            .prop_map(|(content_type, uuid, target_model_names, output)| ManagedId::File {
                content_type: content_type.chars().take(30).collect(),
                uuid: Uuid::from_u128(uuid),
                target_model_names,
                output,
            });
        let batch = (".*", ".*")
            .prop_map(|(deployment_id, batch)| ManagedId::Batch { deployment_id, batch });
        let object = (".*", ".*")
            .prop_map(|(deployment_id, object)| ManagedId::Object { deployment_id, object });
        prop_oneof![file, batch, object]
    }

    proptest! {
        #[test]
        fn reading_undoes_writing(id in any_id()) {
            prop_assert_eq!(ManagedId::decode(&id.encode()), Some((Origin::Longshore, id)));
        }

        #[test]
        fn junk_is_refused_without_a_panic(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ManagedId::decode(&text);
            let _ = ManagedId::decode(&BASE64_URL_SAFE_NO_PAD.encode(&bytes));
        }

        #[test]
        fn a_cut_id_never_panics_and_never_is_the_whole_one(id in any_id(), cut in 0usize..400) {
            let text = id.encode();
            if let Some(part) = text.get(..cut.min(text.len().saturating_sub(2))) {
                prop_assert_ne!(ManagedId::decode(part).map(|(_, id)| id), Some(id));
            }
        }
    }

    fn litellm(line: &str) -> Option<(Origin, ManagedId)> {
        ManagedId::decode(&BASE64_URL_SAFE_NO_PAD.encode(line))
    }

    #[test]
    fn litellm_file_ids_are_read_with_their_unescaped_content_type() {
        let uuid = Uuid::from_u128(7);
        let line = format!(
            "litellm_proxy:text/plain; charset=utf-8;unified_id,{uuid};target_model_names,gpt-4o,o3%mini;\
             llm_output_file_id,None;llm_output_file_model_id,None"
        );
        let expected = ManagedId::File {
            content_type: "text/plain; charset=utf-8".to_owned(),
            uuid,
            target_model_names: vec!["gpt-4o".to_owned(), "o3%mini".to_owned()],
            output: None,
        };
        assert_eq!(litellm(&line), Some((Origin::LiteLlm, expected)));
    }

    #[test]
    fn litellm_output_files_batches_and_responses_are_read() {
        let line = format!(
            "litellm_proxy:application/json;unified_id,{};target_model_names,gpt-4o;\
             llm_output_file_id,file-abc;llm_output_file_model_id,dep",
            Uuid::from_u128(7)
        );
        let Some((_, ManagedId::File { output, .. })) = litellm(&line) else {
            panic!("not a file id")
        };
        assert_eq!(output.map(|output| output.provider_file_id), Some("file-abc".to_owned()));
        assert_eq!(
            litellm("litellm_proxy;model_id:dep;llm_batch_id:batch_1"),
            Some((
                Origin::LiteLlm,
                ManagedId::Batch { deployment_id: "dep".to_owned(), batch: "batch_1".to_owned() }
            ))
        );
        assert_eq!(
            litellm("litellm_proxy;model_id:dep;generic_response_id:ftjob-1"),
            Some((
                Origin::LiteLlm,
                ManagedId::Object { deployment_id: "dep".to_owned(), object: "ftjob-1".to_owned() }
            ))
        );
    }

    #[test]
    fn a_provider_may_call_its_file_none() {
        let id = ManagedId::File {
            content_type: "application/json".to_owned(),
            uuid: Uuid::from_u128(7),
            target_model_names: Vec::new(),
            output: Some(OutputFile {
                provider_file_id: "None".to_owned(),
                deployment_id: "dep".to_owned(),
            }),
        };
        assert_eq!(ManagedId::decode(&id.encode()), Some((Origin::Longshore, id)));
    }

    #[test]
    fn a_long_content_type_is_not_carried_in_the_id() {
        let id = ManagedId::File {
            content_type: "x".repeat(129),
            uuid: Uuid::from_u128(7),
            target_model_names: Vec::new(),
            output: None,
        };
        let Some((_, ManagedId::File { content_type, .. })) = ManagedId::decode(&id.encode())
        else {
            panic!("not a file id")
        };
        assert_eq!(content_type, "application/octet-stream");
    }
}
