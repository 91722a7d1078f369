//! The configuration as an operator meets it: what is read, what is refused, and in which words.

mod defaults;
mod example;
mod overrides;
mod refusals;
mod secrets;

use std::path::Path;

use super::{ConfigError, Loaded, Variables, from_file, without_file};

fn variables(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read(text: &str, pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    from_file(Path::new("longshore.toml"), text, &variables(pairs))
}

fn defaults(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    without_file(&variables(pairs))
}

/// The lines of what is wrong with `text`.
fn refused(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    let error = read(text, pairs).expect_err("this configuration is to be refused");
    error.to_string().lines().map(str::to_owned).collect()
}

/// A file with a provider and a model, and `more` from its line 8 on.
fn with_provider(more: &str) -> String {
    let provider = "[[providers]]\nname = \"openai\"\nkind = \"openai\"\napi_key = \"k\"\n";
    format!("{provider}[[models]]\nname = \"m\"\nprovider = \"openai\"\n{more}")
}
