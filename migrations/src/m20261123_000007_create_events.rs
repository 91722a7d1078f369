//! Events: every change of state that somebody may wait for, written with the change.
//!
//! Sequence numbers commit out of order on PostgreSQL; readers there go by (transaction id, number).

crate::migration! {
    up: "
        CREATE TABLE events (
            seq {serial},
            txid {txid},
            id {uuid} NOT NULL,
            owner TEXT NOT NULL,
            type TEXT NOT NULL,
            subject {uuid} NOT NULL,
            created_at BIGINT NOT NULL
        );
        CREATE INDEX events_in_order ON events (txid, seq);
        CREATE INDEX events_by_age ON events (created_at);
    ",
    down: "DROP TABLE events;"
}
