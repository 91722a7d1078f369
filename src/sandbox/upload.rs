//! The multipart form of an upload, read as a stream: hashed and counted, kept only if small.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use multer::{Field, Multipart};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::answer::{Answer, Closed};
use super::files::NewFile;
use super::purpose::Purpose;
use super::request_body::{Progress, RequestBody};
use super::settings::Settings;

const FILE: &str = "file";
const PURPOSE: &str = "purpose";
const ANCHOR: &str = "expires_after[anchor]";
const SECONDS: &str = "expires_after[seconds]";

const MAX_TEXT_BYTES: usize = 1024;
const MAX_FILENAME_BYTES: usize = 1024;

const EXPIRY_SECONDS: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

/// What the provider gives a batch file that does not say when it expires: 30 days.
const BATCH_EXPIRY_SECONDS: u64 = 2_592_000;

/// An upload's form while it is read.
pub(super) struct Upload<'b> {
    /// None where the request has no form.
    multipart: Option<Multipart<'b>>,
    progress: Arc<Progress>,
    max_file_bytes: u64,
    keep_bytes: u64,
    /// The file part, begun and not read.
    file_part: Option<Field<'b>>,
    file: Option<ReceivedFile>,
    texts: BTreeMap<String, String>,
    refusal: Option<Answer>,
}

struct ReceivedFile {
    filename: String,
    content_type: Option<String>,
    bytes: u64,
    sha256: String,
    content: Option<Vec<u8>>,
}

/// Why reading a form ends early.
enum Stop {
    Refused(Answer),
    /// The client did not send it whole, so there is nobody to answer.
    Gone,
}

impl From<multer::Error> for Stop {
    fn from(error: multer::Error) -> Self {
        match error {
            multer::Error::StreamReadFailed(_) => Self::Gone,
            malformed => Self::Refused(refusal(&format!("the form is malformed: {malformed}"))),
        }
    }
}

impl<'b> Upload<'b> {
    pub(super) fn open(
        body: &'b mut RequestBody<'_>,
        headers: &HeaderMap,
        settings: &Settings,
    ) -> Self {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let boundary = multer::parse_boundary(content_type.unwrap_or_default()).ok();
        let refusal = boundary
            .is_none()
            .then(|| refusal("the content type must be `multipart/form-data` with a `boundary`"));
        Self {
            progress: body.progress(),
            multipart: boundary.map(|boundary| Multipart::new(body, boundary)),
            max_file_bytes: settings.max_file_bytes,
            keep_bytes: settings.keep_bytes,
            file_part: None,
            file: None,
            texts: BTreeMap::new(),
            refusal,
        }
    }

    /// Reads on until the file part begins, and gives its name.
    pub(super) async fn filename(&mut self) -> Result<Option<String>, Closed> {
        match self.advance_to_file().await {
            Ok(_) => {}
            Err(Stop::Refused(answer)) => self.refusal = Some(answer),
            Err(Stop::Gone) => return Err(Closed),
        }
        let part = self.file_part.as_ref();
        Ok(part.and_then(|part| part.file_name().map(str::to_owned)))
    }

    /// Reads the form to its end: a file to store, or why not.
    pub(super) async fn receive(mut self) -> Result<Result<NewFile, Answer>, Closed> {
        if let Some(answer) = self.refusal.take() {
            return Ok(Err(answer));
        }
        match self.read_on().await {
            Ok(()) => Ok(self.check()),
            Err(Stop::Refused(answer)) => Ok(Err(answer)),
            Err(Stop::Gone) => Err(Closed),
        }
    }

    async fn read_on(&mut self) -> Result<(), Stop> {
        while self.advance_to_file().await? {
            if let Some(part) = self.file_part.take() {
                self.file = Some(self.read_file(part).await?);
            }
        }
        Ok(())
    }

    /// Whether a file part has begun; else the form is at its end.
    async fn advance_to_file(&mut self) -> Result<bool, Stop> {
        let Some(multipart) = &mut self.multipart else {
            return Ok(false);
        };
        while self.file_part.is_none() {
            self.progress.allow_more();
            let Some(part) = multipart.next_field().await? else {
                return Ok(false);
            };
            match part.name() {
                Some(FILE) if self.file.is_some() => return Err(given_twice(FILE)),
                Some(FILE) => self.file_part = Some(part),
                Some(name @ (PURPOSE | ANCHOR | SECONDS)) => {
                    let name = name.to_owned();
                    let text = read_text(&name, part, &self.progress).await?;
                    if self.texts.insert(name.clone(), text).is_some() {
                        return Err(given_twice(&name));
                    }
                }
                name => {
                    let name: String = name.unwrap_or_default().chars().take(64).collect();
                    let message = format!("the form has an unknown field `{name}`");
                    return Err(Stop::Refused(Answer::invalid(&message, &name)));
                }
            }
        }
        Ok(true)
    }

    async fn read_file(&self, mut part: Field<'_>) -> Result<ReceivedFile, Stop> {
        let filename = part.file_name().unwrap_or_default().to_owned();
        if filename.is_empty() || filename.len() > MAX_FILENAME_BYTES {
            let message =
                format!("`file` must have a `filename` of 1 to {MAX_FILENAME_BYTES} bytes");
            return Err(Stop::Refused(Answer::invalid(&message, FILE)));
        }
        let content_type = part.content_type().map(ToString::to_string);

        let mut bytes = 0_u64;
        let mut hash = Sha256::new();
        let mut content = Some(Vec::new());
        loop {
            self.progress.allow_more();
            let Some(chunk) = part.chunk().await? else { break };
            bytes += chunk.len() as u64;
            if bytes > self.max_file_bytes {
                return Err(Stop::Refused(refusal("File is too large.")));
            }
            hash.update(&chunk);
            if bytes > self.keep_bytes {
                content = None;
            } else if let Some(content) = &mut content {
                content.extend_from_slice(&chunk);
            }
        }
        let sha256 = HEXLOWER.encode(&hash.finalize());
        Ok(ReceivedFile { filename, content_type, bytes, sha256, content })
    }

    fn check(self) -> Result<NewFile, Answer> {
        let Some(file) = self.file else {
            return Err(Answer::invalid("the form must have a part `file`", FILE));
        };
        let Some(purpose) = self.texts.get(PURPOSE) else {
            return Err(Answer::invalid("the form must have a field `purpose`", PURPOSE));
        };
        let Some(purpose) = Purpose::parse(purpose).filter(|purpose| purpose.is_uploadable())
        else {
            let message = format!(
                "`{purpose}` is no purpose of an upload, use one of `assistants`, `batch`, \
                 `fine-tune`, `vision`, `user_data`, `evals`"
            );
            return Err(Answer::invalid(&message, PURPOSE));
        };
        let asked = expiry(self.texts.get(ANCHOR), self.texts.get(SECONDS))?;
        if purpose == Purpose::Batch && !file.filename.ends_with(".jsonl") {
            return Err(not_jsonl());
        }
        let by_default = (purpose == Purpose::Batch).then_some(BATCH_EXPIRY_SECONDS);
        Ok(NewFile {
            filename: file.filename,
            purpose,
            bytes: file.bytes,
            sha256: file.sha256,
            content_type: file.content_type,
            expires_after_seconds: asked.or(by_default),
            content: file.content.map(Into::into),
        })
    }
}

async fn read_text(name: &str, mut part: Field<'_>, progress: &Progress) -> Result<String, Stop> {
    let mut text = Vec::new();
    loop {
        progress.allow_more();
        let Some(chunk) = part.chunk().await? else { break };
        if text.len() + chunk.len() > MAX_TEXT_BYTES {
            let message = format!("`{name}` must be no longer than {MAX_TEXT_BYTES} bytes");
            return Err(Stop::Refused(Answer::invalid(&message, name)));
        }
        text.extend_from_slice(&chunk);
    }
    String::from_utf8(text)
        .map_err(|_| Stop::Refused(Answer::invalid(&format!("`{name}` must be UTF-8 text"), name)))
}

fn expiry(anchor: Option<&String>, seconds: Option<&String>) -> Result<Option<u64>, Answer> {
    let (anchor, seconds) = match (anchor, seconds) {
        (None, None) => return Ok(None),
        (Some(anchor), Some(seconds)) => (anchor, seconds),
        (Some(_), None) => return Err(Answer::invalid("`anchor` needs `seconds`", SECONDS)),
        (None, Some(_)) => return Err(Answer::invalid("`seconds` needs an `anchor`", ANCHOR)),
    };
    if anchor != "created_at" {
        let message = format!("`{anchor}` is no anchor, use `created_at`");
        return Err(Answer::invalid(&message, ANCHOR));
    }
    match seconds.parse() {
        Ok(number) if EXPIRY_SECONDS.contains(&number) => Ok(Some(number)),
        _ => {
            let (least, most) = (EXPIRY_SECONDS.start(), EXPIRY_SECONDS.end());
            let message = format!("`{seconds}` must be a number of seconds from {least} to {most}");
            Err(Answer::invalid(&message, SECONDS))
        }
    }
}

fn refusal(message: &str) -> Answer {
    Answer::refusal(StatusCode::BAD_REQUEST, message, None, None)
}

fn given_twice(name: &str) -> Stop {
    Stop::Refused(Answer::invalid(&format!("`{name}` is given twice, send it once"), name))
}

/// The real provider sends a second object next to the error, which clients must bear.
fn not_jsonl() -> Answer {
    let message = "Invalid file format for Batch API. Must be .jsonl";
    Answer::json(
        StatusCode::BAD_REQUEST,
        &json!({
            "error": {
                "message": message, "type": "invalid_request_error", "param": null, "code": null,
            },
            "detail": {"message": message, "code": null},
        }),
    )
}
