//! Where the bytes of files are kept, and how an object store is reached.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::{Deserialize, Deserializer, Error};

use super::{
    deserializer::VALUE,
    duration,
    environment::Variables,
    secret,
    url::{self, refused_scheme},
};

/// `[blobs]`: where the bytes are. The keys below `keep` are for object stores; what is left out comes from
/// the usual variables of each cloud.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blobs {
    pub url: BlobsUrl,
    pub keep: Keep,
    /// Where the store is, if not at its cloud's own address.
    #[serde(deserialize_with = "url::http")]
    pub endpoint: Option<Url>,
    /// Of S3.
    #[serde(deserialize_with = "plain")]
    pub region: Option<String>,
    /// On Azure, the name of the account.
    #[serde(deserialize_with = "plain")]
    pub access_key_id: Option<String>,
    /// On Azure, the account's key.
    #[serde(deserialize_with = "secret::optional")]
    pub secret_access_key: Option<SecretString>,
    /// Whether the endpoint may be reached without TLS.
    pub allow_http: bool,
    /// The variables of the cloud that `url` names, as `AWS_REGION`.
    #[serde(skip)]
    pub environment: Vec<(String, SecretString)>,
}

impl Default for Blobs {
    fn default() -> Self {
        Self {
            url: BlobsUrl::Folder(PathBuf::from("data/blobs")),
            keep: Keep::File,
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            allow_http: false,
            environment: Vec::new(),
        }
    }
}

impl Blobs {
    /// Keeps the variables that are the cloud's own.
    pub(super) fn take_environment(&mut self, variables: &Variables) {
        let BlobsUrl::Bucket(bucket) = &self.url else { return };
        let cloud = bucket.cloud;
        let own = variables.iter().filter(|(name, value)| cloud.reads(name) && !value.is_empty());
        self.environment = own.map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    }

    /// A variable of the cloud's own.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.expose_secret())
    }
}

/// How long the bytes of an upload are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// As long as the file is not deleted.
    File,
    /// This long, and until every mapping is ready.
    For(Duration),
}

impl<'de> Deserialize<'de> for Keep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "file" {
            return Ok(Self::File);
        }
        match duration::parse(&text) {
            Ok(time) => Ok(Self::For(time)),
            Err(_) => Err(D::Error::custom(format_args!(
                "`{VALUE}` is neither \"file\" nor a time; write it like \"file\" or \"7d\""
            ))),
        }
    }
}

/// Where the bytes of files are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobsUrl {
    /// `file://…`, a folder; a relative one counts from the working directory.
    Folder(PathBuf),
    Bucket(Bucket),
}

/// A place in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub cloud: Cloud,
    /// On Azure, a container.
    pub name: String,
    /// What all keys begin with, without slashes at its ends; may be empty.
    pub prefix: String,
}

/// The object stores there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// And whatever speaks its API.
    S3,
    Google,
    Azure,
}

impl Cloud {
    fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Google => "gs",
            Self::Azure => "az",
        }
    }

    /// Whether this is one of its usual variables.
    fn reads(self, variable: &str) -> bool {
        match self {
            Self::S3 => variable.starts_with("AWS_"),
            Self::Google => variable.starts_with("GOOGLE_") || variable == "SERVICE_ACCOUNT",
            Self::Azure => variable.starts_with("AZURE_") || variable == "IDENTITY_ENDPOINT",
        }
    }
}

impl BlobsUrl {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const RIGHT: &str = "write it like \"file://data/blobs\", \"s3://bucket/prefix\", \"gs://bucket/prefix\" or \"az://container/prefix\"";

        let (cloud, place) = match text.split_once("://") {
            Some(("file", "")) => return Err(format!("`{VALUE}` names no folder; {RIGHT}")),
            Some(("file", folder)) => return Ok(Self::Folder(Path::new(folder).to_owned())),
            Some(("s3", place)) => (Cloud::S3, place),
            Some(("gs", place)) => (Cloud::Google, place),
            Some(("az", place)) => (Cloud::Azure, place),
            Some((scheme, _)) => return Err(format!("{}; {RIGHT}", refused_scheme(scheme))),
            None => return Err(format!("{}; {RIGHT}", refused_scheme(""))),
        };
        // Somebody may have written a key there, so it is not quoted.
        if place.contains(['@', '?', '#', ':']) {
            return Err(format!("only a bucket and a prefix have a place in this URL; {RIGHT}"));
        }
        let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_matches('/');
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(format!("`{VALUE}` names no bucket; {RIGHT}"));
        }
        // Each of these parts comes back from the store as it was written.
        let is_plain = |part: &str| !part.trim_matches('.').is_empty() && part.bytes().all(is_name);
        if !prefix.is_empty() && !prefix.split('/').all(is_plain) {
            return Err(format!(
                "the prefix of `{VALUE}` may hold letters, digits, `-`, `_`, `.`, and `/` between parts; {RIGHT}"
            ));
        }
        Ok(Self::Bucket(Bucket { cloud, name: name.to_owned(), prefix: prefix.to_owned() }))
    }
}

impl fmt::Display for BlobsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "file://{}", folder.display()),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.cloud.scheme(), self.name)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl<'de> Deserialize<'de> for BlobsUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A word without spaces; empty means none.
fn plain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err(D::Error::custom("holds a space or a line break; look for a stray one"));
    }
    Ok((!text.is_empty()).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_lie_in_a_folder_or_in_a_bucket() {
        assert_eq!(BlobsUrl::parse("file://data/blobs"), Ok(BlobsUrl::Folder("data/blobs".into())));
        assert_eq!(BlobsUrl::parse("file:///var/b"), Ok(BlobsUrl::Folder("/var/b".into())));
        assert_eq!(BlobsUrl::Folder("/var/b".into()).to_string(), "file:///var/b");
        for (text, cloud, name, prefix) in [
            ("s3://bucket", Cloud::S3, "bucket", ""),
            ("gs://my_bucket.com/a/b", Cloud::Google, "my_bucket.com", "a/b"),
            ("az://container/a", Cloud::Azure, "container", "a"),
        ] {
            let url = BlobsUrl::parse(text).unwrap();
            let (name, prefix) = (name.to_owned(), prefix.to_owned());
            assert_eq!(url, BlobsUrl::Bucket(Bucket { cloud, name, prefix }));
            assert_eq!(url.to_string(), text);
        }
        assert_eq!(BlobsUrl::parse("s3://bucket/a/").unwrap().to_string(), "s3://bucket/a");
        for wrong in [
            "s3://",
            "s3:///a",
            "s3://a b",
            "s3://bucket/../x",
            "s3://bucket/a//b",
            "s3://bucket/ä",
            "s3://key:secret@host/bucket",
            "az://c/p?sig=canary",
            "s4://bucket",
            "bucket",
        ] {
            let message = BlobsUrl::parse(wrong).unwrap_err();
            assert!(message.contains("write it like"), "{message}");
            assert!(!message.contains("canary") && !message.contains("secret"), "{message}");
        }
    }
}
