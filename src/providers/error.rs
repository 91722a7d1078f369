//! What can go wrong between a driver and its provider, by what a caller does about it.

use std::time::Duration;

/// A call to a provider that did not succeed.
///
/// Its texts may be stored and shown: they are short, without control characters, and never hold the
/// credential of the call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ProviderError {
    pub kind: ErrorKind,
    /// Whether the provider may have done what was asked all the same, so that repeating it could do it
    /// twice. Only ever true for uploads and for creating batches: everything else may be repeated.
    pub outcome_unknown: bool,
    pub message: String,
    pub http_status: Option<u16>,
    /// The provider's own code, an open set.
    pub provider_code: Option<String>,
    /// By which the provider's support finds the call.
    pub provider_request_id: Option<String>,
}

impl ProviderError {
    /// See [`ErrorKind::is_transient`].
    pub fn is_transient(&self) -> bool {
        self.kind.is_transient()
    }

    /// See [`ErrorKind::retry_after`].
    pub fn retry_after(&self) -> Option<Duration> {
        self.kind.retry_after()
    }

    /// The same error as the end of a request that creates something; `sent` tells whether that request
    /// was handed to the connection to its last byte.
    pub(super) fn of_create(self, sent: bool) -> Self {
        let executed = match self.http_status {
            None => sent,
            // An answer that says "done" is believed even when the request was not complete.
            Some(200..=299) => true,
            // 303 sends the caller on to the result of what was done.
            Some(303 | 408) => sent,
            // These refuse before they act; any other 5xx may come from a proxy that gave up waiting.
            Some(501 | 503 | 529) => false,
            Some(500..) => sent,
            Some(_) => false,
        };
        Self { outcome_unknown: executed && self.kind != ErrorKind::Source, ..self }
    }
}

/// What kind of failure it was. A kind exists because somebody reacts to it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Not reachable, silent, or failing on its side (5xx).
    Outage {
        /// How long the provider asked to be left alone, at most an hour.
        retry_after: Option<Duration>,
    },
    /// Too many requests in too short a time.
    RateLimited {
        /// How long the provider asked to be left alone, at most an hour.
        retry_after: Option<Duration>,
    },
    /// The key is wrong, revoked, or may not do this.
    CredentialRejected,
    /// The account has no credit, or has reached a spending limit.
    OutOfMoney,
    /// Full for now: it ends when work of ours at the provider ends.
    Capacity,
    /// The provider does not know the thing, or no longer.
    NotFound,
    /// The provider has no such operation (405, 501).
    Unsupported,
    /// Not now, in this state of things (408, 409, 425).
    Conflict,
    /// The provider will answer the same to the same request.
    Rejected,
    /// It answered that it succeeded, but with something that cannot be used.
    Garbled,
    /// Our own bytes could not be read to their end, or were not as many as declared.
    Source,
}

impl ErrorKind {
    /// The code that clients of the API see.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Outage { .. } => "provider_unavailable",
            Self::RateLimited { .. } => "provider_rate_limited",
            Self::CredentialRejected => "provider_credential_rejected",
            Self::OutOfMoney => "provider_out_of_money",
            Self::Capacity => "provider_capacity",
            Self::NotFound => "provider_not_found",
            Self::Unsupported => "provider_unsupported",
            Self::Conflict => "provider_conflict",
            Self::Rejected => "provider_rejected",
            Self::Garbled => "provider_garbled",
            Self::Source => "source_unreadable",
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    ///
    /// A rejected credential and an empty account are not transient: somebody has to act. What waits
    /// for that (a parked lane) is the caller's to decide.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Outage { .. }
            | Self::RateLimited { .. }
            | Self::Capacity
            | Self::Conflict
            | Self::Garbled
            | Self::Source => true,
            Self::CredentialRejected
            | Self::OutOfMoney
            | Self::NotFound
            | Self::Unsupported
            | Self::Rejected => false,
        }
    }

    /// How long the provider asked to be left alone, at most an hour.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Outage { retry_after } | Self::RateLimited { retry_after } => *retry_after,
            Self::CredentialRejected
            | Self::OutOfMoney
            | Self::Capacity
            | Self::NotFound
            | Self::Unsupported
            | Self::Conflict
            | Self::Rejected
            | Self::Garbled
            | Self::Source => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_status(http_status: Option<u16>) -> ProviderError {
        ProviderError {
            kind: ErrorKind::Outage { retry_after: None },
            outcome_unknown: false,
            message: String::new(),
            http_status,
            provider_code: None,
            provider_request_id: None,
        }
    }

    #[test]
    fn only_answers_that_leave_it_open_make_the_outcome_of_a_sent_upload_unknown() {
        let open =
            [200, 204, 303, 408, 500, 502, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530, 599];
        for status in 200..600 {
            let error = with_status(Some(status)).of_create(true);
            let expected = open.contains(&status)
                || (200..300).contains(&status)
                || (status >= 500 && ![501, 503, 529].contains(&status));
            assert_eq!(error.outcome_unknown, expected, "{status}");
        }
        for status in [301, 400, 401, 403, 404, 409, 413, 425, 429, 503, 529] {
            assert!(!with_status(Some(status)).of_create(true).outcome_unknown, "{status}");
        }
        assert!(with_status(None).of_create(true).outcome_unknown);
    }

    #[test]
    fn an_upload_that_was_not_sent_whole_can_be_repeated_unless_the_provider_said_it_succeeded() {
        for status in 300..600 {
            assert!(!with_status(Some(status)).of_create(false).outcome_unknown, "{status}");
        }
        assert!(!with_status(None).of_create(false).outcome_unknown);
        assert!(with_status(Some(200)).of_create(false).outcome_unknown);
    }
}
