//! Sweeps: the deletion of many files. How far one is lies in its row, so that it goes on where it stopped.

crate::migration! {
    up: "
        CREATE TABLE sweeps (
            id {uuid} PRIMARY KEY NOT NULL,
            owner TEXT NOT NULL,
            filter TEXT NOT NULL,
            is_dry_run BOOLEAN NOT NULL,
            job_id {uuid} NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
            matched BIGINT NOT NULL DEFAULT 0,
            deleted BIGINT NOT NULL DEFAULT 0,
            failed BIGINT NOT NULL DEFAULT 0,
            skipped BIGINT NOT NULL DEFAULT 0,
            matched_to {uuid},
            is_matched BOOLEAN NOT NULL DEFAULT FALSE,
            error TEXT,
            request_id TEXT,
            created_at BIGINT NOT NULL,
            started_at BIGINT,
            finished_at BIGINT,
            CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL)),
            CHECK (status <> 'queued' OR matched = 0)
        );
        CREATE INDEX sweeps_by_owner ON sweeps (owner, id);
        CREATE TABLE sweep_files (
            sweep_id {uuid} NOT NULL REFERENCES sweeps (id),
            file_id {uuid} NOT NULL,
            PRIMARY KEY (sweep_id, file_id)
        );
        CREATE TABLE sweep_lanes (
            sweep_id {uuid} NOT NULL REFERENCES sweeps (id),
            provider TEXT NOT NULL,
            queued_to {uuid},
            queued BIGINT NOT NULL DEFAULT 0,
            ended BIGINT NOT NULL DEFAULT 0,
            is_queued BOOLEAN NOT NULL DEFAULT FALSE,
            PRIMARY KEY (sweep_id, provider)
        );
    ",
    down: "DROP TABLE sweep_lanes; DROP TABLE sweep_files; DROP TABLE sweeps;"
}
