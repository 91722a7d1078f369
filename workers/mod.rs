//! The worker daemon: it claims jobs, runs them, and ends them. One file per kind of job.

mod attempt;
mod backend;
pub mod daemon;
mod dispatch;
mod endings;
mod held;
mod listing;
mod maintenance;
mod reaper;
mod registry;
mod upload_file;
mod verify_upload;
