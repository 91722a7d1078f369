//! What a driver is given to upload, and how a caller learns whether it went out to its last byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::ByteStream;

/// One file on its way to a provider.
pub struct Upload {
    /// As the provider shall keep it. Any text: it is escaped on the way.
    pub filename: String,
    pub content_type: String,
    pub purpose: String,
    /// How many bytes `body` yields. More or fewer fail the upload as `Source`, before it is complete.
    pub bytes: u64,
    /// How long the provider shall keep the file; brought into the provider's limits. None: its default.
    pub expires_after: Option<Duration>,
    /// The last bytes of the request go out only after this has ended, so an error in place of the end
    /// still stops the upload: here a caller checks that it may finish.
    pub body: ByteStream,
    /// A fresh one for each upload.
    pub sent: SentWhole,
}

/// Whether a request was handed to the connection to its last byte, so that the provider may have acted on it.
///
/// The driver sets it just before it hands over that byte. A caller keeps a clone and reads it after it
/// dropped the call's future: from then on the answer does not change, since nothing but that future
/// hands bytes over.
#[derive(Clone, Debug, Default)]
pub struct SentWhole(Arc<AtomicBool>);

impl SentWhole {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}
