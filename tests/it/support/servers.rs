//! A PostgreSQL and a Redis of a test's own, which can be stopped, killed and started again.

use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL cluster, with settings as in production. Gone with the test.
pub struct Postgres {
    pub port: u16,
    programs: PathBuf,
    user: Option<User>,
    settings: Vec<String>,
    server: Option<Child>,
    folder: TempDir,
}

/// Who runs PostgreSQL, which refuses to be run by root.
#[derive(Clone, Copy)]
struct User {
    id: u32,
    group: u32,
}

impl Postgres {
    /// One that runs.
    pub fn running() -> Self {
        let mut postgres = Self::made();
        postgres.start();
        postgres
    }

    /// One that was never started: for files and settings that it is to start with.
    pub fn made() -> Self {
        let programs = postgres_programs();
        let user = (current_user() == 0).then(User::postgres);
        // In /tmp: the user `postgres` may not be allowed to enter another folder.
        let folder = tempfile::Builder::new().prefix("longshore-pg.").tempdir_in("/tmp").unwrap();
        let postgres =
            Self { port: free_port(), programs, user, settings: Vec::new(), server: None, folder };
        postgres.own(postgres.folder.path());
        let mut initdb = postgres.command("initdb");
        initdb.arg("--pgdata").arg(postgres.data());
        // What is made here need not survive a power cut; what the server writes is synced.
        initdb.args(["--username", "postgres", "--auth", "trust", "--encoding", "UTF8"]);
        let made = initdb.args(["--no-locale", "--no-sync"]).output().unwrap();
        assert!(made.status.success(), "`initdb`: {}", String::from_utf8_lossy(&made.stderr));
        postgres
    }

    /// Adds a setting, as `fsync=off`, for the next start.
    pub fn set(&mut self, setting: &str) {
        self.settings.push(setting.to_owned());
    }

    /// Puts a file into its data folder, that only it may read.
    pub fn put(&self, name: &str, content: &str) {
        let path = self.data().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        self.own(&path);
    }

    /// Starts it, after it was made, stopped or killed, and waits until it takes connections.
    pub fn start(&mut self) {
        assert!(self.server.is_none(), "PostgreSQL runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let mut server = self.command("postgres");
        server.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        let usual =
            ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200"];
        for setting in usual.into_iter().chain(self.settings.iter().map(String::as_str)) {
            server.args(["-c", setting]);
        }
        server.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(server.spawn().unwrap());
        let port = self.port.to_string();
        self.until_started(|postgres| {
            let mut ready = postgres.command("pg_isready");
            ready.args(["--quiet", "--host", "127.0.0.1", "--port", &port]);
            ready.status().unwrap().success()
        });
    }

    fn until_started(&mut self, is_ready: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(self) {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "PostgreSQL did not start ({ended:?}):\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends all connections, rolls back what is open, and stops it in order: `pg_ctl stop --mode fast`.
    pub fn stop(&mut self) {
        self.end_by("INT");
    }

    /// Breaks off everything at once, as a crash does: it recovers from its log at the next start.
    pub fn kill(&mut self) {
        self.end_by("QUIT");
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    fn end_by(&mut self, name: &str) {
        let mut server = self.server.take().expect("PostgreSQL runs");
        signal(&server, name);
        wait(&mut server);
    }

    /// The URL of one of its databases; `postgres` is there from the beginning.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn own(&self, path: &Path) {
        if let Some(user) = self.user {
            chown(path, Some(user.id), Some(user.group)).unwrap();
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        // It complains where it cannot enter the working directory.
        command.current_dir(self.folder.path());
        if let Some(user) = self.user {
            command.uid(user.id).gid(user.group);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
    }
}

impl User {
    fn postgres() -> Self {
        let number = |flag| {
            let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.trim().parse().expect("there is a user `postgres`, since PostgreSQL refuses root")
        };
        Self { id: number("-u"), group: number("-g") }
    }
}

/// A Redis that keeps nothing on disk. Gone with the test.
pub struct Redis {
    pub port: u16,
    arguments: Vec<String>,
    server: Option<Child>,
    folder: TempDir,
}

impl Redis {
    /// One that runs.
    pub fn running() -> Self {
        let mut redis = Self::made();
        redis.start();
        redis
    }

    /// One that was never started.
    pub fn made() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { port: free_port(), arguments: Vec::new(), server: None, folder }
    }

    /// Adds arguments, as `--requirepass secret`, for the next start. One `--tls-port` makes it listen there with TLS
    /// only.
    pub fn set(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    /// Starts it, after it was made, stopped or killed, and waits until it takes connections.
    pub fn start(&mut self) {
        assert!(self.server.is_none(), "Redis runs already");
        let port = self.port.to_string();
        let mut server = Command::new("redis-server");
        let folder = self.folder.path();
        server.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]).arg("--dir");
        server.arg(folder).args(["--logfile", "log"]);
        if self.has_tls() {
            server.args(["--port", "0", "--tls-port", &port]);
        } else {
            server.args(["--port", &port]);
        }
        server.args(self.arguments.iter().filter(|argument| *argument != "--tls-port"));
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(server.spawn().expect(
            "`redis-server` is missing: this test starts one of its own (Debian: apt-get install redis-server)",
        ));
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "Redis did not start ({ended:?}):\n{log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn has_tls(&self) -> bool {
        self.arguments.iter().any(|argument| argument == "--tls-port")
    }

    /// Asks it to end.
    pub fn stop(&mut self) {
        let mut server = self.server.take().expect("Redis runs");
        signal(&server, "TERM");
        wait(&mut server);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("Redis runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Takes everything out of it: `FLUSHALL`.
    pub async fn flush(&self) {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.unwrap();
    }

    /// Connections stay, and nothing answers: SIGSTOP.
    pub fn freeze(&self) {
        signal(self.server.as_ref().expect("Redis runs"), "STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        signal(self.server.as_ref().expect("Redis runs"), "CONT");
    }

    pub fn url(&self) -> String {
        let scheme = if self.has_tls() { "rediss" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
    }
}

/// One that nobody listens at. Below those that the kernel gives to connections going out: one of these could take it
/// while a server that is to come back is away.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(20_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn postgres_programs() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    // Debian keeps them out of the path, in a folder for each version.
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut versions: Vec<_> = versions.map(|entry| entry.unwrap().path()).collect();
    versions.sort_by_key(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        std::cmp::Reverse(name.and_then(|name| name.parse::<u32>().ok()))
    });
    folders.extend(versions.into_iter().map(|version| version.join("bin")));
    let is_whole = |folder: &PathBuf| {
        ["initdb", "postgres", "pg_isready"].iter().all(|program| folder.join(program).is_file())
    };
    folders.into_iter().find(is_whole).expect(
        "`initdb` and `postgres` are missing: this test starts a PostgreSQL of its own, which the one of \
         LONGSHORE_TEST_POSTGRES_URL or of Docker cannot stand in for (Debian: apt-get install postgresql)",
    )
}

fn current_user() -> u32 {
    rustix::process::getuid().as_raw()
}

fn signal(server: &Child, name: &str) {
    let status =
        Command::new("kill").args(["-s", name, &server.id().to_string()]).status().unwrap();
    assert!(status.success());
}

fn wait(server: &mut Child) {
    let deadline = Instant::now() + PATIENCE;
    while server.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the server did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
