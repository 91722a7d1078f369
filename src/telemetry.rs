//! Logs and metrics: tracing to standard error, Prometheus at `/metrics`.

use std::io::IsTerminal as _;
use std::sync::OnceLock;

use metrics_exporter_prometheus::Matcher;
use metrics_exporter_prometheus::PrometheusBuilder;
use metrics_exporter_prometheus::PrometheusHandle;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::app::App;
use crate::error::Error;
use crate::jobs::lanes;
use crate::jobs::store;

/// What log lines look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Pretty,
    Json,
}

/// Buckets of durations in seconds: from a commit to a long upload.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

// The `metrics` crate has one recorder for the process; this is the handle that reads it.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// Starts logging as `filter` says (`info` if it is empty), and counting.
///
/// # Errors
///
/// When the filter cannot be read, or it was started already.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = if filter.is_empty() { "info,sqlx=warn,sea_orm=warn" } else { filter };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow::anyhow!("`LONGSHORE_LOG`: `{filter}` is not a log filter: {error}")
    })?;
    let layer =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let layer = match format {
        LogFormat::Pretty => layer.with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(true).boxed(),
    };
    // The filter is for the whole registry: with a filter of a layer's own, a check of sqlx whether it
    // may log leaves the thread's next events swallowed.
    tracing_subscriber::registry().with(filter).with(layer).try_init()?;
    count()
}

/// Starts counting. Without it, what is counted goes nowhere.
///
/// # Errors
///
/// When another recorder was installed.
fn count() -> anyhow::Result<()> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .install_recorder()?;
    drop(RECORDER.set(handle));
    Ok(())
}

/// All metrics in Prometheus' text form.
pub fn render() -> String {
    RECORDER.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// Keeps the recorder's memory flat: histograms are folded now and then, whether somebody reads or not.
pub async fn upkeep() {
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(5));
    loop {
        ticks.tick().await;
        if let Some(recorder) = RECORDER.get() {
            recorder.run_upkeep();
        }
    }
}

/// Reads from the database what is a state and not a count: the queue's depth and age, the lanes.
///
/// # Errors
///
/// When the database cannot be read.
pub async fn observe(app: &App) -> Result<(), Error> {
    let now = app.clock.now();
    let depths = store::depths(app.db.scan()).await?;
    for kind in crate::jobs::Work::KINDS {
        for account in app.providers.iter() {
            let lane = account.lane().0;
            for status in ["waiting", "running"] {
                let depth = depths.iter().find(|depth| {
                    depth.kind == kind && depth.lane == lane && depth.status == status
                });
                let count = depth.map_or(0, |depth| depth.count);
                metrics::gauge!("longshore_jobs", "kind" => kind, "lane" => lane.clone(), "status" => status)
                    .set(count as f64);
                if status == "waiting" {
                    let age = depth.map_or(0.0, |depth| now.since(depth.oldest).as_secs_f64());
                    metrics::gauge!("longshore_oldest_job_age_seconds", "kind" => kind, "lane" => lane.clone())
                        .set(age);
                }
            }
        }
    }
    for lane in lanes::list(app.db.scan()).await? {
        for reason in lanes::PauseReason::ALL {
            let is_paused = lane.pause_reason.as_deref() == Some(reason.as_str());
            metrics::gauge!("longshore_lane_paused", "lane" => lane.name.clone(), "reason" => reason.as_str())
                .set(if is_paused { 1.0 } else { 0.0 });
        }
    }
    metrics::gauge!("longshore_waiters").set(app.notices.waiters() as f64);
    Ok(())
}
