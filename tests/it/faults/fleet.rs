//! The machines: processes of the real binary, each with a network of its own to the servers that all of them share,
//! and a supervisor that starts what has ended.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use longshore::sandbox::BatchSettings;
use longshore::sandbox::Sandbox;
use longshore::sandbox::Settings;
use serde_json::Value;
use tempfile::TempDir;

use super::history::History;
use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::ENCRYPTION_KEY;
use crate::support::PROVIDER_KEY;
use crate::support::Postgres;
use crate::support::Process;
use crate::support::Proxy;
use crate::support::Redis;
use crate::support::free_port;

const SIGTERM: i32 = 15;

pub const MODELS: [&str; 2] = ["a", "b"];
pub const LEASE: Duration = Duration::from_secs(2);
pub const DRAIN: Duration = Duration::from_secs(3);
/// More than `workers.drain` that a process may take to end, of which 2 s are promised; the rest is what the debug build
/// and everybody else on two cores cost.
pub const END_MARGIN: Duration = Duration::from_secs(5);
/// The place of the first process that runs jobs; before it are those that only take them.
pub const FIRST_WORKER: usize = 2;
const DATABASE: &str = "postgres";
/// Within the `list_lag` of the configuration: whoever looks twice at once, or by a clock of its own, misses a copy.
const LIST_LAG_MS: u64 = 150;
/// Of four or fewer that a batch goes through: long enough for cancels, deletes and faults to meet it in each.
const BATCH_PHASE_MS: u64 = 1200;
/// Of the lines of a batch.
const FAILING_PERCENT: u8 = 10;
/// How long a process may take to start while all that it needs is there.
const START: Duration = Duration::from_secs(60);

/// A process, on a machine of its own as far as it can tell.
pub struct Member {
    pub name: String,
    command: &'static str,
    listen: u16,
    /// How far its clock is ahead of the others', in seconds.
    pub clock_ahead: i64,
    pub to_postgres: Proxy,
    pub to_redis: Proxy,
    process: Option<Process>,
    /// Whether its present process was killed, frozen, or kept from the database.
    is_harmed: bool,
    /// The ids that those before it ran jobs as to which that happened.
    harmed: Vec<String>,
    /// What processes of this name have logged before this one.
    past: Vec<String>,
}

/// All of them, and what they share.
pub struct Fleet {
    pub members: Vec<Member>,
    pub postgres: Postgres,
    pub redis: Redis,
    pub sandbox: Sandbox,
    /// The network between all of them and the providers.
    pub to_providers: Proxy,
    clock: PathBuf,
    folder: TempDir,
}

impl Fleet {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = compile_clock(folder.path());
        let (postgres, redis) =
            tokio::task::block_in_place(|| (Postgres::running(), Redis::running()));
        let sandbox = Sandbox::bind(([127, 0, 0, 1], 0).into()).unwrap();
        for model in MODELS {
            let batches = BatchSettings {
                phase_ms: BATCH_PHASE_MS,
                failing_percent: FAILING_PERCENT,
                ..BatchSettings::default()
            };
            let settings = Settings { list_lag_ms: LIST_LAG_MS, batches, ..Settings::default() };
            sandbox.configure(model, settings);
        }
        let to_providers = Proxy::before(sandbox.local_addr().port());
        std::fs::write(folder.path().join("longshore.toml"), configuration(to_providers.port))
            .unwrap();
        let member = |name: &str, command| Member {
            name: name.to_owned(),
            command,
            listen: free_port(),
            clock_ahead: 0,
            to_postgres: Proxy::before(postgres.port),
            to_redis: Proxy::before(redis.port),
            process: None,
            is_harmed: false,
            harmed: Vec::new(),
            past: Vec::new(),
        };
        let members = vec![
            member("intake-1", "serve"),
            member("intake-2", "serve"),
            member("worker-1", "work"),
            member("worker-2", "work"),
            // What a small installation adds to a large one, on a machine whose clock nobody looks after.
            Member { clock_ahead: 3600, ..member("both", "up") },
        ];
        let mut fleet = Self { members, postgres, redis, sandbox, to_providers, clock, folder };
        for place in 0..fleet.members.len() {
            fleet.launch(place);
        }
        fleet
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The database itself, past every proxy.
    pub fn database_url(&self) -> String {
        self.postgres.url(DATABASE)
    }

    /// Clients of every process that takes uploads, with the key of `alice`.
    pub fn clients(&self) -> Vec<Client> {
        self.members.iter().filter_map(Member::client).collect()
    }

    /// Starts a process, without waiting for it.
    pub fn launch(&mut self, place: usize) {
        let (folder, clock) = (self.folder.path(), self.clock.to_str().unwrap());
        let member = &mut self.members[place];
        let database =
            format!("postgres://postgres@127.0.0.1:{}/{DATABASE}", member.to_postgres.port);
        let redis = format!("redis://127.0.0.1:{}", member.to_redis.port);
        let listen = format!("127.0.0.1:{}", member.listen);
        let ahead = member.clock_ahead.to_string();
        let mut environment = vec![
            // Also why a request was put off.
            ("LONGSHORE_LOG", "info,longshore::api::error=debug"),
            ("LONGSHORE__DATABASE__URL", database.as_str()),
            ("LONGSHORE__REDIS__URL", redis.as_str()),
            ("LONGSHORE__SERVER__LISTEN", listen.as_str()),
        ];
        if member.clock_ahead != 0 {
            environment.extend([("LD_PRELOAD", clock), ("LONGSHORE_TEST_CLOCK_AHEAD", &ahead)]);
        }
        let arguments = ["--log-format", "json", member.command];
        member.process = Some(Process::start(folder, &arguments, &environment));
        member.is_harmed = false;
    }

    /// Starts a process again that has ended by itself, as a supervisor does.
    pub fn supervise(&mut self, place: usize) {
        if self.members[place].has_ended() {
            self.members[place].bury();
            self.launch(place);
        }
    }

    /// Waits until every process is at work again.
    pub async fn all_up(&mut self) {
        let deadline = Instant::now() + START;
        loop {
            for place in 0..self.members.len() {
                self.supervise(place);
            }
            if self.members.iter().all(Member::is_up) {
                return;
            }
            if Instant::now() > deadline {
                let down = self.members.iter().find(|member| !member.is_up()).unwrap();
                panic!("{} does not start:\n{}", down.name, down.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, place: usize) {
        self.members[place].harm();
        self.members[place].bury();
    }

    /// The ids of all workers that may have gone silent, for what was done to them.
    pub fn harmed(&self) -> BTreeSet<String> {
        let now = self.members.iter().filter(|member| member.is_harmed).filter_map(Member::worker);
        self.members.iter().flat_map(|member| member.harmed.clone()).chain(now).collect()
    }

    /// What no process may log, whatever happens to it.
    pub fn read_logs(&self, history: &History) {
        for member in &self.members {
            for line in member.log().lines() {
                if line.contains("panicked at") || line.contains("canary") {
                    history.violation(format_args!("{} logged: {line}", member.name));
                }
            }
        }
    }

    /// Keeps what all processes have logged, for whoever looks for the cause of a violation.
    pub fn keep_logs(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for member in &self.members {
            std::fs::write(folder.join(format!("{}.log", member.name)), member.log()).unwrap();
        }
        std::fs::write(folder.join("postgres.log"), self.postgres.log()).unwrap();
    }
}

impl Member {
    pub fn has_intake(&self) -> bool {
        self.command != "work"
    }

    /// A client of its intake, with the key of `alice`.
    pub fn client(&self) -> Option<Client> {
        let base = format!("http://127.0.0.1:{}", self.listen);
        self.has_intake().then(|| Client::new(&base, ALICE_KEY))
    }

    pub fn runs_jobs(&self) -> bool {
        self.command != "serve"
    }

    /// The id that its present process runs jobs as, once it does.
    pub fn worker(&self) -> Option<String> {
        worker_of(&self.process.as_ref()?.log())
    }

    fn is_up(&self) -> bool {
        let started = if self.has_intake() { "listening on" } else { "workers started" };
        self.process.as_ref().is_some_and(|process| process.log().contains(started))
    }

    fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(Process::has_ended)
    }

    /// From here on, its present process may be taken for dead by others.
    pub fn harm(&mut self) {
        self.is_harmed = true;
    }

    /// SIGSTOP, or SIGCONT.
    pub fn signal(&mut self, name: &str) {
        if let Some(process) = self.process.as_mut()
            && !process.has_ended()
        {
            process.signal(name);
        }
    }

    /// It was told to end, as long ago as it may take.
    pub fn check_ended(&mut self, history: &History) {
        let Some(process) = self.process.as_mut() else { return };
        let status = process.status();
        // The signal itself ends a process that has not come to handle it yet.
        let was_new =
            status.and_then(|status| status.signal()) == Some(SIGTERM) && process.log().is_empty();
        if !status.is_some_and(|status| status.success()) && !was_new {
            history.violation(format_args!("{} ended with {status:?} after SIGTERM", self.name));
        }
        self.bury();
    }

    fn bury(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
            let (_, log) = process.all();
            self.harmed.extend(worker_of(&log).filter(|_| self.is_harmed));
            self.past.push(log);
        }
    }

    fn log(&self) -> String {
        let now = self.process.as_ref().map(Process::log).unwrap_or_default();
        self.past.iter().map(String::as_str).chain([now.as_str()]).collect::<Vec<_>>().join("---\n")
    }
}

/// The id under which the process that logged this runs jobs.
fn worker_of(log: &str) -> Option<String> {
    let started = log.lines().find(|line| line.contains("workers started"))?;
    let line: Value = serde_json::from_str(started).ok()?;
    line["worker"].as_str().map(str::to_owned)
}

/// What makes a process's clock be off.
fn compile_clock(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/clock.c");
    let library = folder.join("clock.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .expect("a C compiler, which the build needs too");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

fn configuration(providers: u16) -> String {
    let (lease, drain) = (LEASE.as_secs(), DRAIN.as_secs());
    let mut text = format!(
        r#"[server]
max_file_bytes = "8MiB"
[auth]
admin_key = "{ADMIN_KEY}"
encryption_key = "{ENCRYPTION_KEY}"
[[auth.keys]]
key = "{ALICE_KEY}"
owner = "alice"
[[auth.keys]]
key = "{BOB_KEY}"
owner = "bob"
[blobs]
url = "file://blobs"
[workers]
lease = "{lease}s"
drain = "{drain}s"
[retry]
base_delay = "50ms"
max_delay = "1s"
max_attempts = 100
[batches]
poll = "200ms"
poll_max = "1s"
[webhooks]
allow_private_addresses = true
"#
    );
    for model in MODELS {
        text.push_str(&format!(
            "[[providers]]\nname = \"at-{model}\"\nkind = \"openai\"\n\
             base_url = \"http://127.0.0.1:{providers}/{model}/v1\"\napi_key = \"{PROVIDER_KEY}\"\n\
             list_lag = \"200ms\"\ntimeout = \"1s\"\nrequests_per_minute = 60000\n\
             [[models]]\nname = \"{model}\"\nprovider = \"at-{model}\"\nmodel = \"{model}-2026\"\n"
        ));
    }
    text
}
