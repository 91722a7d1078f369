//! `longshore config check` and `config example`.

use std::process::ExitCode;

use clap::Subcommand;

use super::Failed;
use super::Start;
use crate::config;
use crate::config::Source;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration is in order, and what it comes to; connects to nothing
    Check,
    /// Print a commented example with every setting and its default
    Example,
}

impl ConfigCommand {
    pub fn run(&self, start: &Start) -> Result<ExitCode, Failed> {
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
                println!("database: {}", config.database.url);
                println!("blobs: {}", config.blobs.url);
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
