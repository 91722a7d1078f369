//! The job table and the stores beside it, on SQLite and on PostgreSQL, through the functions that the
//! server and the workers call.

mod deliveries;
mod events;
mod idempotency;
mod keys;
mod leases;
mod limits;
mod payloads;
mod plans;
mod schema;
mod settling;
mod store;
mod turns;
mod writer;

/// Runs each of these tests, which take a [`crate::support::Queue`], on both databases.
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use crate::support::Kind;
            use crate::support::Queue;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                super::$test(Queue::on(Kind::Sqlite).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                super::$test(Queue::on(Kind::Postgres).await).await;
            }
        }
    )+};
}
use on_both;
