//! The real binary against the built-in providers, on SQLite and on PostgreSQL.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod border;
mod cancellations;
mod commands;
mod connections;
mod content;
mod crashes;
mod deletes;
mod description;
mod disks;
mod doctor;
mod filenames;
mod jobs;
mod lists;
mod operations;
mod outages;
mod owners;
mod processes;
mod provider_faults;
mod queue;
mod reconciliations;
mod refusals;
mod repetition;
mod sdk;
mod secrets;
mod shutdowns;
mod slow;
mod storm;
mod streams;
mod support;
mod sweeps;
mod takeovers;
mod terminal;
mod uploads;
mod webhooks;
