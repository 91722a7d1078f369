//! The configuration: one file, the environment over it, read and checked once at start.
//!
//! Only `main` reads the process's environment; it is handed in here, so that a test can hand in another.

mod blobs;
mod certificate;
mod checks;
mod deserializer;
mod discovery;
mod document;
mod duration;
mod environment;
mod interpolation;
mod model;
mod name;
mod problem;
mod provider;
mod reader;
mod secret;
mod settings;
mod size;
mod telemetry;
mod tree;
mod url;

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use self::{
    blobs::{Blobs, BlobsUrl, Bucket, Cloud, Keep},
    environment::Variables,
    model::Model,
    problem::{ConfigError, KeyPath, Place, Problem, Segment},
    provider::{Provider, ProviderKind},
    secret::EncryptionKey,
    settings::{
        ApiKey, Auth, Batches, Database, Limits, Redis, Retention, Retry, Server, Sweeps,
        Telemetry, Webhooks, Workers,
    },
    size::{ByteSize, NotASize},
    telemetry::{OtlpHeaders, Ratio},
    url::{ConnectionUrl, DatabaseKind, DatabaseUrl},
};

/// The name of the file that is looked for in the working directory.
pub const FILE_NAME: &str = "longshore.toml";

/// The largest file that is read, in bytes.
const LARGEST_FILE: u64 = 1024 * 1024;

/// All settings. `Debug` shows no secret.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub auth: Auth,
    pub limits: Limits,
    pub database: Database,
    pub redis: Redis,
    pub blobs: Blobs,
    pub workers: Workers,
    pub retry: Retry,
    pub batches: Batches,
    pub sweeps: Sweeps,
    pub retention: Retention,
    pub webhooks: Webhooks,
    pub telemetry: Telemetry,
    /// No two have the same name.
    pub providers: Vec<Provider>,
    /// Each names one of `providers`.
    pub models: Vec<Model>,
}

/// A configuration that was read and checked, and what there is to say about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    pub source: Source,
    /// Sentences on what was found, for the operator.
    pub found: Vec<String>,
    /// Sentences on what works, but hardly as it was meant.
    pub warnings: Vec<String>,
}

/// Where a configuration came from, before the environment was laid over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    /// There was no file.
    Defaults,
}

impl Config {
    /// Reads `explicit`, or else `longshore.toml` in the working directory, or else the defaults; lays the variables
    /// named `LONGSHORE__…` over it; and checks the whole.
    ///
    /// # Errors
    /// With everything that is wrong, as far as one mistake does not hide another. A file that was asked for and
    /// cannot be read is an error too. No message holds a secret.
    pub fn load(explicit: Option<&Path>, variables: &Variables) -> Result<Loaded, ConfigError> {
        match explicit {
            Some(path) => {
                let text = read_file(path).map_err(|error| unreadable(path, &error))?;
                from_file(path, &text, variables)
            }
            None => load_if_there(Path::new(FILE_NAME), variables),
        }
    }

    /// The configuration that a file gives, whose content is `text` and whose place is `path`: for who has it already.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_text(
        path: &Path,
        text: &str,
        variables: &Variables,
    ) -> Result<Loaded, ConfigError> {
        from_file(path, text, variables)
    }

    /// The deployments that clients mean by `name`; none for an unknown one.
    pub fn deployments_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Model> {
        self.models.iter().filter(move |model| model.name == name)
    }

    /// The provider of this name.
    pub fn provider(&self, name: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.name == name)
    }
}

/// A commented file with every setting. It is valid as it stands where the variables are set that it names.
pub fn example() -> &'static str {
    include_str!("config/example.toml")
}

fn load_if_there(path: &Path, variables: &Variables) -> Result<Loaded, ConfigError> {
    match read_file(path) {
        Ok(text) => from_file(path, &text, variables),
        Err(error) if error.kind() == io::ErrorKind::NotFound => without_file(variables),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn from_file(path: &Path, text: &str, variables: &Variables) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let overrides = environment::overrides(variables, &mut problems);
    let name = path.display().to_string();
    let config = assemble(text, &name, &overrides, variables, problems)?;
    let mut found = vec![format!("the settings are from `{name}`")];
    found.extend(environment::summary(&overrides));
    let mut warnings = checks::warnings(&config);
    if config.providers.is_empty() {
        warnings.push(format!(
            "no provider is configured: add `[[providers]]` to `{name}`, as `longshore config example` shows it"
        ));
    }
    Ok(Loaded { config, source: Source::File(path.to_owned()), found, warnings })
}

fn without_file(variables: &Variables) -> Result<Loaded, ConfigError> {
    let mut problems = Vec::new();
    let overrides = environment::overrides(variables, &mut problems);
    let discovered = discovery::discover(variables, &overrides);
    let config = assemble(&discovered.document, discovery::NAME, &overrides, variables, problems)?;
    let mut found = vec![format!("there is no `{FILE_NAME}` here: these are the defaults")];
    found.extend(environment::summary(&overrides));
    found.extend(discovered.found);
    if config.providers.is_empty() {
        found.push(discovery::NO_PROVIDER.to_owned());
    }
    let warnings = checks::warnings(&config);
    Ok(Loaded { config, source: Source::Defaults, found, warnings })
}

/// Goes the whole way from text to checked settings, gathering what is wrong on it.
fn assemble(
    text: &str,
    name: &str,
    overrides: &[environment::Override<'_>],
    variables: &Variables,
    mut problems: Vec<Problem>,
) -> Result<Config, ConfigError> {
    let mut tree = document::parse(text, &Arc::from(name))?;
    environment::apply(&mut tree, overrides, &mut problems);
    interpolation::fill(&mut tree, &KeyPath::default(), variables, &mut problems);
    let mut config = reader::read(&mut tree, &mut problems);
    if let Some(config) = &mut config {
        config.blobs.take_environment(variables);
        checks::check(config, &tree, &mut problems);
    }
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError::new(problems)),
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other(format!("it is larger than {}", ByteSize(LARGEST_FILE))));
    }
    Ok(text)
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    let name = Arc::from(path.display().to_string());
    ConfigError::from(Problem {
        place: Place::File { name, line: None },
        path: KeyPath::default(),
        message: format!("cannot be read: {error}; name a readable file, or leave out `--config`"),
    })
}
