//! What is left to be waited for once nothing is in the way any more: whether any of it is too far away, and then all of
//! it at once.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::fleet::Fleet;
use super::fleet::MODELS;
use super::history::History;
use super::rows::Rows;
use crate::support::Client;

/// How long everything may take to come to rest once nothing is in the way any more: less than what waits for an event
/// that it has missed (ten minutes, of a delete for the end of a batch).
const REST: Duration = Duration::from_secs(300);

/// Nothing waits for longer than it may, as it would by a clock that is off; before anything is brought on.
pub async fn check(rows: &Rows, history: &History) {
    let now = rows.now().await;
    let (minutes, hours) = (now + 10 * 60 * 1000, now + 25 * 60 * 60 * 1000);
    for (what, sql) in [
        (
            "a lane is paused for more than ten minutes",
            format!(
                "SELECT concat_ws(' ', name, pause_reason, paused_until - {now}, 'ms') FROM lanes \
                 WHERE paused_until > {minutes}"
            ),
        ),
        (
            "a job waits for more than a day",
            format!(
                "SELECT concat_ws(' ', id, kind, status, attempt, run_at - {now}, 'ms', error) FROM jobs \
                 WHERE finished_at IS NULL AND run_at > {hours}"
            ),
        ),
        (
            "a delete waits for a batch that has ended",
            format!(
                "SELECT concat_ws(' ', j.id, j.lane, j.attempt, j.run_at - {now}, 'ms') \
                 FROM jobs j JOIN mappings m ON m.delete_job_id = j.id \
                 WHERE j.status = 'retrying' AND j.run_at > {now} + 60000 \
                 AND (SELECT a.error FROM job_attempts a WHERE a.job_id = j.id ORDER BY epoch DESC LIMIT 1) IS NULL \
                 AND NOT EXISTS (SELECT 1 FROM batch_runs r WHERE r.mapping_id = m.id AND r.ended_at IS NULL)"
            ),
        ),
    ] {
        history.checked("waits compared");
        for row in rows.texts(&sql).await {
            history.violation(format_args!("{what}: {row}"));
        }
    }
}

/// Lets go of what the dead hold for the sake of their clients, as if half a minute had passed.
pub async fn release_keys(rows: &Rows) {
    rows.execute("UPDATE idempotency_keys SET held_until = 0 WHERE held_until IS NOT NULL").await;
}

/// Brings on what is minutes away until no job is left, and everything has come to its end. Dead letters of jobs that
/// outlived three workers are retried, as a person would, if it is known what those died of.
pub async fn come_to_rest(fleet: &mut Fleet, rows: &Rows, history: &History) {
    let client = fleet.clients().remove(0);
    let (begun, mut told) = (Instant::now(), Instant::now());
    let (mut retried, mut judged) = (0, BTreeSet::new());
    loop {
        for place in 0..fleet.members.len() {
            fleet.supervise(place);
        }
        for model in MODELS {
            fleet.sandbox.release(model);
        }
        bring_on(rows).await;
        judge_the_dead(fleet, rows, &mut judged, history).await;
        retried += retry_the_dead(&client, rows, history).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let left = rows.count("SELECT count(*) FROM jobs WHERE finished_at IS NULL").await;
        let unsettled = rows
            .count(
                "SELECT (SELECT count(*) FROM files WHERE status = 'uploaded') \
                 + (SELECT count(*) FROM batches WHERE ended_at IS NULL) \
                 + (SELECT count(*) FROM files WHERE deletion = 'pending') \
                 + (SELECT count(*) FROM sweeps WHERE finished_at IS NULL)",
            )
            .await;
        if left == 0 && unsettled == 0 {
            break;
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let sql = "SELECT concat(count(*), ' ', kind, ' ', status) FROM jobs WHERE finished_at IS NULL \
                       GROUP BY kind, status ORDER BY 1";
            println!("still there: {unsettled} things, {}", rows.texts(sql).await.join(", "));
        }
        if begun.elapsed() > REST {
            report_stuck(rows, history).await;
            break;
        }
    }
    history.faults("jobs that died three times, retried by hand", retried);
    println!("at rest after {:.1} s", begun.elapsed().as_secs_f64());
}

async fn bring_on(rows: &Rows) {
    // Never what is due, nor before it: that would take the turns of what waits for longer.
    rows.execute(
        "UPDATE jobs SET run_at = (extract(epoch from clock_timestamp()) * 1000)::bigint \
         WHERE kind IN ('verify_upload', 'deliver_webhook', 'submit_batch') AND status IN ('queued', 'retrying') \
         AND run_at > (extract(epoch from clock_timestamp()) * 1000)::bigint + 1000",
    )
    .await;
    // Eleven minutes after a create whose outcome is unknown: by then no request of it is under way any more, and here
    // none is since everything that held one back has let go. Not twice: each look counts from the one before.
    rows.execute(
        "UPDATE batch_runs SET unknown_since = unknown_since - 700000 \
         WHERE unknown_since > (extract(epoch from clock_timestamp()) * 1000)::bigint - 700000 \
         AND unknown_since < (extract(epoch from clock_timestamp()) * 1000)::bigint - 5000",
    )
    .await;
}

const DEAD: &str = "SELECT id::text FROM jobs WHERE status = 'failed' AND deaths >= 3";

/// A job may have lost its workers to what was done to them, and to nothing else.
async fn judge_the_dead(
    fleet: &Fleet,
    rows: &Rows,
    judged: &mut BTreeSet<String>,
    history: &History,
) {
    let harmed = fleet.harmed();
    for id in rows.texts(DEAD).await {
        if !judged.insert(id.clone()) {
            continue;
        }
        history.checked("dead letter explained");
        // Deaths of long ago may have been forgotten since: those that it failed for are the last.
        let sql = format!(
            "SELECT worker FROM job_attempts WHERE job_id = '{id}' AND outcome = 'died' \
             ORDER BY epoch DESC LIMIT 3"
        );
        let workers = rows.texts(&sql).await;
        for well in workers.iter().filter(|worker| !harmed.contains(*worker)) {
            history.violation(format_args!("job {id} failed: {well} died of nothing"));
        }
    }
}

async fn retry_the_dead(client: &Client, rows: &Rows, history: &History) -> u64 {
    let mut retried = 0;
    for id in rows.texts(DEAD).await {
        let path = format!("/v1/jobs/job_{id}/retry");
        let (status, body) =
            client.with_key(crate::support::ADMIN_KEY).post(&path, json!({})).await;
        match status {
            200 => retried += 1,
            // What it was for is over by other means.
            409 => {}
            503 => {}
            _ => history.violation(format_args!("retry of a dead letter: {status} {body}")),
        }
    }
    retried
}

async fn report_stuck(rows: &Rows, history: &History) {
    for (what, sql) in [
        (
            "a job is stuck",
            "SELECT concat_ws(' ', id, kind, status, lane, 'attempt', attempt, 'run_at', run_at, 'lease', lease_owner, \
             lease_until, error) FROM jobs WHERE finished_at IS NULL LIMIT 20",
        ),
        (
            "a file is stuck",
            "SELECT concat_ws(' ', f.id, filename, f.status, deletion, m.model, m.status, m.error, j.status) \
             FROM files f LEFT JOIN mappings m ON m.file_id = f.id LEFT JOIN jobs j ON j.id = m.job_id \
             WHERE f.status = 'uploaded' OR deletion = 'pending' LIMIT 20",
        ),
        (
            "a batch is stuck",
            "SELECT concat_ws(' ', b.id, b.status, r.id, r.model, r.status, r.waits_for, r.provider_batch_id, \
             r.provider_status, r.outcome, r.next_look_at, 'unknown since', r.unknown_since, r.looked_at, r.error, \
             j.status) FROM batches b JOIN batch_runs r ON r.batch_id = b.id LEFT JOIN jobs j ON j.id = r.job_id \
             WHERE b.ended_at IS NULL LIMIT 20",
        ),
        (
            "a sweep is stuck",
            "SELECT concat_ws(' ', id, status) FROM sweeps WHERE finished_at IS NULL LIMIT 20",
        ),
        (
            "a lane",
            "SELECT concat_ws(' ', name, paused_until, pause_reason, failures, probe_job) FROM lanes",
        ),
    ] {
        for row in rows.texts(sql).await {
            history.violation(format_args!("{what}: {row}"));
        }
    }
}
