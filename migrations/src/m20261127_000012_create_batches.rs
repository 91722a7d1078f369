//! Batches, their runs (one for each deployment), and the lines of what came back.
//!
//! `batch_outputs` is how far the ingestion of a file is: first its bytes, then its lines up to `indexed_to`.
//! The bodies of the lines stay in the blob store; `batch_results` says where each begins.

crate::migration! {
    up: "
        CREATE TABLE batches (
            id {uuid} PRIMARY KEY NOT NULL,
            managed_id TEXT NOT NULL,
            managed_id_hash {bytes} NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            input_file_id {uuid},
            input_file TEXT NOT NULL,
            endpoint TEXT NOT NULL,
            completion_window TEXT NOT NULL,
            metadata TEXT,
            output_expires_after BIGINT,
            is_imported BOOLEAN NOT NULL DEFAULT FALSE,
            retry_of {uuid} REFERENCES batches (id),
            status TEXT NOT NULL CHECK (status IN ('validating', 'in_progress', 'finalizing', 'completed', 'failed',
                'expired', 'cancelling', 'cancelled')),
            total BIGINT NOT NULL DEFAULT 0,
            completed BIGINT NOT NULL DEFAULT 0,
            failed BIGINT NOT NULL DEFAULT 0,
            usage TEXT,
            errors TEXT,
            output_file_id {uuid},
            error_file_id {uuid},
            request_id TEXT,
            created_at BIGINT NOT NULL,
            expires_at BIGINT,
            in_progress_at BIGINT,
            finalizing_at BIGINT,
            cancelling_at BIGINT,
            ended_at BIGINT,
            CHECK ((status IN ('completed', 'failed', 'expired', 'cancelled')) = (ended_at IS NOT NULL))
        );
        CREATE INDEX batches_by_owner ON batches (owner, id);
        CREATE INDEX batches_open_by_input ON batches (input_file_id) WHERE ended_at IS NULL AND input_file_id IS NOT NULL;
        CREATE INDEX batches_by_retry ON batches (retry_of) WHERE retry_of IS NOT NULL;
        CREATE TABLE batch_runs (
            id {uuid} PRIMARY KEY NOT NULL,
            batch_id {uuid} NOT NULL REFERENCES batches (id),
            position INTEGER NOT NULL,
            deployment_id TEXT NOT NULL,
            model TEXT NOT NULL,
            provider TEXT NOT NULL,
            provider_model TEXT NOT NULL,
            mapping_id {uuid},
            status TEXT NOT NULL CHECK (status IN ('validating', 'in_progress', 'finalizing', 'completed', 'failed',
                'expired', 'cancelling', 'cancelled', 'needs_attention')),
            marker TEXT UNIQUE,
            job_id {uuid},
            unknown_since BIGINT,
            looked_at BIGINT,
            waits_for TEXT CHECK (waits_for IN ('upload', 'capacity')),
            provider_batch_id TEXT,
            provider_status TEXT,
            outcome TEXT CHECK (outcome IN ('completed', 'failed', 'expired', 'cancelled')),
            provider_output_file_id TEXT,
            provider_error_file_id TEXT,
            answered BIGINT,
            total BIGINT NOT NULL DEFAULT 0,
            completed BIGINT NOT NULL DEFAULT 0,
            failed BIGINT NOT NULL DEFAULT 0,
            broken BIGINT NOT NULL DEFAULT 0,
            duplicates BIGINT NOT NULL DEFAULT 0,
            strangers BIGINT NOT NULL DEFAULT 0,
            usage TEXT,
            errors TEXT,
            error TEXT,
            output_file_id {uuid},
            error_file_id {uuid},
            next_look_at BIGINT,
            looks_alike INTEGER NOT NULL DEFAULT 0,
            refusals INTEGER NOT NULL DEFAULT 0,
            missed_since BIGINT,
            created_at BIGINT NOT NULL,
            submitted_at BIGINT,
            expires_at BIGINT,
            ended_at BIGINT,
            UNIQUE (batch_id, deployment_id),
            CHECK ((status IN ('completed', 'failed', 'expired', 'cancelled')) = (ended_at IS NOT NULL)),
            CHECK (looked_at IS NULL OR unknown_since IS NOT NULL),
            CHECK (next_look_at IS NULL OR (provider_batch_id IS NOT NULL AND outcome IS NULL))
        );
        CREATE UNIQUE INDEX batch_runs_by_provider_batch ON batch_runs (provider, provider_batch_id)
            WHERE provider_batch_id IS NOT NULL;
        CREATE INDEX batch_runs_to_look_at ON batch_runs (provider, next_look_at) WHERE next_look_at IS NOT NULL;
        CREATE INDEX batch_runs_by_mapping ON batch_runs (mapping_id) WHERE mapping_id IS NOT NULL AND ended_at IS NULL;
        CREATE INDEX batch_runs_waiting ON batch_runs (provider, id) WHERE waits_for = 'capacity';
        CREATE TABLE batch_outputs (
            run_id {uuid} NOT NULL REFERENCES batch_runs (id),
            source TEXT NOT NULL CHECK (source IN ('output', 'error')),
            provider_file_id TEXT NOT NULL,
            blob_key TEXT,
            bytes BIGINT,
            sha256 TEXT,
            missing_since BIGINT,
            indexed_to BIGINT NOT NULL DEFAULT 0,
            lines BIGINT NOT NULL DEFAULT 0,
            succeeded BIGINT NOT NULL DEFAULT 0,
            failed BIGINT NOT NULL DEFAULT 0,
            broken BIGINT NOT NULL DEFAULT 0,
            duplicates BIGINT NOT NULL DEFAULT 0,
            strangers BIGINT NOT NULL DEFAULT 0,
            usage TEXT,
            PRIMARY KEY (run_id, source),
            CHECK ((blob_key IS NULL) = (bytes IS NULL)),
            CHECK ((blob_key IS NULL) = (sha256 IS NULL))
        );
        CREATE INDEX batch_outputs_by_blob ON batch_outputs (blob_key) WHERE blob_key IS NOT NULL;
        CREATE TABLE batch_results (
            run_id {uuid} NOT NULL REFERENCES batch_runs (id),
            source TEXT NOT NULL CHECK (source IN ('output', 'error')),
            line BIGINT NOT NULL,
            custom_id TEXT,
            outcome TEXT NOT NULL CHECK (outcome IN ('succeeded', 'failed', 'broken')),
            problem TEXT CHECK (problem IN ('duplicate', 'stranger')),
            status_code INTEGER,
            begins_at BIGINT NOT NULL,
            length BIGINT NOT NULL,
            PRIMARY KEY (run_id, source, line),
            CHECK ((outcome = 'broken') = (custom_id IS NULL))
        );
        CREATE INDEX batch_results_by_custom_id ON batch_results (run_id, custom_id, line) WHERE custom_id IS NOT NULL;
        CREATE INDEX batch_results_by_outcome ON batch_results (run_id, source, outcome, line);
    ",
    down: "
        DROP TABLE batch_results;
        DROP TABLE batch_outputs;
        DROP TABLE batch_runs;
        DROP TABLE batches;
    "
}
