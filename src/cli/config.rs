//! `longshore config check` and `config example`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;

use super::Failed;
use super::Start;
use crate::config;
use crate::config::Config;
use crate::config::Source;
use crate::db::Db;
use crate::db::sqlite_file;
use crate::mappings;
use crate::webhooks::vault::KeyPlace;

/// How long the database is given to answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is in order, and what it comes to
    ///
    /// Connects to nothing but the database, if there is one: providers that were taken out of the configuration may
    /// still hold copies, which nobody deletes any more.
    Check,
    /// Print a commented example with every setting and its default
    Example,
}

impl ConfigCommand {
    pub async fn run(&self, start: &Start) -> Result<ExitCode, Failed> {
        match self {
            Self::Example => print!("{}", config::example()),
            Self::Check => {
                let loaded = start.load()?;
                if let Source::File(path) = &loaded.source {
                    println!("{} is in order", path.display());
                }
                for sentence in &loaded.found {
                    println!("{sentence}");
                }
                for warning in &loaded.warnings {
                    println!("warning: {warning}");
                }
                let config = &loaded.config;
                for warning in left_behind(config).await {
                    println!("warning: {warning}");
                }
                println!("database: {}", config.database.url);
                println!("blobs: {}", config.blobs.url);
                println!("webhook secrets: {}", webhook_secrets(config));
                for model in &config.models {
                    println!(
                        "model {} → {} at {} ({})",
                        model.name,
                        model.model,
                        model.provider,
                        model.deployment_id()
                    );
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// How the secrets of webhooks are stored, in words.
fn webhook_secrets(config: &Config) -> String {
    match KeyPlace::of(config) {
        KeyPlace::Configuration => "encrypted with `auth.encryption_key`".to_owned(),
        KeyPlace::File(path) => format!(
            "encrypted with the key in {}, which the first start makes; keep it with the database",
            path.display()
        ),
        KeyPlace::Nowhere => "cannot be stored; set `auth.encryption_key` (LONGSHORE_ENCRYPTION_KEY) to the same for \
                              every process, as `openssl rand -base64 32` makes it"
            .to_owned(),
    }
}

/// Copies at providers that are not configured any more, in words.
async fn left_behind(config: &Config) -> Vec<String> {
    let url = config.database.url.expose();
    let is_there = match sqlite_file(url) {
        Some(file) => file.exists(),
        None => true,
    };
    if !is_there {
        return Vec::new();
    }
    let look = async {
        let db = Db::open(&config.database).await?;
        mappings::store::copies_by_provider(db.scan()).await
    };
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(providers)) => {
            let gone = providers.into_iter().filter(|(name, _)| config.provider(name).is_none());
            gone.map(|(name, copies)| {
                format!(
                    "{copies} of files are at the provider `{name}`, which is not configured: nothing of that is used or \
                     deleted before it is"
                )
            })
            .collect()
        }
        // A database without its tables is one that was not started with yet.
        Ok(Err(_)) if sqlite_file(url).is_some() => Vec::new(),
        Ok(Err(error)) => vec![format!("could not look for copies in the database: {error}")],
        Err(_) => vec![format!(
            "could not look for copies: the database did not answer within {} s",
            PATIENCE.as_secs()
        )],
    }
}
