//! The real binary against the built-in providers, on SQLite and on PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cancellations;
mod crashes;
mod outages;
mod provider_faults;
mod shutdowns;
mod storm;
mod support;
mod takeovers;
mod uploads;
