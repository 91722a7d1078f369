//! The queue: what waits, and which lanes stand still.

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
use super::workers;
use crate::cli::output::time;
use crate::config::Config;
use crate::db::Db;
use crate::jobs::Lane;
use crate::jobs::inspect;
use crate::jobs::inspect::Overview;
use crate::jobs::lanes;
use crate::jobs::lanes::FOR_EVER;
use crate::jobs::lanes::LaneRow;
use crate::jobs::lanes::PauseReason;
use crate::jobs::store;
use crate::jobs::store::Depth;

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
        workers::check(config, db, limit),
        standing(config, db, limit),
    );
    std::iter::once(queue).chain(workers).chain(lanes).collect()
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
