//! The processes: who is there, of which version, who fell silent, and whose clock is off.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use sea_orm::DbErr;

use super::Check;
use super::Finding;
use super::Name;
use super::counted;
use super::database::remedy;
use super::spoken;
use super::timed;
use crate::config::Config;
use crate::db::Db;
use crate::jobs::Lane;
use crate::jobs::inspect;
use crate::jobs::inspect::Ignored;
use crate::jobs::inspect::Overview;
use crate::processes;
use crate::processes::Seen;
use crate::processes::State;

/// A worker takes what is due within a second or so.
const PATIENCE: Duration = Duration::from_secs(30);
/// A clock that differs by more makes the times in logs and in the database contradict each other.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

pub async fn check(config: &Config, db: &Db, limit: Duration) -> Vec<Check> {
    let mut seen = Vec::new();
    let workers = async {
        let lanes: Vec<_> =
            config.providers.iter().map(|provider| Lane::of_provider(&provider.name)).collect();
        let read = async {
            let overview = inspect::overview(db.read()).await?;
            let ignored = inspect::ignored(db.read(), &lanes, PATIENCE).await?;
            Ok::<_, DbErr>((overview, ignored, processes::list(db.read()).await?))
        };
        match read.await {
            Ok((overview, ignored, listed)) => {
                let finding = at_work(&overview, ignored, &listed);
                seen = listed;
                finding
            }
            Err(error) => Finding::failed(format!("cannot be read: {error}"), remedy(&error)),
        }
    };
    let check = timed(limit, Name::Workers, None, workers).await;
    let took = check.took;
    let each = seen.iter().filter_map(|process| Some((process, amiss(process, &seen)?)));
    let each = each.map(|(process, finding)| {
        let subject = Some(format!("{}/{}", process.host, process.pid));
        Check { name: Name::Worker, subject, took, finding }
    });
    std::iter::once(check).chain(each).collect()
}

/// Who is there, and whether anybody does what is due.
fn at_work(overview: &Overview, ignored: Ignored, seen: &[Seen]) -> Finding {
    let Overview { now, workers, lapsed, last_ended, .. } = *overview;
    let start = "start `longshore up` or `longshore work`, or see in its log why it does not work";
    let last = last_ended.map_or_else(
        || "no job has ended yet".to_owned(),
        |at| format!("the last job ended {} ago", spoken(now.since(at))),
    );
    let there = there(seen);
    // One of an older version has no row, but leases.
    if workers == 0 && !seen.iter().any(Seen::runs_jobs) {
        if lapsed > 0 {
            let lapsed = counted(lapsed, "job");
            return Finding::failed(
                format!(
                    "{there}; {lapsed} left by a worker that died, and no other takes over; {last}"
                ),
                start,
            );
        }
        if let Ignored { count: count @ 1.., since: Some(since) } = ignored {
            let (count, since) = (counted(count, "job"), spoken(now.since(since)));
            return Finding::failed(
                format!("{there}; none runs jobs: {count} due, the first for {since}; {last}"),
                start,
            );
        }
        return Finding::warning(
            format!("{there}; none runs jobs, and none is due; {last}"),
            start,
        );
    }
    let versions: BTreeSet<_> =
        seen.iter().filter(|process| process.is_alive()).map(|process| &*process.version).collect();
    if versions.len() > 1 {
        let versions: Vec<_> = versions.into_iter().collect();
        return Finding::warning(
            format!("{there}, of the versions {}; {last}", versions.join(", ")),
            "they get on with each other, so that one can be restarted after another; restart those of the older version",
        );
    }
    Finding::ok(format!("{there}; {last}"))
}

/// `3 processes: 1 serve, 2 work`.
fn there(seen: &[Seen]) -> String {
    let mut roles: BTreeMap<&str, usize> = BTreeMap::new();
    for process in seen.iter().filter(|process| process.is_alive()) {
        *roles.entry(&process.role).or_default() += 1;
    }
    let count = match roles.values().sum() {
        0 => return "no process is there".to_owned(),
        1 => "1 process".to_owned(),
        count => format!("{count} processes"),
    };
    let roles: Vec<_> = roles.into_iter().map(|(role, count)| format!("{count} {role}")).collect();
    format!("{count}: {}", roles.join(", "))
}

/// What is wrong with one of them.
fn amiss(process: &Seen, all: &[Seen]) -> Option<Finding> {
    let ahead = process.clock_ahead_ms;
    match process.state() {
        State::Silent if !has_successor(process, all) => Some(Finding::warning(
            format!(
                "`{}` has been silent for {}, and did not end in order",
                process.role,
                spoken(process.now.since(process.seen_at))
            ),
            "see whether it runs, and in its log whether it reaches the database; its jobs are taken over, and after a \
             day it is forgotten",
        )),
        State::Running | State::Draining
            if Duration::from_millis(ahead.unsigned_abs()) > CLOCK_TOLERANCE =>
        {
            let apart = spoken(Duration::from_millis(ahead.unsigned_abs()));
            let side = if ahead > 0 { "ahead of" } else { "behind" };
            Some(Finding::warning(
                format!("its clock is {apart} {side} the database's"),
                "set the clock of its machine, by NTP: all that is stored goes by the database's, only times in its log by its own",
            ))
        }
        State::Running | State::Draining | State::Silent | State::Stopped => None,
    }
}

/// Whether a supervisor has put another in its place: one like it, on its host, that started after it fell silent.
fn has_successor(process: &Seen, all: &[Seen]) -> bool {
    all.iter().any(|other| {
        other.id != process.id
            && other.started_at >= process.seen_at
            && other.host == process.host
            && other.role == process.role
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::ProcessId;

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

    fn process(role: &str) -> Seen {
        Seen {
            id: ProcessId::mint(),
            role: role.to_owned(),
            host: "one".to_owned(),
            pid: 7,
            version: "1".to_owned(),
            clock_ahead_ms: 100,
            started_at: NOW.before(Duration::from_secs(600)),
            seen_at: NOW.before(Duration::from_secs(5)),
            draining_at: None,
            stopped_at: None,
            now: NOW,
        }
    }

    fn silent(role: &str) -> Seen {
        Seen { seen_at: NOW.before(Duration::from_secs(300)), ..process(role) }
    }

    #[test]
    fn a_worker_is_missed_and_only_where_it_would_have_had_work_that_is_a_failure() {
        let due = Ignored { count: 3, since: Some(NOW.before(Duration::from_secs(90))) };
        let lapsed = Overview { lapsed: 2, ..overview() };
        for nobody in [vec![], vec![process("serve")], vec![silent("work")]] {
            assert_eq!(at_work(&overview(), NOTHING, &nobody).verdict, Verdict::Warning);
            assert_eq!(at_work(&overview(), due, &nobody).verdict, Verdict::Failed);
            assert_eq!(at_work(&lapsed, NOTHING, &nobody).verdict, Verdict::Failed);
        }
        for role in ["up", "work", "another of a newer version"] {
            assert_eq!(at_work(&lapsed, due, &[process(role)]).verdict, Verdict::Ok);
        }
        // One that holds leases is there, with a row or without.
        assert_eq!(at_work(&Overview { workers: 1, ..lapsed }, due, &[]).verdict, Verdict::Ok);
    }

    #[test]
    fn they_are_counted_by_what_they_do_and_different_versions_are_a_warning() {
        let seen = [process("work"), process("serve"), process("work"), silent("work")];
        let finding = at_work(&overview(), NOTHING, &seen);
        assert_eq!(finding, Finding::ok("3 processes: 1 serve, 2 work; no job has ended yet"));
        let newer = Seen { version: "2".to_owned(), ..process("work") };
        let finding = at_work(&overview(), NOTHING, &[process("serve"), newer]);
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.message.contains("versions 1, 2"), "{}", finding.message);
        let left = Seen { version: "0".to_owned(), ..silent("work") };
        assert_eq!(at_work(&overview(), NOTHING, &[process("up"), left]).verdict, Verdict::Ok);
    }

    #[test]
    fn one_that_fell_silent_is_told_until_another_takes_its_place() {
        let (gone, well) = (silent("work"), process("work"));
        let all = [gone.clone(), well.clone()];
        assert!(amiss(&gone, &all).unwrap().message.contains("silent for 5m"));
        assert_eq!(amiss(&well, &all), None);
        let next = Seen { started_at: NOW.before(Duration::from_secs(60)), ..process("work") };
        assert_eq!(amiss(&gone, &[gone.clone(), next]), None);
        // It died before its second heartbeat: it is not its own successor.
        let brief = Seen { started_at: gone.seen_at, ..gone };
        assert!(amiss(&brief, std::slice::from_ref(&brief)).is_some());
        let stopped = Seen { stopped_at: Some(NOW), ..silent("work") };
        assert_eq!(amiss(&stopped, &[]), None);
    }

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        for (ahead, said) in [(7_000, "7s ahead of"), (-3_600_000, "1h behind")] {
            let off = Seen { clock_ahead_ms: ahead, ..process("work") };
            assert!(amiss(&off, &[]).unwrap().message.contains(said));
        }
        assert_eq!(amiss(&Seen { clock_ahead_ms: -4_000, ..process("work") }, &[]), None);
    }
}
