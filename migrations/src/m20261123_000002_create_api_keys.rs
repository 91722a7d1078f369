//! Keys of clients. Only hashes are stored; `hint` is what a person recognises a key by.

crate::migration! {
    up: "
        CREATE TABLE api_keys (
            id {uuid} PRIMARY KEY NOT NULL,
            hash {bytes} NOT NULL UNIQUE,
            hint TEXT NOT NULL,
            owner TEXT NOT NULL,
            is_admin BOOLEAN NOT NULL,
            created_at BIGINT NOT NULL,
            revoked_at BIGINT
        );
    ",
    down: "DROP TABLE api_keys;"
}
