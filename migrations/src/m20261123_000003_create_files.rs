//! Managed files. A deleted one stays as a tombstone, so that its id stays known.

crate::migration! {
    up: "
        CREATE TABLE files (
            id {uuid} PRIMARY KEY NOT NULL,
            managed_id TEXT NOT NULL,
            managed_id_hash {bytes} NOT NULL UNIQUE,
            owner TEXT NOT NULL,
            filename TEXT NOT NULL,
            content_type TEXT NOT NULL,
            purpose TEXT NOT NULL,
            bytes BIGINT NOT NULL CHECK (bytes >= 0),
            sha256 TEXT NOT NULL,
            lines BIGINT,
            metadata TEXT NOT NULL,
            blob_key TEXT,
            status TEXT NOT NULL CHECK (status IN ('uploaded', 'processed', 'error', 'deleted')),
            status_details TEXT,
            expires_at BIGINT,
            created_at BIGINT NOT NULL,
            deleted_at BIGINT,
            CHECK ((status = 'deleted') = (deleted_at IS NOT NULL))
        );
        CREATE INDEX files_by_owner ON files (owner, id) WHERE deleted_at IS NULL;
        CREATE INDEX files_by_blob ON files (blob_key) WHERE blob_key IS NOT NULL;
        CREATE INDEX files_by_expiry ON files (expires_at) WHERE deleted_at IS NULL AND expires_at IS NOT NULL;
    ",
    down: "DROP TABLE files;"
}
