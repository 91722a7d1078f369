//! What providers told by their own webhooks: each event once, also one that came before the batch was known here.

crate::migration! {
    up: "
        CREATE TABLE provider_events (
            provider TEXT NOT NULL,
            event_id TEXT NOT NULL,
            provider_batch_id TEXT NOT NULL,
            received_at BIGINT NOT NULL,
            PRIMARY KEY (provider, event_id)
        );
        CREATE INDEX provider_events_by_batch ON provider_events (provider, provider_batch_id);
        CREATE INDEX provider_events_by_age ON provider_events (received_at);
        CREATE INDEX jobs_by_batch ON jobs (batch_id) WHERE batch_id IS NOT NULL;
    ",
    down: "
        DROP INDEX jobs_by_batch;
        DROP TABLE provider_events;
    "
}
