//! What one key and one owner may ask of an installation, so that none of them takes it from the others.

pub mod backlog;
pub mod requests;
