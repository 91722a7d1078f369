//! The form of an upload, read as the intake reads it: whatever arrives in whatever chunks, it is taken or refused, and
//! the borders of chunks decide nothing.

#![no_main]

mod chunks;

use std::path::Path;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use chunks::Cut;
use data_encoding::HEXLOWER;
use futures_util::stream;
use libfuzzer_sys::fuzz_target;
use longshore::api::body::Incoming;
use longshore::api::files::form;
use longshore::api::files::form::Form;
use longshore::api::files::form::Keep;
use longshore::app::App;
use longshore::config::Config;
use longshore::config::Variables;
use longshore::db::Db;
use longshore::error::Error;
use sha2::Digest as _;
use sha2::Sha256;
use tokio::runtime::Builder;
use tokio::runtime::Runtime;

const BOUNDARY: &str = "b";
const MAX_FILE_BYTES: u64 = 4096;
/// The chunks are all there: nobody waits for a sender.
const PATIENCE: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
});

static APP: LazyLock<App> =
    LazyLock::new(|| RUNTIME.block_on(open()).expect("an installation can be made"));

/// An installation in a folder that is gone at once: nothing is kept of the files.
async fn open() -> anyhow::Result<App> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().display();
    let text = format!(
        "[server]\nmax_file_bytes = {MAX_FILE_BYTES}\n[database]\nurl = \"sqlite://{path}/longshore.db\"\n\
         [blobs]\nurl = \"file://{path}/blobs\""
    );
    let config = Config::from_text(Path::new("longshore.toml"), &text, &Variables::new())?.config;
    let db = Db::open(&config.database).await?;
    db.migrate().await?;
    App::open(Arc::new(config), db).await
}

fuzz_target!(|input: &[u8]| {
    let Some((mut cut, content)) = Cut::split(input) else { return };
    let whole = read(&[content]);
    let in_chunks = read(&cut.apply(content));
    assert_eq!(told(&whole), told(&in_chunks), "the borders of chunks made a difference");
    if let Ok(form) = whole {
        assert!(form.file.bytes <= MAX_FILE_BYTES);
        assert!(form.file.blob.is_none() && !form.file.filename.is_empty());
        assert!(form.target_model_names.iter().all(|name| !name.is_empty()));
        assert!(form.metadata.len() <= 16);
    }
    is_taken(content, &mut cut);
});

/// As the content of a file in a form that is in order, any bytes arrive as they were sent.
fn is_taken(content: &[u8], cut: &mut Cut) {
    const HEAD: &[u8] =
        b"--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--b\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"in.bin\"\r\n\r\n";
    let is_delimited = |content: &[u8]| content.windows(5).any(|window| window == b"\r\n--b");
    // A delimiter inside is the sender's mistake; a boundary has to be one that the content lacks.
    if content.starts_with(b"--b") || is_delimited(content) {
        return;
    }
    let body = [HEAD, content, b"\r\n--b--\r\n"].concat();
    match read(&cut.apply(&body)) {
        Ok(form) => {
            assert_eq!(form.file.bytes, content.len() as u64);
            assert_eq!(form.file.sha256, HEXLOWER.encode(&Sha256::digest(content)));
        }
        Err(error) => {
            assert!(
                content.len() as u64 > MAX_FILE_BYTES && matches!(error, Error::TooLarge(_)),
                "a form in order was refused: {error}"
            );
        }
    }
}

fn read(chunks: &[&[u8]]) -> Result<Form, Error> {
    let chunks: Vec<Result<Bytes, std::io::Error>> =
        chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    // Opened on the runtime, so not from within.
    LazyLock::force(&APP);
    RUNTIME.block_on(async {
        let incoming = Incoming::new(Body::from_stream(stream::iter(chunks)), 1 << 20, PATIENCE);
        form::read(&APP, &incoming, BOUNDARY.to_owned(), Keep::Nothing).await
    })
}

/// What a client would be told.
fn told(read: &Result<Form, Error>) -> String {
    format!("{read:?}")
}
