//! Puts a model name into the places of a list, while the file streams by.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    ByteStream, Edits,
    edits::{Action, Edit, Replacement},
};

/// Pieces are joined up to this size: between two edits lie a few hundred bytes, and every piece costs
/// whoever sends it a frame.
const JOINED: usize = 64 * 1024;

/// Room for a name that comes last: unlike what lies between edits, it is not cut.
const NAME: usize = 256;

impl Edits {
    /// The rewritten file: `body` with `model` in every place of this list.
    ///
    /// `body` must be the file that was scanned. One that is too short for the list ends in an
    /// error of kind [`io::ErrorKind::UnexpectedEof`]; other differences are not noticed.
    pub fn splice(&self, body: ByteStream, model: &str) -> ByteStream {
        let mut edits = self.iter();
        let splice = Splice {
            body,
            chunk: Bytes::new(),
            next: edits.next(),
            edits,
            removing: 0,
            replacement: Replacement::new(model),
        };
        stream::try_unfold(splice, async |mut splice| {
            Ok(splice.next_joined().await?.map(|chunk| (chunk, splice)))
        })
        .boxed()
    }
}

struct Splice<I> {
    body: ByteStream,
    /// What is left of the chunk that came last.
    chunk: Bytes,
    /// The edit to come; its gap shrinks as bytes are passed on.
    next: Option<Edit>,
    edits: I,
    /// Bytes of a replaced value that are still to be dropped.
    removing: u64,
    replacement: Replacement,
}

impl<I: Iterator<Item = Edit>> Splice<I> {
    async fn next_joined(&mut self) -> io::Result<Option<Bytes>> {
        let mut joined = BytesMut::new();
        while joined.len() < JOINED {
            // Never while a value is being dropped: a comma at least lies before the next edit.
            if let Some(edit) = self.next.take_if(|edit| edit.gap == 0) {
                if let Action::Replace { length } = edit.action {
                    self.removing = length;
                }
                self.next = self.edits.next();
                join(&mut joined, self.replacement.of(edit.action));
            } else if self.chunk.is_empty() {
                match self.body.try_next().await? {
                    Some(chunk) => self.chunk = chunk,
                    None if self.removing == 0 && self.next.is_none() => break,
                    None => return Err(too_short()),
                }
            } else if self.removing > 0 {
                let dropped = at_most(self.removing, &self.chunk);
                self.chunk.advance(dropped);
                self.removing -= dropped as u64;
            } else {
                let unchanged = self.unchanged();
                if joined.is_empty() && unchanged >= JOINED {
                    self.come_closer(unchanged);
                    return Ok(Some(self.chunk.split_to(unchanged)));
                }
                // Straight from the chunk: a `Bytes` for every piece costs more than its copy.
                let copied = unchanged.min(JOINED - joined.len());
                join(&mut joined, &self.chunk[..copied]);
                self.come_closer(copied);
                self.chunk.advance(copied);
            }
        }
        Ok((!joined.is_empty()).then(|| joined.freeze()))
    }

    /// How many bytes lie before the next edit, as far as they are here.
    fn unchanged(&self) -> usize {
        self.next.as_ref().map_or(self.chunk.len(), |edit| at_most(edit.gap, &self.chunk))
    }

    /// So many bytes fewer lie before the next edit.
    fn come_closer(&mut self, count: usize) {
        if let Some(edit) = &mut self.next {
            edit.gap -= count as u64;
        }
    }
}

fn join(joined: &mut BytesMut, piece: &[u8]) {
    if joined.is_empty() {
        joined.reserve(JOINED + NAME);
    }
    joined.extend_from_slice(piece);
}

fn at_most(count: u64, chunk: &Bytes) -> usize {
    usize::try_from(count).map_or(chunk.len(), |count| count.min(chunk.len()))
}

fn too_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file ends before the last of its edits; it is not the file that was scanned",
    )
}
