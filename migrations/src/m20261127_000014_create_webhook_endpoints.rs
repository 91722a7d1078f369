//! Webhook endpoints: the URLs that an owner's events are sent to. Their secrets are sealed.
//!
//! The row of a deleted one stays for a while without its secrets: a list may go on behind it.

crate::migration! {
    up: "
        CREATE TABLE webhook_endpoints (
            id {uuid} PRIMARY KEY NOT NULL,
            owner TEXT NOT NULL,
            name TEXT NOT NULL,
            url TEXT NOT NULL,
            event_types TEXT NOT NULL,
            secret {bytes},
            secret_hint TEXT NOT NULL,
            previous_secret {bytes},
            previous_until BIGINT,
            status TEXT NOT NULL CHECK (status IN ('enabled', 'disabled', 'deleted')),
            disabled_reason TEXT CHECK (disabled_reason IN ('gone', 'failing', 'by_owner')),
            failing_since BIGINT,
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            deleted_at BIGINT,
            CHECK ((status = 'deleted') = (deleted_at IS NOT NULL)),
            CHECK ((status = 'deleted') = (secret IS NULL)),
            CHECK ((status = 'disabled') = (disabled_reason IS NOT NULL)),
            CHECK ((previous_secret IS NULL) = (previous_until IS NULL))
        );
        CREATE INDEX webhook_endpoints_by_owner ON webhook_endpoints (owner, id);
        CREATE INDEX webhook_endpoints_listening ON webhook_endpoints (owner) WHERE status = 'enabled';
        CREATE INDEX webhook_endpoints_deleted ON webhook_endpoints (deleted_at) WHERE deleted_at IS NOT NULL;
    ",
    down: "DROP TABLE webhook_endpoints;"
}
