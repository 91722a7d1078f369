//! Whether every process is at work again, each by itself: one that is alive and does nothing is hidden by the others.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;

use super::fleet::Fleet;
use super::history::History;
use super::rows::Rows;
use crate::support::Client;
use crate::support::RawForm;

/// How long all of them may take to prove it.
const PROOF: Duration = Duration::from_secs(30);
/// How long an intake that has nothing else to do may take for one file.
const ANSWER: Duration = Duration::from_secs(5);
const UPLOADS_IN_A_ROUND: usize = 10;

/// Each intake takes a file itself, and each worker brings a job to its end.
pub async fn check(fleet: &Fleet, rows: &Rows, history: &History) {
    let intakes: Vec<(&str, Client)> = fleet
        .members
        .iter()
        .filter_map(|member| Some((member.name.as_str(), member.client()?)))
        .collect();
    let mut idle: BTreeSet<&str> = intakes.iter().map(|(name, _)| *name).collect();
    let mut workers: Vec<(&str, Option<String>)> = fleet
        .members
        .iter()
        .filter(|member| member.runs_jobs())
        .map(|member| (member.name.as_str(), member.worker()))
        .collect();
    let (begun, since) = (Instant::now(), rows.now().await);
    while begun.elapsed() < PROOF && !(idle.is_empty() && workers.is_empty()) {
        let uploads = intakes.iter().cycle().take(UPLOADS_IN_A_ROUND);
        let taken = join_all(uploads.map(|(name, intake)| async {
            let is_taken = upload(intake).await;
            is_taken.then_some(*name)
        }));
        for name in taken.await.into_iter().flatten() {
            if idle.remove(name) {
                history.checked("process at work again");
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let sql = format!(
            "SELECT DISTINCT worker FROM job_attempts WHERE started_at >= {since} AND outcome = 'succeeded'"
        );
        let at_work = rows.texts(&sql).await;
        workers.retain(|(_, worker)| {
            let is_at_work = worker.as_ref().is_some_and(|worker| at_work.contains(worker));
            if is_at_work {
                history.checked("process at work again");
            }
            !is_at_work
        });
    }
    for name in idle {
        history.violation(format_args!("{name} is there, and takes no file"));
    }
    for (name, worker) in workers {
        let worker = worker.unwrap_or_default();
        history.violation(format_args!("{name} ({worker}) is there, and runs no job"));
    }
}

async fn upload(intake: &Client) -> bool {
    let body = RawForm::new()
        .field("purpose", "user_data")
        .field("target_model_names", "a,b")
        .file("at-work.txt", b"at work\n")
        .end();
    let sent = intake.raw_upload(body).timeout(ANSWER).send().await;
    sent.is_ok_and(|answer| answer.status().is_success())
}
