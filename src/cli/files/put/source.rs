//! A file on disk on its way out.

use std::{
    io::{self, BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};
use indicatif::ProgressBar;
use reqwest::multipart::Part;
use tokio::{fs::File, io::AsyncReadExt};
use tokio_util::io::ReaderStream;

use crate::cli::client::Failure;

const CHUNK_BYTES: usize = 256 << 10;
/// How much of a faulty line is shown.
const SHOWN_BYTES: u64 = 80;

/// A file that could be opened, with the size it had then. Every try sends exactly that many bytes.
#[derive(Debug)]
pub struct Source {
    pub path: PathBuf,
    /// The last part of the path, as the server is told.
    pub name: String,
    pub bytes: u64,
}

/// One try at sending a file.
pub struct Sending {
    pub part: Part,
    pub state: Arc<State>,
}

/// What is known of a body that the HTTP client is reading.
#[derive(Debug, Default)]
pub struct State {
    moved: AtomicU64,
    fault: OnceLock<String>,
}

impl State {
    /// How many bytes were taken for sending so far.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Why the file could not be read to its end.
    pub fn fault(&self) -> Option<String> {
        self.fault.get().cloned()
    }
}

impl Source {
    /// Opens the file to see that it can be sent, and closes it again.
    ///
    /// # Errors
    /// It cannot be opened, or it is a folder or a pipe, which cannot be sent twice.
    pub async fn check(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        // Before opening it: that of a pipe without a writer would hang.
        let metadata =
            tokio::fs::metadata(path).await.with_context(|| format!("cannot open `{shown}`"))?;
        ensure!(
            !metadata.is_dir(),
            "cannot upload `{shown}`: it is a folder; name the files in it"
        );
        ensure!(metadata.is_file(), "cannot upload `{shown}`: it is not a regular file");
        File::open(path).await.with_context(|| format!("cannot open `{shown}`"))?;
        let name = path.file_name().with_context(|| format!("`{shown}` has no file name"))?;
        Ok(Self {
            path: path.to_owned(),
            name: name.to_string_lossy().into_owned(),
            bytes: metadata.len(),
        })
    }

    /// Opens the file for one try, moving `bar` along with what is sent.
    pub async fn open(&self, bar: &ProgressBar) -> Result<Sending, Failure> {
        let unreadable = |error: io::Error| {
            Failure::Here(format!("cannot read `{}`: {error}", self.path.display()))
        };
        let file = File::open(&self.path).await.map_err(unreadable)?;
        if file.metadata().await.map_err(unreadable)?.len() != self.bytes {
            return Err(Failure::Here(self.changed()));
        }
        let state = Arc::new(State::default());
        let body = self.body(file, Arc::clone(&state), bar.clone());
        let part = Part::stream_with_length(reqwest::Body::wrap_stream(body), self.bytes)
            .file_name(self.name.replace('\r', "%0D").replace('\n', "%0A"))
            .mime_str(content_type(&self.path))
            .map_err(|error| Failure::Here(error.to_string()))?;
        Ok(Sending { part, state })
    }

    /// How a line of the file begins, counted from 1; none where there is no such line.
    pub async fn line(&self, number: u64) -> Option<String> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || line(&path, number));
        // It only adds to a message that stands without it.
        read.await.ok()?.ok()?
    }

    fn body(
        &self,
        file: File,
        state: Arc<State>,
        bar: ProgressBar,
    ) -> impl Stream<Item = io::Result<Bytes>> + use<> {
        let (path, expected, changed) =
            (self.path.display().to_string(), self.bytes, self.changed());
        let at_end = Arc::clone(&state);
        let chunks =
            ReaderStream::with_capacity(file.take(expected), CHUNK_BYTES).map(move |chunk| {
                match &chunk {
                    Ok(chunk) => {
                        state.moved.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                        bar.inc(chunk.len() as u64);
                    }
                    Err(error) => {
                        state.fault.get_or_init(|| format!("cannot read `{path}`: {error}"));
                    }
                }
                chunk
            });
        // A file that was cut meanwhile would leave the server waiting for the rest.
        let end = stream::once(future::lazy(move |_| {
            if at_end.moved() == expected {
                return None;
            }
            let fault = at_end.fault.get_or_init(|| changed).clone();
            Some(Err(io::Error::other(fault)))
        }));
        chunks.chain(end.filter_map(future::ready))
    }

    fn changed(&self) -> String {
        format!(
            "`{}` changed while it was being sent: upload it again once it is complete",
            self.path.display()
        )
    }
}

/// Reads a line's beginning with little memory, however long the lines are.
fn line(path: &Path, number: u64) -> io::Result<Option<String>> {
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, std::fs::File::open(path)?);
    for _ in 1..number {
        if reader.skip_until(b'\n')? == 0 {
            return Ok(None);
        }
    }
    let mut bytes = Vec::new();
    let read = Read::take(&mut reader, SHOWN_BYTES).read_until(b'\n', &mut bytes)?;
    Ok((read > 0).then(|| String::from_utf8_lossy(&bytes).trim_end().to_owned()))
}

/// The types of what providers take; what they do not know goes as bytes.
fn content_type(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "jsonl" => "application/jsonl",
        "json" => "application/json",
        "pdf" => "application/pdf",
        "txt" => "text/plain",
        "md" => "text/markdown",
        "csv" => "text/csv",
        "html" | "htm" => "text/html",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        _ => "application/octet-stream",
    }
}
