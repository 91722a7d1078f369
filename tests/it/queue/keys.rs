//! Stored keys of clients.

use longshore::clock::Timestamp;
use longshore::ids::ApiKeyId;
use longshore::keys;
use longshore::keys::Identity;
use longshore::keys::Keys;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;

use super::on_both;
use crate::support::Queue;

on_both!(
    a_made_key_is_its_owners_until_it_is_revoked,
    a_configured_key_needs_no_database,
    a_key_is_stored_as_a_hash,
);

fn bob() -> Identity {
    Identity { owner: "bob".to_owned(), is_admin: false }
}

async fn make(queue: &Queue) -> (ApiKeyId, String) {
    let made =
        queue.write(|tx| Box::pin(async move { keys::create(tx, Timestamp(1), &bob()).await }));
    let (stored, key) = made.await;
    (stored.id, key.expose_secret().to_owned())
}

async fn a_made_key_is_its_owners_until_it_is_revoked(queue: Queue) {
    assert!(!keys::any(queue.db.read()).await.unwrap());
    let (id, key) = make(&queue).await;
    let known = Keys::new([]);
    assert_eq!(known.identify(&queue.db, &key).await.unwrap(), Some(bob()));
    assert_eq!(known.identify(&queue.db, "lsk_other").await.unwrap(), None);
    let revoke = async || queue.write(move |tx| Box::pin(keys::revoke(tx, Timestamp(2), id))).await;
    assert!(revoke().await);
    assert!(!revoke().await);
    // Where it was revoked, it ends at once; elsewhere, within seconds.
    known.forget();
    assert_eq!(known.identify(&queue.db, &key).await.unwrap(), None);
    assert!(!keys::any(queue.db.read()).await.unwrap());
    assert_eq!(keys::list(queue.db.read()).await.unwrap()[0].revoked_at, Some(Timestamp(2)));
}

async fn a_configured_key_needs_no_database(queue: Queue) {
    let key = SecretString::from("configured");
    let known = Keys::new([(&key, bob())]);
    queue.sql("DROP TABLE api_keys").await;
    assert_eq!(known.identify(&queue.db, "configured").await.unwrap(), Some(bob()));
    assert!(known.identify(&queue.db, "unknown").await.is_err());
}

async fn a_key_is_stored_as_a_hash(queue: Queue) {
    let (_, key) = make(&queue).await;
    let stored = keys::list(queue.db.read()).await.unwrap().remove(0);
    assert!(key.starts_with(&stored.hint) && stored.hint.len() < key.len() / 2);
    let cast = if queue.db.is_postgres() { "encode(hash, 'escape')" } else { "CAST(hash AS TEXT)" };
    let sql = format!("SELECT count(*) FROM api_keys WHERE {cast} LIKE '%lsk_%'");
    assert_eq!(queue.count(&sql).await, 0);
}
