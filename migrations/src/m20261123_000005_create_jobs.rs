//! The queue: durable jobs, and what became of each attempt.
//!
//! The partial indexes see live rows only, so that history costs a claim nothing. `jobs_due` is for who
//! asks when the next job is due: what waits is said in other words there, so that no planner takes one
//! for the other and reads the whole backlog.

crate::migration! {
    up: "
        CREATE TABLE jobs (
            id {uuid} PRIMARY KEY NOT NULL,
            kind TEXT NOT NULL,
            lane TEXT NOT NULL,
            rank INTEGER NOT NULL,
            owner TEXT NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('queued', 'running', 'retrying', 'succeeded', 'failed',
                'cancelled')),
            payload TEXT NOT NULL,
            model TEXT,
            epoch BIGINT NOT NULL DEFAULT 0,
            attempt INTEGER NOT NULL DEFAULT 0,
            max_attempts INTEGER NOT NULL,
            deaths INTEGER NOT NULL DEFAULT 0,
            run_at BIGINT NOT NULL,
            lease_owner TEXT,
            lease_until BIGINT,
            cancel_requested_at BIGINT,
            error TEXT,
            progress TEXT,
            file_id {uuid},
            batch_id {uuid},
            request_id TEXT,
            created_at BIGINT NOT NULL,
            started_at BIGINT,
            finished_at BIGINT,
            CHECK ((status = 'running') = (lease_owner IS NOT NULL)),
            CHECK ((status = 'running') = (lease_until IS NOT NULL)),
            CHECK ((status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
        );
        CREATE INDEX jobs_ready ON jobs (lane, rank, owner, run_at, id) WHERE status IN ('queued', 'retrying');
        CREATE INDEX jobs_due ON jobs (run_at) WHERE lease_owner IS NULL AND finished_at IS NULL;
        CREATE INDEX jobs_running ON jobs (lane, lease_until) WHERE status = 'running';
        CREATE INDEX jobs_leased ON jobs (lease_owner) WHERE status = 'running';
        CREATE INDEX jobs_finished ON jobs (status, finished_at) WHERE finished_at IS NOT NULL;
        CREATE INDEX jobs_by_owner ON jobs (owner, id);
        CREATE INDEX jobs_by_file ON jobs (file_id) WHERE file_id IS NOT NULL;
        CREATE TABLE job_attempts (
            job_id {uuid} NOT NULL,
            epoch BIGINT NOT NULL,
            attempt INTEGER NOT NULL,
            worker TEXT NOT NULL,
            outcome TEXT NOT NULL CHECK (outcome IN ('succeeded', 'retried', 'failed', 'cancelled',
                'handed_back', 'died')),
            error TEXT,
            started_at BIGINT NOT NULL,
            finished_at BIGINT NOT NULL,
            PRIMARY KEY (job_id, epoch)
        );
    ",
    down: "DROP TABLE job_attempts; DROP TABLE jobs;"
}
