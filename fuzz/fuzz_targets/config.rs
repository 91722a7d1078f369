//! Configurations: any file under any environment is read or refused in words, and no mistake is met with a panic.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use longshore::config::Config;
use longshore::config::Variables;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // Behind a NUL come variables, one a line.
    let (text, environment) = text.split_once('\0').unwrap_or((text, ""));
    let variables: Variables = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    match Config::from_text(Path::new("longshore.toml"), text, &variables) {
        Ok(loaded) => {
            let names = loaded.config.models.iter().map(|model| &model.provider);
            for name in names {
                assert!(loaded.config.provider(name).is_some(), "a model of no provider");
            }
            assert!(!format!("{loaded:?}").is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty(), "a refusal without a reason"),
    }
});
