//! The form of an upload: its fields in any order, and the file streamed to the blob store on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use multer::Multipart;
use sha2::Digest;
use sha2::Sha256;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use uuid::Uuid;

use super::object::uploaded_purposes;
use crate::api::body::Incoming;
use crate::api::body::Stopped;
use crate::api::description::described;
use crate::api::description::words;
use crate::api::disposition;
use crate::app::App;
use crate::blobs::BlobKey;
use crate::blobs::BlobWriter;
use crate::error::Error;
use crate::files::Purpose;
use crate::files::store::Metadata;
use crate::jsonl::Check;
use crate::jsonl::Fault;
use crate::jsonl::FaultKind;
use crate::jsonl::Scanned;

/// Fields other than the file, all together, in bytes and in number.
const MAX_FIELDS_BYTES: usize = 128 * 1024;
const MAX_FIELDS: usize = 256;
/// What a form may hold beside its file.
pub const FORM_OVERHEAD: u64 = 1024 * 1024;
const MAX_FILENAME: usize = 4096;
const MAX_CONTENT_TYPE: usize = 255;

/// The form, for its description: it is read field by field, and never lies in memory as a whole.
#[derive(ToSchema)]
#[schema(as = CreateFile, description = "The fields, in any order.")]
#[expect(dead_code, reason = "only described")]
pub struct FormFields {
    /// The file, exactly one, with a filename.
    #[schema(value_type = String, format = Binary, content_media_type = "application/octet-stream")]
    file: (),
    #[schema(schema_with = uploaded_purposes)]
    purpose: (),
    /// Names of configured models: one text with commas, or the field repeated. Without any, the file goes to
    /// the configured default models. A name that several deployments share means all of them.
    #[schema(value_type = Vec<String>, required = false)]
    target_model_names: (),
    /// The same, as some clients spell a repeated field.
    #[schema(rename = "target_model_names[]", value_type = Vec<String>, required = false)]
    target_model_names_list: (),
    #[schema(rename = "expires_after[anchor]", schema_with = anchors, required = false)]
    expires_after_anchor: (),
    #[schema(rename = "expires_after[seconds]", value_type = u32, minimum = 3600, maximum = 2_592_000, required = false)]
    expires_after_seconds: (),
    /// A JSON object of at most 16 texts by name (64 characters) to text (512 characters). Or each as a field of its
    /// own, `metadata[NAME]`.
    #[schema(value_type = String, required = false)]
    metadata: (),
}

fn anchors() -> Object {
    let text = "From when on `expires_after[seconds]` counts. The two go together; without them, a file \
                never expires.";
    described(words(["created_at"]), text)
}

/// Whether the bytes are kept: a request that only may be a repetition is read for its hash alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Bytes,
    Nothing,
}

/// An upload that arrived whole and is in order.
#[derive(Debug)]
pub struct Form {
    pub purpose: Purpose,
    pub file: ReceivedFile,
    /// As they were named, in order; empty where none was.
    pub target_model_names: Vec<String>,
    pub expires_after: Option<Duration>,
    pub metadata: Metadata,
}

/// The file of an upload, in the blob store.
#[derive(Debug)]
pub struct ReceivedFile {
    pub filename: String,
    pub content_type: String,
    pub bytes: u64,
    pub sha256: String,
    /// `None` where nothing was to be kept.
    pub blob: Option<BlobKey>,
    /// What the line check found, for a batch.
    pub scanned: Option<Scanned>,
}

/// Reads a form. On an error nothing of it stays in the blob store.
///
/// # Errors
///
/// What is wrong with the form, named by its field, or what the blob store says.
pub async fn read(
    app: &App,
    incoming: &Incoming,
    boundary: String,
    keep: Keep,
) -> Result<Form, Error> {
    let mut form = Multipart::new(incoming.clone(), boundary);
    let mut fields = Fields::default();
    let mut file = None;
    while let Some(mut field) =
        form.next_field().await.map_err(|error| form_error(app, incoming, &error))?
    {
        incoming.progress();
        let header =
            field.headers().get("content-disposition").map_or(&b""[..], |header| header.as_bytes());
        let part = disposition::read(header);
        match (part.name.as_deref(), part.filename) {
            (Some("file"), Some(filename)) => {
                if file.is_some() {
                    return Err(Error::invalid(
                        "file",
                        "`file` was sent twice; an upload has exactly one",
                    ));
                }
                let content_type =
                    field.headers().get("content-type").and_then(|header| header.to_str().ok());
                let mut received =
                    Receiving::new(app, filename, content_type, fields.purpose(), keep)?;
                while let Some(chunk) =
                    field.chunk().await.map_err(|error| form_error(app, incoming, &error))?
                {
                    incoming.progress();
                    received.take(app, chunk).await?;
                }
                file = Some(received);
            }
            (Some("file"), None) => {
                return Err(Error::invalid(
                    "file",
                    "`file` must be sent as a file, with a filename",
                ));
            }
            (name, _) => {
                let name = name.unwrap_or_default().to_owned();
                let mut value = Vec::new();
                while let Some(chunk) =
                    field.chunk().await.map_err(|error| form_error(app, incoming, &error))?
                {
                    incoming.progress();
                    fields.count(chunk.len())?;
                    value.extend_from_slice(&chunk);
                }
                fields.add(name, value)?;
            }
        }
    }
    // What breaks off behind the closing boundary is broken too: its sender does not take it for sent.
    let mut rest = incoming.clone();
    while let Some(next) = rest.next().await {
        next.map_err(|stopped| stopped_error(app, incoming, stopped))?;
    }
    let file = file.ok_or_else(|| {
        Error::missing("file", "`file` is missing; send the file as a form field")
    })?;
    let purpose = fields.required_purpose()?;
    let (target_model_names, expires_after, metadata) =
        (fields.target_model_names(), fields.expires_after()?, fields.metadata()?);
    let file = file.finish(app, purpose).await?;
    Ok(Form { purpose, file, target_model_names, expires_after, metadata })
}

fn form_error(app: &App, incoming: &Incoming, error: &multer::Error) -> Error {
    match incoming.stopped() {
        Some(stopped) => stopped_error(app, incoming, stopped),
        None => malformed(&match error {
            multer::Error::IncompleteStream | multer::Error::IncompleteFieldData { .. } => {
                "the body ended before the closing boundary".to_owned()
            }
            other => other.to_string(),
        }),
    }
}

fn stopped_error(app: &App, incoming: &Incoming, stopped: Stopped) -> Error {
    match stopped {
        Stopped::TooLong => too_large(app),
        Stopped::Silent | Stopped::Slow => incoming.too_slow(stopped),
        Stopped::NoProgress => malformed("a boundary or a header of a part is missing or too long"),
        Stopped::Lost => malformed("the connection was lost in the middle of the body"),
    }
}

fn malformed(what: &str) -> Error {
    let message = format!("the body is not a complete multipart/form-data form: {what}");
    Error::Invalid { param: None, code: Some("invalid_multipart"), message }
}

fn too_large(app: &App) -> Error {
    Error::TooLarge(format!(
        "the file is larger than {} (`server.max_file_bytes`)",
        app.config.server.max_file_bytes
    ))
}

/// The text fields so far.
#[derive(Default)]
struct Fields {
    values: Vec<(String, String)>,
    bytes: usize,
}

impl Fields {
    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > MAX_FIELDS_BYTES || self.values.len() >= MAX_FIELDS {
            return Err(malformed("its fields other than `file` are too many or too long"));
        }
        Ok(())
    }

    fn add(&mut self, name: String, value: Vec<u8>) -> Result<(), Error> {
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
    fn purpose(&self) -> Option<Purpose> {
        self.get("purpose").and_then(|purpose| Purpose::of_upload(purpose).ok())
    }

    fn required_purpose(&self) -> Result<Purpose, Error> {
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

    fn target_model_names(&self) -> Vec<String> {
        let named = self.values.iter().filter(|(name, _)| is_target_model_names(name));
        named.flat_map(|(_, value)| split_names(value)).collect()
    }

    fn expires_after(&self) -> Result<Option<Duration>, Error> {
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

    fn metadata(&self) -> Result<Metadata, Error> {
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

/// A file on its way to the blob store.
struct Receiving {
    filename: String,
    content_type: String,
    hash: Sha256,
    bytes: u64,
    writer: Option<(BlobKey, BlobWriter)>,
    /// The line check. While the purpose is not known yet, its verdict waits.
    check: Option<Check>,
    fault: Option<Fault>,
    is_batch: bool,
}

impl Receiving {
    fn new(
        app: &App,
        filename: String,
        content_type: Option<&str>,
        purpose: Option<Purpose>,
        keep: Keep,
    ) -> Result<Self, Error> {
        if filename.is_empty() {
            return Err(Error::invalid("file", "`file` has an empty filename; send it with one"));
        }
        if filename.len() > MAX_FILENAME {
            return Err(Error::invalid(
                "file",
                format!("the filename is longer than {MAX_FILENAME} bytes"),
            ));
        }
        let writer = (keep == Keep::Bytes).then(|| {
            let key = BlobKey::Upload { at: app.clock.now(), id: Uuid::now_v7() };
            let writer = app.blobs.writer(&key);
            (key, writer)
        });
        let may_be_batch = purpose.is_none_or(|purpose| purpose == Purpose::Batch);
        Ok(Self {
            filename,
            content_type: content_type
                .filter(|text| text.len() <= MAX_CONTENT_TYPE)
                .unwrap_or("application/octet-stream")
                .to_owned(),
            hash: Sha256::new(),
            bytes: 0,
            writer,
            check: may_be_batch.then(|| Check::batch(most_lines(app))),
            fault: None,
            is_batch: purpose == Some(Purpose::Batch),
        })
    }

    async fn take(&mut self, app: &App, chunk: Bytes) -> Result<(), Error> {
        self.bytes += chunk.len() as u64;
        if self.bytes > app.config.server.max_file_bytes.0 {
            return Err(too_large(app));
        }
        self.hash.update(&chunk);
        if let Some(check) = &mut self.check
            && let Err(fault) = check.feed(&chunk)
        {
            if self.is_batch {
                return Err(invalid_jsonl(app, &fault));
            }
            self.fault = Some(fault);
            self.check = None;
        }
        if let Some((_, writer)) = &mut self.writer {
            writer.write(chunk).await?;
        }
        Ok(())
    }

    async fn finish(self, app: &App, purpose: Purpose) -> Result<ReceivedFile, Error> {
        let scanned = match (purpose, self.fault, self.check) {
            (Purpose::Batch, Some(fault), _) => return Err(invalid_jsonl(app, &fault)),
            (Purpose::Batch, None, Some(check)) => {
                Some(check.finish().map_err(|fault| invalid_jsonl(app, &fault))?)
            }
            _ => None,
        };
        let blob = match self.writer {
            None => None,
            Some((key, writer)) => {
                writer.finish().await?;
                Some(key)
            }
        };
        Ok(ReceivedFile {
            filename: self.filename,
            content_type: self.content_type,
            bytes: self.bytes,
            sha256: data_encoding::HEXLOWER.encode(&self.hash.finalize()),
            blob,
            scanned,
        })
    }
}

fn invalid_jsonl(app: &App, fault: &Fault) -> Error {
    if let FaultKind::TooManyLines { limit } = fault.kind {
        let takes_most = app.config.models.iter().find(|model| {
            app.providers.get(&model.provider).is_some_and(|account| {
                u64::from(account.settings.max_batch_requests.get()) == limit
            })
        });
        let model = takes_most.map_or("no model", |model| &model.name);
        return Error::Invalid {
            param: Some("file"),
            code: Some("too_many_requests_in_batch"),
            message: format!(
                "the file has more than {limit} requests, and even `{model}` takes only {limit} in a batch; split it"
            ),
        };
    }
    Error::Invalid { param: Some("file"), code: Some("invalid_jsonl"), message: fault.to_string() }
}

/// The most lines that any configured provider takes: past it, no model could be meant.
fn most_lines(app: &App) -> Option<u64> {
    app.config.providers.iter().map(|provider| u64::from(provider.max_batch_requests.get())).max()
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
