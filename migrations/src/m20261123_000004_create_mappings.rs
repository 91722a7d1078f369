//! Mappings tie a file to its copy at one deployment; strays are copies that must go.

crate::migration! {
    up: "
        CREATE TABLE mappings (
            id {uuid} PRIMARY KEY NOT NULL,
            file_id {uuid} NOT NULL REFERENCES files (id),
            position INTEGER NOT NULL,
            deployment_id TEXT NOT NULL,
            model TEXT NOT NULL,
            provider TEXT NOT NULL,
            provider_model TEXT NOT NULL,
            marker TEXT NOT NULL UNIQUE,
            status TEXT NOT NULL CHECK (status IN ('pending', 'uploading', 'ready', 'failed', 'expired',
                'lost', 'deleting', 'deleted', 'undeletable')),
            provider_file_id TEXT,
            attempts INTEGER NOT NULL DEFAULT 0,
            error TEXT,
            job_id {uuid} NOT NULL,
            unknown_since BIGINT,
            looked_at BIGINT,
            ready_at BIGINT,
            expires_at BIGINT,
            deleted_at BIGINT,
            created_at BIGINT NOT NULL,
            UNIQUE (file_id, deployment_id),
            CHECK (status NOT IN ('ready', 'expired', 'lost') OR provider_file_id IS NOT NULL),
            CHECK (status NOT IN ('pending', 'uploading', 'failed') OR provider_file_id IS NULL),
            CHECK ((status = 'deleted') = (deleted_at IS NOT NULL)),
            CHECK (looked_at IS NULL OR unknown_since IS NOT NULL)
        );
        CREATE INDEX mappings_by_provider_file ON mappings (provider, provider_file_id)
            WHERE provider_file_id IS NOT NULL;
        CREATE INDEX mappings_failed ON mappings (job_id) WHERE status = 'failed';
        CREATE TABLE strays (
            id {uuid} PRIMARY KEY NOT NULL,
            mapping_id {uuid} NOT NULL REFERENCES mappings (id),
            provider TEXT NOT NULL,
            provider_file_id TEXT NOT NULL,
            reason TEXT NOT NULL,
            found_at BIGINT NOT NULL,
            condemned_at BIGINT,
            deleted_at BIGINT,
            CHECK (deleted_at IS NULL OR condemned_at IS NOT NULL),
            UNIQUE (provider, provider_file_id)
        );
        CREATE INDEX strays_by_mapping ON strays (mapping_id) WHERE deleted_at IS NULL;
    ",
    down: "DROP TABLE strays; DROP TABLE mappings;"
}
