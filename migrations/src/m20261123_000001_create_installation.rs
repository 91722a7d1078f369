//! Who this database belongs to: the id that marks our objects at the providers.

crate::migration! {
    up: "
        CREATE TABLE installation (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            id TEXT NOT NULL,
            created_at BIGINT NOT NULL
        );
    ",
    down: "DROP TABLE installation;"
}
