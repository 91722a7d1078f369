//! Whether the secrets of webhooks can be read with the key that is configured.

use super::Finding;
use super::Opened;
use super::counted;
use super::database::remedy;
use crate::config::Config;
use crate::db::Db;
use crate::webhooks::store;
use crate::webhooks::store::Endpoint;
use crate::webhooks::vault::KeyPlace;
use crate::webhooks::vault::Vault;

/// How many are read.
const SAMPLE: u32 = 20;
const RESTORE: &str = "give it the key that they were stored with; where that is lost, `/rotate_secret` of each endpoint \
                       makes another secret";

pub async fn secrets(config: &Config, database: &Opened<Db>, has_schema: bool) -> Finding {
    let db = match database.for_check("database") {
        Ok(_) if !has_schema => return Finding::skipped("the schema is not up to date"),
        Ok(db) => db,
        Err(finding) => return finding,
    };
    let endpoints = match store::newest(db.read(), SAMPLE).await {
        Ok(endpoints) => endpoints,
        Err(error) => return Finding::failed(format!("cannot be listed: {error}"), remedy(&error)),
    };
    match (Vault::existing(config), KeyPlace::of(config)) {
        (Err(error), _) => Finding::failed(format!("{error:#}"), RESTORE),
        (Ok(Some(vault)), _) => with_key(&vault, &endpoints),
        (Ok(None), _) if !endpoints.is_empty() => {
            Finding::failed("there are some, and no key to read them with", RESTORE)
        }
        (Ok(None), KeyPlace::Nowhere) => Finding::ok(
            "there are none, and none can be made: `auth.encryption_key` is not configured",
        ),
        (Ok(None), _) => Finding::ok("there are none yet; the next start makes a key for them"),
    }
}

fn with_key(vault: &Vault, endpoints: &[Endpoint]) -> Finding {
    let is_unreadable = |endpoint: &&Endpoint| {
        let stored = endpoint.secret.as_deref().unwrap_or_default();
        vault.unseal(endpoint.id, stored).is_err()
    };
    match (endpoints.iter().filter(is_unreadable).count(), endpoints.len()) {
        (0, 0) => Finding::ok("there are none yet"),
        (0, total) => Finding::ok(format!("those of {} can be read", counted(total, "endpoint"))),
        (unreadable, total) => Finding::failed(
            format!("{unreadable} of {total} cannot be read with this key"),
            RESTORE,
        ),
    }
}
