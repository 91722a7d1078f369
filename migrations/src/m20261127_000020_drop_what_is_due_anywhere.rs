//! `jobs_due` and `jobs_deliveries_due` told only that something was due somewhere; `jobs_due_by_lane` tells where. No
//! version that reads them was released.
//!
//! A migration of its own: what drops an index wants the table for itself, and must not hold it already, as what creates
//! one does.

crate::migration! {
    up: "
        DROP INDEX jobs_due;
        DROP INDEX jobs_deliveries_due;
    ",
    down: "
        CREATE INDEX jobs_deliveries_due ON jobs (run_at)
            WHERE event_id IS NOT NULL AND lease_until IS NULL AND finished_at IS NULL;
        CREATE INDEX jobs_due ON jobs (run_at) WHERE lease_owner IS NULL AND finished_at IS NULL;
    "
}
