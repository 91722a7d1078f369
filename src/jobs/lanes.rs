//! Lanes: one for each provider. What all workers together know of it: whether it stands still, why
//! and until when, how many of its jobs run, and its rate budget.
//!
//! All of it is kept inside the claim's transaction, so limits hold over all workers and restarts.

mod store;

use std::time::Duration;

pub use self::store::LaneRow;
pub use self::store::Patience;
pub use self::store::ensure;
pub use self::store::enter;
pub use self::store::given_up;
pub use self::store::leave;
pub use self::store::list;
pub use self::store::lock;
pub use self::store::open;
pub use self::store::pauses;
pub use self::store::read;
pub use self::store::save;
pub use self::store::spend;
pub use self::store::unserved;
use super::Spend;
use super::retry;
use crate::clock::Timestamp;
use crate::words::words;

/// A pause that only a person, or another configuration, ends.
pub const FOR_EVER: Timestamp = Timestamp(i64::MAX);
/// What a job waits for whose provider is not configured: no lane is paused for it, since nobody serves it.
pub const NOT_CONFIGURED: &str = "provider_not_configured";
/// How long a provider that wants money is left alone before one job tries again.
const MONEY_PAUSE: Duration = Duration::from_secs(3600);

words! {
    /// Why a lane stands still.
    PauseReason, "a reason for a pause" {
        RateLimit = "rate_limit",
        Outage = "outage",
        CredentialRejected = "credential_rejected",
        OutOfMoney = "out_of_money",
        Capacity = "capacity",
        /// By hand.
        Paused = "paused",
    }
}

/// What the configuration allows a lane.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Jobs that run at once, over all workers.
    pub max_concurrency: u32,
    pub requests_per_minute: Option<u32>,
}

/// A lane, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneState {
    pub pause: Option<Pause>,
    /// Failures in a row that speak against the provider, not against a job.
    pub failures: i32,
    pub running: i64,
    /// Whether the one job that was let through after a pause still runs.
    pub is_probed: bool,
    /// The fingerprint of the credential that the lane is served with.
    pub credential: Option<String>,
    budget: Budget,
    pub last_owner: String,
    /// The database's clock.
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    pub until: Timestamp,
    pub reason: PauseReason,
}

/// What a claim may take now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Admission {
    pub slots: usize,
    /// The one job that is let through to see whether the provider is back.
    pub is_probe: bool,
    /// When to ask again, if a pause or the rate budget is what stands in the way.
    pub again_at: Option<Timestamp>,
    tokens: Option<f64>,
}

impl LaneState {
    pub fn is_paused(&self) -> bool {
        self.pause.is_some_and(|pause| pause.until > self.now)
    }

    /// How many jobs may start now, if `wanted` could.
    pub fn admit(&self, limits: &Limits, wanted: usize) -> Admission {
        let free = i64::from(limits.max_concurrency).saturating_sub(self.running);
        let mut slots = wanted.min(usize::try_from(free).unwrap_or(0));
        let mut again_at = None;
        let mut is_probe = false;
        match self.pause {
            Some(pause) if pause.until > self.now => {
                slots = 0;
                again_at = Some(pause.until);
            }
            // The pause is over, but nothing has succeeded yet: one goes first.
            Some(_) => {
                slots = if self.is_probed { 0 } else { slots.min(1) };
                is_probe = slots == 1;
            }
            None => {}
        }
        let tokens =
            limits.requests_per_minute.map(|per_minute| self.budget.refilled(self.now, per_minute));
        if let (Some(tokens), Some(per_minute)) = (tokens, limits.requests_per_minute) {
            let whole = tokens.max(0.0).floor() as usize;
            if slots > whole {
                slots = whole;
                // What a claim has overdrawn has to flow back too.
                let missing =
                    (tokens.max(0.0).floor() + 1.0 - tokens).max(0.0) / refill_per_ms(per_minute);
                again_at = Some(Timestamp(self.now.0.saturating_add(missing.ceil() as i64)));
                is_probe &= slots > 0;
            }
        }
        Admission { slots, is_probe, again_at, tokens }
    }
}

/// What is left of a lane's calls, as of when it was last taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Budget {
    /// `None` before the first.
    tokens: Option<f64>,
    refilled_at: Option<Timestamp>,
}

impl Budget {
    /// The budget after one call more that no claim has paid for, and how long that call has to wait. `Err` says when to
    /// ask again: half of the budget is left to claims, unless the call `is_overdue`. Then it is paid for in any case.
    fn spend(
        self,
        now: Timestamp,
        per_minute: u32,
        is_overdue: bool,
    ) -> Result<(f64, Duration), Duration> {
        let rate = refill_per_ms(per_minute);
        let time = |tokens: f64| Duration::from_millis((tokens.max(0.0) / rate).ceil() as u64);
        let left = self.refilled(now, per_minute) - 1.0;
        let reserved = (burst(per_minute) / 2.0).floor();
        if left >= reserved || is_overdue {
            Ok((left, time(-left)))
        } else {
            Err(time(reserved - left))
        }
    }

    fn refilled(self, now: Timestamp, per_minute: u32) -> f64 {
        let burst = burst(per_minute);
        match (self.tokens, self.refilled_at) {
            (Some(tokens), Some(at)) => {
                let elapsed = now.since(at).as_millis() as f64;
                (tokens + elapsed * refill_per_ms(per_minute)).min(burst)
            }
            _ => burst,
        }
    }
}

/// A tenth of the minute's budget may go at once and the rest flows back evenly, so that no minute,
/// wherever it begins, sees more than the budget.
fn burst(per_minute: u32) -> f64 {
    (f64::from(per_minute) / 10.0).max(1.0)
}

fn refill_per_ms(per_minute: u32) -> f64 {
    (f64::from(per_minute) - burst(per_minute)).max(f64::from(per_minute) / 2.0) / 60_000.0
}

/// How long a call that no claim has paid for leaves the budget to claims: so that it gets one call of four where they
/// would take all.
pub fn patience(per_minute: u32) -> Duration {
    Duration::from_millis((4.0 / refill_per_ms(per_minute)).ceil() as u64)
}

/// Whether a call may be made that no claim has paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// After this wait. It is paid for.
    In(Duration),
    /// Not yet: what is left is for claims. It is to be asked for again after this.
    AskIn(Duration),
    /// Not while the lane stands still, which is for so long.
    NotFor(Duration),
}

/// What an attempt learned about the provider as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// It could not be reached, or answered with a fault of its own; `retry_after` as it said, if it did.
    Outage {
        retry_after: Option<Duration>,
    },
    /// It wants fewer requests; `retry_after` as it said.
    RateLimited {
        retry_after: Option<Duration>,
    },
    CredentialRejected,
    OutOfMoney,
    /// It takes no more work of this sort for now.
    Capacity,
    /// A probe came through.
    Recovered,
}

/// The lane after a report, and whether the attempt that made it counts.
///
/// An outage that others have seen already costs no attempt: only the job that found it, and each
/// probe, pays. `jitter` is uniform in `0.0..1.0`.
pub fn after(state: &LaneState, report: Report, jitter: f64) -> (Option<Pause>, i32, Spend) {
    let failures = state.failures.saturating_add(1);
    let pause = |length: Duration, reason| Some(Pause { until: state.now.after(length), reason });
    // A person's pause and a rejected credential outlast whatever a late attempt reports.
    if state.pause.is_some_and(|pause| pause.until == FOR_EVER) {
        return (state.pause, state.failures, Spend::Nothing);
    }
    match report {
        Report::Recovered => (None, 0, Spend::Nothing),
        Report::Outage { .. } if state.is_paused() => (state.pause, state.failures, Spend::Nothing),
        Report::Outage { retry_after } => {
            let length = retry_after.unwrap_or_default().max(retry::outage_pause(failures, jitter));
            (pause(length, PauseReason::Outage), failures, Spend::Attempt)
        }
        // Others have met it already, and nothing new is asked for.
        Report::RateLimited { retry_after: None } | Report::Capacity if state.is_paused() => {
            (state.pause, state.failures, Spend::Nothing)
        }
        Report::RateLimited { retry_after } => {
            let failures = if state.is_paused() { state.failures } else { failures };
            let length = retry_after.unwrap_or_else(|| retry::outage_pause(failures, jitter));
            let asked = state.now.after(length);
            let until = state.pause.map_or(asked, |pause| pause.until.max(asked));
            (Some(Pause { until, reason: PauseReason::RateLimit }), failures, Spend::Nothing)
        }
        Report::CredentialRejected => (
            Some(Pause { until: FOR_EVER, reason: PauseReason::CredentialRejected }),
            failures,
            Spend::Nothing,
        ),
        Report::OutOfMoney => {
            (pause(MONEY_PAUSE, PauseReason::OutOfMoney), failures, Spend::Nothing)
        }
        Report::Capacity => (
            pause(retry::outage_pause(failures, jitter), PauseReason::Capacity),
            failures,
            Spend::Nothing,
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lane() -> LaneState {
        LaneState {
            pause: None,
            failures: 0,
            running: 0,
            is_probed: false,
            credential: None,
            budget: Budget::default(),
            last_owner: String::new(),
            now: Timestamp(1_000_000),
        }
    }

    const OUTAGE: Report = Report::Outage { retry_after: None };
    const LIMITS: Limits = Limits { max_concurrency: 8, requests_per_minute: None };

    #[test]
    fn a_free_lane_admits_up_to_its_concurrency() {
        assert_eq!(LaneState { running: 3, ..lane() }.admit(&LIMITS, 100).slots, 5);
        assert_eq!(LaneState { running: 9, ..lane() }.admit(&LIMITS, 100).slots, 0);
    }

    #[test]
    fn an_outage_pauses_the_lane_and_then_lets_one_probe_through() {
        let (pause, failures, spend) = after(&lane(), OUTAGE, 0.5);
        assert_eq!(spend, Spend::Attempt);
        let paused = LaneState { pause, failures, ..lane() };
        assert_eq!(paused.admit(&LIMITS, 8).slots, 0);
        let over = LaneState { now: pause.unwrap().until, ..paused };
        assert_eq!((over.admit(&LIMITS, 8).slots, over.admit(&LIMITS, 8).is_probe), (1, true));
        let with_long_upload = LaneState { running: 1, ..over.clone() };
        assert_eq!(
            with_long_upload.admit(&LIMITS, 8).slots,
            1,
            "an upload from before the pause is no probe"
        );
        assert_eq!(LaneState { running: 1, is_probed: true, ..over }.admit(&LIMITS, 8).slots, 0);
    }

    #[test]
    fn an_outage_that_is_known_costs_nobody_else_an_attempt() {
        let (pause, failures, _) = after(&lane(), OUTAGE, 0.5);
        let paused = LaneState { pause, failures, ..lane() };
        assert_eq!(after(&paused, OUTAGE, 0.5), (pause, failures, Spend::Nothing));
    }

    #[test]
    fn a_longer_retry_after_wins_over_a_shorter_one() {
        let asked =
            |seconds| Report::RateLimited { retry_after: Some(Duration::from_secs(seconds)) };
        let (pause, failures, spend) = after(&lane(), asked(60), 0.5);
        assert_eq!(spend, Spend::Nothing);
        let (pause, _, _) = after(&LaneState { pause, failures, ..lane() }, asked(5), 0.5);
        assert_eq!(pause.unwrap().until, lane().now.after(Duration::from_secs(60)));
    }

    #[test]
    fn a_rejected_credential_parks_the_lane_whatever_late_attempts_report() {
        let (pause, failures, _) = after(&lane(), Report::CredentialRejected, 0.5);
        let parked = LaneState { pause, failures, ..lane() };
        assert_eq!(after(&parked, Report::Recovered, 0.5).0, pause);
        assert_eq!(parked.admit(&LIMITS, 8).again_at, Some(FOR_EVER));
    }

    #[test]
    fn an_outage_of_two_hours_costs_its_only_job_less_than_its_attempts() {
        let mut state = lane();
        let (end, mut spent) = (state.now.after(Duration::from_secs(7200)), 0);
        while state.now < end {
            let (pause, failures, spend) = after(&state, OUTAGE, 0.0);
            spent += i32::from(spend == Spend::Attempt);
            state = LaneState { pause, failures, now: pause.unwrap().until, ..state };
        }
        assert!(spent < 30, "{spent} attempts");
    }

    proptest! {
        #[test]
        fn no_minute_sees_more_than_the_rate_budget(
            per_minute in 1u32..2000,
            steps in prop::collection::vec((0i64..5_000, 1usize..50), 1..200),
        ) {
            let limits = Limits { max_concurrency: 1000, requests_per_minute: Some(per_minute) };
            let mut state = lane();
            let mut starts: Vec<(i64, usize)> = Vec::new();
            for (wait, wanted) in steps {
                state.now = Timestamp(state.now.0 + wait);
                let admission = state.admit(&limits, wanted);
                let tokens = admission.tokens.map(|tokens| tokens - admission.slots as f64);
                state.budget = Budget { tokens, refilled_at: Some(state.now) };
                starts.push((state.now.0, admission.slots));
            }
            for (begin, _) in &starts {
                let in_minute: usize =
                    starts.iter().filter(|(at, _)| (*begin..begin + 60_000).contains(at)).map(|(_, n)| n).sum();
                prop_assert!(in_minute <= per_minute.max(2) as usize, "{} of {}", in_minute, per_minute);
            }
        }

        #[test]
        fn calls_that_no_claim_pays_for_leave_it_half_of_the_budget(per_minute in 20u32..5000) {
            let mut state = lane();
            for _ in 0..1000 {
                match state.budget.spend(state.now, per_minute, false) {
                    Ok((tokens, wait)) => {
                        prop_assert!(wait.is_zero());
                        state.budget = Budget { tokens: Some(tokens), refilled_at: Some(state.now) };
                    }
                    Err(again) => state.now = state.now.after(again),
                }
            }
            let limits = Limits { max_concurrency: 1000, requests_per_minute: Some(per_minute) };
            prop_assert!(state.admit(&limits, 1).slots == 1, "{:?}", state.budget);
            prop_assert!(state.budget.spend(state.now, per_minute, true).is_ok());
        }

        #[test]
        fn a_lane_that_ran_out_of_tokens_says_when_to_come_back(per_minute in 1u32..2000) {
            let limits = Limits { max_concurrency: 1000, requests_per_minute: Some(per_minute) };
            let budget = Budget { tokens: Some(0.2), refilled_at: Some(lane().now) };
            let state = LaneState { budget, ..lane() };
            let again = state.admit(&limits, 1).again_at.unwrap();
            let later = LaneState { now: Timestamp(again.0 + 1), ..state };
            prop_assert!(later.admit(&limits, 1).slots >= 1);
        }
    }
}
