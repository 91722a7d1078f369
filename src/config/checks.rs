//! What no single setting can tell: settings that contradict each other, names that lead nowhere, doubles.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Duration,
};

use secrecy::ExposeSecret;

use super::{
    BlobsUrl, ByteSize, Cloud, Config, Model,
    problem::{KeyPath, Problem, quotable},
    tree::Node,
    url::{self, DatabaseKind},
};

const LONGEST_LEASE: Duration = Duration::from_hours(1);
/// Of what a process takes to end.
const LONGEST_ENDING: Duration = Duration::from_hours(1);
/// The most that an object in a store has in the parts that it is written in, of which there are 10,000 at most.
const LARGEST_OBJECT: u64 = 10_000 * crate::blobs::PART;

/// Checks `config`, which was read from `tree`, and adds what is wrong to `problems`.
///
/// Sections in which something is wrong already are left alone: half of them is missing.
pub(super) fn check(config: &Config, tree: &Node, problems: &mut Vec<Problem>) {
    let mut checks = Checks { config, tree, found: Vec::new() };
    let sound = |sections: &[&str]| {
        let touched = |name: &&str| problems.iter().any(|problem| problem.path.is_in_section(name));
        !sections.iter().any(touched)
    };
    if sound(&["auth"]) {
        checks.auth();
    }
    if sound(&["auth", "limits"]) {
        checks.requests_per_minute();
    }
    if sound(&["database", "redis"]) {
        checks.redis();
    }
    if sound(&["database"]) {
        checks.database();
    }
    if sound(&["blobs", "server"]) {
        checks.blobs();
    }
    if sound(&["workers"]) {
        checks.workers();
    }
    if sound(&["server", "workers"]) {
        checks.listeners();
    }
    if sound(&["retry"]) {
        checks.order(
            "retry",
            "base_delay",
            "max_delay",
            config.retry.base_delay,
            config.retry.max_delay,
        );
    }
    if sound(&["batches"]) {
        checks.order("batches", "poll", "poll_max", config.batches.poll, config.batches.poll_max);
    }
    if sound(&["providers"]) {
        checks.providers();
    }
    if sound(&["models"]) {
        checks.deployments();
    }
    if sound(&["providers", "models"]) {
        checks.models_of_unknown_providers();
    }
    if sound(&["server", "models"]) {
        checks.default_models();
    }
    problems.append(&mut checks.found);
}

/// What works, but hardly as it was meant.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let used: BTreeSet<&str> = config.models.iter().map(|model| model.provider.as_str()).collect();
    for provider in &config.providers {
        let name = &provider.name;
        if !used.contains(name.as_str()) {
            warnings.push(format!(
                "no model is at the provider `{name}`, so nothing is sent to it: add a `[[models]]` with `provider = \"{name}\"`"
            ));
        }
        if provider.base_url.scheme() == "http" && !url::is_loopback(&provider.base_url) {
            warnings.push(format!(
                "files and the key of the provider `{name}` travel unencrypted: its `base_url` is http://"
            ));
        }
    }
    if let Some(endpoint) = &config.telemetry.otlp_endpoint {
        if endpoint.port() == Some(4317) {
            warnings.push(
                "4317, the port of `telemetry.otlp_endpoint`, is where collectors take OTLP over gRPC; over HTTP, which \
                 is what is sent, they mostly take it at 4318"
                    .to_owned(),
            );
        }
        let is_open = endpoint.scheme() == "http" && !url::is_loopback(endpoint);
        if is_open && config.telemetry.otlp_headers.is_some() {
            warnings.push(
                "`telemetry.otlp_headers` travel unencrypted: `telemetry.otlp_endpoint` is http://"
                    .to_owned(),
            );
        }
    }
    if let Some(endpoint) = &config.blobs.endpoint
        && endpoint.scheme() == "http"
        && !url::is_loopback(endpoint)
    {
        warnings.push(
            "files travel unencrypted to the blob store: `blobs.endpoint` is http://".to_owned(),
        );
    }
    warnings
}

struct Checks<'a> {
    config: &'a Config,
    tree: &'a Node,
    found: Vec<Problem>,
}

impl Checks<'_> {
    fn report(&mut self, path: KeyPath, message: String) {
        self.found.push(Problem { place: self.tree.place_of(&path), path, message });
    }

    fn auth(&mut self) {
        let auth = &self.config.auth;
        let mut first_with: BTreeMap<&str, KeyPath> = BTreeMap::new();
        if let Some(admin_key) = &auth.admin_key {
            first_with.insert(admin_key.expose_secret(), KeyPath::section("auth").key("admin_key"));
        }
        for (index, key) in auth.keys.iter().enumerate() {
            let path = KeyPath::section("auth").key("keys").index(index).key("key");
            match first_with.entry(key.key.expose_secret()) {
                Entry::Vacant(entry) => {
                    entry.insert(path);
                }
                Entry::Occupied(first) => {
                    let message = format!(
                        "`{path}` is the same key as `{}`; each needs its own",
                        first.get()
                    );
                    self.report(path, message);
                }
            }
        }
    }

    fn requests_per_minute(&mut self) {
        const MOST: u64 = 1_000_000;

        let (auth, limits) = (&self.config.auth, &self.config.limits);
        let path = |section| KeyPath::section(section);
        let own = auth.keys.iter().enumerate().filter_map(|(index, key)| {
            let path = path("auth").key("keys").index(index).key("requests_per_minute");
            Some((path, key.requests_per_minute?))
        });
        let all = (path("limits").key("requests_per_minute"), limits.requests_per_minute);
        let too_many: Vec<_> = own.chain([all]).filter(|(_, limit)| *limit > MOST).collect();
        for (path, limit) in too_many {
            let message = format!(
                "`{path}`: `{limit}` is more than a limit can be; write at most {MOST}, or 0 for none"
            );
            self.report(path, message);
        }
    }

    fn redis(&mut self) {
        let Config { database, redis, .. } = self.config;
        if redis.url.is_some() && database.url.kind() == DatabaseKind::Sqlite {
            self.report(
                KeyPath::section("redis").key("url"),
                "`redis.url` is set and `database.url` is SQLite: Redis joins processes, SQLite does not; set `database.url` to a postgres:// one, or leave `redis.url` empty".to_owned(),
            );
        }
        let is_encrypted = redis.url.as_ref().is_some_and(|url| url.scheme() == "rediss");
        if redis.ca_file.is_some() && !is_encrypted {
            self.report(
                KeyPath::section("redis").key("ca_file"),
                "`redis.ca_file` is set, but `redis.url` is not a rediss:// one: nothing would be encrypted; change \
                 one of the two"
                    .to_owned(),
            );
        }
    }

    fn database(&mut self) {
        let settings = &self.config.database;
        if settings.max_connections.get() < 2 {
            self.report(
                KeyPath::section("database").key("max_connections"),
                "`database.max_connections`: one connection is too few: what a request writes would wait for what a \
                 worker reads; write at least 2"
                    .to_owned(),
            );
        }
        self.order(
            "database",
            "lock_timeout",
            "statement_timeout",
            settings.lock_timeout,
            settings.statement_timeout,
        );
    }

    fn blobs(&mut self) {
        let path = |key| KeyPath::section("blobs").key(key);
        let config = self.config;
        let blobs = &config.blobs;
        let given = [
            ("endpoint", blobs.endpoint.is_some()),
            ("region", blobs.region.is_some()),
            ("access_key_id", blobs.access_key_id.is_some()),
            ("secret_access_key", blobs.secret_access_key.is_some()),
            ("allow_http", blobs.allow_http),
        ];
        let cloud = match &blobs.url {
            BlobsUrl::Folder(_) => None,
            BlobsUrl::Bucket(bucket) => Some(bucket.cloud),
        };
        let (useless, why): (&[&str], _) = match cloud {
            None => (
                &["endpoint", "region", "access_key_id", "secret_access_key", "allow_http"],
                "is for object stores, and `blobs.url` is a folder",
            ),
            Some(Cloud::S3) => (&[], ""),
            Some(Cloud::Google) => (
                &["region", "access_key_id", "secret_access_key"],
                "is not for gs://, whose credentials come from `GOOGLE_APPLICATION_CREDENTIALS`",
            ),
            Some(Cloud::Azure) => (&["region"], "is not for az://"),
        };
        for (key, _) in given.iter().filter(|(key, is_set)| *is_set && useless.contains(key)) {
            self.report(path(key), format!("`blobs.{key}` {why}; take it out"));
        }
        let Some(cloud) = cloud else { return };
        // The one of the file and the other of the environment would hardly belong together.
        let (id, secret) = (blobs.access_key_id.is_some(), blobs.secret_access_key.is_some());
        if cloud != Cloud::Google && id != secret {
            let (there, lacking) = if id {
                ("access_key_id", "secret_access_key")
            } else {
                ("secret_access_key", "access_key_id")
            };
            self.report(
                path(there),
                format!(
                    "`blobs.{there}` is set and `blobs.{lacking}` is not; set both, or neither"
                ),
            );
        }
        let is_allowed = blobs.allow_http
            || ["AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP"]
                .iter()
                .any(|name| blobs.variable(name) == Some("true"));
        if let Some(endpoint) = &blobs.endpoint
            && endpoint.scheme() == "http"
            && !is_allowed
        {
            self.report(
                path("endpoint"),
                "`blobs.endpoint` is http://, without encryption; use https://, or set `blobs.allow_http` to true"
                    .to_owned(),
            );
        }
        if config.server.max_file_bytes.0 > LARGEST_OBJECT {
            self.report(
                KeyPath::section("server").key("max_file_bytes"),
                format!(
                    "`server.max_file_bytes` is {}, but an object in `{}` may have {}",
                    config.server.max_file_bytes,
                    blobs.url,
                    ByteSize(LARGEST_OBJECT)
                ),
            );
        }
    }

    fn workers(&mut self) {
        let workers = &self.config.workers;
        if !(Duration::from_secs(1)..=LONGEST_LEASE).contains(&workers.lease) {
            let shown = humantime::format_duration(workers.lease);
            self.report(
                KeyPath::section("workers").key("lease"),
                format!("`workers.lease`: `{shown}` is out of range; write something from \"1s\" to \"1h\""),
            );
        }
        if workers.drain > LONGEST_ENDING {
            let shown = humantime::format_duration(workers.drain);
            self.report(
                KeyPath::section("workers").key("drain"),
                format!(
                    "`workers.drain`: `{shown}` is too long for a shutdown; write at most \"1h\""
                ),
            );
        }
    }

    fn listeners(&mut self) {
        let (server, workers) = (&self.config.server, &self.config.workers);
        if server.drain_delay > LONGEST_ENDING {
            let shown = humantime::format_duration(server.drain_delay);
            self.report(
                KeyPath::section("server").key("drain_delay"),
                format!(
                    "`server.drain_delay`: `{shown}` is too long for a shutdown; write at most \"1h\""
                ),
            );
        }
        if let Some(listen) =
            workers.listen.filter(|listen| *listen == server.listen && listen.port() != 0)
        {
            self.report(
                KeyPath::section("workers").key("listen"),
                format!(
                    "`workers.listen` is `{listen}`, which `server.listen` is too; each needs an address of its own"
                ),
            );
        }
    }

    /// `lesser` must not be longer than `greater`. The problem is where one of them was written.
    fn order(&mut self, section: &str, lesser: &str, greater: &str, low: Duration, high: Duration) {
        if low <= high {
            return;
        }
        let path = |key| KeyPath::section(section).key(key);
        let written = |key| self.tree.holds(&path(key));
        let at = if written(lesser) { path(lesser) } else { path(greater) };
        let (low, high) = (humantime::format_duration(low), humantime::format_duration(high));
        self.report(
            at,
            format!("`{section}.{lesser}` is `{low}`, longer than `{section}.{greater}`, which is `{high}`; swap or change them"),
        );
    }

    fn providers(&mut self) {
        let mut first_with: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, provider) in self.config.providers.iter().enumerate() {
            let path = KeyPath::section("providers").index(index);
            let name = provider.name.as_str();
            let first = *first_with.entry(name).or_insert(index);
            if first != index {
                self.report(
                    path.clone().key("name"),
                    format!(
                        "`{path}.name`: `providers[{first}]` is named `{name}` too; each needs a name of its own"
                    ),
                );
            }
            if provider.api_key.is_none() && !url::is_loopback(&provider.base_url) {
                self.report(
                    path.key("api_key"),
                    format!(
                        "the provider `{name}` has no `api_key`; set it: only one on this machine can do without"
                    ),
                );
            }
        }
    }

    fn deployments(&mut self) {
        let mut first_of: BTreeMap<(&str, &str, &str), usize> = BTreeMap::new();
        let mut first_with: BTreeMap<String, usize> = BTreeMap::new();
        for (index, model) in self.config.models.iter().enumerate() {
            let Model { name, provider, model: at_provider, .. } = model;
            let path = KeyPath::section("models").index(index);
            let first = *first_of.entry((name, provider, at_provider)).or_insert(index);
            if first != index {
                let provider = quotable(provider);
                self.report(
                    path,
                    format!(
                        "model `{name}` is listed twice, both as `{at_provider}` of the provider `{provider}`; take out this one or `models[{first}]`"
                    ),
                );
                continue;
            }
            let id = model.deployment_id();
            let first = *first_with.entry(id).or_insert(index);
            if first != index {
                let id = model.deployment_id();
                self.report(
                    path.key("id"),
                    format!(
                        "model `{name}` has the id `{id}`, which `models[{first}]` has too; each needs an id of its own"
                    ),
                );
            }
        }
    }

    fn models_of_unknown_providers(&mut self) {
        let providers = self.config.providers.iter().map(|provider| provider.name.as_str());
        let known: BTreeSet<&str> = providers.collect();
        for (index, model) in self.config.models.iter().enumerate() {
            if !known.contains(model.provider.as_str()) {
                let (name, provider) = (&model.name, quotable(&model.provider));
                let known = listed(&known);
                self.report(
                    KeyPath::section("models").index(index).key("provider"),
                    format!("model `{name}` names the provider `{provider}`, which is not configured; configured: {known}"),
                );
            }
        }
    }

    fn default_models(&mut self) {
        let known: BTreeSet<&str> =
            self.config.models.iter().map(|model| model.name.as_str()).collect();
        for (index, name) in self.config.server.default_models.iter().enumerate() {
            if !known.contains(name.as_str()) {
                let (name, known) = (quotable(name), listed(&known));
                self.report(
                    KeyPath::section("server").key("default_models").index(index),
                    format!("`server.default_models` names the model `{name}`, which is not configured; configured: {known}"),
                );
            }
        }
    }
}

fn listed(names: &BTreeSet<&str>) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().copied().collect::<Vec<_>>().join(", ")
}
