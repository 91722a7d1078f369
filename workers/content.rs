//! What is sent of a file: its bytes as one deployment gets them.

use super::attempt::Attempt;
use super::conclusion::Conclusion;
use crate::blobs::BlobError;
use crate::blobs::BlobKey;
use crate::blobs::ByteStream;
use crate::files::Purpose;
use crate::files::edits::ScanFailed;
use crate::mappings::store::Upload;

/// The bytes as a deployment gets them: with its own name for the model.
pub struct Content {
    pub body: ByteStream,
    pub bytes: u64,
}

impl Content {
    pub async fn prepare(attempt: &Attempt, upload: &Upload) -> Result<Self, Conclusion> {
        let app = &attempt.app;
        let Some(key) = upload.blob_key.clone().map(BlobKey::Stored) else {
            return Err(lost("the bytes of the file are no longer kept"));
        };
        let total = u64::try_from(upload.bytes).unwrap_or(0);
        let is_rewritten = upload.purpose.parse().is_ok_and(Purpose::is_rewritten);
        let edits = if is_rewritten {
            Some(app.edits.get(&app.blobs, upload.file_id, &key, total).await.map_err(|error| {
                match error {
                    ScanFailed::Blob(error) => unreadable(&error),
                    ScanFailed::Scan(crate::jsonl::ScanError::Fault(fault)) => {
                        Conclusion::permanent("not_rewritable", fault.to_string())
                    }
                    ScanFailed::Scan(error) => {
                        Conclusion::transient("source_unreadable", error.to_string())
                    }
                }
            })?)
        } else {
            None
        };
        let body = app.blobs.read(&key, 0..total).await.map_err(|error| unreadable(&error))?;
        Ok(match edits {
            Some(edits) if !edits.is_empty() => Self {
                body: edits.splice(body, &upload.provider_model),
                bytes: edits.rewritten_len(total, &upload.provider_model),
            },
            _ => Self { body, bytes: total },
        })
    }
}

fn unreadable(error: &BlobError) -> Conclusion {
    match error {
        BlobError::Missing(_) => lost("the blob store no longer has the bytes of the file"),
        BlobError::Full(_)
        | BlobError::NoBucket(_)
        | BlobError::Refused(_)
        | BlobError::NoBuffer
        | BlobError::Store(_) => Conclusion::transient("source_unreadable", error.to_string()),
    }
}

fn lost(message: &str) -> Conclusion {
    Conclusion::permanent("content_lost", format!("{message}; upload it again"))
}
