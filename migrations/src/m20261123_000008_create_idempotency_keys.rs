//! Answers to creating requests, kept so that a repeated request gets the first answer again.
//!
//! `idempotency_key` is null for a request of an SDK that sent none.

crate::migration! {
    up: "
        CREATE TABLE idempotency_keys (
            id {uuid} PRIMARY KEY NOT NULL,
            owner TEXT NOT NULL,
            path TEXT NOT NULL,
            idempotency_key TEXT,
            fingerprint {bytes},
            holder TEXT,
            held_until BIGINT,
            response TEXT,
            created_at BIGINT NOT NULL,
            UNIQUE (owner, path, idempotency_key),
            CHECK ((holder IS NULL) = (held_until IS NULL)),
            CHECK ((holder IS NULL) = (response IS NOT NULL)),
            CHECK (response IS NULL OR fingerprint IS NOT NULL)
        );
        CREATE INDEX idempotency_keys_unanswered ON idempotency_keys (owner, path, fingerprint)
            WHERE idempotency_key IS NULL;
        CREATE INDEX idempotency_keys_held ON idempotency_keys (holder) WHERE holder IS NOT NULL;
        CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
    ",
    down: "DROP TABLE idempotency_keys;"
}
