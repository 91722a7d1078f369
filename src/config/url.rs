//! Addresses of what Longshore talks to. None of them shows a password, in messages or in logs.

use std::{fmt, net::IpAddr};

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserialize, Deserializer, Error};

use super::deserializer::VALUE;

/// The URL of a database or of Redis, which may hold a password. `Debug` and `Display` hide it:
/// `postgres://user:***@host/db`.
#[derive(Clone)]
pub struct ConnectionUrl(SecretString);

impl ConnectionUrl {
    /// The whole URL with its password, for the client that connects.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What is before `://`, in lower case; empty where nothing is.
    pub fn scheme(&self) -> String {
        match self.expose().split_once("://") {
            Some((scheme, _)) => scheme.to_ascii_lowercase(),
            None => String::new(),
        }
    }
}

impl From<&str> for ConnectionUrl {
    fn from(url: &str) -> Self {
        Self(url.into())
    }
}

impl fmt::Display for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked(self.expose()))
    }
}

impl fmt::Debug for ConnectionUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// `url` with `***` for its password and for parameters named like one.
fn masked(url: &str) -> String {
    let (base, parameters) = match url.split_once('?') {
        // An `@` past the `?` belongs to a password that was not encoded; there are no parameters then.
        Some((base, parameters)) if !parameters.contains('@') => (base, Some(parameters)),
        _ => (url, None),
    };
    let user_starts = base.find("://").map_or(0, |colon| colon + "://".len());
    let (scheme, rest) = base.split_at(user_starts);
    let mut masked = scheme.to_owned();
    match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => masked.push_str(&format!("{name}:***@{host}")),
            None => masked.push_str(rest),
        },
        None => masked.push_str(rest),
    }
    for (index, parameter) in parameters.into_iter().flat_map(|all| all.split('&')).enumerate() {
        masked.push(if index == 0 { '?' } else { '&' });
        match parameter.split_once('=') {
            Some((name, _)) if name.to_ascii_lowercase().contains("pass") => {
                masked.push_str(&format!("{name}=***"));
            }
            _ => masked.push_str(parameter),
        }
    }
    masked
}

/// The database systems there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    Sqlite,
    Postgres,
}

/// Where the database is. Its scheme was checked.
#[derive(Clone)]
pub struct DatabaseUrl {
    kind: DatabaseKind,
    url: ConnectionUrl,
}

impl DatabaseUrl {
    /// Which system it names.
    pub fn kind(&self) -> DatabaseKind {
        self.kind
    }

    /// The whole URL with its password, for the client that connects.
    pub fn expose(&self) -> &str {
        self.url.expose()
    }

    /// # Errors
    ///
    /// Says what is wrong with the text, which it never shows.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = ConnectionUrl::from(text);
        let kind = match url.scheme().as_str() {
            "sqlite" => DatabaseKind::Sqlite,
            "postgres" | "postgresql" => DatabaseKind::Postgres,
            scheme => {
                let message = refused_scheme(scheme);
                return Err(format!(
                    "{message}; write it like \"sqlite://data/longshore.db\" or \"postgres://user:password@host/database\""
                ));
            }
        };
        Ok(Self { kind, url })
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.url, f)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Redis's URL; empty means none.
pub(super) fn redis<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ConnectionUrl>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let url = ConnectionUrl::from(text.as_str());
    match url.scheme().as_str() {
        "redis" | "rediss" => Ok(Some(url)),
        scheme => Err(D::Error::custom(format_args!(
            "{}; write it like \"redis://host:6379\", or \"rediss://…\" for TLS",
            refused_scheme(scheme)
        ))),
    }
}

/// Names the scheme alone: the rest of the URL may hold a password, and so may a text that is no URL.
pub(super) fn refused_scheme(scheme: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if scheme.is_empty() || scheme.len() > 16 || !scheme.bytes().all(plain) {
        return "this is not a URL with a scheme".to_owned();
    }
    format!("`{scheme}://` is not supported")
}

/// An `http` or `https` URL without credentials; empty means none.
pub(super) fn http<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    // A text with an `@` may hold a password, and is not quoted.
    let subject = if text.contains('@') { "this".to_owned() } else { format!("`{VALUE}`") };
    let wrong =
        format!("{subject} is not a web address; write it like \"https://api.example.com/v1\"");
    let url = Url::parse(&text).map_err(|_| D::Error::custom(&wrong))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(D::Error::custom(wrong));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(D::Error::custom(
            "a user or password has no place in this address; leave it out",
        ));
    }
    Ok(Some(url))
}

/// Whether `url` leads to this machine, where a key protects nothing.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_password_is_hidden_wherever_it_stands() {
        let shown = |url: &str| ConnectionUrl::from(url).to_string();
        assert_eq!(shown("postgres://user:canary@host/db"), "postgres://user:***@host/db");
        assert_eq!(shown("postgres://user:ca/na?ry@x#@host/db"), "postgres://user:***@host/db");
        assert_eq!(shown("redis://:canary@host:6379/1"), "redis://:***@host:6379/1");
        assert_eq!(shown("user:canary@host"), "user:***@host");
        assert_eq!(
            shown("postgres://host/db?user=me&Password=canary&sslmode=require"),
            "postgres://host/db?user=me&Password=***&sslmode=require"
        );
        assert_eq!(
            shown("sqlite://data/longshore.db?mode=rwc"),
            "sqlite://data/longshore.db?mode=rwc"
        );
        assert_eq!(shown("postgres://user@host/db"), "postgres://user@host/db");
        let debug = format!("{:?}", DatabaseUrl::parse("postgres://user:canary@host/db"));
        assert_eq!(debug, "Ok(\"postgres://user:***@host/db\")");
    }

    #[test]
    fn a_database_is_known_by_its_scheme() {
        let kind = |url| DatabaseUrl::parse(url).map(|url| url.kind());
        assert_eq!(kind("sqlite://data/longshore.db"), Ok(DatabaseKind::Sqlite));
        assert_eq!(kind("postgres://host/db"), Ok(DatabaseKind::Postgres));
        assert_eq!(kind("PostgreSQL://host/db"), Ok(DatabaseKind::Postgres));
        assert!(kind("mysql://host/db").unwrap_err().starts_with("`mysql://` is not supported;"));
        for secretive in ["canary", "user:canary@host://", ""] {
            let message = kind(secretive).unwrap_err();
            assert!(message.starts_with("this is not a URL with a scheme;"), "{message}");
        }
    }

    #[test]
    fn only_this_machine_is_loopback() {
        let loopback = |url| is_loopback(&Url::parse(url).unwrap());
        for url in
            ["http://127.0.0.1:1/v1", "http://[::1]/", "http://localhost:80", "http://a.localhost"]
        {
            assert!(loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1", "https://api.openai.com/v1", "http://localhost.example.com"]
        {
            assert!(!loopback(url), "{url}");
        }
    }

    proptest! {
        #[test]
        fn no_password_shows(
            user in "[a-z]{0,5}",
            password in "[ -~]{0,9}CANARY[ -~]{0,9}",
            parameters in "(\\?[a-z]=[a-z])?",
        ) {
            let url = format!("postgres://{user}:{password}@host/db{parameters}");
            let shown = format!("{:?}", ConnectionUrl::from(url.as_str()));
            prop_assert!(!shown.contains("CANARY"), "{}", shown);
        }
    }
}
