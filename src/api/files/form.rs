//! The form of an upload: its fields in any order, and the file streamed to the blob store on the way.

mod fields;

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use multer::Multipart;
use sha2::Digest;
use sha2::Sha256;
use utoipa::ToSchema;
use utoipa::openapi::Object;
use uuid::Uuid;

pub use self::fields::check_metadata;
pub use self::fields::is_target_model_names;
pub use self::fields::split_names;

use self::fields::Fields;
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
