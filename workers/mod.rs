//! The worker daemon: it claims jobs, runs them, and ends them. One file per kind of job.

mod attempt;
mod backend;
mod budget;
mod cancel_batch;
pub mod daemon;
mod delete_file;
mod deliver_webhook;
mod dispatch;
mod download;
mod endings;
mod expiry;
mod held;
mod ingest_batch;
mod listing;
mod maintenance;
mod merge_batch;
mod reaper;
mod reconcile;
mod registry;
mod spent_blobs;
mod strays;
mod submit_batch;
mod sweep;
mod traced;
mod upload_file;
mod verify_upload;
mod watch_batch;
