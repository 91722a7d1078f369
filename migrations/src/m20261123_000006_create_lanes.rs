//! Lanes: what all workers together know of a provider: paused until when, why, and its rate budget.

crate::migration! {
    up: "
        CREATE TABLE lanes (
            name TEXT PRIMARY KEY NOT NULL,
            paused_until BIGINT,
            pause_reason TEXT CHECK (pause_reason IN ('rate_limit', 'outage', 'credential_rejected',
                'out_of_money', 'capacity', 'paused')),
            paused_at BIGINT,
            failures INTEGER NOT NULL DEFAULT 0,
            probe_job {uuid},
            credential TEXT,
            tokens DOUBLE PRECISION,
            refilled_at BIGINT,
            last_owner TEXT NOT NULL DEFAULT '',
            CHECK ((paused_until IS NULL) = (pause_reason IS NULL)),
            CHECK ((paused_at IS NULL) = (pause_reason IS NULL))
        );
    ",
    down: "DROP TABLE lanes;"
}
