//! A whole installation for one test: sandbox, database, configuration, server.

use std::path::Path;
use std::path::PathBuf;

use longshore::sandbox::Sandbox;
use tempfile::TempDir;

use super::Client;
use super::Database;
use super::Process;
use super::database::Kind;

/// How an installation differs from the usual one: SQLite, one process, three models `a`, `b`, `c` at
/// the accounts of the same names, the owners `alice` and `bob`, leases of a second.
pub struct Options {
    pub kind: Kind,
    /// The configuration is this text, in front of the usual one's tables.
    pub extra: String,
    /// Settings of every provider.
    pub provider: String,
    pub lease: &'static str,
    pub drain: &'static str,
    /// The models, each at an account of the same name.
    pub models: &'static [&'static str],
    /// Whether the server runs the workers too.
    pub command: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Sqlite,
            extra: String::new(),
            provider: String::new(),
            lease: "1s",
            drain: "5s",
            models: &["a", "b", "c"],
            command: "up",
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
    // Last, so that everything in it has ended before it goes.
    folder: TempDir,
}

pub const ADMIN_KEY: &str = "admin-canary-1f6c";
pub const ALICE_KEY: &str = "alice-canary-88b2";
pub const BOB_KEY: &str = "bob-canary-40d7";
pub const PROVIDER_KEY: &str = "sk-provider-canary-7e19";

impl Env {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let database = Database::of(options.kind, folder.path()).await;
        std::fs::write(
            folder.path().join("longshore.toml"),
            configuration(&options, &sandbox, &database),
        )
        .unwrap();
        let (server, client) = start(folder.path(), options.command);
        Self { sandbox, database, server, client, options, folder }
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
        let (server, client) = start(&self.folder(), self.options.command);
        self.server = server;
        self.client.base = client.base;
    }

    /// Changes the text of the configuration, for what is started from now on.
    pub fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let path = self.folder().join("longshore.toml");
        let text = change(std::fs::read_to_string(&path).unwrap());
        std::fs::write(path, text).unwrap();
    }

    /// Another process beside the server, as `work`.
    pub fn also(&self, command: &str) -> Process {
        let mut process = Process::start(
            &self.folder(),
            &["--log-format", "json", command],
            &[("LONGSHORE_LOG", "debug,sqlx=warn,hyper=info,sea_orm=info")],
        );
        if command == "work" {
            process.logged("workers started");
        }
        process
    }

    /// The blobs of uploads that are in the store.
    pub fn blobs(&self) -> usize {
        count_files(&self.folder().join("blobs").join("uploads"))
    }
}

fn count_files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| entry.unwrap())
        .map(
            |entry| {
                if entry.file_type().unwrap().is_dir() { count_files(&entry.path()) } else { 1 }
            },
        )
        .sum()
}

fn start(folder: &Path, command: &str) -> (Process, Client) {
    let environment = [("LONGSHORE_LOG", "debug,sqlx=warn,hyper=info,sea_orm=info")];
    let mut server = Process::start(folder, &["--log-format", "json", command], &environment);
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
[auth]
admin_key = "{ADMIN_KEY}"
[[auth.keys]]
key = "{ALICE_KEY}"
owner = "alice"
[[auth.keys]]
key = "{BOB_KEY}"
owner = "bob"
[database]
url = "{url}"
[blobs]
url = "file://blobs"
[workers]
lease = "{lease}"
drain = "{drain}"
[retry]
base_delay = "50ms"
max_delay = "1s"
"#,
        extra = options.extra,
        url = database.url,
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
