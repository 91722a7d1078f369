//! The worker daemon: it claims jobs, runs them, and ends them. One file per kind of job.

mod attempt;
mod backend;
pub mod daemon;
mod delete_file;
mod deliver_webhook;
mod dispatch;
mod endings;
mod expiry;
mod held;
mod listing;
mod maintenance;
mod reaper;
mod reconcile;
mod registry;
mod spent_blobs;
mod strays;
mod sweep;
mod upload_file;
mod verify_upload;
