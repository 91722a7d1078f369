//! How the run of a job ended, and what becomes of the job.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sea_orm::DbErr;

use super::held::Stop;
use crate::clock::Timestamp;
use crate::db::Transaction;
use crate::ids::FileId;
use crate::jobs::Ending;
use crate::jobs::Failure;
use crate::jobs::Spend;
use crate::jobs::claims::Claimed;
use crate::jobs::lanes::Report;
use crate::jobs::retry;
use crate::jobs::retry::RetryPolicy;
use crate::jobs::retry::Verdict;
use crate::providers::ProviderError;

/// How a run ended, before it is decided what that means for the job.
#[derive(Clone, Debug)]
pub enum Conclusion {
    Succeeded,
    /// It failed; `verdict` says what is to be done about it.
    Failed {
        failure: Failure,
        verdict: Verdict,
    },
    /// As `Failed`, for the last time: it was tried for long enough.
    GivenUp {
        failure: Failure,
        verdict: Verdict,
    },
    /// It failed. If an attempt is left, it is repeated after this long, whatever other jobs rest.
    FailedFor {
        failure: Failure,
        after: Duration,
    },
    /// As planned, there is more to do later. Costs no attempt.
    Again {
        after: Duration,
        failure: Option<Failure>,
    },
    Cancelled,
    /// Stopped by us, not by a fault: the lease was lost, or the process ends. Costs no attempt.
    HandedBack,
}

impl Conclusion {
    pub fn of_error(error: &ProviderError) -> Self {
        Self::Failed { failure: retry::failure(error), verdict: retry::judge(error) }
    }

    pub fn permanent(code: &str, message: impl Into<String>) -> Self {
        Self::Failed { failure: Failure::permanent(code, message), verdict: Verdict::Permanent }
    }

    pub fn transient(code: &str, message: impl Into<String>) -> Self {
        Self::Failed { failure: Failure::transient(code, message), verdict: Verdict::Rest }
    }

    /// The database did not answer a question of the attempt's: nothing was begun, and nothing is spent.
    pub fn without_database(error: &impl std::fmt::Display) -> Self {
        let failure = Failure::transient("database_unreachable", error.to_string());
        Self::Again { after: Duration::from_secs(1), failure: Some(failure) }
    }

    pub const fn of_stop(stop: Stop) -> Self {
        match stop {
            Stop::Cancelled => Self::Cancelled,
            Stop::LeaseLost | Stop::Shutdown => Self::HandedBack,
        }
    }
}

/// What an attempt changes beside its job's own row.
#[async_trait]
pub trait Effects: Send + Sync + 'static {
    /// The file that it changes something of. Ends that are written together hold their files from the start,
    /// in one order for all processes.
    fn file(&self) -> Option<FileId> {
        None
    }

    /// Writes it, in the transaction that ends the attempt. It may be run more than once.
    async fn write(&self, tx: &Transaction, now: Timestamp, ending: &Ending) -> Result<(), DbErr>;

    /// Writes what must not be forgotten although the job was taken over: nothing else is.
    async fn write_after_loss(&self, _tx: &Transaction, _now: Timestamp) -> Result<(), DbErr> {
        Ok(())
    }
}

/// The end of a run: how, and what it changes.
pub struct Done {
    pub conclusion: Conclusion,
    pub effects: Arc<dyn Effects>,
}

/// What an attempt says about its provider, if anything.
pub fn report(conclusion: &Conclusion, is_probe: bool) -> Option<Report> {
    match conclusion {
        Conclusion::Failed { verdict: Verdict::Lane(report), .. }
        | Conclusion::GivenUp { verdict: Verdict::Lane(report), .. } => Some(*report),
        // The provider answered: whatever it said of this job, it is back. What failed on this side of
        // the wire says nothing about it.
        Conclusion::Succeeded if is_probe => Some(Report::Recovered),
        Conclusion::Failed { failure, .. } if is_probe && failure.http_status.is_some() => {
            Some(Report::Recovered)
        }
        _ => None,
    }
}

/// What becomes of the job. `spend` is what a failure that speaks against the provider costs.
pub fn decide(
    conclusion: &Conclusion,
    job: &Claimed,
    policy: &RetryPolicy,
    spend: Spend,
    jitter: f64,
) -> Ending {
    match conclusion {
        Conclusion::Succeeded => Ending::Succeeded,
        Conclusion::Cancelled => Ending::Cancelled,
        Conclusion::HandedBack => {
            Ending::Retry { after: Duration::ZERO, spend: Spend::Nothing, failure: None }
        }
        Conclusion::Again { after, failure } => {
            Ending::Retry { after: *after, spend: Spend::Nothing, failure: failure.clone() }
        }
        Conclusion::FailedFor { failure, .. } if job.attempt >= job.max_attempts => {
            Ending::Failed(Failure { retryable: false, ..failure.clone() })
        }
        Conclusion::FailedFor { failure, after } => {
            Ending::Retry { after: *after, spend: Spend::Attempt, failure: Some(failure.clone()) }
        }
        Conclusion::GivenUp { failure, .. }
        | Conclusion::Failed { failure, verdict: Verdict::Permanent } => {
            Ending::Failed(failure.clone())
        }
        Conclusion::Failed { failure, verdict } => {
            let spend = if *verdict == Verdict::Rest { Spend::Attempt } else { spend };
            if spend == Spend::Nothing {
                // The lane's pause is what it waits for.
                return Ending::Retry {
                    after: Duration::ZERO,
                    spend,
                    failure: Some(failure.clone()),
                };
            }
            if job.attempt >= job.max_attempts {
                return Ending::Failed(Failure { retryable: false, ..failure.clone() });
            }
            let attempt = u32::try_from(job.attempt).unwrap_or(1);
            let after = policy.backoff(attempt, jitter);
            Ending::Retry { after, spend, failure: Some(failure.clone()) }
        }
    }
}

pub fn outcome(conclusion: &Conclusion, ending: &Ending) -> &'static str {
    match (conclusion, ending) {
        (_, Ending::Cancelled) => "cancelled",
        (Conclusion::HandedBack, _) => "handed_back",
        (_, Ending::Succeeded) => "succeeded",
        (_, Ending::Retry { .. }) => "retried",
        (_, Ending::Failed(_)) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 3,
        base_delay: Duration::from_secs(1),
        max_delay: Duration::from_secs(60),
    };

    fn job(attempt: i32) -> Claimed {
        Claimed { attempt, ..Claimed::example() }
    }

    fn failed(verdict: Verdict) -> Conclusion {
        Conclusion::Failed { failure: Failure::transient("x", "y"), verdict }
    }

    #[test]
    fn a_permanent_failure_is_not_repeated() {
        let ending = decide(&failed(Verdict::Permanent), &job(1), &POLICY, Spend::Attempt, 0.5);
        assert!(matches!(ending, Ending::Failed(_)));
    }

    #[test]
    fn a_job_fails_with_its_last_attempt() {
        let rest = failed(Verdict::Rest);
        assert!(matches!(
            decide(&rest, &job(2), &POLICY, Spend::Attempt, 0.5),
            Ending::Retry { .. }
        ));
        assert!(matches!(decide(&rest, &job(3), &POLICY, Spend::Attempt, 0.5), Ending::Failed(_)));
    }

    #[test]
    fn what_costs_no_attempt_never_fails_a_job() {
        let limited = failed(Verdict::Lane(Report::RateLimited { retry_after: None }));
        let ending = decide(&limited, &job(3), &POLICY, Spend::Nothing, 0.5);
        assert!(matches!(ending, Ending::Retry { spend: Spend::Nothing, .. }));
        let ending = decide(&Conclusion::HandedBack, &job(3), &POLICY, Spend::Attempt, 0.5);
        assert!(matches!(ending, Ending::Retry { spend: Spend::Nothing, .. }));
    }

    #[test]
    fn a_probe_that_is_answered_reopens_its_lane_whatever_the_answer() {
        let refusal = Failure { http_status: Some(400), ..Failure::permanent("x", "y") };
        let refused = Conclusion::Failed { failure: refusal, verdict: Verdict::Permanent };
        assert_eq!(report(&refused, true), Some(Report::Recovered));
        assert_eq!(report(&failed(Verdict::Rest), true), None, "nothing was asked of the provider");
        assert_eq!(report(&Conclusion::Succeeded, true), Some(Report::Recovered));
        assert_eq!(report(&Conclusion::Succeeded, false), None);
        assert_eq!(report(&Conclusion::HandedBack, true), None);
    }
}
