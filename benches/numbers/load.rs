//! Load: HTTP/1.1 over kept connections, as lean as it gets, since it takes its time from the server's cores.
//!
//! A client is a thread with a blocking socket. Requests are bytes that were put together beforehand; an answer is
//! read with a call or two. Only answers with a `Content-Length` are understood.

use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use memchr::memmem;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(120);
pub const KEY: &str = "bench";
const BOUNDARY: &str = "0123456789abcdef";

/// A kept connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    /// Sends a whole request and gives the body of its answer, which has to be a success.
    pub fn call(&mut self, request: &[u8]) -> anyhow::Result<&[u8]> {
        self.send(request)?;
        self.receive()
    }

    pub fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(bytes).context("the server takes nothing more")
    }

    pub fn receive(&mut self) -> anyhow::Result<&[u8]> {
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).context("no answer")?;
            anyhow::ensure!(read > 0, "the connection was closed before the answer's end");
            filled += read;
            if let Some(answer) = Answer::read(&self.buffer[..filled])? {
                let body = answer.body;
                let text = || String::from_utf8_lossy(&self.buffer[body.clone()]).into_owned();
                anyhow::ensure!(answer.status == 200, "{}: {}", answer.status, text());
                return Ok(&self.buffer[body]);
            }
            if filled == self.buffer.len() {
                self.buffer.resize(filled * 2, 0);
            }
        }
    }
}

/// An answer that has arrived whole.
pub struct Answer {
    pub status: u16,
    /// Where in what was read.
    pub body: std::ops::Range<usize>,
}

impl Answer {
    /// `None` while there is more to come.
    pub fn read(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let Some(end) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&bytes[..end])?;
        let status = head.get(9..12).context("not HTTP/1.1")?.parse()?;
        let length: usize = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .context("an answer without a length")?
            .1
            .trim()
            .parse()?;
        let body = end + 4..end + 4 + length;
        Ok((body.end <= bytes.len()).then_some(Self { status, body }))
    }
}

/// What a client waited for, request by request.
pub struct Times {
    sorted: Vec<Duration>,
    /// From the first request's start to the last one's end.
    pub took: Duration,
}

impl Times {
    pub fn new(mut times: Vec<Duration>, took: Duration) -> Self {
        times.sort_unstable();
        Self { sorted: times, took }
    }

    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    pub fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.took.as_secs_f64()
    }

    /// Milliseconds; `share` is from 0 to 1.
    pub fn percentile(&self, share: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        let time = self.sorted.get((last as f64 * share).round() as usize);
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
    }
}

/// Has `clients` send `count` requests as fast as they are answered: `request` gives the bytes of each by its number,
/// `answered` sees the body of its answer. On threads of its own, so that nothing of the caller's runtime is in the way.
pub async fn run<R, A>(
    address: SocketAddr,
    clients: usize,
    count: usize,
    request: R,
    answered: A,
) -> anyhow::Result<Times>
where
    R: Fn(usize) -> bytes::Bytes + Send + Sync + 'static,
    A: Fn(usize, &[u8]) -> anyhow::Result<()> + Send + Sync + 'static,
{
    tokio::task::spawn_blocking(move || {
        let (next, begun) = (AtomicUsize::new(0), Instant::now());
        let client = || -> anyhow::Result<Vec<Duration>> {
            let mut connection = Connection::open(address)?;
            let mut times = Vec::with_capacity(count / clients * 2);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(times);
                }
                let request = request(number);
                let begun = Instant::now();
                let body = connection.call(&request)?;
                times.push(begun.elapsed());
                answered(number, body)?;
            }
        };
        let all: Vec<anyhow::Result<Vec<Duration>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a client does not panic"))
                .collect()
        });
        let took = begun.elapsed();
        let times = all.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
        Ok(Times::new(times, took))
    })
    .await?
}

/// `GET` of a path.
pub fn get(path: &str) -> bytes::Bytes {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n\r\n").into()
}

/// `POST` of JSON to a path.
pub fn post(path: &str, body: &str) -> bytes::Bytes {
    format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

/// `POST /v1/files` up to the content of its file, and what follows it.
pub struct Form {
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
}

pub fn form(purpose: &str, models: &[&str], filename: &str, bytes: u64) -> Form {
    let field = |name: &str, value: &str| {
        format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        )
    };
    let fields = field("purpose", purpose)
        + &field("target_model_names", &models.join(","))
        + &format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{filename}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
    let tail = format!("\r\n--{BOUNDARY}--\r\n");
    let length = fields.len() as u64 + bytes + tail.len() as u64;
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n\
         content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {length}\r\n\r\n{fields}"
    );
    Form { head: head.into_bytes(), tail: tail.into_bytes() }
}

/// A whole upload of `content` as `user_data`.
pub fn upload(models: &[&str], filename: &str, content: &[u8]) -> bytes::Bytes {
    let form = form("user_data", models, filename, content.len() as u64);
    [&form.head, content, &form.tail].concat().into()
}

/// The file's id in the answer to an upload.
pub fn id_of(answer: &[u8]) -> anyhow::Result<String> {
    Ok(file(answer)?.id)
}

/// What is read of a file object.
#[derive(serde::Deserialize)]
pub struct File {
    pub id: String,
    pub status: String,
}

pub fn file(answer: &[u8]) -> anyhow::Result<File> {
    Ok(serde_json::from_slice(answer)?)
}
