//! When the next job of each lane is due: one look tells a worker which of its lanes to enter, and how long to rest.

crate::migration! {
    up: "
        CREATE INDEX jobs_due_by_lane ON jobs (lane, run_at) WHERE lease_owner IS NULL AND finished_at IS NULL;
    ",
    down: "
        DROP INDEX jobs_due_by_lane;
    "
}
