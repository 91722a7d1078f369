//! Keys of clients: who a bearer token is. Those of the configuration live in memory, others as
//! hashes in the database.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use data_encoding::BASE32_NOPAD;
use rand::RngExt as _;
use sea_orm::ConnAcquireErr;
use sea_orm::ConnectionTrait;
use sea_orm::DbErr;
use sea_orm::FromQueryResult;
use sea_orm::Value;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use sha2::Digest;
use sha2::Sha256;
use tokio::sync::Semaphore;
use tokio::sync::SemaphorePermit;

use crate::clock::Timestamp;
use crate::db::Db;
use crate::db::statement;
use crate::error::Error;
use crate::ids::ApiKeyId;

/// A stored key is looked up again after this long, so a revoked one works no longer than that.
const TRUSTED_FOR: Duration = Duration::from_secs(5);
/// A key that is nobody's is believed to be so for as long.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);
const MAX_REMEMBERED: usize = 10_000;
/// Keys that are looked up for the first time at once: whoever makes up keys keeps no more of the database busy.
const STRANGERS: usize = 2;
/// How long one that finds more strangers before it waits for its turn.
const STRANGERS_PATIENCE: Duration = Duration::from_secs(1);

/// What tells keys apart without telling them.
pub type KeyHash = [u8; 32];

/// Whose a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub owner: String,
    pub is_admin: bool,
}

/// The keys that are known.
#[derive(Clone, Debug)]
pub struct Keys {
    configured: Arc<HashMap<KeyHash, Identity>>,
    remembered: Arc<Mutex<Remembered>>,
    strangers: Arc<Semaphore>,
}

/// What the database said of keys lately, and when.
#[derive(Debug, Default)]
struct Remembered {
    trusted: HashMap<KeyHash, (Instant, Identity)>,
    unknown: HashMap<KeyHash, Instant>,
}

pub fn hash(key: &str) -> KeyHash {
    Sha256::digest(key).into()
}

pub fn hash_of(key: &SecretString) -> KeyHash {
    hash(key.expose_secret())
}

impl Keys {
    /// With the keys of the configuration.
    pub fn new<'a>(configured: impl IntoIterator<Item = (&'a SecretString, Identity)>) -> Self {
        let configured = configured.into_iter().map(|(key, identity)| (hash_of(key), identity));
        Self {
            configured: Arc::new(configured.collect()),
            remembered: Arc::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
        }
    }

    pub fn has_configured(&self) -> bool {
        !self.configured.is_empty()
    }

    /// Whose `key` is. `None` when nobody's.
    ///
    /// # Errors
    ///
    /// When the database must be asked and cannot be.
    pub async fn identify(&self, db: &Db, key: &str) -> Result<Option<Identity>, DbErr> {
        // Comparing hashes in a table tells an attacker nothing about keys by its timing.
        let hash = hash(key);
        if let Some(identity) = self.configured.get(&hash) {
            return Ok(Some(identity.clone()));
        }
        let (known, is_stranger) = self.lock().of(&hash);
        if let Some(identity) = known {
            return Ok(identity);
        }
        // One that was known a moment ago does not queue up with those.
        let _turn = if is_stranger { Some(self.stranger().await?) } else { None };
        let found = find(db.read(), &hash).await?;
        self.lock().put(hash, found.clone());
        Ok(found)
    }

    async fn stranger(&self) -> Result<SemaphorePermit<'_>, DbErr> {
        let turn = tokio::time::timeout(STRANGERS_PATIENCE, self.strangers.acquire());
        match turn.await {
            Ok(turn) => Ok(turn.expect("nobody closes the semaphore")),
            Err(_) => Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)),
        }
    }

    /// Asks the database again for every stored key: one was revoked here.
    pub fn forget(&self) {
        *self.lock() = Remembered::default();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Remembered {
    /// What is known of a key, if it is still believed, and whether it was never seen to be anybody's.
    fn of(&self, hash: &KeyHash) -> (Option<Option<Identity>>, bool) {
        if let Some((since, identity)) = self.trusted.get(hash) {
            let is_believed = since.elapsed() < TRUSTED_FOR;
            return (is_believed.then(|| Some(identity.clone())), false);
        }
        let is_unknown = self.unknown.get(hash).is_some_and(|at| at.elapsed() < UNKNOWN_FOR);
        (is_unknown.then_some(None), true)
    }

    fn put(&mut self, hash: KeyHash, found: Option<Identity>) {
        match found {
            Some(identity) => {
                self.unknown.remove(&hash);
                if self.trusted.len() >= MAX_REMEMBERED {
                    self.trusted.clear();
                }
                self.trusted.insert(hash, (Instant::now(), identity));
            }
            None => {
                self.trusted.remove(&hash);
                if self.unknown.len() >= MAX_REMEMBERED {
                    self.unknown.clear();
                }
                self.unknown.insert(hash, Instant::now());
            }
        }
    }
}

/// A stored key, as lists show it.
#[derive(Clone, Debug, FromQueryResult)]
pub struct StoredKey {
    pub id: ApiKeyId,
    /// Its first characters, to recognise it by.
    pub hint: String,
    pub owner: String,
    pub is_admin: bool,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// Makes a key and stores its hash. The key itself is in the answer and nowhere else.
pub async fn create(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    identity: &Identity,
) -> Result<(StoredKey, SecretString), DbErr> {
    let mut bytes = [0; 20];
    rand::rng().fill(&mut bytes);
    let key = format!("lsk_{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase());
    let stored = StoredKey {
        id: ApiKeyId::mint(),
        hint: key.chars().take(8).collect(),
        owner: identity.owner.clone(),
        is_admin: identity.is_admin,
        created_at: now,
        revoked_at: None,
    };
    let sql = "INSERT INTO api_keys (id, hash, hint, owner, is_admin, created_at) VALUES ($1, $2, $3, $4, $5, $6)";
    let values: [Value; 6] = [
        stored.id.0.into(),
        hash(&key).to_vec().into(),
        stored.hint.clone().into(),
        stored.owner.clone().into(),
        stored.is_admin.into(),
        now.0.into(),
    ];
    tx.execute_raw(statement(tx, sql, values)).await?;
    Ok((stored, SecretString::from(key)))
}

async fn find(db: &impl ConnectionTrait, hash: &KeyHash) -> Result<Option<Identity>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        owner: String,
        is_admin: bool,
    }
    let sql = "SELECT owner, is_admin FROM api_keys WHERE hash = $1 AND revoked_at IS NULL";
    let row = Row::find_by_statement(statement(db, sql, [hash.to_vec().into()])).one(db).await?;
    Ok(row.map(|row| Identity { owner: row.owner, is_admin: row.is_admin }))
}

/// Every key that was ever stored, the newest first; at most 1,000.
pub async fn list(db: &impl ConnectionTrait) -> Result<Vec<StoredKey>, DbErr> {
    let sql = "SELECT id, hint, owner, is_admin, created_at, revoked_at FROM api_keys ORDER BY id DESC LIMIT 1000";
    StoredKey::find_by_statement(statement(db, sql, [])).all(db).await
}

/// Whether any key is stored that works.
pub async fn any(db: &impl ConnectionTrait) -> Result<bool, DbErr> {
    let sql = "SELECT 1 AS one FROM api_keys WHERE revoked_at IS NULL LIMIT 1";
    Ok(db.query_one_raw(statement(db, sql, [])).await?.is_some())
}

/// Revokes a key. `false` when there is none of that id, or it is revoked already.
pub async fn revoke(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    id: ApiKeyId,
) -> Result<bool, DbErr> {
    let sql = "UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
    let result = tx.execute_raw(statement(tx, sql, [id.0.into(), now.0.into()])).await?;
    Ok(result.rows_affected() == 1)
}

/// The name of an owner, checked.
///
/// # Errors
///
/// When it is empty, too long, or not printable.
pub fn check_owner(owner: &str) -> Result<String, Error> {
    let owner = owner.trim();
    if owner.is_empty() || owner.chars().count() > 255 || owner.chars().any(char::is_control) {
        return Err(Error::invalid("owner", "`owner` must be 1 to 255 printable characters"));
    }
    Ok(owner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_has_1_to_255_printable_characters_of_any_script() {
        assert_eq!(check_owner(" team ä ").unwrap(), "team ä");
        assert!(check_owner(&"ä".repeat(255)).is_ok());
        for owner in ["", "  ", "a\u{7}b", &"a".repeat(256)] {
            assert!(check_owner(owner).is_err(), "{owner}");
        }
    }
}
