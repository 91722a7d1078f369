//! Files with the certificates of an authority.

use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::de::{Deserialize, Deserializer, Error};

use super::deserializer::VALUE;

/// The path of a file in PEM that holds at least one certificate, and nothing that is none; empty means no file.
pub(super) fn authority<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<PathBuf>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(text);
    let content = std::fs::read(&path)
        .map_err(|error| D::Error::custom(format_args!("cannot read `{VALUE}`: {error}")))?;
    let mut known = RootCertStore::empty();
    let is_sound = CertificateDer::pem_slice_iter(&content)
        .all(|read| read.is_ok_and(|certificate| known.add(certificate).is_ok()));
    if is_sound && !known.is_empty() {
        Ok(Some(path))
    } else {
        Err(D::Error::custom(format_args!(
            "`{VALUE}` holds no certificate; name a file in PEM that begins with `-----BEGIN CERTIFICATE-----`"
        )))
    }
}
