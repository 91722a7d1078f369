//! The real binary against the built-in providers, on SQLite and on PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod border;
mod content;
mod filenames;
mod jobs;
mod lists;
mod operations;
mod owners;
mod processes;
mod queue;
mod refusals;
mod repetition;
mod secrets;
mod support;
mod uploads;
