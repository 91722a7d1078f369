//! A provider on a real socket that does what a test tells it, one step for each connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// What the server does with one connection.
pub enum Step {
    /// Reads the whole request, writes this, and hangs up.
    Answer(Vec<u8>),
    /// Writes this as soon as it has read the head, and reads no further.
    Early(Vec<u8>),
    /// Reads the whole request, writes this, and says no more.
    Stall(Vec<u8>),
    /// Reads the whole request and hangs up.
    HangUp,
    /// Hangs up after reading this many bytes.
    HangUpAfter(usize),
    /// Reads the whole request and says nothing.
    Silence,
    /// Reads nothing and says nothing.
    Deaf,
    /// Reads the whole request with a pause after each megabyte, and writes this.
    Sluggish(Vec<u8>),
    /// Reads the whole request and answers 200 with one byte at a time, for ten seconds.
    Drip,
    /// The same with a 500.
    DripError,
}

/// A request as it arrived.
pub struct Seen {
    pub line: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(seen, _)| seen == name).map(|(_, value)| value.as_str())
    }

    fn missing(&self) -> usize {
        let declared = self.header("content-length").map_or(0, |length| length.parse().unwrap());
        declared - self.body.len()
    }

    pub fn is_complete(&self) -> bool {
        !self.line.is_empty() && self.missing() == 0
    }
}

pub struct Server {
    pub base_url: String,
    seen: mpsc::UnboundedReceiver<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(steps: impl IntoIterator<Item = Step>) -> Self {
        // A small window, so that what the client could write is about what the server has read.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (sender, seen) = mpsc::unbounded_channel();
        let steps: Vec<_> = steps.into_iter().collect();
        let task = tokio::spawn(async move {
            for step in steps {
                let (connection, _) = listener.accept().await.unwrap();
                serve(connection, step, &sender).await;
            }
        });
        Self { base_url, seen, task }
    }

    /// The next request, once it has arrived or broken off.
    pub async fn seen(&mut self) -> Seen {
        timeout(Duration::from_secs(10), self.seen.recv()).await.unwrap().unwrap()
    }
}

async fn serve(mut connection: TcpStream, step: Step, sender: &mpsc::UnboundedSender<Seen>) {
    match step {
        Step::Deaf => return sleep(Duration::from_secs(60)).await,
        Step::HangUpAfter(count) => {
            let mut buffer = vec![0; count];
            connection.read_exact(&mut buffer).await.unwrap();
            return;
        }
        Step::Early(answer) => {
            read_head(&mut connection).await;
            connection.write_all(&answer).await.unwrap();
            return sleep(Duration::from_secs(60)).await;
        }
        _ => {}
    }
    let mut seen = read_head(&mut connection).await;
    let mut pause_at = 1 << 20;
    while seen.missing() > 0 {
        if matches!(step, Step::Sluggish(_)) && seen.body.len() >= pause_at {
            sleep(Duration::from_millis(50)).await;
            pause_at += 1 << 20;
        }
        if connection.read_buf(&mut seen.body).await.unwrap_or(0) == 0 {
            break;
        }
    }
    let complete = seen.is_complete();
    sender.send(seen).ok();
    // An incomplete request is never answered, so that a test cannot pass by the answer alone.
    if !complete {
        return;
    }
    // The client may hang up on any of these: a failed write is not the server's affair.
    match step {
        Step::Answer(answer) | Step::Sluggish(answer) => {
            connection.write_all(&answer).await.ok();
            connection.shutdown().await.ok();
            // Until the client has hung up too: closing early could take back what was written.
            connection.read_to_end(&mut Vec::new()).await.ok();
        }
        Step::Stall(answer) => {
            connection.write_all(&answer).await.ok();
            sleep(Duration::from_secs(60)).await;
        }
        Step::Silence => sleep(Duration::from_secs(60)).await,
        Step::Drip => drip(connection, "200 OK").await,
        Step::DripError => drip(connection, "500 Oh").await,
        Step::HangUp | Step::HangUpAfter(_) | Step::Early(_) | Step::Deaf => {}
    }
}

/// The head, and what of the body came with it. Empty if the client hung up before.
async fn read_head(connection: &mut TcpStream) -> Seen {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if connection.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return Seen { line: String::new(), headers: Vec::new(), body: Vec::new() };
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines().map(str::to_owned);
    let line = lines.next().unwrap();
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_lowercase(), value.to_owned())
        })
        .collect();
    Seen { line, headers, body: bytes.split_off(end + 4) }
}

async fn drip(mut connection: TcpStream, status: &str) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: 1000\r\n\r\n");
    connection.write_all(head.as_bytes()).await.ok();
    for _ in 0..1000 {
        if connection.write_all(b" ").await.is_err() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// A 200 with this body.
pub fn ok(body: &str) -> Vec<u8> {
    reply(200, &[("content-type", "application/json")], body)
}

pub fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut reply = format!("HTTP/1.1 {status} Said\r\nconnection: close\r\n");
    for (name, value) in headers {
        reply.push_str(&format!("{name}: {value}\r\n"));
    }
    if status != 204 {
        reply.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    format!("{reply}\r\n{body}").into_bytes()
}
