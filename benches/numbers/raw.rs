//! The raw limits of the machine: what nobody's server could surpass here.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use sqlx::Connection as _;
use sqlx::Executor as _;

use crate::Bench;
use crate::postgres::Database;
use crate::report::Line;
use crate::report::Unit;
use crate::uploads::SIZE;

/// How long each is tried.
const TIME: Duration = Duration::from_secs(2);

/// Files written and synced, each with its folder, as the blob store does it.
pub async fn files(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let (folder, clients) = (bench.folder("raw-files")?, bench.options.clients);
    let per_second = tokio::task::spawn_blocking(move || -> anyhow::Result<f64> {
        let (next, begun) = (AtomicUsize::new(0), Instant::now());
        let writer = || -> std::io::Result<()> {
            while begun.elapsed() < TIME {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let mut file = std::fs::File::create(folder.join(number.to_string()))?;
                file.write_all(&[b'x'; SIZE])?;
                file.sync_all()?;
                std::fs::File::open(&folder)?.sync_all()?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(writer)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("a writer does not panic"))
        })?;
        Ok(next.into_inner() as f64 / begun.elapsed().as_secs_f64())
    });
    let what = format!("raw: files of 10 KB synced with their folder, {clients} at a time");
    Ok(vec![Line::new(what).figure("", per_second.await??, Unit::FilesPerSecond)])
}

/// Bytes through a socket of this machine, one thread writing and one reading.
pub async fn loopback(_: &Bench) -> anyhow::Result<Vec<Line>> {
    let per_second = tokio::task::spawn_blocking(|| -> anyhow::Result<f64> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut writing = TcpStream::connect(listener.local_addr()?)?;
        let (mut reading, _) = listener.accept()?;
        let writer = std::thread::spawn(move || -> std::io::Result<()> {
            let (chunk, begun) = (vec![b'x'; 128 * 1024], Instant::now());
            while begun.elapsed() < TIME {
                writing.write_all(&chunk)?;
            }
            Ok(())
        });
        let (mut chunk, mut bytes, begun) = (vec![0; 128 * 1024], 0, Instant::now());
        loop {
            match reading.read(&mut chunk)? {
                0 => break,
                count => bytes += count,
            }
        }
        let took = begun.elapsed();
        writer.join().expect("the writer does not panic")?;
        Ok(bytes as f64 / 1e6 / took.as_secs_f64())
    });
    let line = Line::new("raw: loopback TCP, one connection");
    Ok(vec![line.figure("", per_second.await??, Unit::MegabytesPerSecond)])
}

/// Commits of one row, synced, one after another.
pub async fn sqlite(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let connection = rusqlite::Connection::open(bench.folder("raw-sqlite")?.join("raw.db"))?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE t (x INTEGER);",
    )?;
    let (mut commits, begun) = (0, Instant::now());
    while begun.elapsed() < TIME {
        connection.execute("INSERT INTO t VALUES (1)", [])?;
        commits += 1;
    }
    let per_second = f64::from(commits) / begun.elapsed().as_secs_f64();
    let line = Line::new("raw: SQLite commits of one row, synced, one after another");
    Ok(vec![line.figure("", per_second, Unit::PerSecond)])
}

/// Likewise, over one connection to the server.
pub async fn postgres(bench: &Bench) -> anyhow::Result<Vec<Line>> {
    let database = Database::create(bench).await?;
    let mut connection = sqlx::PgConnection::connect(&database.url).await?;
    connection.execute("CREATE TABLE t (x INTEGER)").await?;
    let (mut commits, begun) = (0, Instant::now());
    while begun.elapsed() < TIME {
        connection.execute("INSERT INTO t VALUES (1)").await?;
        commits += 1;
    }
    let per_second = f64::from(commits) / begun.elapsed().as_secs_f64();
    connection.close().await?;
    database.remove().await?;
    let line = Line::new("raw: PostgreSQL commits of one row, synced, one after another");
    Ok(vec![line.figure("", per_second, Unit::PerSecond)])
}
