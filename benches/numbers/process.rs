//! The real binary as a process, and what the system says of it.

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;

/// A running `longshore`. Killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `longshore COMMAND` in `folder`, with nothing of our own environment that is the product's. It logs to a
    /// file, at its default, which is `info`.
    pub fn start(folder: &Path, command: &str) -> anyhow::Result<Self> {
        Self::start_as(folder, command, command)
    }

    /// The same, with its log under another name, for several of a kind.
    pub fn start_as(folder: &Path, command: &str, name: &str) -> anyhow::Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let mut process = Command::new(env!("CARGO_BIN_EXE_longshore"));
        process
            .current_dir(folder)
            .arg(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LONGSHORE")) {
            process.env_remove(name);
        }
        Ok(Self { child: process.spawn()?, log })
    }

    pub fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until the log holds `text`, and answers the line.
    pub async fn logged(&mut self, text: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let log = self.log()?;
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            let ended = self.child.try_wait()?;
            anyhow::ensure!(
                ended.is_none() && Instant::now() < deadline,
                "`{text}` was not logged ({ended:?}):\n{log}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The most memory it ever had, in MB (10^6 bytes).
    pub fn peak_memory(&self) -> anyhow::Result<f64> {
        self.memory("VmHWM:")
    }

    /// The memory it has now, in MB.
    pub fn present_memory(&self) -> anyhow::Result<f64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, name: &str) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kibibytes: f64 = line
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .context(status.clone())?
            .parse()?;
        Ok(kibibytes * 1024.0 / 1e6)
    }

    /// The time that its threads have run on a core, those included that ended.
    pub fn processor_time(&self) -> anyhow::Result<Duration> {
        // In hundredths of a second, on every Linux; the kernel rounds what it counts exactly.
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The command's name may hold anything, but ends with the last parenthesis.
        let (_, fields) = stat.rsplit_once(") ").context(stat.clone())?;
        let ticks: u32 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(str::parse::<u32>)
            .sum::<Result<_, _>>()
            .context(stat.clone())?;
        Ok(TICK * ticks)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
