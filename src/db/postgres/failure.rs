//! What an error of PostgreSQL, or of the way to it, says of the connection and of the server.

use std::io;
use std::time::Duration;

use sqlx::Error;
use sqlx::postgres::PgDatabaseError;
use sqlx::postgres::PgSeverity;

/// A standby, or a primary that was told to take no more writes.
const READ_ONLY: &str = "25006";

/// Whether the connection that this was met on is of no more use.
pub fn is_lost(error: &Error) -> bool {
    match error {
        Error::Io(_) | Error::Tls(_) | Error::Protocol(_) | Error::WorkerCrashed => true,
        Error::Database(error) => {
            error.try_downcast_ref::<PgDatabaseError>().is_some_and(|error| {
                matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
                    || error.code() == READ_ONLY
            })
        }
        _ => false,
    }
}

/// Whether the server is away, shutting down, too busy or takes no writes: another try may pass.
pub fn is_away(error: &Error) -> bool {
    match error {
        Error::PoolTimedOut | Error::PoolClosed => true,
        Error::Database(error) => {
            let Some(error) = error.try_downcast_ref::<PgDatabaseError>() else { return false };
            let code = error.code();
            // Connection exceptions, shutdowns, and statements cut off by our own time limits.
            code.starts_with("08")
                || code.starts_with("57")
                || matches!(code, READ_ONLY | "25P03" | "53300" | "55P03")
        }
        error => is_lost(error),
    }
}

/// Whether a connection that failed with this may be made a moment later: the server starts, or another takes over.
pub fn may_pass(error: &Error) -> bool {
    let is_of_tls = match error {
        Error::Tls(_) => true,
        // So rustls tells of a certificate that it does not take.
        Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    };
    !is_silence(error) && !is_of_tls && is_away(error)
}

/// Whether no answer came.
pub fn is_silence(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::TimedOut)
}

pub fn silence(limit: Duration) -> Error {
    let message = format!("no answer within {}", humantime::format_duration(limit));
    Error::Io(io::Error::new(io::ErrorKind::TimedOut, message))
}

/// A statement on a connection that an earlier one has lost.
pub fn gone() -> Error {
    Error::Io(io::Error::new(io::ErrorKind::NotConnected, "the connection was lost"))
}

pub fn read_only() -> Error {
    Error::Io(io::Error::other(
        "the server answers read-only, as a standby does; it is needed as the primary",
    ))
}
