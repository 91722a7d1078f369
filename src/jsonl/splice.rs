//! Puts a model name into the places of a list, while the file streams by.

use std::{io, mem};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    ByteStream, Edits,
    edits::{Action, Edit, Replacement},
};

/// Pieces are joined up to this size: between two edits lie a few hundred bytes, and every piece costs
/// whoever sends it a frame.
const JOINED: usize = 64 * 1024;

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
            match self.next_chunk().await? {
                None if joined.is_empty() => return Ok(None),
                None => break,
                Some(piece) if joined.is_empty() && piece.len() >= JOINED => {
                    return Ok(Some(piece));
                }
                Some(piece) => {
                    if joined.is_empty() {
                        joined.reserve(JOINED + piece.len());
                    }
                    joined.extend_from_slice(&piece);
                }
            }
        }
        Ok(Some(joined.freeze()))
    }

    async fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            // Never while a value is being dropped: a comma at least lies before the next edit.
            if let Some(edit) = self.next.take_if(|edit| edit.gap == 0) {
                if let Action::Replace { length } = edit.action {
                    self.removing = length;
                }
                self.next = self.edits.next();
                return Ok(Some(self.replacement.of(edit.action)));
            }
            if self.chunk.is_empty() {
                match self.body.try_next().await? {
                    Some(chunk) => self.chunk = chunk,
                    None if self.removing == 0 && self.next.is_none() => return Ok(None),
                    None => return Err(too_short()),
                }
            }
            if self.removing > 0 {
                let dropped = at_most(self.removing, &self.chunk);
                self.chunk.advance(dropped);
                self.removing -= dropped as u64;
            } else if !self.chunk.is_empty() {
                return Ok(Some(self.pass_on()));
            }
        }
    }

    /// The bytes up to the next edit, as far as they are here.
    fn pass_on(&mut self) -> Bytes {
        match &mut self.next {
            None => mem::take(&mut self.chunk),
            Some(edit) => {
                let passed = self.chunk.split_to(at_most(edit.gap, &self.chunk));
                edit.gap -= passed.len() as u64;
                passed
            }
        }
    }
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
