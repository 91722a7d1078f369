//! When the next job of each lane is due: one look tells a worker which of its lanes to enter, and how long to rest.
//!
//! It takes the place of `jobs_due` and `jobs_deliveries_due`, which told only that something was due somewhere. A
//! process of the version before goes on without them, at the cost of a slower look.

crate::migration! {
    up: "
        CREATE INDEX jobs_due_by_lane ON jobs (lane, run_at) WHERE lease_owner IS NULL AND finished_at IS NULL;
        DROP INDEX jobs_due;
        DROP INDEX jobs_deliveries_due;
    ",
    down: "
        CREATE INDEX jobs_deliveries_due ON jobs (run_at)
            WHERE event_id IS NOT NULL AND lease_until IS NULL AND finished_at IS NULL;
        CREATE INDEX jobs_due ON jobs (run_at) WHERE lease_owner IS NULL AND finished_at IS NULL;
        DROP INDEX jobs_due_by_lane;
    "
}
