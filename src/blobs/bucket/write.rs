//! Writing objects: small ones at once, others in parts.
//!
//! A task of its own sends what it is given. So it is known what became of each call when whoever wrote is gone, and what
//! is there of the object is taken back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use object_store::MultipartUpload;
use object_store::ObjectStore;
use object_store::ObjectStoreExt as _;
use object_store::PutPayload;
use object_store::path::Path;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::super::BlobError;
use super::super::PART;

/// Parts on their way at the same time, over all objects that this process writes.
const PARTS_ON_THEIR_WAY: usize = 4;
/// Buffers of a part, over all objects that this process writes, full or filling: 255 MiB.
const BUFFERS: usize = (256 << 20) / part();
/// What a writer may hold without one of them, in bytes: most files are no larger.
const UNCOUNTED: usize = 256 << 10;
/// How long a writer waits for one.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What all writers of a store share: the memory that they may take.
#[derive(Clone, Debug)]
pub struct Room {
    on_their_way: Arc<Semaphore>,
    buffers: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self::new(PARTS_ON_THEIR_WAY, BUFFERS)
    }
}

impl Room {
    fn new(on_their_way: usize, buffers: usize) -> Self {
        Self {
            on_their_way: Arc::new(Semaphore::new(on_their_way)),
            buffers: Arc::new(Semaphore::new(buffers)),
        }
    }

    /// Leave to fill a buffer of a part.
    async fn buffer(&self) -> Result<OwnedSemaphorePermit, BlobError> {
        let permit = Arc::clone(&self.buffers).acquire_owned();
        match tokio::time::timeout(LONGEST_WAIT, permit).await {
            Ok(permit) => permit.map_err(|_| given_up()),
            Err(_) => Err(BlobError::NoBuffer),
        }
    }
}

/// An object that is being written. Dropped before [`Writer::finish`] has answered, it is taken back.
#[derive(Debug)]
pub struct Writer {
    store: Arc<dyn ObjectStore>,
    room: Room,
    key: Path,
    /// The part that is filling up.
    pending: BytesMut,
    /// Once it is more than need not be counted.
    permit: Option<OwnedSemaphorePermit>,
    sending: Option<Sending>,
}

#[derive(Debug)]
struct Sending {
    /// Bounded by the permits of the parts in it.
    pieces: mpsc::UnboundedSender<Piece>,
    outcome: oneshot::Receiver<Result<(), BlobError>>,
}

#[derive(Debug)]
enum Piece {
    Part(Buffer, OwnedSemaphorePermit),
    Last(Buffer),
}

/// Bytes, and the leave to hold them.
#[derive(Debug)]
struct Buffer {
    bytes: Bytes,
    permit: Option<OwnedSemaphorePermit>,
}

impl Writer {
    pub fn new(store: Arc<dyn ObjectStore>, room: Room, key: Path) -> Self {
        Self { store, room, key, pending: BytesMut::new(), permit: None, sending: None }
    }

    /// Takes the next bytes, once there is room for them; there has to be some in time.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), BlobError> {
        while !bytes.is_empty() {
            // Only here, since the last part is never empty.
            if self.pending.len() == part() {
                let on_their_way = Arc::clone(&self.room.on_their_way);
                let permit = on_their_way.acquire_owned().await.map_err(|_| given_up())?;
                self.send(|part| Piece::Part(part, permit)).await?;
            }
            let free = part() - self.pending.len();
            let next = bytes.split_to(free.min(bytes.len()));
            if self.permit.is_none() && self.pending.len() + next.len() > UNCOUNTED {
                self.permit = Some(self.room.buffer().await?);
                // All of it at once: one that grows doubles, past the size of a part.
                let mut buffer = BytesMut::with_capacity(part());
                buffer.extend_from_slice(&self.pending);
                self.pending = buffer;
            }
            self.pending.extend_from_slice(&next);
        }
        Ok(())
    }

    /// Writes the last bytes. When this returns, the store has the object.
    pub async fn finish(mut self) -> Result<(), BlobError> {
        let sending = self.send(Piece::Last).await?;
        let outcome = (&mut sending.outcome).await;
        self.sending = None;
        outcome.unwrap_or_else(|_| Err(given_up()))
    }

    /// Hands what is pending to the task, which is started by the first piece.
    async fn send(
        &mut self,
        piece: impl FnOnce(Buffer) -> Piece,
    ) -> Result<&mut Sending, BlobError> {
        // Taken as a whole: what is split off is kept in memory by the rest.
        let bytes = std::mem::take(&mut self.pending).freeze();
        let buffer = Buffer { bytes, permit: self.permit.take() };
        let mut sending = self.sending.take().unwrap_or_else(|| {
            let (pieces, received) = mpsc::unbounded_channel();
            let (tell, outcome) = oneshot::channel();
            let (store, key) = (Arc::clone(&self.store), self.key.clone());
            tokio::spawn(Task { store, key, pieces: received }.run(tell));
            Sending { pieces, outcome }
        });
        if sending.pieces.send(piece(buffer)).is_err() {
            // It has failed.
            let outcome = (&mut sending.outcome).await;
            return Err(outcome.ok().and_then(Result::err).unwrap_or_else(given_up));
        }
        Ok(self.sending.insert(sending))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(mut sending) = self.sending.take() else { return };
        sending.outcome.close();
        // What the task has told before that, nobody has heard.
        if let Ok(Ok(())) = sending.outcome.try_recv()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (store, key) = (Arc::clone(&self.store), self.key.clone());
            runtime.spawn(async move { take_back(&*store, &key).await });
        }
    }
}

struct Task {
    store: Arc<dyn ObjectStore>,
    key: Path,
    pieces: mpsc::UnboundedReceiver<Piece>,
}

/// What may be in the store of an object that is not to be there.
enum Left {
    Nothing,
    Object,
    Parts(Box<dyn MultipartUpload>),
    /// It was told to be made whole of them, and may be.
    PartsOrObject(Box<dyn MultipartUpload>),
}

impl Task {
    async fn run(mut self, tell: oneshot::Sender<Result<(), BlobError>>) {
        let (written, left) = self.write().await;
        if let Err(error) = &written {
            tracing::debug!(blob.key = %self.key, "an object was not written: {error}");
        }
        let is_whole = written.is_ok();
        // Whoever waits need not wait for what follows.
        match tell.send(written) {
            Ok(()) => self.clear(left).await,
            Err(_) if is_whole => self.clear(Left::Object).await,
            Err(_) => self.clear(left).await,
        }
    }

    async fn clear(&self, left: Left) {
        let is_there = matches!(left, Left::Object | Left::PartsOrObject(_));
        if let Left::Parts(mut upload) | Left::PartsOrObject(mut upload) = left {
            match upload.abort().await.map_err(BlobError::from) {
                Ok(()) | Err(BlobError::Missing(_)) => {}
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(blob.key = %self.key, "parts of a blob stay; they are swept: {error:#}");
                }
            }
        }
        if is_there {
            take_back(&*self.store, &self.key).await;
        }
    }

    async fn write(&mut self) -> (Result<(), BlobError>, Left) {
        let first = match self.pieces.recv().await {
            None => return (Err(given_up()), Left::Nothing),
            Some(Piece::Last(Buffer { bytes, permit: _permit })) => {
                let put = self.store.put(&self.key, PutPayload::from_bytes(bytes)).await;
                return match put {
                    Ok(_) => (Ok(()), Left::Nothing),
                    Err(error) => (Err(error.into()), Left::Object),
                };
            }
            Some(first @ Piece::Part(..)) => first,
        };
        let mut upload = match self.store.put_multipart(&self.key).await {
            Ok(upload) => upload,
            Err(error) => return (Err(error.into()), Left::Nothing),
        };
        if let Err(error) = self.send_parts(&mut *upload, first).await {
            return (Err(error), Left::Parts(upload));
        }
        match upload.complete().await {
            Ok(_) => (Ok(()), Left::Nothing),
            Err(error) => (Err(error.into()), Left::PartsOrObject(upload)),
        }
    }

    /// Sends all parts. What is under way when one fails is called off with the future that holds it.
    async fn send_parts(
        &mut self,
        upload: &mut dyn MultipartUpload,
        first: Piece,
    ) -> Result<(), BlobError> {
        let mut under_way: FuturesUnordered<BoxFuture<'static, _>> = FuturesUnordered::new();
        let mut next = Some(first);
        loop {
            let (buffer, permit) = match next.take() {
                Some(Piece::Part(buffer, permit)) => (buffer, Some(permit)),
                Some(Piece::Last(buffer)) => (buffer, None),
                None => return Err(given_up()),
            };
            let is_last = permit.is_none();
            let sent = upload.put_part(PutPayload::from_bytes(buffer.bytes));
            under_way.push(Box::pin(async move {
                let sent = sent.await;
                drop((permit, buffer.permit));
                sent
            }));
            if is_last {
                break;
            }
            next = loop {
                tokio::select! {
                    piece = self.pieces.recv() => break piece,
                    Some(sent) = under_way.next() => sent?,
                }
            };
        }
        // Whoever waits for the end may still go.
        while !under_way.is_empty() {
            tokio::select! {
                Some(sent) = under_way.next() => sent?,
                None = self.pieces.recv() => return Err(given_up()),
            }
        }
        Ok(())
    }
}

const fn part() -> usize {
    PART as usize
}

fn given_up() -> BlobError {
    BlobError::Store(anyhow::anyhow!("the write was given up"))
}

async fn take_back(store: &dyn ObjectStore, key: &Path) {
    match store.delete(key).await.map_err(BlobError::from) {
        Ok(()) | Err(BlobError::Missing(_)) => {}
        Err(error) => {
            let error = anyhow::Error::from(error);
            tracing::warn!(blob.key = %key, "an unfinished blob may stay; it is swept as an orphan: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;
    use object_store::memory::InMemory;

    use super::*;

    fn writer(store: &Arc<InMemory>) -> Writer {
        writer_in(Room::new(2, 3), store)
    }

    fn writer_in(room: Room, store: &Arc<InMemory>) -> Writer {
        Writer::new(Arc::clone(store) as Arc<dyn ObjectStore>, room, Path::from("key"))
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_a_little_is_held_by_as_many_as_there_are_buffers() {
        let (store, room) = (Arc::new(InMemory::new()), Room::new(1, 1));
        let much = Bytes::from(vec![7; 1 << 20]);
        let mut first = writer_in(room.clone(), &store);
        first.write(much.clone()).await.unwrap();
        assert_eq!(first.pending.capacity(), part());
        let mut second = writer_in(room.clone(), &store);
        second.write(much.slice(..UNCOUNTED)).await.unwrap();
        let before = tokio::time::Instant::now();
        let refused = second.write(much.slice(..1)).await;
        assert!(matches!(refused, Err(BlobError::NoBuffer)), "{refused:?}");
        assert_eq!(before.elapsed().as_secs(), LONGEST_WAIT.as_secs());
        // One that waits goes on when another is through.
        let mut third = writer_in(room.clone(), &store);
        let (waited, ended) = tokio::join!(third.write(much.clone()), async {
            tokio::time::sleep(LONGEST_WAIT / 2).await;
            first.finish().await
        });
        ended.unwrap();
        waited.unwrap();
        // One buffer is enough for many parts, and whoever is gone has none.
        for _ in 0..20 {
            third.write(much.clone()).await.unwrap();
        }
        drop(third);
        let mut last = writer_in(room.clone(), &store);
        last.write(much).await.unwrap();
        last.finish().await.unwrap();
        assert_eq!(room.buffers.available_permits(), 1);
    }

    #[tokio::test]
    async fn what_was_written_in_pieces_is_one_object_whatever_its_size() {
        for size in [0, 1, part() - 1, part(), part() + 1, 3 * part() + 17] {
            let store = Arc::new(InMemory::new());
            let content: Vec<u8> = (0..size).map(|place| (place % 251) as u8).collect();
            let mut writer = writer(&store);
            for piece in content.chunks(3_000_000) {
                writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            writer.finish().await.unwrap();
            let stored = store.get(&Path::from("key")).await.unwrap().bytes().await.unwrap();
            assert!(stored == content, "{size} bytes");
        }
    }

    #[tokio::test]
    async fn an_object_that_is_given_up_at_any_time_is_not_there() {
        for pieces in [0, 1, 3] {
            for polls in 0..20 {
                let store = Arc::new(InMemory::new());
                let mut writer = writer(&store);
                let written = async {
                    for _ in 0..pieces {
                        writer.write(Bytes::from(vec![7; 4 << 20])).await?;
                    }
                    writer.finish().await
                };
                // As a client that hangs up: whatever it is at is dropped.
                let mut written = Box::pin(written);
                let mut is_over = false;
                for _ in 0..polls {
                    is_over |= !is_over && futures_util::poll!(&mut written).is_ready();
                    tokio::task::yield_now().await;
                }
                if is_over {
                    break;
                }
                drop(written);
                for _ in 0..50 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let there: Vec<_> = store.list(None).try_collect().await.unwrap();
                    if there.is_empty() {
                        break;
                    }
                }
                let there: Vec<_> = store.list(None).try_collect().await.unwrap();
                assert!(there.is_empty(), "{pieces} pieces, dropped after {polls} polls");
            }
        }
    }
}
