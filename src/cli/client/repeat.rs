//! When a call that failed is made again, and how long to pause before it.

use std::time::Duration;

use reqwest::StatusCode;

use super::{Client, Failure};
use crate::cli::progress::Progress;

/// The longest pause that a person is made to wait for, in units of the client.
const MAX_PAUSE: u32 = 120;
/// The longest pause between two tries where the server asks for none, in units of the client.
const MAX_OWN_PAUSE: u32 = 30;

/// How often a call is made again, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeats(pub u32);

impl Client {
    /// Makes a call, and makes it again when it failed in a way that passes.
    ///
    /// Only for calls that do no harm twice. A server that cannot be reached at the very first try is
    /// reported at once: it is a wrong address or a server that was never started.
    pub async fn repeating<T>(
        &self,
        repeats: Repeats,
        progress: &Progress,
        mut call: impl AsyncFnMut() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut made = 0;
        loop {
            let failure = match call().await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let jitter = rand::random_range(0.5..=1.0);
            let Some(pause) =
                pause(&failure, made, self.unit(), jitter).filter(|_| made < repeats.0)
            else {
                return Err(failure);
            };
            let seconds = pause.as_secs_f32();
            progress.note(&format!("warning: {failure}; trying again in {seconds:.1} s"));
            tokio::time::sleep(pause).await;
            made += 1;
        }
    }
}

/// The pause before the next try after `made` repeats, or `None` where a repeat would not help.
fn pause(failure: &Failure, made: u32, unit: Duration, jitter: f64) -> Option<Duration> {
    let asked = match failure {
        Failure::NoServer { .. } | Failure::Unreachable { .. } if made == 0 => return None,
        Failure::NoServer { .. }
        | Failure::Unreachable { .. }
        | Failure::Lost { .. }
        | Failure::Silent { .. } => None,
        Failure::Refused(refusal) => {
            let passes = match refusal.status {
                StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => true,
                // The first try of this very call is still running at the server.
                StatusCode::CONFLICT => refusal.retry_after.is_some(),
                status => status.is_server_error(),
            };
            if !passes || refusal.is_final {
                return None;
            }
            refusal.retry_after
        }
        Failure::Nonsense { .. } | Failure::Here(_) => return None,
    };
    let own = (unit * 2_u32.saturating_pow(made).min(MAX_OWN_PAUSE)).mul_f64(jitter);
    match asked {
        // Asking earlier than the server said would be refused again, so a long wait is left to the person.
        Some(asked) if asked > unit * MAX_PAUSE => None,
        Some(asked) => Some(asked.max(own)),
        None => Some(own),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::{Url, header::HeaderMap};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn refused(status: u16, pairs: &[(&'static str, &str)]) -> Failure {
        let headers: HeaderMap = pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let base = Url::parse("http://127.0.0.1/v1").unwrap();
        Failure::refusal(StatusCode::from_u16(status).unwrap(), &headers, b"", &base, true)
    }

    fn lost() -> Failure {
        Failure::Lost { base: String::new(), cause: String::new() }
    }

    #[test]
    fn pauses_double() {
        let pauses: Vec<_> =
            (0..4).map(|made| pause(&lost(), made, SECOND, 1.0).unwrap().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8]);
    }

    #[test]
    fn a_server_that_was_never_there_is_not_waited_for_but_one_that_restarts_is() {
        let gone = Failure::NoServer { base: String::new() };
        assert_eq!(pause(&gone, 0, SECOND, 1.0), None);
        assert_eq!(pause(&gone, 1, SECOND, 1.0), Some(2 * SECOND));
    }

    #[test]
    fn only_what_passes_is_repeated() {
        for status in [408, 429, 500, 502, 503, 504, 507] {
            assert!(pause(&refused(status, &[]), 0, SECOND, 1.0).is_some(), "{status}");
        }
        for status in [301, 400, 401, 403, 404, 409, 413, 422] {
            assert!(pause(&refused(status, &[]), 0, SECOND, 1.0).is_none(), "{status}");
        }
        assert!(pause(&refused(409, &[("retry-after", "1")]), 0, SECOND, 1.0).is_some());
        assert!(pause(&refused(503, &[("x-should-retry", "false")]), 0, SECOND, 1.0).is_none());
    }

    #[test]
    fn what_the_server_asks_for_is_kept_to_or_left_to_the_person() {
        assert_eq!(pause(&refused(429, &[("retry-after", "9")]), 0, SECOND, 1.0), Some(9 * SECOND));
        assert_eq!(pause(&refused(429, &[("retry-after", "315360000")]), 0, SECOND, 1.0), None);
    }

    proptest! {
        #[test]
        fn no_pause_is_longer_than_the_limit_or_shorter_than_asked(
            made in 0_u32..u32::MAX, jitter in 0.5_f64..=1.0, asked in proptest::option::of(0_u64..200),
        ) {
            let asked_text = asked.map(|seconds| seconds.to_string());
            let pairs: Vec<_> = asked_text.iter().map(|text| ("retry-after", text.as_str())).collect();
            match pause(&refused(503, &pairs), made, SECOND, jitter) {
                Some(pause) => {
                    prop_assert!(pause <= SECOND * MAX_PAUSE);
                    prop_assert!(pause >= Duration::from_secs(asked.unwrap_or(0)));
                }
                None => prop_assert!(asked.is_some_and(|seconds| seconds > u64::from(MAX_PAUSE))),
            }
        }
    }
}
