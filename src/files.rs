//! Managed files: uploaded once, known by one id, carried to every model they name.

pub mod create;
pub mod deletion;
pub mod edits;
pub mod purpose;
pub mod spent;
pub mod status;
pub mod store;

pub use deletion::Deletion;
pub use purpose::Purpose;
pub use status::FileStatus;
