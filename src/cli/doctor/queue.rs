//! The queue: what waits, whether anybody works on it, and which lanes stand still.

use std::collections::BTreeMap;
use std::time::Duration;

use sea_orm::DbErr;

use super::Check;
use super::Finding;
use super::Name;
use super::Opened;
use super::counted;
use super::database::remedy;
use super::now;
use super::spoken;
use super::timed;
use crate::cli::output::time;
use crate::config::Config;
use crate::db::Db;
use crate::jobs::Lane;
use crate::jobs::inspect;
use crate::jobs::inspect::Ignored;
use crate::jobs::inspect::Overview;
use crate::jobs::lanes;
use crate::jobs::lanes::FOR_EVER;
use crate::jobs::lanes::LaneRow;
use crate::jobs::lanes::PauseReason;
use crate::jobs::store;
use crate::jobs::store::Depth;

/// A worker takes what is due within a second or so.
const PATIENCE: Duration = Duration::from_secs(30);
/// A worker that ended a job within this time is alive.
const RECENT: Duration = Duration::from_secs(120);

pub async fn check(
    config: &Config,
    database: &Opened<Db>,
    has_schema: bool,
    limit: Duration,
) -> Vec<Check> {
    let db = match database.for_check("database") {
        Ok(_) if !has_schema => Err(Finding::skipped("the schema is not up to date")),
        result => result,
    };
    let db = match db {
        Ok(db) => db,
        Err(finding) => {
            return [Name::Queue, Name::Workers]
                .map(|name| Check {
                    name,
                    subject: None,
                    took: Duration::ZERO,
                    finding: finding.clone(),
                })
                .into();
        }
    };
    let (queue, workers, lanes) = tokio::join!(
        timed(limit, Name::Queue, None, queue(db)),
        timed(limit, Name::Workers, None, workers(config, db)),
        standing(config, db, limit),
    );
    let mut checks = vec![queue, workers];
    checks.extend(lanes);
    checks
}

fn unreadable(error: &DbErr) -> Finding {
    Finding::failed(format!("cannot be read: {error}"), remedy(error))
}

async fn queue(db: &Db) -> Finding {
    let overview = match inspect::overview(db.read()).await {
        Ok(overview) => overview,
        Err(error) => return unreadable(&error),
    };
    let Overview { now, waiting, oldest, running, failed, .. } = overview;
    let oldest = oldest
        .map(|oldest| format!(", the oldest for {}", spoken(now.since(oldest))))
        .unwrap_or_default();
    let message = format!("{} waiting{oldest}; {running} running", counted(waiting, "job"));
    if failed > 0 {
        return Finding::warning(
            format!("{message}; {failed} failed for good within 24 hours"),
            "`longshore jobs ls --status failed` shows them, `jobs show ID` says why, `jobs retry ID` tries again",
        );
    }
    Finding::ok(message)
}

async fn workers(config: &Config, db: &Db) -> Finding {
    let lanes: Vec<_> =
        config.providers.iter().map(|provider| Lane::of_provider(&provider.name)).collect();
    let read = async {
        let overview = inspect::overview(db.read()).await?;
        Ok::<_, DbErr>((overview, inspect::ignored(db.read(), &lanes, PATIENCE).await?))
    };
    match read.await {
        Ok((overview, ignored)) => alive(&overview, ignored),
        Err(error) => unreadable(&error),
    }
}

/// There is no list of workers: what they do tells of them.
fn alive(overview: &Overview, ignored: Ignored) -> Finding {
    let Overview { now, workers, lapsed, last_ended, .. } = *overview;
    let start = "start `longshore up` or `longshore work`, or see in its log why it does not work";
    if workers > 0 {
        return Finding::ok(format!("{} at work", counted(workers, "worker")));
    }
    let last = last_ended.map_or_else(
        || "no job has ended yet".to_owned(),
        |at| format!("the last job ended {} ago", spoken(now.since(at))),
    );
    if last_ended.is_some_and(|at| now.since(at) < RECENT) {
        return Finding::ok(format!("at work: {last}"));
    }
    if lapsed > 0 {
        return Finding::failed(
            format!(
                "{} left by a worker that died, and no other takes over; {last}",
                counted(lapsed, "job")
            ),
            start,
        );
    }
    if let Ignored { count: count @ 1.., since: Some(since) } = ignored {
        let since = spoken(now.since(since));
        return Finding::failed(
            format!(
                "no worker is at work: {} due, the first for {since}; {last}",
                counted(count, "job")
            ),
            start,
        );
    }
    Finding::ok(format!("nothing is due, so none can be seen at work; {last}"))
}

/// The lanes that stand still, and those that nobody serves any more.
async fn standing(config: &Config, db: &Db, limit: Duration) -> Vec<Check> {
    let mut findings = Vec::new();
    let read = async {
        let read = async {
            Ok::<_, DbErr>((lanes::list(db.read()).await?, store::depths(db.read()).await?))
        };
        match read.await {
            Ok((lanes, depths)) => {
                findings = config
                    .providers
                    .iter()
                    .filter_map(|provider| {
                        let lane = Lane::of_provider(&provider.name);
                        let row = lanes.iter().find(|row| row.name == lane.0)?;
                        Some((provider.name.clone(), paused(&provider.name, row)?))
                    })
                    .chain(unserved(config, &depths))
                    .collect();
                Finding::ok("")
            }
            Err(error) => unreadable(&error),
        }
    };
    let read = timed(limit, Name::Lane, None, read).await;
    if !read.finding.is_good() {
        return vec![read];
    }
    let check =
        |(name, finding)| Check { name: Name::Lane, subject: Some(name), took: read.took, finding };
    findings.into_iter().map(check).collect()
}

fn paused(name: &str, lane: &LaneRow) -> Option<Finding> {
    let (reason, until) = (lane.pause_reason.as_deref()?, lane.paused_until?);
    let since = lane
        .paused_at
        .map(|at| format!(" since {}", time(Some(at.unix_seconds()))))
        .unwrap_or_default();
    let state = if until == FOR_EVER {
        format!("stands still{since}")
    } else if until < now() {
        format!("has stood still{since}, and goes on once one job has come through")
    } else {
        format!("stands still{since}, until {}", time(Some(until.unix_seconds())))
    };
    let message = format!("{state}, by `{reason}`; {} waiting", counted(lane.waiting, "job"));
    Some(match reason.parse() {
        Ok(PauseReason::CredentialRejected) => Finding::failed(
            message,
            format!(
                "correct `api_key` of the provider `{name}` and restart, or, where it takes the key again, `POST \
                 /v1/admin/providers/{name}/resume`; after 24 hours its jobs fail"
            ),
        ),
        Ok(PauseReason::OutOfMoney) => Finding::failed(
            message,
            format!(
                "add credit to the account at the provider, or raise its limit; one job tries again each hour, or at \
                 once after `POST /v1/admin/providers/{name}/resume`"
            ),
        ),
        Ok(PauseReason::Paused) => Finding::warning(
            message,
            format!("somebody paused it; `POST /v1/admin/providers/{name}/resume` ends that"),
        ),
        Ok(PauseReason::Outage) => Finding::warning(
            message,
            "the provider cannot be reached or fails: see its status page; this ends by itself",
        ),
        Ok(PauseReason::RateLimit | PauseReason::Capacity) => Finding::warning(
            message,
            "it ends by itself; where it comes often, lower `requests_per_minute` or `max_concurrency`",
        ),
        Err(error) => Finding::warning(message, error),
    })
}

/// Jobs for providers that are not configured (any more). A lane that was never served has no row.
fn unserved(config: &Config, depths: &[Depth]) -> Vec<(String, Finding)> {
    let mut waiting: BTreeMap<&str, i64> = BTreeMap::new();
    for depth in depths.iter().filter(|depth| depth.status == "waiting") {
        match depth.lane.strip_prefix("provider:") {
            Some(name) if config.provider(name).is_none() => {
                *waiting.entry(name).or_default() += depth.count;
            }
            _ => {}
        }
    }
    let finding = |(name, count): (&str, i64)| {
        let finding = Finding::failed(
            format!(
                "{} waiting for the provider `{name}`, which is not configured",
                counted(count, "job")
            ),
            format!(
                "configure `{name}` again, or cancel them (`longshore jobs ls --status queued`); after 24 hours they fail"
            ),
        );
        (name.to_owned(), finding)
    };
    waiting.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;
    use crate::clock::Timestamp;

    const NOW: Timestamp = Timestamp(10_000_000);
    const NOTHING: Ignored = Ignored { count: 0, since: None };

    fn overview() -> Overview {
        Overview {
            now: NOW,
            waiting: 0,
            oldest: None,
            running: 0,
            workers: 0,
            lapsed: 0,
            last_ended: None,
            failed: 0,
        }
    }

    #[test]
    fn a_worker_is_missed_only_where_it_would_have_had_work() {
        let due = Ignored { count: 3, since: Some(NOW.before(Duration::from_secs(90))) };
        assert_eq!(alive(&overview(), NOTHING).verdict, Verdict::Ok);
        assert_eq!(alive(&overview(), due).verdict, Verdict::Failed);
        let lapsed = Overview { lapsed: 2, ..overview() };
        assert_eq!(alive(&lapsed, NOTHING).verdict, Verdict::Failed);
        let recent = Some(NOW.before(Duration::from_secs(5)));
        let busy = Overview { last_ended: recent, ..overview() };
        assert_eq!(alive(&busy, due).verdict, Verdict::Ok);
        assert_eq!(alive(&Overview { workers: 1, ..lapsed }, due).verdict, Verdict::Ok);
    }

    #[test]
    fn only_what_needs_a_person_fails_a_lane() {
        let lane = |reason: PauseReason| LaneRow {
            name: "provider:x".to_owned(),
            paused_until: Some(FOR_EVER),
            pause_reason: Some(reason.as_str().to_owned()),
            paused_at: Some(NOW),
            failures: 1,
            running: 0,
            waiting: 1,
        };
        for reason in PauseReason::ALL {
            let needs_a_person =
                matches!(reason, PauseReason::CredentialRejected | PauseReason::OutOfMoney);
            let verdict = paused("x", &lane(reason)).unwrap().verdict;
            assert_eq!(verdict == Verdict::Failed, needs_a_person, "{reason}");
        }
        assert_eq!(paused("x", &LaneRow { pause_reason: None, ..lane(PauseReason::Outage) }), None);
    }
}
