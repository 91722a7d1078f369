//! Reconciliations: comparisons of a provider's list with the mappings, and what each has found.

crate::migration! {
    up: "
        CREATE TABLE reconciliations (
            id {uuid} PRIMARY KEY NOT NULL,
            provider TEXT NOT NULL,
            job_id {uuid} NOT NULL,
            is_dry_run BOOLEAN NOT NULL,
            status TEXT NOT NULL CHECK (status IN ('queued', 'succeeded', 'failed')),
            report TEXT,
            error TEXT,
            created_at BIGINT NOT NULL,
            finished_at BIGINT,
            CHECK ((status = 'queued') = (finished_at IS NULL)),
            CHECK (status <> 'succeeded' OR report IS NOT NULL)
        );
        CREATE INDEX reconciliations_by_provider ON reconciliations (provider, id);
    ",
    down: "DROP TABLE reconciliations;"
}
