//! The command line: what there is to say, and who does it.

mod backup;
mod batches;
mod client;
mod completions;
mod config;
mod demo;
mod doctor;
mod files;
mod id;
mod input;
mod interrupt;
mod jobs;
mod keys;
mod list;
mod models;
mod output;
mod pairs;
mod progress;
mod sandbox;
#[cfg(test)]
mod scripted;
mod serve;
mod sweeps;
mod watch;
mod workers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use secrecy::ExposeSecret as _;
use secrecy::SecretString;

use self::client::Client;
use self::interrupt::Interrupted;
use crate::config::Config;
use crate::config::Loaded;
use crate::telemetry;
use crate::telemetry::LogFormat;

const GLOBAL: &str = "Global options";
const CONNECTION: &str = "Connection";
const AFTER_HELP: &str = "\
First steps:
  longshore demo                             see it work; needs no key and no network
  longshore config example > longshore.toml  write a configuration
  longshore doctor                           see whether all is well with it
  longshore                                  start; prints an admin key at the first start, once
  longshore files put FILE --purpose user_data --model NAME --wait

Exit codes: 0 done, 1 it failed, 2 wrong usage or configuration, 130 interrupted.";

/// Carries files, batches and fine-tuning jobs to every LLM provider, once.
#[derive(Debug, Parser)]
#[command(name = "longshore", version, about, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// The server's configuration; without it `longshore.toml` in the working directory, or the defaults
    #[arg(long, global = true, value_name = "FILE", help_heading = GLOBAL)]
    config: Option<PathBuf>,
    /// What log lines look like
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "pretty",
        env = "LONGSHORE_LOG_FORMAT",
        value_name = "FORMAT",
        help_heading = GLOBAL
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the API and the workers in one process; this is what happens without a command
    Up,
    /// Run the API only
    Serve,
    /// Run the workers only
    Work,
    /// Bring the database's schema up to date, or show what it lacks
    Migrate {
        #[command(subcommand)]
        what: Option<serve::Migrate>,
    },
    /// Show the whole thing on a real file, against built-in providers, in a temporary folder
    Demo(demo::Demo),
    /// Run the built-in providers alone, to try things out against them
    Sandbox(sandbox::Sandbox),
    /// Check the configuration, or print an example of one
    Config {
        #[command(subcommand)]
        what: config::ConfigCommand,
    },
    /// Copy the SQLite database to a file, while it is in use
    Backup(backup::Backup),
    /// Check the database, the queue, the blob store and each provider's key, and say what to do
    Doctor(doctor::Doctor),
    /// Make, list and revoke the keys of clients
    Keys {
        #[command(subcommand)]
        what: keys::KeysCommand,
    },
    /// Upload files to a running server; show, await, download and delete them
    Files {
        #[command(flatten)]
        server: Server,
        #[command(subcommand)]
        what: files::FilesCommand,
    },
    /// Run batches of requests through a running server; show, await and cancel them, and read their results
    Batches {
        #[command(flatten)]
        server: Server,
        #[command(subcommand)]
        what: batches::BatchesCommand,
    },
    /// Show, retry and cancel the jobs of a running server
    Jobs {
        #[command(flatten)]
        server: Server,
        #[command(subcommand)]
        what: jobs::JobsCommand,
    },
    /// Delete many files of a running server with one job; show, list and cancel such sweeps
    Sweeps {
        #[command(flatten)]
        server: Server,
        #[command(subcommand)]
        what: sweeps::SweepsCommand,
    },
    /// List the models that a running server sends files to
    Models {
        #[command(flatten)]
        server: Server,
    },
    /// List the processes of an installation, through a running server; it takes an admin key
    Workers {
        #[command(flatten)]
        server: Server,
        #[command(subcommand)]
        what: workers::WorkersCommand,
    },
    /// Print a script with which a shell completes commands and options
    Completions(completions::Completions),
}

/// The server that a client command talks to.
#[derive(Debug, Args)]
struct Server {
    /// Where the server is
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_URL",
        default_value = "http://127.0.0.1:4700",
        help_heading = CONNECTION
    )]
    url: String,
    /// A key of the server, as it printed one at its first start or `longshore keys create` makes them
    #[arg(
        long,
        global = true,
        env = "LONGSHORE_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        help_heading = CONNECTION
    )]
    api_key: Option<SecretString>,
    /// Print the answers of the server as JSON, for scripts
    #[arg(long, global = true)]
    json: bool,
}

impl Server {
    fn client(&self) -> anyhow::Result<Client> {
        Client::from_env(
            Some(self.url.clone()),
            self.api_key.clone().filter(|key| !key.expose_secret().is_empty()),
        )
    }
}

/// Why a command did not succeed, as far as the exit code tells it apart.
#[derive(Debug)]
enum Failed {
    /// Wrong usage or configuration: exit code 2.
    Misconfigured(String),
    /// It failed: exit code 1.
    Otherwise(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Otherwise(error.into())
    }
}

impl Cli {
    /// Does what was said, and answers the exit code.
    pub fn run(self) -> ExitCode {
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(&Failed::Otherwise(error.into())),
        };
        let result = runtime.block_on(self.dispatch());
        // Nothing that still runs is worth waiting for: what matters is on disk.
        runtime.shutdown_timeout(std::time::Duration::from_millis(500));
        match result {
            Ok(code) => code,
            Err(failed) => fail(&failed),
        }
    }

    async fn dispatch(self) -> Result<ExitCode, Failed> {
        let environment = environment();
        let start = Start { config: self.config, environment, log_format: self.log_format };
        match self.command.unwrap_or(Command::Up) {
            Command::Up => serve::run(&start, serve::Parts::Both).await,
            Command::Serve => serve::run(&start, serve::Parts::Intake).await,
            Command::Work => serve::run(&start, serve::Parts::Workers).await,
            Command::Migrate { what } => serve::migrate(&start, what).await,
            Command::Demo(demo) => demo.run(&start).await,
            Command::Sandbox(sandbox) => sandbox.run(&start).await,
            Command::Config { what } => what.run(&start).await,
            Command::Backup(backup) => backup.run(&start).await,
            Command::Doctor(doctor) => doctor.run(&start).await,
            Command::Keys { what } => what.run(&start).await,
            Command::Files { server, what } => Ok(what.run(&server.client()?, server.json).await?),
            Command::Batches { server, what } => {
                Ok(what.run(&server.client()?, server.json).await?)
            }
            Command::Jobs { server, what } => Ok(what.run(&server.client()?, server.json).await?),
            Command::Sweeps { server, what } => {
                Ok(what.run(&server.client()?, server.json).await?)
            }
            Command::Models { server } => Ok(models::run(&server.client()?, server.json).await?),
            Command::Workers { server, what } => {
                Ok(what.run(&server.client()?, server.json).await?)
            }
            Command::Completions(completions) => {
                completions.run()?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn fail(failed: &Failed) -> ExitCode {
    match failed {
        Failed::Misconfigured(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
        Failed::Otherwise(error) if error.is::<Interrupted>() => {
            eprintln!("{error}");
            ExitCode::from(Interrupted::EXIT_CODE)
        }
        Failed::Otherwise(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The environment, read here and nowhere else. What is not UTF-8 is no setting of ours.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// What every command of the server's side begins with.
struct Start {
    config: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    log_format: LogFormat,
}

impl Start {
    fn load(&self) -> Result<Loaded, Failed> {
        Config::load(self.config.as_deref(), &self.environment)
            .map_err(|error| Failed::Misconfigured(error.to_string()))
    }

    fn start_logging(&self, default: &str) -> Result<(), Failed> {
        let filter = self.environment.get("LONGSHORE_LOG").map_or(default, String::as_str);
        telemetry::start(filter, self.log_format)
            .map_err(|error| Failed::Misconfigured(error.to_string()))
    }
}
