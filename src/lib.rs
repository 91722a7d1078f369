//! Longshore: files, batches and fine-tuning jobs of LLM providers, carried durably.

pub mod clock;
pub mod config;
pub mod db;
pub mod ids;
pub mod jsonl;
pub mod providers;
pub mod sandbox;
