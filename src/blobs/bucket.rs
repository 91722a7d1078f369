//! An object store: S3 and what speaks its API, Google Cloud Storage, Azure.

mod abandoned;
mod read;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use object_store::BackoffConfig;
use object_store::ClientOptions;
use object_store::ObjectStore;
use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use secrecy::ExposeSecret as _;

use self::abandoned::Uploads;
use self::write::Room;
pub use self::write::Writer;
use super::BlobError;
use super::BlobKey;
use super::ByteStream;
use crate::clock::Timestamp;
use crate::config;
use crate::config::Cloud;

/// A store that says nothing for so long is given up. A part has to be through in this time, too.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);
/// A place in an object store.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Under the prefix.
    store: Arc<dyn ObjectStore>,
    room: Room,
    /// Where uploads in parts that were left behind have to be looked for.
    uploads: Option<Arc<Uploads>>,
}

impl Bucket {
    /// Reads the settings. Calls nobody.
    ///
    /// # Errors
    ///
    /// On settings that no call could succeed with.
    pub fn open(settings: &config::Blobs, bucket: &config::Bucket) -> Result<Self, BlobError> {
        let prefix = Path::from(bucket.prefix.as_str());
        let (store, uploads): (Arc<dyn ObjectStore>, _) = match bucket.cloud {
            Cloud::S3 => {
                let builder = s3(settings, &bucket.name);
                let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
                let store = Arc::new(builder.build()?);
                let uploads =
                    Uploads::of_s3(Arc::clone(&store), region, &prefix, &options(settings))?;
                (store, Some(uploads))
            }
            Cloud::Google => {
                let store = Arc::new(google(settings, &bucket.name).build()?);
                let uploads = Uploads::of_google(
                    Arc::clone(&store),
                    settings.endpoint.as_ref(),
                    &bucket.name,
                    &prefix,
                    &options(settings),
                )?;
                (store, Some(uploads))
            }
            // Blocks that were never committed are deleted by Azure itself after a week.
            Cloud::Azure => (Arc::new(azure(settings, &bucket.name).build()?), None),
        };
        Ok(Self {
            store: Arc::new(PrefixStore::new(store, prefix)),
            room: Room::default(),
            uploads: uploads.map(Arc::new),
        })
    }

    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    pub fn writer(&self, key: &BlobKey) -> Writer {
        Writer::new(Arc::clone(&self.store), self.room.clone(), key.object())
    }

    pub async fn read(&self, key: &BlobKey, range: Range<u64>) -> Result<ByteStream, BlobError> {
        read::read(Arc::clone(&self.store), key.object(), range).await
    }

    /// Calls off uploads in parts to which nothing was added since `before`; answers how many.
    pub async fn abort_abandoned(&self, before: Timestamp) -> Result<u64, BlobError> {
        match &self.uploads {
            Some(uploads) => uploads.abort_before(before).await,
            None => Ok(0),
        }
    }
}

fn options(settings: &config::Blobs) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(settings.allow_http)
        .with_connect_timeout(CONNECT)
        .with_read_timeout(SILENCE)
        // Of silence, not of the whole transfer.
        .with_timeout_disabled()
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: Duration::from_secs(20),
    }
}

fn s3(settings: &config::Blobs, bucket: &str) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new()
        .with_client_options(options(settings))
        .with_retry(retries())
        // Not everybody has it; here one object is deleted at a time.
        .with_disable_bulk_delete(true);
    for (name, value) in &settings.environment {
        let Ok(key) = name.to_ascii_lowercase().parse() else { continue };
        // What belongs together comes from one place.
        let is_overruled = match key {
            AmazonS3ConfigKey::AccessKeyId
            | AmazonS3ConfigKey::SecretAccessKey
            | AmazonS3ConfigKey::Token => settings.access_key_id.is_some(),
            AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint => {
                settings.endpoint.is_some()
            }
            _ => false,
        };
        if !is_overruled {
            builder = builder.with_config(key, value.expose_secret());
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let (Some(id), Some(secret)) = (&settings.access_key_id, &settings.secret_access_key) {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret.expose_secret());
    }
    builder.with_bucket_name(bucket)
}

fn google(settings: &config::Blobs, bucket: &str) -> GoogleCloudStorageBuilder {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_client_options(options(settings))
        .with_retry(retries());
    for (name, value) in &settings.environment {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value.expose_secret());
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint.as_str().trim_end_matches('/'));
    }
    builder.with_bucket_name(bucket)
}

fn azure(settings: &config::Blobs, container: &str) -> MicrosoftAzureBuilder {
    let mut builder =
        MicrosoftAzureBuilder::new().with_client_options(options(settings)).with_retry(retries());
    for (name, value) in &settings.environment {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.with_config(key, value.expose_secret());
        } else if name == "IDENTITY_ENDPOINT" {
            builder = builder.with_msi_endpoint(value.expose_secret());
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/').to_owned());
    }
    if let (Some(account), Some(key)) = (&settings.access_key_id, &settings.secret_access_key) {
        builder = builder.with_account(account).with_access_key(key.expose_secret());
    }
    builder.with_container_name(container)
}
