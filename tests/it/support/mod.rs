//! What every test stands on: a sandbox, a fresh database, the real binary, and a client of it.

pub mod batches;
mod client;
pub mod collector;
mod crew;
pub mod database;
mod disk;
mod env;
mod faults;
mod process;
mod proxy;
pub mod queue;
mod receiver;
mod s3;
mod script;
mod seed;
mod servers;
mod wire;

pub use client::Client;
pub use client::Part;
pub use client::answer;
pub use collector::Collector;
pub use crew::Crew;
pub use database::Database;
pub use database::Kind;
pub use disk::Disk;
pub use env::ADMIN_KEY;
pub use env::ALICE_KEY;
pub use env::BOB_KEY;
pub use env::ENCRYPTION_KEY;
pub use env::Env;
pub use env::Options;
pub use env::PROVIDER_KEY;
pub use env::SmallDisk;
pub use faults::mapping;
pub use faults::status;
pub use process::Done;
pub use process::Process;
pub use process::run;
pub use proxy::Proxy;
pub use queue::Queue;
pub use receiver::Receiver;
pub use receiver::Reply;
pub use s3::S3;
pub use script::script;
pub use servers::Postgres;
pub use servers::Redis;
pub use servers::free_port;
pub use wire::RawForm;
pub use wire::form_type;

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

/// The time that the server under test should have, too.
pub fn now() -> SystemTime {
    let now = longshore::clock::Clock::default().now();
    UNIX_EPOCH + Duration::from_millis(u64::try_from(now.0).unwrap())
}

/// Asks `probe` until it answers, for `patience` at most.
pub async fn eventually<T>(patience: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "not true within {patience:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
