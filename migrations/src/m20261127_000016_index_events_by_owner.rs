//! Who resumes a stream of events reads its owner's, and not everybody's.

crate::migration! {
    up: "CREATE INDEX events_by_owner ON events (owner, txid, seq);",
    down: "DROP INDEX events_by_owner;"
}
