//! The real binary against the built-in providers, on SQLite and on PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod border;
mod filenames;
mod refusals;
mod support;
mod uploads;
