//! `cargo bench --bench uploads`: how many uploads of 10 KB to 3 models are accepted and completed per
//! second, on SQLite, synced to disk, workers running, beside the raw limits of the same disk.
//!
//! Load, sandbox and server share the machine. `LONGSHORE_BENCH_UPLOADS` sets how many (5,000).

use std::io::Write as _;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use longshore::sandbox::Sandbox;
use longshore::sandbox::Settings;

const CLIENTS: usize = 16;
const SIZE: usize = 10_000;
const MODELS: [&str; 3] = ["a", "b", "c"];
const KEY: &str = "bench";
const BOUNDARY: &str = "0123456789abcdef";

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` and the like only want to know that it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let uploads = std::env::var("LONGSHORE_BENCH_UPLOADS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(5_000);
    let folder = tempfile::tempdir_in(std::env::current_dir()?.join("target"))
        .or_else(|_| tempfile::tempdir())?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(folder.path(), uploads))
}

async fn run(folder: &Path, uploads: usize) -> anyhow::Result<()> {
    println!(
        "{uploads} uploads of {SIZE} bytes to {} models, {CLIENTS} clients, {} cores\n",
        MODELS.len(),
        cores()
    );
    let files = raw_files(folder)?;
    row("raw: files of 10 KB synced to disk, 16 at a time", &format!("{files:.0}/s"));
    let commits = raw_commits(folder)?;
    row("raw: SQLite commits, one row, synced, one after another", &format!("{commits:.0}/s"));
    for (command, name) in [("up", "workers running"), ("serve", "`serve` alone")] {
        let measured = measure(&folder.join(command), command, uploads).await?;
        row(&format!("accepted, {name}"), &format!("{:.0}/s", measured.accepted));
        row(
            &format!("  answer, {name}"),
            &format!("p50 {:.1} ms, p99 {:.1} ms", measured.p50, measured.p99),
        );
        if let Some(completed) = measured.completed {
            row(
                "completed: ready at all 3 models, from the first request",
                &format!("{completed:.0} files/s"),
            );
        }
    }
    Ok(())
}

fn row(what: &str, figure: &str) {
    println!("{what:<62} {figure}");
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// Files written and synced per second, each with its folder, as the blob store does it.
fn raw_files(folder: &Path) -> anyhow::Result<f64> {
    const FILES: usize = 4_000;
    let folder = folder.join("raw");
    std::fs::create_dir_all(&folder)?;
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> std::io::Result<()> {
                    while let number @ 0..FILES = next.fetch_add(1, Ordering::Relaxed) {
                        let mut file = std::fs::File::create(folder.join(number.to_string()))?;
                        file.write_all(&[b'x'; SIZE])?;
                        file.sync_all()?;
                        std::fs::File::open(&folder)?.sync_all()?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("the thread does not panic"))
    })?;
    Ok(FILES as f64 / begun.elapsed().as_secs_f64())
}

fn raw_commits(folder: &Path) -> anyhow::Result<f64> {
    const COMMITS: usize = 2_000;
    let connection = rusqlite::Connection::open(folder.join("raw.db"))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (x INTEGER);",
    )?;
    let begun = Instant::now();
    for _ in 0..COMMITS {
        connection.execute("INSERT INTO t VALUES (1)", [])?;
    }
    Ok(COMMITS as f64 / begun.elapsed().as_secs_f64())
}

struct Measured {
    accepted: f64,
    /// Milliseconds.
    p50: f64,
    p99: f64,
    completed: Option<f64>,
}

async fn measure(folder: &Path, command: &str, uploads: usize) -> anyhow::Result<Measured> {
    std::fs::create_dir_all(folder)?;
    let sandbox = Sandbox::bind(([127, 0, 0, 1], 0).into())?;
    for model in MODELS {
        sandbox.configure(model, Settings { keep_bytes: 0, ..Settings::default() });
    }
    let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    std::fs::write(folder.join("longshore.toml"), configuration(&sandbox, &listen.to_string()))?;
    let server = Server(
        Command::new(env!("CARGO_BIN_EXE_longshore"))
            .current_dir(folder)
            .arg(command)
            .env("LONGSHORE_LOG", "error")
            .stdin(Stdio::null())
            .spawn()?,
    );
    let base = format!("http://{listen}");
    wait_until_ready(&base).await?;
    let load = Arc::new(Load {
        base,
        body: body(),
        next: AtomicUsize::new(0),
        uploads,
        times: Mutex::default(),
    });
    load.upload_until(200).await?;
    load.times.lock().expect("no thread panics").clear();
    let begun = Instant::now();
    load.upload_until(200 + uploads).await?;
    let accepted = uploads as f64 / begun.elapsed().as_secs_f64();
    let mut times = load.times.lock().expect("no thread panics").clone();
    times.sort_unstable();
    let percentile =
        |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    let (p50, p99) = (percentile(0.5), percentile(0.99));
    let mut completed = None;
    if command == "up" {
        let all = (200 + uploads) as u64;
        while MODELS.iter().any(|model| sandbox.stats(model).files_created < all) {
            anyhow::ensure!(
                begun.elapsed() < Duration::from_secs(300),
                "the files did not arrive within 300 s"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        completed = Some(uploads as f64 / begun.elapsed().as_secs_f64());
        for model in MODELS {
            anyhow::ensure!(sandbox.stats(model).files_created == all, "a file arrived twice");
        }
    }
    drop(server);
    Ok(Measured { accepted, p50, p99, completed })
}

/// Killed when dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Load {
    base: String,
    body: Bytes,
    next: AtomicUsize,
    uploads: usize,
    times: Mutex<Vec<Duration>>,
}

impl Load {
    /// Uploads, from all clients at once, until `count` were begun since the start.
    async fn upload_until(self: &Arc<Self>, count: usize) -> anyhow::Result<()> {
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| tokio::spawn(Arc::clone(self).client(count))).collect();
        for client in clients {
            client.await??;
        }
        self.next.store(count.min(200 + self.uploads), Ordering::Relaxed);
        Ok(())
    }

    async fn client(self: Arc<Self>, count: usize) -> anyhow::Result<()> {
        let http =
            reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build()?;
        while self.next.fetch_add(1, Ordering::Relaxed) < count {
            let begun = Instant::now();
            let response = http
                .post(format!("{}/v1/files", self.base))
                .bearer_auth(KEY)
                .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
                .body(self.body.clone())
                .send()
                .await?;
            anyhow::ensure!(
                response.status().is_success(),
                "{}: {}",
                response.status(),
                response.text().await?
            );
            response.bytes().await?;
            self.times.lock().expect("no thread panics").push(begun.elapsed());
        }
        Ok(())
    }
}

fn body() -> Bytes {
    let field = |name: &str, value: &str| {
        format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        )
    };
    let mut body = field("purpose", "user_data") + &field("target_model_names", &MODELS.join(","));
    body += &format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"in.txt\"\r\n\
         Content-Type: text/plain\r\n\r\n{}\r\n--{BOUNDARY}--\r\n",
        "x".repeat(SIZE)
    );
    body.into()
}

async fn wait_until_ready(base: &str) -> anyhow::Result<()> {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let begun = Instant::now();
    while !http
        .get(format!("{base}/readyz"))
        .send()
        .await
        .is_ok_and(|response| response.status().is_success())
    {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(30), "the server did not start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn configuration(sandbox: &Sandbox, listen: &str) -> String {
    let mut text = format!(
        "[server]\nlisten = \"{listen}\"\n[auth]\nadmin_key = \"{KEY}\"\n[database]\nurl = \"sqlite://longshore.db\"\n\
         [blobs]\nurl = \"file://blobs\"\n"
    );
    for model in MODELS {
        text += &format!(
            "[[providers]]\nname = \"{model}\"\nkind = \"openai\"\nbase_url = \"{}\"\nmax_concurrency = 16\n\
             requests_per_minute = 10000000\n[[models]]\nname = \"{model}\"\nprovider = \"{model}\"\n",
            sandbox.base_url(model)
        );
    }
    text
}
