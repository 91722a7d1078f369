//! Signatures of Standard Webhooks: what proves to a receiver who sent a message, and when.
//!
//! The signed text is `{id}.{timestamp}.{body}`; a header holds any number of signatures, `v1,{base64}` each, so that
//! a secret can be replaced while both are good.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rand::RngExt as _;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;

use crate::clock::Timestamp;

/// How far the time of a message may be from now, in either direction.
pub const TOLERANCE: Duration = Duration::from_secs(300);

const PREFIX: &str = "whsec_";
const VERSION: &str = "v1,";
/// Of a secret that is made here.
const SECRET_BYTES: usize = 32;

/// Makes a secret: `whsec_` and standard base64, which is what the official SDKs read.
pub fn new_secret() -> SecretString {
    let bytes: [u8; SECRET_BYTES] = rand::rng().random();
    format!("{PREFIX}{}", BASE64_STANDARD.encode(bytes)).into()
}

/// The end of a secret, by which its owner tells it from others.
pub fn hint(secret: &SecretString) -> String {
    let text = secret.expose_secret().trim_end_matches('=');
    let end: Vec<_> = text.chars().rev().take(4).collect();
    format!("{PREFIX}…{}", end.into_iter().rev().collect::<String>())
}

/// The value of `webhook-signature`: one signature with each secret.
pub fn sign<'s>(
    secrets: impl IntoIterator<Item = &'s SecretString>,
    id: &str,
    timestamp: i64,
    body: &[u8],
) -> String {
    let message = message(id, &timestamp.to_string(), body);
    let signatures = secrets.into_iter().filter_map(key).map(|key| {
        let tag = hmac::sign(&key, &message);
        format!("{VERSION}{}", BASE64_STANDARD.encode(tag))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

/// What a message came with, as its headers say.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'h> {
    pub id: &'h str,
    pub timestamp: &'h str,
    pub signature: &'h str,
}

/// Why a message is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forged {
    #[error("`webhook-timestamp` is not a time in Unix seconds")]
    NoTime,
    #[error("`webhook-timestamp` is more than 300 s old; is the clock right?")]
    TooOld,
    #[error("`webhook-timestamp` is more than 300 s ahead; is the clock right?")]
    TooNew,
    #[error(
        "no signature in `webhook-signature` is of this message with a secret that is known here"
    )]
    Unsigned,
}

/// Whether a message was signed with one of `secrets` just now. It takes as long for a signature that is nearly right
/// as for any other.
///
/// # Errors
///
/// Says what is wrong with it.
pub fn verify<'s>(
    secrets: impl IntoIterator<Item = &'s SecretString>,
    signed: Signed<'_>,
    body: &[u8],
    now: Timestamp,
) -> Result<(), Forged> {
    let sent: i64 = signed.timestamp.trim().parse().map_err(|_| Forged::NoTime)?;
    let (sent, now) =
        (Timestamp::from_unix_seconds(sent), Timestamp::from_unix_seconds(now.unix_seconds()));
    if now.since(sent) > TOLERANCE {
        return Err(Forged::TooOld);
    }
    if sent.since(now) > TOLERANCE {
        return Err(Forged::TooNew);
    }
    let given: Vec<Vec<u8>> = signed
        .signature
        .split_ascii_whitespace()
        .filter_map(|part| BASE64_STANDARD.decode(part.strip_prefix(VERSION)?).ok())
        .collect();
    let message = message(signed.id, signed.timestamp.trim(), body);
    let is_signed = secrets
        .into_iter()
        .filter_map(key)
        .any(|key| given.iter().any(|tag| hmac::verify(&key, &message, tag).is_ok()));
    if is_signed { Ok(()) } else { Err(Forged::Unsigned) }
}

/// The key that a secret stands for: what is behind the prefix is base64; without it, the text itself is the key.
/// `None` for one that is no key: nothing is signed with it.
fn key(secret: &SecretString) -> Option<hmac::Key> {
    let text = secret.expose_secret();
    let bytes = match text.strip_prefix(PREFIX) {
        Some(encoded) => BASE64_STANDARD.decode(encoded).ok()?,
        None => text.as_bytes().to_vec(),
    };
    (!bytes.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn message(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(id.len() + timestamp.len() + body.len() + 2);
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        message.extend_from_slice(part);
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A known answer, computed by another implementation of the scheme.
    const SECRET: &str = "whsec_K5zEqdtHHb6QDwn75GmvMO/dinQPk44yUSCQP7J0M50=";
    const ID: &str = "wh_vec1";
    const TIMESTAMP: i64 = 1_793_000_000;
    const BODY: &str = r#"{"id":"evt_vec1","object":"event","created_at":1793000000,"type":"batch.completed","data":{"id":"batch_6a41f09c77e84b1d"}}"#;
    const SIGNATURE: &str = "v1,uIi95EOVB31N5jkTZgs21be6W6CkOCnSBieyw+zvYfU=";

    fn verified(secrets: &[&str], signature: &str, body: &str, late: i64) -> Result<(), Forged> {
        let secrets: Vec<SecretString> = secrets.iter().map(|secret| (*secret).into()).collect();
        let timestamp = TIMESTAMP.to_string();
        let signed = Signed { id: ID, timestamp: &timestamp, signature };
        let now = Timestamp::from_unix_seconds(TIMESTAMP + late);
        verify(&secrets, signed, body.as_bytes(), now)
    }

    #[test]
    fn the_known_answer_is_given_and_taken() {
        assert_eq!(sign([&SECRET.into()], ID, TIMESTAMP, BODY.as_bytes()), SIGNATURE);
        assert_eq!(verified(&[SECRET], SIGNATURE, BODY, 0), Ok(()));
        assert_eq!(verified(&[SECRET], &format!("v1,AAAA {SIGNATURE}"), BODY, 0), Ok(()));
        let nearly = "v1,uIi95EOVB31N5jkTZgs21be6W6CkOCnSBieyw+zvAAA=";
        for forged in [
            "v1,AAAA",
            nearly,
            "",
            "v1,",
            "v1a,x",
            &SIGNATURE.replace("v1,", "v2,"),
            &SIGNATURE[3..],
        ] {
            assert_eq!(verified(&[SECRET], forged, BODY, 0), Err(Forged::Unsigned), "{forged}");
        }
    }

    #[test]
    fn a_message_is_good_for_five_minutes_in_either_direction() {
        for late in [-300, -1, 0, 300] {
            assert_eq!(verified(&[SECRET], SIGNATURE, BODY, late), Ok(()), "{late}");
        }
        assert_eq!(verified(&[SECRET], SIGNATURE, BODY, 301), Err(Forged::TooOld));
        assert_eq!(verified(&[SECRET], SIGNATURE, BODY, -301), Err(Forged::TooNew));
        for timestamp in ["", "x", "1793000000.5", "99999999999999999999"] {
            let signed = Signed { id: ID, timestamp, signature: SIGNATURE };
            let now = Timestamp::from_unix_seconds(TIMESTAMP);
            assert_eq!(
                verify([&SECRET.into()], signed, b"", now),
                Err(Forged::NoTime),
                "{timestamp}"
            );
        }
        let signed = Signed { id: ID, timestamp: "-9223372036854775808", signature: SIGNATURE };
        assert_eq!(verify([&SECRET.into()], signed, b"", Timestamp(i64::MAX)), Err(Forged::TooOld));
    }

    #[test]
    fn any_of_several_secrets_will_do_with_the_prefix_or_without() {
        assert_eq!(verified(&["whsec_AAAA", SECRET], SIGNATURE, BODY, 0), Ok(()));
        assert_eq!(verified(&["whsec_AAAA"], SIGNATURE, BODY, 0), Err(Forged::Unsigned));
        let plain = sign([&"plain".into()], ID, TIMESTAMP, BODY.as_bytes());
        assert_eq!(verified(&["plain"], &plain, BODY, 0), Ok(()));
        assert_eq!(verified(&["whsec_plain"], &plain, BODY, 0), Err(Forged::Unsigned));
        let both = sign([&SECRET.into(), &"plain".into()], ID, TIMESTAMP, BODY.as_bytes());
        for secret in [SECRET, "plain"] {
            assert_eq!(verified(&[secret], &both, BODY, 0), Ok(()));
        }
    }

    #[test]
    fn what_is_no_secret_signs_nothing() {
        for secret in ["", "whsec_", "whsec_%%%"] {
            assert_eq!(sign([&secret.into()], ID, TIMESTAMP, b"x"), "");
            assert_eq!(verified(&[secret], SIGNATURE, BODY, 0), Err(Forged::Unsigned));
        }
    }

    #[test]
    fn a_new_secret_is_standard_base64_and_told_by_its_end_alone() {
        let secret = new_secret();
        let text = secret.expose_secret();
        assert_eq!(BASE64_STANDARD.decode(&text["whsec_".len()..]).unwrap().len(), SECRET_BYTES);
        let hint = hint(&secret);
        assert_eq!(hint.strip_prefix("whsec_…").unwrap(), &text[text.len() - 5..text.len() - 1]);
    }

    proptest! {
        #[test]
        fn what_was_signed_is_taken_and_nothing_else(
            body in ".{0,200}", other in ".{0,200}", id in "[a-z_0-9]{1,40}", key in "[ -~]{1,60}",
        ) {
            let secret = SecretString::from(format!("k{key}"));
            let signature = sign([&secret], &id, TIMESTAMP, body.as_bytes());
            let timestamp = TIMESTAMP.to_string();
            let signed = Signed { id: &id, timestamp: &timestamp, signature: &signature };
            let now = Timestamp::from_unix_seconds(TIMESTAMP);
            prop_assert_eq!(verify([&secret], signed, body.as_bytes(), now), Ok(()));
            prop_assert_eq!(verify([&secret], signed, other.as_bytes(), now).is_ok(), body == other);
            let other_id = format!("{id}x");
            let renamed = Signed { id: &other_id, ..signed };
            prop_assert!(verify([&secret], renamed, body.as_bytes(), now).is_err());
        }
    }
}
