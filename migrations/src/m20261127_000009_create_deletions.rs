//! What a deletion needs: how far each is, the receipt of each copy, and what is found by age.

crate::migration! {
    up: "
        ALTER TABLE files ADD COLUMN deletion TEXT CHECK (deletion IN ('pending', 'done', 'failed'));
        ALTER TABLE files ADD COLUMN sweep_id {uuid};
        CREATE INDEX files_by_sweep ON files (sweep_id, id) WHERE sweep_id IS NOT NULL;
        CREATE INDEX files_with_spent_blob ON files (deleted_at) WHERE deleted_at IS NOT NULL AND blob_key IS NOT NULL;
        ALTER TABLE mappings ADD COLUMN delete_job_id {uuid};
        ALTER TABLE mappings ADD COLUMN receipt TEXT;
        CREATE INDEX mappings_by_expiry ON mappings (expires_at) WHERE status = 'ready' AND expires_at IS NOT NULL;
        CREATE INDEX mappings_undeletable ON mappings (delete_job_id) WHERE status = 'undeletable';
    ",
    down: "
        DROP INDEX mappings_undeletable;
        DROP INDEX mappings_by_expiry;
        ALTER TABLE mappings DROP COLUMN receipt;
        ALTER TABLE mappings DROP COLUMN delete_job_id;
        DROP INDEX files_with_spent_blob;
        DROP INDEX files_by_sweep;
        ALTER TABLE files DROP COLUMN sweep_id;
        ALTER TABLE files DROP COLUMN deletion;
    "
}
