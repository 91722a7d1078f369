//! Longshore: files, batches and fine-tuning jobs of LLM providers, carried durably.

pub mod api;
pub mod app;
pub mod batches;
pub mod blobs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod error;
pub mod events;
pub mod files;
pub mod idempotency;
pub mod ids;
pub mod installation;
pub mod jobs;
pub mod jsonl;
pub mod keys;
pub mod limits;
pub mod mappings;
pub mod notices;
pub mod owners;
pub mod page;
pub mod processes;
pub mod provider_events;
pub mod providers;
pub mod reconciliations;
pub mod results;
pub mod runs;
pub mod sandbox;
pub mod sweeps;
pub mod telemetry;
pub mod traces;
pub mod webhooks;
mod words;

#[path = "../workers/mod.rs"]
pub mod workers;
