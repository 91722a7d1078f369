//! The vault: secrets that have to be read again are stored sealed, each to the endpoint that it is of.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use aws_lc_rs::aead::Aad;
use aws_lc_rs::aead::CHACHA20_POLY1305;
use aws_lc_rs::aead::LessSafeKey;
use aws_lc_rs::aead::NONCE_LEN;
use aws_lc_rs::aead::Nonce;
use aws_lc_rs::aead::UnboundKey;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rand::RngExt as _;
use secrecy::SecretString;

use crate::config::Config;
use crate::config::EncryptionKey;
use crate::db::sqlite_file;
use crate::ids::WebhookEndpointId;

/// Which key, and how: the first byte of what is sealed. Another key will have another number.
const VERSION: u8 = 1;

/// Where the key for stored secrets is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// `auth.encryption_key`.
    Configuration,
    /// A file beside the SQLite database, made at the first start.
    File(PathBuf),
    /// Nowhere: several processes share a database, and none may make up a key of its own.
    Nowhere,
}

impl KeyPlace {
    pub fn of(config: &Config) -> Self {
        if config.auth.encryption_key.is_some() {
            return Self::Configuration;
        }
        match sqlite_file(config.database.url.expose()) {
            Some(mut file) => {
                file.as_mut_os_string().push(".key");
                Self::File(file)
            }
            None => Self::Nowhere,
        }
    }
}

/// Seals and opens secrets.
#[derive(Clone, Debug)]
pub struct Vault {
    key: EncryptionKey,
}

/// What cannot be opened: it was sealed with another key, or to another endpoint, or is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a stored secret cannot be read; is `auth.encryption_key` another one than when it was stored?"
)]
pub struct Unreadable;

impl Vault {
    /// The vault with the key of the configuration, or with one that lies beside the database and is made where there
    /// is none yet. `None` where there is no place for one.
    ///
    /// # Errors
    ///
    /// When the file of the key cannot be read or made, or holds something else.
    pub fn open(config: &Config) -> anyhow::Result<Option<Self>> {
        if let KeyPlace::File(path) = KeyPlace::of(config)
            && !path.exists()
        {
            make_key(&path)
                .with_context(|| format!("cannot make the encryption key `{}`", path.display()))?;
        }
        Self::existing(config)
    }

    /// As [`Vault::open`], without making anything.
    ///
    /// # Errors
    ///
    /// When the file of the key cannot be read, or holds something else.
    pub fn existing(config: &Config) -> anyhow::Result<Option<Self>> {
        let key = match KeyPlace::of(config) {
            KeyPlace::Configuration => config.auth.encryption_key.clone(),
            KeyPlace::File(path) => key_in(&path)
                .with_context(|| format!("cannot use the encryption key `{}`", path.display()))?,
            KeyPlace::Nowhere => None,
        };
        Ok(key.map(|key| Self { key }))
    }

    /// What may be stored of a secret.
    pub fn seal(&self, of: WebhookEndpointId, secret: &str) -> anyhow::Result<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = rand::rng().random();
        let mut sealed = secret.as_bytes().to_vec();
        self.cipher()
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(of.0.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| anyhow::anyhow!("a secret could not be sealed"))?;
        let mut stored = vec![VERSION];
        stored.extend_from_slice(&nonce);
        stored.append(&mut sealed);
        Ok(stored)
    }

    /// The secret that was stored.
    ///
    /// # Errors
    ///
    /// When it was not sealed with this key, and to this endpoint.
    pub fn unseal(&self, of: WebhookEndpointId, stored: &[u8]) -> Result<SecretString, Unreadable> {
        let [VERSION, rest @ ..] = stored else { return Err(Unreadable) };
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Unreadable)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.cipher().open_in_place(nonce, Aad::from(of.0.as_bytes()), &mut sealed);
        let text = std::str::from_utf8(opened.map_err(|_| Unreadable)?).map_err(|_| Unreadable)?;
        Ok(text.into())
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, self.key.expose());
        LessSafeKey::new(key.expect("the key is as long as the cipher's"))
    }
}

/// The key in a file, if there is one.
fn key_in(path: &Path) -> anyhow::Result<Option<EncryptionKey>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
        Ok(text) => {
            let key = EncryptionKey::from_base64(&text);
            key.map(Some).context("it does not hold 32 bytes in base64")
        }
    }
}

/// Makes a key, unless another process was faster: whole, and on disk, before it has its name.
fn make_key(path: &Path) -> io::Result<()> {
    let key: [u8; 32] = rand::rng().random();
    let mut draft = path.to_path_buf();
    draft.as_mut_os_string().push(format!(".{}", uuid::Uuid::new_v4().simple()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = writeln!(file, "{}", BASE64_STANDARD.encode(key)).and_then(|()| file.sync_all());
    let named = written.and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        named => named,
    });
    std::fs::remove_file(&draft)?;
    named?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn vault(byte: u8) -> Vault {
        let key = EncryptionKey::from_base64(&BASE64_STANDARD.encode([byte; 32])).unwrap();
        Vault { key }
    }

    #[test]
    fn a_secret_is_read_again_with_its_key_and_of_its_endpoint_alone() {
        let (vault, of) = (vault(1), WebhookEndpointId::mint());
        let stored = vault.seal(of, "whsec_canary").unwrap();
        assert_eq!(vault.unseal(of, &stored).unwrap().expose_secret(), "whsec_canary");
        assert!(!String::from_utf8_lossy(&stored).contains("canary"));
        assert_ne!(stored, vault.seal(of, "whsec_canary").unwrap());
        assert!(self::vault(2).unseal(of, &stored).is_err());
        assert!(vault.unseal(WebhookEndpointId::mint(), &stored).is_err());
        for place in 0..stored.len() {
            let mut damaged = stored.clone();
            damaged[place] ^= 1;
            assert!(vault.unseal(of, &damaged).is_err(), "byte {place}");
            assert!(vault.unseal(of, &stored[..place]).is_err(), "{place} bytes");
        }
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("longshore.db.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let make = || {
                make_key(&path).unwrap();
                *key_in(&path).unwrap().unwrap().expose()
            };
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
        std::fs::write(&path, "not a key").unwrap();
        assert!(key_in(&path).is_err());
    }
}
