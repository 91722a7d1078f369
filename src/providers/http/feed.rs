//! Hands a request's body to its connection piece by piece, and knows when the last piece goes.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use metrics::Counter;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::providers::multipart::Form;
use crate::providers::{ByteStream, SentWhole, Upload};

/// Small enough that a slow connection takes a piece within any sensible limit of silence.
const PIECE: usize = 64 << 10;

/// The body of a request that creates something. Without its `tail` no server has a complete request.
pub(super) struct Parcel {
    head: Bytes,
    file: ByteStream,
    /// How many bytes `file` yields.
    file_bytes: u64,
    tail: Bytes,
    /// Of all of it.
    pub length: u64,
    pub sent: SentWhole,
}

impl Parcel {
    pub fn of_form(form: Form, upload: Upload) -> Self {
        Self {
            length: form.length(upload.bytes),
            head: form.head,
            file: upload.body,
            file_bytes: upload.bytes,
            tail: form.tail,
            sent: upload.sent,
        }
    }

    /// A body that is at hand. Its last byte stands alone, so that it can be told when that goes.
    pub fn of_bytes(mut body: Bytes, sent: SentWhole) -> Self {
        let length = body.len() as u64;
        let tail = body.split_off(body.len().saturating_sub(1));
        Self { head: body, file: stream::empty().boxed(), file_bytes: 0, tail, length, sent }
    }
}

/// Why a request did not go out whole.
pub(super) enum Stopped {
    /// Our own bytes failed; the message says how.
    Source(String),
    /// The connection took nothing for as long as silence may last.
    Stuck,
    /// The connection is gone.
    Disconnected,
}

/// Feeds head, file and tail to `sender`, whose channel holds one piece.
///
/// The tail goes last and alone. It goes only when the file
/// ended with exactly as many bytes as declared, and when the connection has taken all before it.
pub(super) async fn run(
    sender: &mpsc::Sender<Bytes>,
    mut parcel: Parcel,
    silence: Duration,
    sent_bytes: Counter,
) -> Result<(), Stopped> {
    let room = async || match timeout(silence, sender.reserve()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) => Err(Stopped::Disconnected),
        Err(_) => Err(Stopped::Stuck),
    };
    let hand_over = |permit: mpsc::Permit<'_, Bytes>, piece: Bytes| {
        sent_bytes.increment(piece.len() as u64);
        permit.send(piece);
    };

    hand_over(room().await?, parcel.head);
    let mut missing = parcel.file_bytes;
    while let Some(mut chunk) = next(&mut parcel.file, silence).await? {
        let Some(rest) = missing.checked_sub(chunk.len() as u64) else {
            let declared = parcel.file_bytes;
            return Err(Stopped::Source(format!("the file holds more than its {declared} bytes")));
        };
        missing = rest;
        while !chunk.is_empty() {
            let permit = room().await?;
            hand_over(permit, chunk.split_to(chunk.len().min(PIECE)));
        }
    }
    if missing > 0 {
        let declared = parcel.file_bytes;
        return Err(Stopped::Source(format!(
            "the file ended {missing} bytes short of its {declared}"
        )));
    }
    let permit = room().await?;
    // From here on the provider may act. No await is between these two, so neither happens alone.
    parcel.sent.set();
    hand_over(permit, parcel.tail);
    Ok(())
}

async fn next(file: &mut ByteStream, silence: Duration) -> Result<Option<Bytes>, Stopped> {
    match timeout(silence, file.next()).await {
        Ok(Some(Ok(chunk))) => Ok(Some(chunk)),
        Ok(Some(Err(error))) => Err(Stopped::Source(format!("the file cannot be read: {error}"))),
        Ok(None) => Ok(None),
        Err(_) => {
            Err(Stopped::Source(format!("nothing of the file could be read for {silence:?}")))
        }
    }
}

/// The other end: the request's body, of `length` bytes. It fails if the feed ends before that.
pub(super) fn requested(
    receiver: mpsc::Receiver<Bytes>,
    length: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some((receiver, length)), |state| async move {
        let (mut receiver, missing) = state?;
        match receiver.recv().await {
            Some(piece) => {
                let missing = missing.saturating_sub(piece.len() as u64);
                Some((Ok(piece), Some((receiver, missing))))
            }
            None if missing == 0 => None,
            None => Some((Err(io::Error::other("the request was given up")), None)),
        }
    })
}
