//! Lanes: one for each provider. What all workers together know of it: whether it stands still, why
//! and until when, how many of its jobs run, and its rate budget.
//!
//! All of it is kept inside the claim's transaction, so limits hold over all workers and restarts.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;

use super::Lane;
use super::Spend;
use super::retry;
use crate::clock::Timestamp;
use crate::clock::millis;
use crate::db;
use crate::db::is_postgres;
use crate::db::statement;

/// A pause that only a person, or another configuration, ends.
pub const FOR_EVER: Timestamp = Timestamp(i64::MAX);
/// How long a provider that wants money is left alone before one job tries again.
const MONEY_PAUSE: Duration = Duration::from_secs(3600);

/// Why a lane stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    RateLimit,
    Outage,
    CredentialRejected,
    OutOfMoney,
    Capacity,
    /// By hand.
    Paused,
}

impl PauseReason {
    pub const ALL: [Self; 6] = [
        Self::RateLimit,
        Self::Outage,
        Self::CredentialRejected,
        Self::OutOfMoney,
        Self::Capacity,
        Self::Paused,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RateLimit => "rate_limit",
            Self::Outage => "outage",
            Self::CredentialRejected => "credential_rejected",
            Self::OutOfMoney => "out_of_money",
            Self::Capacity => "capacity",
            Self::Paused => "paused",
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PauseReason {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let reason = Self::ALL.into_iter().find(|reason| reason.as_str() == text);
        reason.ok_or_else(|| format!("`{text}` is not a reason for a pause"))
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
    tokens: Option<f64>,
    refilled_at: Option<Timestamp>,
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
                slots = if self.running == 0 { slots.min(1) } else { 0 };
                is_probe = slots == 1;
            }
            None => {}
        }
        let tokens = limits.requests_per_minute.map(|per_minute| self.refilled(per_minute));
        if let (Some(tokens), Some(per_minute)) = (tokens, limits.requests_per_minute) {
            let whole = tokens.max(0.0).floor() as usize;
            if slots > whole {
                slots = whole;
                let missing = (1.0 - tokens.fract()).max(0.0) / refill_per_ms(per_minute);
                again_at = Some(Timestamp(self.now.0.saturating_add(missing.ceil() as i64)));
                is_probe &= slots > 0;
            }
        }
        Admission { slots, is_probe, again_at, tokens }
    }

    fn refilled(&self, per_minute: u32) -> f64 {
        let burst = burst(per_minute);
        match (self.tokens, self.refilled_at) {
            (Some(tokens), Some(at)) => {
                let elapsed = self.now.since(at).as_millis() as f64;
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

#[derive(FromQueryResult)]
struct Row {
    paused_until: Option<Timestamp>,
    pause_reason: Option<String>,
    failures: i32,
    tokens: Option<f64>,
    refilled_at: Option<Timestamp>,
    last_owner: String,
    running: i64,
    now: Timestamp,
}

/// Makes sure that the lane exists, and lets a pause go that was for another credential.
///
/// `credential` is a fingerprint of what the provider is reached with.
pub async fn open(tx: &impl ConnectionTrait, lane: &Lane, credential: &str) -> Result<(), DbErr> {
    let sql = "INSERT INTO lanes (name) VALUES ($1) ON CONFLICT (name) DO NOTHING";
    tx.execute_raw(statement(tx, sql, [lane.0.clone().into()])).await?;
    let sql = "UPDATE lanes SET paused_until = NULL, pause_reason = NULL, paused_at = NULL, failures = 0 \
               WHERE name = $1 AND pause_reason IN ('credential_rejected', 'out_of_money') \
               AND (credential IS NULL OR credential <> $2)";
    let values: [Value; 2] = [lane.0.clone().into(), credential.into()];
    tx.execute_raw(statement(tx, sql, values)).await?;
    let sql = "UPDATE lanes SET credential = $2 WHERE name = $1 AND (credential IS NULL OR credential <> $2)";
    let values: [Value; 2] = [lane.0.clone().into(), credential.into()];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
}

/// Reads the lane, and on PostgreSQL locks it: claims and reports of one lane come one after another.
/// (SQLite has one writer anyway.)
pub async fn enter(tx: &impl ConnectionTrait, lane: &Lane) -> Result<LaneState, DbErr> {
    if is_postgres(tx) {
        // A statement of its own: one that waits for the lock counts what ran before its wait.
        let sql = "SELECT 1 FROM lanes WHERE name = $1 FOR UPDATE";
        tx.execute_raw(statement(tx, sql, [lane.0.clone().into()])).await?;
    }
    let sql = format!(
        "SELECT paused_until, pause_reason, failures, tokens, refilled_at, last_owner, \
         (SELECT count(*) FROM jobs WHERE lane = $1 AND status = 'running') AS running, {} AS now \
         FROM lanes WHERE name = $1",
        db::now(tx)
    );
    let row = Row::find_by_statement(statement(tx, &sql, [lane.0.clone().into()])).one(tx).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound(format!("lane `{lane}`")))?;
    let pause = match (row.paused_until, row.pause_reason) {
        (Some(until), Some(reason)) => {
            Some(Pause { until, reason: reason.parse().map_err(DbErr::Type)? })
        }
        _ => None,
    };
    Ok(LaneState {
        pause,
        failures: row.failures,
        running: row.running,
        tokens: row.tokens,
        refilled_at: row.refilled_at,
        last_owner: row.last_owner,
        now: row.now,
    })
}

/// Notes what a claim took: the budget it used and the owner whose turn was last.
pub async fn leave(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    state: &LaneState,
    admission: &Admission,
    taken: usize,
    last_owner: &str,
) -> Result<(), DbErr> {
    let sql = "UPDATE lanes SET tokens = $2, refilled_at = $3, last_owner = $4 WHERE name = $1";
    let tokens = admission.tokens.map(|tokens| tokens - taken as f64);
    let values: [Value; 4] = [
        lane.0.clone().into(),
        tokens.into(),
        tokens.map(|_| state.now.0).into(),
        last_owner.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await.map(|_| ())
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

/// Stores what [`after`] decided.
pub async fn save(
    tx: &impl ConnectionTrait,
    lane: &Lane,
    now: Timestamp,
    pause: Option<Pause>,
    failures: i32,
) -> Result<(), DbErr> {
    // `paused_at` is kept while the reason stays, so that it tells since when.
    let sql = "UPDATE lanes SET paused_until = $2, failures = $4, \
               paused_at = CASE WHEN $3 IS NULL THEN NULL WHEN pause_reason = $3 THEN paused_at ELSE $5 END, \
               pause_reason = $3 WHERE name = $1";
    let sql = if is_postgres(tx) {
        sql.replace("$3", "$3::text").replace("$5", "$5::bigint")
    } else {
        sql.to_owned()
    };
    let values: [Value; 5] = [
        lane.0.clone().into(),
        pause.map(|pause| pause.until.0).into(),
        pause.map(|pause| pause.reason.as_str()).into(),
        failures.into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, &sql, values)).await.map(|_| ())
}

/// A lane for the metrics, the admin's list, and the search for jobs that wait in vain.
#[derive(Clone, Debug, FromQueryResult)]
pub struct LaneRow {
    pub name: String,
    pub paused_until: Option<Timestamp>,
    pub pause_reason: Option<String>,
    pub paused_at: Option<Timestamp>,
    pub failures: i32,
    pub running: i64,
    pub waiting: i64,
}

pub async fn list(db: &impl ConnectionTrait) -> Result<Vec<LaneRow>, DbErr> {
    let sql = "SELECT name, paused_until, pause_reason, paused_at, failures, \
               (SELECT count(*) FROM jobs WHERE lane = lanes.name AND status = 'running') AS running, \
               (SELECT count(*) FROM jobs WHERE lane = lanes.name AND status IN ('queued', 'retrying')) AS waiting \
               FROM lanes ORDER BY name";
    LaneRow::find_by_statement(statement(db, sql, [])).all(db).await
}

/// Jobs that have waited longer than `patience` in a lane that stands still for `reason`, at most 100.
pub async fn given_up(
    db: &impl ConnectionTrait,
    reason: PauseReason,
    patience: Duration,
) -> Result<Vec<crate::ids::JobId>, DbErr> {
    #[derive(FromQueryResult)]
    struct Id {
        id: crate::ids::JobId,
    }
    let sql = format!(
        "SELECT jobs.id FROM lanes JOIN jobs ON jobs.lane = lanes.name \
         WHERE lanes.pause_reason = $1 AND lanes.paused_at < {now} - $2 \
         AND jobs.status IN ('queued', 'retrying') AND jobs.created_at < {now} - $2 LIMIT 100",
        now = db::now(db)
    );
    let values: [Value; 2] = [reason.as_str().into(), millis(patience).into()];
    let rows = Id::find_by_statement(statement(db, &sql, values)).all(db).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
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
            tokens: None,
            refilled_at: None,
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
        assert_eq!(LaneState { running: 1, ..over }.admit(&LIMITS, 8).slots, 0);
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
                state.tokens = admission.tokens.map(|tokens| tokens - admission.slots as f64);
                state.refilled_at = Some(state.now);
                starts.push((state.now.0, admission.slots));
            }
            for (begin, _) in &starts {
                let in_minute: usize =
                    starts.iter().filter(|(at, _)| (*begin..begin + 60_000).contains(at)).map(|(_, n)| n).sum();
                prop_assert!(in_minute <= per_minute.max(2) as usize, "{} of {}", in_minute, per_minute);
            }
        }

        #[test]
        fn a_lane_that_ran_out_of_tokens_says_when_to_come_back(per_minute in 1u32..2000) {
            let limits = Limits { max_concurrency: 1000, requests_per_minute: Some(per_minute) };
            let state = LaneState { tokens: Some(0.2), refilled_at: Some(lane().now), ..lane() };
            let again = state.admit(&limits, 1).again_at.unwrap();
            let later = LaneState { now: Timestamp(again.0 + 1), ..state };
            prop_assert!(later.admit(&limits, 1).slots >= 1);
        }
    }
}
