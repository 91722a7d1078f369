//! A whole installation for one test: sandbox, database, configuration, server.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use longshore::sandbox::Sandbox;
use tempfile::TempDir;

use super::Client;
use super::Database;
use super::Disk;
use super::Process;
use super::database::Kind;

/// How an installation differs from the usual one: SQLite, one process, three models `a`, `b`, `c` at
/// the accounts of the same names, the owners `alice` and `bob`, leases of a second.
pub struct Options {
    pub kind: Kind,
    /// A database of the test's own server, where it is not a fresh one on the server of all tests.
    pub database: Option<String>,
    /// The configuration is this text, in front of the usual one's tables.
    pub extra: String,
    /// Settings of the section `server`.
    pub server: String,
    /// Settings of the section `database`, beside its URL.
    pub database_settings: String,
    /// Settings of the section `blobs`.
    pub blobs: String,
    /// Settings of every provider.
    pub provider: String,
    pub lease: &'static str,
    pub drain: &'static str,
    /// The models, each at an account of the same name.
    pub models: &'static [&'static str],
    /// Whether the server runs the workers too.
    pub command: &'static str,
    /// What the processes log.
    pub log: &'static str,
    /// How many files and sockets a process may have open, where that is not what the test may.
    pub descriptors: Option<u32>,
    /// What lies on a small disk of its own.
    pub small_disk: Option<SmallDisk>,
}

/// What lies on a small disk of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmallDisk {
    Blobs,
    /// Of SQLite.
    Database,
}

impl SmallDisk {
    fn folder(self) -> &'static str {
        match self {
            Self::Blobs => "blobs",
            Self::Database => "database",
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Sqlite,
            database: None,
            extra: String::new(),
            database_settings: String::new(),
            blobs: "url = \"file://blobs\"\n".to_owned(),
            provider: String::new(),
            lease: "1s",
            drain: "5s",
            models: &["a", "b", "c"],
            command: "up",
            server: String::new(),
            log: "debug,sqlx=warn,hyper=info,sea_orm=info",
            descriptors: None,
            small_disk: None,
        }
    }
}

impl Options {
    pub fn on(kind: Kind) -> Self {
        Self { kind, ..Self::default() }
    }
}

/// A running installation. Gone with the test.
pub struct Env {
    pub sandbox: Sandbox,
    pub database: Database,
    pub server: Process,
    /// With the key of `alice`.
    pub client: Client,
    pub options: Options,
    /// The small disk, if there is one. Behind the server, which has it open.
    disk: Option<Disk>,
    // Last, so that everything in it has ended before it goes.
    folder: TempDir,
}

pub const ADMIN_KEY: &str = "admin-canary-1f6c";
pub const ALICE_KEY: &str = "alice-canary-88b2";
pub const BOB_KEY: &str = "bob-canary-40d7";
/// On PostgreSQL; on SQLite the server makes one by itself.
pub const ENCRYPTION_KEY: &str = "Y2FuYXJ5LW9mLWVuY3J5cHRpb24ta2V5LTVkN2EtMDE=";
pub const PROVIDER_KEY: &str = "sk-provider-canary-7e19";

impl Env {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let disk = options.small_disk.map(|what| Disk::mount(&folder.path().join(what.folder())));
        let at = match options.small_disk {
            Some(what @ SmallDisk::Database) => folder.path().join(what.folder()),
            Some(SmallDisk::Blobs) | None => folder.path().to_path_buf(),
        };
        let database = match &options.database {
            Some(url) => Database::at(url),
            None => Database::of(options.kind, &at).await,
        };
        std::fs::write(
            folder.path().join("longshore.toml"),
            configuration(&options, &sandbox, &database),
        )
        .unwrap();
        let (server, client) = start(folder.path(), &options);
        Self { sandbox, database, server, client, options, disk, folder }
    }

    pub fn folder(&self) -> PathBuf {
        self.folder.path().to_path_buf()
    }

    /// A client with another of the keys.
    pub fn as_key(&self, key: &str) -> Client {
        self.client.with_key(key)
    }

    /// Starts the server again, after it was killed or has ended. The client follows it.
    pub fn restart(&mut self) {
        let (server, client) = start(&self.folder(), &self.options);
        self.server = server;
        self.client.base = client.base;
    }

    /// The small disk that the options asked for.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a small disk")
    }

    /// Changes the text of the configuration, for what is started from now on.
    pub fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let path = self.folder().join("longshore.toml");
        let text = change(std::fs::read_to_string(&path).unwrap());
        std::fs::write(path, text).unwrap();
    }

    /// Another process beside the server, as `work`.
    pub fn also(&self, command: &str) -> Process {
        let mut process = process(&self.folder(), &self.options, command);
        if command == "work" {
            process.logged("workers started");
        }
        process
    }

    /// Asserts that what was refused has left nothing: no row and no blob.
    pub async fn holds_nothing(&self) {
        for table in ["files", "mappings", "jobs", "events", "idempotency_keys"] {
            super::eventually(std::time::Duration::from_secs(5), async || {
                let count = self.database.count(&format!("SELECT COUNT(*) FROM {table}")).await;
                (count == 0).then_some(())
            })
            .await;
        }
        super::eventually(std::time::Duration::from_secs(5), async || {
            (self.blobs() == 0).then_some(())
        })
        .await;
    }

    /// The blobs of uploads that are in the store.
    pub fn blobs(&self) -> usize {
        self.blob_keys().len()
    }

    /// By their keys; what is not whole yet, too.
    pub fn blob_keys(&self) -> BTreeSet<String> {
        let store = self.folder().join("blobs");
        let mut keys = BTreeSet::new();
        for path in files_below(&store.join("uploads")) {
            keys.insert(path.strip_prefix(&store).unwrap().to_str().unwrap().to_owned());
        }
        keys
    }

    /// Makes every blob two hours old.
    pub fn age_blobs(&self) {
        let old = super::now() - Duration::from_secs(7200);
        for folder in ["uploads", "outputs"] {
            for path in files_below(&self.folder().join("blobs").join(folder)) {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(old).unwrap();
            }
        }
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
}

fn process(folder: &Path, options: &Options, command: &str) -> Process {
    let (arguments, environment) =
        (["--log-format", "json", command], [("LONGSHORE_LOG", options.log)]);
    match options.descriptors {
        None => Process::start(folder, &arguments, &environment),
        Some(most) => Process::start_with_descriptors(most, folder, &arguments, &environment),
    }
}

fn start(folder: &Path, options: &Options) -> (Process, Client) {
    let mut server = process(folder, options, options.command);
    let line = server.logged("listening on http://");
    let (_, rest) = line.split_once("listening on ").unwrap();
    let base = rest.split('"').next().unwrap();
    (server, Client::new(base, ALICE_KEY))
}

fn configuration(options: &Options, sandbox: &Sandbox, database: &Database) -> String {
    let mut text = format!(
        r#"{extra}
[server]
listen = "127.0.0.1:0"
max_file_bytes = "8MiB"
{server}
[auth]
admin_key = "{ADMIN_KEY}"
{encryption_key}
[[auth.keys]]
key = "{ALICE_KEY}"
owner = "alice"
[[auth.keys]]
key = "{BOB_KEY}"
owner = "bob"
[database]
url = "{url}"
{database_settings}
[blobs]
{blobs}
[workers]
lease = "{lease}"
drain = "{drain}"
[retry]
base_delay = "50ms"
max_delay = "1s"
"#,
        extra = options.extra,
        server = options.server,
        blobs = options.blobs,
        encryption_key = match options.kind {
            Kind::Sqlite => String::new(),
            Kind::Postgres => format!("encryption_key = \"{ENCRYPTION_KEY}\""),
        },
        url = database.url,
        database_settings = options.database_settings,
        lease = options.lease,
        drain = options.drain,
    );
    for model in options.models {
        let (base, provider) = (sandbox.base_url(model), &options.provider);
        let defaults = ["list_lag", "timeout", "requests_per_minute"]
            .into_iter()
            .zip(["\"200ms\"", "\"10s\"", "60000"])
            .filter(|(key, _)| !provider.contains(key))
            .map(|(key, value)| format!("{key} = {value}\n"))
            .collect::<String>();
        text.push_str(&format!(
            "[[providers]]\nname = \"at-{model}\"\nkind = \"openai\"\nbase_url = \"{base}\"\napi_key = \"{PROVIDER_KEY}\"\n\
             {defaults}{provider}\n[[models]]\nname = \"{model}\"\nprovider = \"at-{model}\"\nmodel = \"{model}-2026\"\n"
        ));
    }
    text
}
