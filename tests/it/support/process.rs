//! The real binary, as a process that can be killed, frozen and asked to stop.

use std::io::BufRead as _;
use std::io::BufReader;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

const BINARY: &str = env!("CARGO_BIN_EXE_longshore");

/// A running `longshore`. Killed when dropped.
pub struct Process {
    child: Child,
    log: Arc<Mutex<String>>,
    output: Arc<Mutex<String>>,
    gatherers: Vec<JoinHandle<()>>,
}

/// A command that has ended.
pub struct Done {
    pub code: i32,
    pub output: String,
    pub log: String,
}

/// Runs `longshore ARGUMENTS` in `folder` to its end.
pub fn run(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    Process::start(folder, arguments, environment).done()
}

impl Process {
    /// Starts `longshore ARGUMENTS` in `folder`, with nothing of the test's own environment that is ours.
    pub fn start(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::run(Command::new(BINARY), folder, arguments, environment)
    }

    /// Starts it as a process that may not have more than so many files and sockets open.
    pub fn start_with_descriptors(
        most: u32,
        folder: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\""), BINARY]);
        Self::run(shell, folder, arguments, environment)
    }

    fn run(
        mut command: Command,
        folder: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        command
            .current_dir(folder)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for (name, _) in std::env::vars()
            .filter(|(name, _)| name.starts_with("LONGSHORE") || name.ends_with("_API_KEY"))
        {
            command.env_remove(name);
        }
        command.envs(environment.iter().copied());
        let mut child = command.spawn().unwrap();
        let (log, log_gatherer) = gather(child.stderr.take().unwrap());
        let (output, output_gatherer) = gather(child.stdout.take().unwrap());
        Self { child, log, output, gatherers: vec![log_gatherer, output_gatherer] }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged (standard error).
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What it has printed (standard output).
    pub fn output(&self) -> String {
        self.output.lock().unwrap().clone()
    }

    /// Waits until the log holds `text`, and answers the line.
    pub fn logged(&mut self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "`{text}` was not logged ({ended:?}):\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the output holds `text`, and answers the line.
    pub fn printed(&self, text: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(line) = self.output().lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "`{text}` was not printed:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that it has printed and logged, once it has ended.
    pub fn all(&mut self) -> (String, String) {
        self.child.wait().unwrap();
        for gatherer in self.gatherers.drain(..) {
            gatherer.join().unwrap();
        }
        (self.output(), self.log())
    }

    /// Waits for the end of a command.
    pub fn done(mut self) -> Done {
        let code = self.wait(Duration::from_secs(60)).code().unwrap_or(-1);
        let (output, log) = self.all();
        Done { code, output, log }
    }

    /// SIGKILL: what a crash or the loss of power does to the process.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal by its name, as `STOP`, `CONT` or `TERM`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// SIGTERM, and the end that follows: the exit status and how long it took.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.signal("TERM");
        (self.wait(Duration::from_secs(60)), begun.elapsed())
    }

    /// Whether it has ended, of itself or not.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has ended with; `None` while it runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it did not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- log of longshore ---\n{}", self.log());
        }
    }
}

fn gather(stream: impl std::io::Read + Send + 'static) -> (Arc<Mutex<String>>, JoinHandle<()>) {
    let text = Arc::<Mutex<String>>::default();
    let gathered = Arc::clone(&text);
    let gatherer = std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let mut gathered = gathered.lock().unwrap();
            gathered.push_str(&line);
            gathered.push('\n');
        }
    });
    (text, gatherer)
}
