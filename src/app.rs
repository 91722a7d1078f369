//! What every handler and every job works with, put together once at start.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use secrecy::ExposeSecret as _;
use secrecy::SecretString;
use sha2::Digest;
use sha2::Sha256;

use crate::blobs::Blobs;
use crate::clock::Clock;
use crate::config;
use crate::config::Config;
use crate::db::Db;
use crate::error::Error;
use crate::files::create::Destination;
use crate::files::edits::EditsCache;
use crate::installation;
use crate::installation::Installation;
use crate::jobs::Lane;
use crate::keys::Identity;
use crate::keys::Keys;
use crate::limits::backlog::Backlogs;
use crate::limits::requests::RequestLimits;
use crate::notices;
use crate::notices::Notices;
use crate::notices::Relay;
use crate::owners;
use crate::providers;
use crate::providers::Provider;
use crate::providers::openai;
use crate::traces::Traces;
use crate::webhooks::sender::Sender;
use crate::webhooks::vault::Vault;

/// The parts of the program. Cloned freely: thousands of requests that wait hold one each, so it is no larger than a pointer.
#[derive(Clone)]
pub struct App(Arc<Parts>);

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

#[derive(Clone)]
pub struct Parts {
    pub config: Arc<Config>,
    pub db: Db,
    pub blobs: Blobs,
    pub providers: Arc<Providers>,
    pub notices: Notices,
    pub keys: Keys,
    pub request_limits: RequestLimits,
    pub backlogs: Backlogs,
    pub clock: Clock,
    pub installation: Installation,
    pub edits: EditsCache,
    pub webhooks: Sender,
    /// For the secrets of webhooks. `None` where no key is configured for all processes.
    pub vault: Option<Vault>,
    /// None, unless by [`App::with_traces`].
    pub traces: Traces,
}

impl App {
    /// Connects to everything that the configuration names. The schema must be up to date.
    ///
    /// # Errors
    ///
    /// When the database or the blob store cannot be reached, or a provider's address is unusable.
    pub async fn open(config: Arc<Config>, db: Db) -> anyhow::Result<Self> {
        let clock = Clock::default();
        clock.set_by(&db).await?;
        let blobs = Blobs::open(&config.blobs)?;
        let installation = installation::ensure(&db, &blobs, clock.now()).await?;
        let relay = notices::redis::client(&config.redis)?.map(Relay::new);
        Ok(Self(Arc::new(Parts {
            providers: Arc::new(Providers::new(&config)?),
            notices: Notices::new(relay),
            keys: Keys::new(configured_keys(&config)),
            request_limits: RequestLimits::new(&config, &installation.id)?,
            backlogs: Backlogs::new(config.limits.max_pending_jobs_per_owner),
            edits: EditsCache::default(),
            webhooks: Sender::new(config.webhooks.allow_private_addresses),
            vault: Vault::open(&config)?,
            traces: Traces::default(),
            config,
            db,
            blobs,
            clock,
            installation,
        })))
    }

    /// The same with another way to the database.
    pub fn with_db(&self, db: Db) -> Self {
        Self(Arc::new(Parts { db, ..Parts::clone(self) }))
    }

    /// The same, with traces.
    pub fn with_traces(&self, traces: Traces) -> Self {
        Self(Arc::new(Parts { traces, ..Parts::clone(self) }))
    }

    /// The deployments that `names` mean, each once, in the order of the names.
    ///
    /// # Errors
    ///
    /// When a name is none of the configured models'.
    pub fn destinations(&self, names: &[String]) -> Result<Vec<Destination>, Error> {
        let mut found: Vec<Destination> = Vec::new();
        for name in names {
            let before = found.len();
            let mut is_known = false;
            for model in self.config.deployments_named(name) {
                is_known = true;
                let deployment_id = model.deployment_id();
                if !found.iter().any(|destination| destination.deployment_id == deployment_id) {
                    found.push(Destination {
                        deployment_id,
                        model: model.name.clone(),
                        provider: model.provider.clone(),
                        provider_model: model.model.clone(),
                    });
                }
            }
            if !is_known {
                found.truncate(before);
                return Err(self.unknown_model(name));
            }
        }
        Ok(found)
    }

    /// Whether every destination's provider takes a batch of this many requests and bytes.
    ///
    /// # Errors
    ///
    /// Names the first model that does not, and its limit.
    pub fn check_batch(
        &self,
        destinations: &[Destination],
        lines: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        for Destination { model, provider, .. } in destinations {
            let Some(Account { settings, .. }) = self.providers.get(provider) else { continue };
            let (most_lines, most_bytes) =
                (u64::from(settings.max_batch_requests.get()), settings.max_batch_bytes);
            let (code, message) = if lines > most_lines {
                let message = format!(
                    "the file has {lines} requests, but `{model}` takes {most_lines} in a batch; split it"
                );
                ("too_many_requests_in_batch", message)
            } else if bytes > most_bytes.0 {
                let message = format!(
                    "the file has {bytes} bytes, but `{model}` takes {most_bytes} in a batch; split it"
                );
                ("batch_too_large", message)
            } else {
                continue;
            };
            return Err(Error::Invalid { param: Some("file"), code: Some(code), message });
        }
        Ok(())
    }

    /// The configured models, in words, as many as one reads.
    pub fn known_models(&self) -> String {
        const MOST: usize = 50;

        let mut names: Vec<_> =
            self.config.models.iter().map(|model| format!("`{}`", model.name)).collect();
        names.dedup();
        if names.is_empty() {
            return "no model is configured (`[[models]]`)".to_owned();
        }
        let more = match names.len().saturating_sub(MOST) {
            0 => String::new(),
            more => format!(", and {more} more (`GET /v1/models`)"),
        };
        names.truncate(MOST);
        format!("configured: {}{more}", names.join(", "))
    }

    /// The error that names a model that is not configured, and those that are.
    pub fn unknown_model(&self, name: &str) -> Error {
        let known = self.known_models();
        let name: String = name.chars().take(200).collect();
        Error::Invalid {
            param: Some("target_model_names"),
            code: Some("model_not_found"),
            message: format!("no model is called `{name}`; {known}"),
        }
    }
}

fn configured_keys(config: &Config) -> Vec<(&SecretString, Identity)> {
    let admin = config
        .auth
        .admin_key
        .iter()
        .map(|key| (key, Identity { owner: owners::ADMIN.to_owned(), is_admin: true }));
    let others = config
        .auth
        .keys
        .iter()
        .map(|entry| (&entry.key, Identity { owner: entry.owner.clone(), is_admin: false }));
    admin.chain(others).collect()
}

/// The configured providers, by name.
pub struct Providers {
    by_name: BTreeMap<String, Account>,
}

/// One account at a provider: its driver and what the configuration says of it.
pub struct Account {
    pub driver: Arc<dyn Provider>,
    pub settings: config::Provider,
}

impl Account {
    /// Sets up the driver. Calls nobody.
    ///
    /// # Errors
    ///
    /// On settings that no call could succeed with.
    pub fn open(settings: &config::Provider) -> Result<Self, providers::BuildError> {
        let driver = openai::OpenAi::new(openai::Settings {
            name: settings.name.clone(),
            base_url: settings.base_url.to_string(),
            // Only a provider on this machine may go without a key.
            api_key: settings.api_key.clone().unwrap_or_else(|| SecretString::from("none")),
            timeout: settings.timeout,
        })?;
        Ok(Self { driver: Arc::new(driver), settings: settings.clone() })
    }

    pub fn lane(&self) -> Lane {
        Lane::of_provider(&self.settings.name)
    }

    /// The lanes of all jobs that call it.
    pub fn lanes(&self) -> [Lane; 3] {
        let name = &self.settings.name;
        [self.lane(), Lane::watching(name), Lane::ingestion(name)]
    }

    /// Tells one credential from another, so that a lane parked for one is let go with the next. It is
    /// a hash of a secret with much entropy, and is stored.
    pub fn credential(&self) -> String {
        let key = self.settings.api_key.as_ref().map_or("", |key| key.expose_secret());
        let digest = Sha256::new()
            .chain_update(self.settings.base_url.as_str())
            .chain_update([0])
            .chain_update(key)
            .finalize();
        data_encoding::HEXLOWER.encode(&digest[..16])
    }

    /// Whether a lost upload can be found again: by its marker, in a list.
    pub fn can_find_uploads(&self) -> bool {
        self.settings.mark_filenames && self.driver.capabilities().can_list_files
    }
}

impl Providers {
    fn new(config: &Config) -> Result<Self, providers::BuildError> {
        let mut by_name = BTreeMap::new();
        for settings in &config.providers {
            by_name.insert(settings.name.clone(), Account::open(settings)?);
        }
        Ok(Self { by_name })
    }

    pub fn get(&self, name: &str) -> Option<&Account> {
        self.by_name.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Account> {
        self.by_name.values()
    }
}
