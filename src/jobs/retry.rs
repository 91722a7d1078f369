//! Retry decisions: when a failed attempt is repeated, and what it says about the provider.

use std::time::Duration;

use super::Failure;
use super::lanes::Report;
use crate::providers::ErrorKind;
use crate::providers::ProviderError;

/// The first pause of a lane after an outage; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// With this ceiling, an outage of two hours costs the only job of a lane 27 of its 30 attempts at worst.
const LONGEST_PAUSE: Duration = Duration::from_secs(480);

/// How often a job is attempted, and how long it rests between attempts.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    pub max_attempts: u32,
    pub base_delay: Duration,
    pub max_delay: Duration,
}

impl RetryPolicy {
    /// The rest after the given attempt (the first is 1): exponential, with full jitter.
    ///
    /// `jitter` is uniform in `0.0..1.0`.
    pub fn backoff(&self, attempt: u32, jitter: f64) -> Duration {
        doubled(self.base_delay, attempt.saturating_sub(1), self.max_delay)
            .mul_f64(jitter.clamp(0.0, 1.0))
    }
}

/// How long a lane rests after `failures` in a row: between four fifths and the whole of a doubling wait.
pub fn outage_pause(failures: i32, jitter: f64) -> Duration {
    let doublings = u32::try_from(failures).unwrap_or(0).saturating_sub(1);
    doubled(FIRST_PAUSE, doublings, LONGEST_PAUSE).mul_f64(0.8 + 0.2 * jitter.clamp(0.0, 1.0))
}

fn doubled(first: Duration, doublings: u32, most: Duration) -> Duration {
    first.checked_mul(2u32.saturating_pow(doublings)).map_or(most, |wait| wait.min(most))
}

/// What is to be done about a provider's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The job fails at once.
    Permanent,
    /// The job is repeated after its own rest.
    Rest,
    /// The provider as a whole is at fault, and its lane with it.
    Lane(Report),
}

/// Judges an error by its kind, never by its text.
pub fn judge(error: &ProviderError) -> Verdict {
    match &error.kind {
        // A page of a proxy with status 200 is no answer of the provider either.
        ErrorKind::Garbled => Verdict::Lane(Report::Outage { retry_after: None }),
        ErrorKind::Outage { retry_after } => {
            Verdict::Lane(Report::Outage { retry_after: *retry_after })
        }
        ErrorKind::RateLimited { retry_after } => {
            Verdict::Lane(Report::RateLimited { retry_after: *retry_after })
        }
        ErrorKind::CredentialRejected => Verdict::Lane(Report::CredentialRejected),
        ErrorKind::OutOfMoney => Verdict::Lane(Report::OutOfMoney),
        ErrorKind::Capacity => Verdict::Lane(Report::Capacity),
        ErrorKind::Conflict | ErrorKind::Source => Verdict::Rest,
        ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::Rejected => Verdict::Permanent,
    }
}

/// The error as the API shows it.
pub fn failure(error: &ProviderError) -> Failure {
    Failure {
        code: error.kind.code().to_owned(),
        message: error.message.clone(),
        http_status: error.http_status,
        retryable: judge(error) != Verdict::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 30,
        base_delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(3600),
    };

    proptest! {
        #[test]
        fn a_rest_never_exceeds_its_ceiling(attempt in 0u32..u32::MAX, jitter in -1.0f64..2.0) {
            prop_assert!(POLICY.backoff(attempt, jitter) <= POLICY.max_delay);
            prop_assert!(outage_pause(i32::try_from(attempt / 2).unwrap(), jitter) <= LONGEST_PAUSE);
        }

        #[test]
        fn the_rest_doubles_with_each_attempt(attempt in 1u32..11) {
            prop_assert_eq!(POLICY.backoff(attempt + 1, 1.0), POLICY.backoff(attempt, 1.0) * 2);
        }
    }

    #[test]
    fn jitter_is_full() {
        assert_eq!(POLICY.backoff(5, 0.0), Duration::ZERO);
        assert_eq!(POLICY.backoff(5, 1.0), Duration::from_secs(16));
    }
}
