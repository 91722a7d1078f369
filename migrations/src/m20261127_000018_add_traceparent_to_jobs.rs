//! The place in a trace that a job goes on from: the request or the attempt that made it, as the W3C's `traceparent`.

crate::migration! {
    up: "
        ALTER TABLE jobs ADD COLUMN traceparent TEXT;
    ",
    down: "
        ALTER TABLE jobs DROP COLUMN traceparent;
    "
}
