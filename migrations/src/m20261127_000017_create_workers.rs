//! Workers: a row for each process, that it renews. No word is checked here: a newer version may have others, and an
//! older one beside it shows them as they are.

crate::migration! {
    up: "
        CREATE TABLE workers (
            id {uuid} PRIMARY KEY NOT NULL,
            role TEXT NOT NULL,
            host TEXT NOT NULL,
            pid BIGINT NOT NULL,
            version TEXT NOT NULL,
            clock_ahead_ms BIGINT NOT NULL,
            started_at BIGINT NOT NULL,
            seen_at BIGINT NOT NULL,
            draining_at BIGINT,
            stopped_at BIGINT,
            CHECK (stopped_at IS NULL OR draining_at IS NOT NULL)
        );
    ",
    down: "DROP TABLE workers;"
}
