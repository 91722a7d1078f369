//! Deliveries: jobs that tell one endpoint of one event, once each.
//!
//! Endpoints take turns in their lane, so what waits and what runs is found by endpoint. All of these indexes hold
//! deliveries alone: other jobs pay nothing for them. Each says in words of its own what it holds, so that no planner
//! takes one that holds other jobs, or another of these, for it.

crate::migration! {
    up: "
        ALTER TABLE jobs ADD COLUMN event_id {uuid};
        ALTER TABLE jobs ADD COLUMN webhook_endpoint_id {uuid};
        CREATE UNIQUE INDEX jobs_deliveries ON jobs (event_id, webhook_endpoint_id)
            WHERE event_id IS NOT NULL AND webhook_endpoint_id IS NOT NULL;
        CREATE INDEX jobs_deliveries_ready ON jobs (webhook_endpoint_id, run_at, id)
            WHERE webhook_endpoint_id IS NOT NULL AND lease_until IS NULL AND finished_at IS NULL;
        CREATE INDEX jobs_deliveries_running ON jobs (webhook_endpoint_id)
            WHERE webhook_endpoint_id IS NOT NULL AND lease_until IS NOT NULL;
        CREATE INDEX jobs_deliveries_due ON jobs (run_at)
            WHERE event_id IS NOT NULL AND lease_until IS NULL AND finished_at IS NULL;
    ",
    down: "
        DROP INDEX jobs_deliveries_due;
        DROP INDEX jobs_deliveries_running;
        DROP INDEX jobs_deliveries_ready;
        DROP INDEX jobs_deliveries;
        ALTER TABLE jobs DROP COLUMN webhook_endpoint_id;
        ALTER TABLE jobs DROP COLUMN event_id;
    "
}
