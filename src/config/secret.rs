//! Secrets in settings. An empty string means that there is none.

use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::de::{Deserialize, Deserializer, Error};

/// The 32 bytes that encrypt what must be stored but read again. `Debug` hides them.
#[derive(Debug)]
pub struct EncryptionKey(SecretBox<[u8; 32]>);

impl EncryptionKey {
    /// The bytes, for the cipher.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }

    /// Reads padded standard base64; `None` for anything but 32 bytes of it.
    pub fn from_base64(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = BASE64_STANDARD.decode(text.trim()).ok()?.try_into().ok()?;
        Some(Self(SecretBox::new(Box::new(bytes))))
    }
}

impl Clone for EncryptionKey {
    fn clone(&self) -> Self {
        Self(SecretBox::new(Box::new(*self.expose())))
    }
}

pub(super) fn encryption_key<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<EncryptionKey>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let key = EncryptionKey::from_base64(&text);
    let message = "this is not 32 bytes in base64; make one with `openssl rand -base64 32`";
    key.map(Some).ok_or_else(|| D::Error::custom(message))
}

/// A secret that may be left out.
pub(super) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SecretString>, D::Error> {
    let text = String::deserialize(deserializer)?;
    check_characters::<D::Error>(&text)?;
    Ok((!text.is_empty()).then(|| text.into()))
}

/// A secret that may not.
pub(super) fn required<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SecretString, D::Error> {
    optional(deserializer)?
        .ok_or_else(|| D::Error::custom("is empty; set it, or take the entry out"))
}

/// Keys travel in headers, where a line break from a badly read file would surface much later.
fn check_characters<E: Error>(text: &str) -> Result<(), E> {
    if text.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err(E::custom(
            "holds a space or a line break, which no key does; look for a stray one",
        ));
    }
    Ok(())
}
