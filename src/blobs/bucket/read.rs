//! Reading objects: a stream that goes on where its connection broke off.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::GetOptions;
use object_store::GetRange;
use object_store::ObjectStore;
use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::super::BlobError;
use super::super::ByteStream;
use super::super::PART;

/// How often a read begins again before as much as a part has come.
const MOST_BREAKS: u32 = 5;
/// Before the first new try; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// Reads `range` of an object.
pub async fn read(
    store: Arc<dyn ObjectStore>,
    path: Path,
    range: Range<u64>,
) -> Result<ByteStream, BlobError> {
    if range.is_empty() {
        exists(&*store, &path).await?;
        return Ok(futures_util::stream::empty().boxed());
    }
    let Range { start: at, end } = range;
    let (body, etag) = open(&*store, &path, at..end, None).await?;
    let reading = Reading { store, path, at, end, etag, body, breaks: 0, since: 0 };
    Ok(futures_util::stream::try_unfold(reading, Reading::next).boxed())
}

async fn exists(store: &dyn ObjectStore, path: &Path) -> Result<(), BlobError> {
    match store.head(path).await {
        Ok(_) => Ok(()),
        // The answer to a `HEAD` has no body that says what it is that is missing.
        Err(object_store::Error::NotFound { .. }) => {
            store.get(path).await?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

struct Reading {
    store: Arc<dyn ObjectStore>,
    path: Path,
    at: u64,
    end: u64,
    /// Of the object as it was at first.
    etag: Option<String>,
    body: BoxStream<'static, object_store::Result<Bytes>>,
    /// Since as much as a part has come.
    breaks: u32,
    since: u64,
}

impl Reading {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        while self.at < self.end {
            let broken = match self.body.next().await {
                Some(Ok(bytes)) if bytes.is_empty() => continue,
                Some(Ok(bytes)) => {
                    self.count(bytes.len() as u64);
                    return Ok(Some((bytes, self)));
                }
                Some(Err(error)) => BlobError::from(error),
                None => BlobError::Store(anyhow::anyhow!("an object broke off")),
            };
            self.resume(broken).await.map_err(io::Error::other)?;
        }
        Ok(None)
    }

    fn count(&mut self, bytes: u64) {
        self.at += bytes;
        self.since += bytes;
        if self.since >= PART {
            (self.breaks, self.since) = (0, 0);
        }
    }

    /// Opens the rest of the object.
    async fn resume(&mut self, mut broken: BlobError) -> Result<(), BlobError> {
        while self.breaks < MOST_BREAKS {
            tracing::debug!(blob.key = %self.path, at = self.at, "reading an object broke off: {broken}");
            tokio::time::sleep(FIRST_WAIT * (1 << self.breaks)).await;
            self.breaks += 1;
            match open(&*self.store, &self.path, self.at..self.end, self.etag.clone()).await {
                Ok((body, _)) => {
                    self.body = body;
                    return Ok(());
                }
                // It is gone, or another one.
                Err(error @ (BlobError::Missing(_) | BlobError::Refused(_))) => return Err(error),
                Err(error) => broken = error,
            }
        }
        Err(broken)
    }
}

type Opened = (BoxStream<'static, object_store::Result<Bytes>>, Option<String>);

async fn open(
    store: &dyn ObjectStore,
    path: &Path,
    range: Range<u64>,
    etag: Option<String>,
) -> Result<Opened, BlobError> {
    let range_of_it = Some(GetRange::Bounded(range.clone()));
    let options = GetOptions { range: range_of_it, if_match: etag, ..GetOptions::default() };
    let result = store.get_opts(path, options).await?;
    if result.range != range {
        return Err(BlobError::Store(anyhow::anyhow!(
            "the object `{path}` has {} bytes, and not {}",
            result.meta.size,
            range.end
        )));
    }
    let etag = result.meta.e_tag.clone();
    Ok((result.into_stream(), etag))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    use futures_util::TryStreamExt as _;
    use object_store::CopyOptions;
    use object_store::GetResult;
    use object_store::GetResultPayload;
    use object_store::ListResult;
    use object_store::MultipartUpload;
    use object_store::ObjectMeta;
    use object_store::PutMultipartOptions;
    use object_store::PutOptions;
    use object_store::PutPayload;
    use object_store::PutResult;
    use object_store::Result;
    use object_store::memory::InMemory;

    use super::*;

    /// A store whose answers break off after so many bytes.
    #[derive(Debug)]
    struct Breaking {
        inner: InMemory,
        after: usize,
        gets: AtomicU32,
    }

    impl std::fmt::Display for Breaking {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.inner.fmt(f)
        }
    }

    #[async_trait::async_trait]
    impl ObjectStore for Breaking {
        async fn put_opts(
            &self,
            location: &Path,
            payload: PutPayload,
            options: PutOptions,
        ) -> Result<PutResult> {
            self.inner.put_opts(location, payload, options).await
        }

        async fn put_multipart_opts(
            &self,
            location: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(location, options).await
        }

        async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
            self.gets.fetch_add(1, Ordering::Relaxed);
            let result = self.inner.get_opts(location, options).await.map_err(as_s3)?;
            let (meta, range) = (result.meta.clone(), result.range.clone());
            let (attributes, extensions) = (result.attributes.clone(), result.extensions.clone());
            let bytes = result.bytes().await?;
            let pieces = if bytes.len() > self.after {
                let broken = std::io::Error::other("cut");
                let broken = object_store::Error::Generic { store: "test", source: broken.into() };
                vec![Ok(bytes.slice(..self.after)), Err(broken)]
            } else {
                vec![Ok(bytes)]
            };
            let payload = GetResultPayload::Stream(futures_util::stream::iter(pieces).boxed());
            Ok(GetResult { payload, meta, range, attributes, extensions })
        }

        fn delete_stream(
            &self,
            locations: BoxStream<'static, Result<Path>>,
        ) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(locations)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.inner.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }

    /// An object that is missing, as a store says it.
    fn as_s3(error: object_store::Error) -> object_store::Error {
        match error {
            object_store::Error::NotFound { path, .. } => object_store::Error::NotFound {
                path,
                source: "404 Not Found: <Error><Code>NoSuchKey</Code></Error>".into(),
            },
            error => error,
        }
    }

    async fn breaking(after: usize, content: &[u8]) -> Arc<Breaking> {
        let inner = InMemory::new();
        let payload = PutPayload::from_bytes(Bytes::copy_from_slice(content));
        inner.put(&Path::from("key"), payload).await.unwrap();
        Arc::new(Breaking { inner, after, gets: AtomicU32::new(0) })
    }

    async fn read_all(store: &Arc<Breaking>, range: Range<u64>) -> io::Result<Vec<u8>> {
        let store = Arc::clone(store) as Arc<dyn ObjectStore>;
        let stream = read(store, Path::from("key"), range).await.map_err(io::Error::other)?;
        Ok(stream.try_collect::<Vec<_>>().await?.concat())
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_breaks_off_goes_on_where_it_was() {
        let content: Vec<u8> = (0..1000u32).map(|place| (place % 251) as u8).collect();
        let store = breaking(300, &content).await;
        assert_eq!(read_all(&store, 10..1000).await.unwrap(), content[10..]);
        assert_eq!(store.gets.load(Ordering::Relaxed), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_breaks_off_again_and_again_is_given_up() {
        let store = breaking(1, &[7; 1000]).await;
        let error = read_all(&store, 0..1000).await.unwrap_err();
        assert!(error.to_string().contains("the blob store failed"), "{error}");
        assert_eq!(store.gets.load(Ordering::Relaxed), 1 + MOST_BREAKS);
    }

    #[tokio::test]
    async fn an_object_that_is_shorter_than_it_should_be_is_not_read() {
        let store = breaking(1000, &[7; 10]).await;
        assert!(read_all(&store, 0..11).await.is_err());
        assert!(read_all(&store, 0..0).await.unwrap().is_empty());
        store.inner.delete(&Path::from("key")).await.unwrap();
        for range in [0..0, 0..5] {
            let store = Arc::clone(&store) as Arc<dyn ObjectStore>;
            let missing = read(store, Path::from("key"), range).await.err();
            assert!(matches!(missing, Some(BlobError::Missing(_))), "{missing:?}");
        }
    }
}
