//! Starting without a file.

use super::{defaults, read, variables};
use crate::config::{Config, DatabaseKind, Source, load_if_there};

#[test]
fn with_nothing_at_all_it_says_what_to_do_next() {
    let loaded = defaults(&[]).unwrap();
    assert_eq!(loaded.source, Source::Defaults);
    assert_eq!(format!("{:?}", loaded.config), format!("{:?}", Config::default()));
    assert_eq!(loaded.config.database.url.kind(), DatabaseKind::Sqlite);
    assert_eq!(
        loaded.found,
        [
            "there is no `longshore.toml` here: these are the defaults",
            "no provider is configured: set OPENAI_API_KEY, or write longshore.toml (`longshore config example > longshore.toml`), or try `longshore demo`",
        ]
    );
}

#[test]
fn the_usual_key_variables_bring_their_provider() {
    let pairs = [
        ("OPENAI_API_KEY", "k"),
        ("ANTHROPIC_API_KEY", "k"),
        ("GEMINI_API_KEY", ""),
        ("MISTRAL_API_KEY", "k"),
    ];
    let loaded = defaults(&pairs).unwrap();
    assert_eq!(
        loaded.found,
        [
            "there is no `longshore.toml` here: these are the defaults",
            "OPENAI_API_KEY is set: the provider `openai`, with the models gpt-4o-mini, gpt-4o, gpt-4.1, gpt-4.1-mini, gpt-5, gpt-5-mini",
            "ANTHROPIC_API_KEY is set, but the kind `anthropic` is not supported yet",
            "MISTRAL_API_KEY is set, but the kind `mistral` is not supported yet",
        ]
    );
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.config.providers.len(), 1);
    assert_eq!(loaded.config.providers[0].base_url.as_str(), "https://api.openai.com/v1");
    assert_eq!(loaded.config.deployments_named("gpt-5").count(), 1);
}

#[test]
fn an_empty_key_variable_counts_as_none() {
    let loaded = defaults(&[("OPENAI_API_KEY", "")]).unwrap();
    assert!(loaded.config.providers.is_empty());
}

#[test]
fn the_keys_that_have_variables_of_their_own_are_taken() {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let pairs = [("LONGSHORE_ADMIN_KEY", "a"), ("LONGSHORE_ENCRYPTION_KEY", key)];
    let auth = defaults(&pairs).unwrap().config.auth;
    assert!(auth.admin_key.is_some());
    assert_eq!(auth.encryption_key.unwrap().expose()[31], 31);

    let error = defaults(&[("LONGSHORE_ENCRYPTION_KEY", "canary")]).unwrap_err().to_string();
    assert_eq!(
        error,
        "built-in defaults:4: `auth.encryption_key`: this is not 32 bytes in base64; make one with `openssl rand -base64 32`"
    );
}

#[test]
fn a_detail_of_the_found_provider_can_be_set() {
    let pairs =
        [("OPENAI_API_KEY", "k"), ("LONGSHORE__PROVIDERS__0__BASE_URL", "http://127.0.0.1:9/v1")];
    let loaded = defaults(&pairs).unwrap();
    assert_eq!(loaded.config.providers[0].base_url.port(), Some(9));
    assert_eq!(loaded.config.models.len(), 6);
}

#[test]
fn providers_and_models_of_the_environment_are_not_mixed_with_found_ones() {
    let local = [
        ("OPENAI_API_KEY", "k"),
        ("LONGSHORE__PROVIDERS__0__NAME", "local"),
        ("LONGSHORE__PROVIDERS__0__KIND", "openai"),
        ("LONGSHORE__PROVIDERS__0__BASE_URL", "http://localhost:9/v1"),
    ];
    let loaded = defaults(&local).unwrap();
    assert_eq!(loaded.config.providers.len(), 1);
    assert!(loaded.config.models.is_empty());
    assert!(
        loaded.found.iter().any(|line| line.starts_with("OPENAI_API_KEY is set, and left alone"))
    );

    let models =
        [("OPENAI_API_KEY", "k"), ("LONGSHORE__MODELS", r#"[{name = "m", provider = "openai"}]"#)];
    let loaded = defaults(&models).unwrap();
    assert_eq!(loaded.config.models.len(), 1);
    assert!(
        loaded.found[2].ends_with("with the models of LONGSHORE__MODELS"),
        "{:?}",
        loaded.found
    );
}

#[test]
fn the_file_in_the_folder_is_taken_when_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("longshore.toml");
    let nothing = variables(&[]);
    assert_eq!(load_if_there(&path, &nothing).unwrap().source, Source::Defaults);
    std::fs::write(&path, "[workers]\nconcurrency = 2").unwrap();
    let loaded = load_if_there(&path, &nothing).unwrap();
    assert_eq!(loaded.source, Source::File(path.clone()));
    assert_eq!(loaded.config.workers.concurrency.get(), 2);
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(load_if_there(&path, &nothing).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn a_file_brings_no_found_providers_and_warns_where_it_has_none() {
    let loaded = read("", &[("OPENAI_API_KEY", "k")]).unwrap();
    assert!(loaded.config.providers.is_empty());
    assert_eq!(
        loaded.warnings,
        [
            "no provider is configured: add `[[providers]]` to `longshore.toml`, as `longshore config example` shows it"
        ]
    );
}

#[test]
fn a_provider_without_models_or_without_encryption_is_warned_of() {
    let text = "[[providers]]\nname = \"a\"\nkind = \"openai\"\napi_key = \"k\"\nbase_url = \"http://10.0.0.1/v1\"";
    assert_eq!(
        read(text, &[]).unwrap().warnings,
        [
            "no model is at the provider `a`, so nothing is sent to it: add a `[[models]]` with `provider = \"a\"`",
            "files and the key of the provider `a` travel unencrypted: its `base_url` is http://",
        ]
    );
}

#[test]
fn an_address_for_traces_that_takes_no_http_or_hides_no_key_is_warned_of() {
    let section = "[telemetry]\notlp_headers = \"x=y\"\notlp_endpoint = \"http://10.0.0.1:4317\"";
    let without = |line: &&str| !line.starts_with("otlp_") && !line.starts_with("sample_ratio");
    let example = crate::config::example();
    let rest: Vec<_> =
        example.lines().filter(without).filter(|line| *line != "[telemetry]").collect();
    let loaded =
        read(&format!("{}\n{section}", rest.join("\n")), &[("OPENAI_API_KEY", "k")]).unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "4317, the port of `telemetry.otlp_endpoint`, is where collectors take OTLP over gRPC; over HTTP, which is what is sent, they mostly take it at 4318",
            "`telemetry.otlp_headers` travel unencrypted: `telemetry.otlp_endpoint` is http://",
        ]
    );
    let endpoint = loaded.config.telemetry.traces_endpoint().unwrap();
    assert_eq!(endpoint.as_str(), "http://10.0.0.1:4317/v1/traces");
}

#[test]
fn how_many_traces_are_kept_is_a_number_also_from_the_environment() {
    let ratio = |text: &str, pairs: &[(&str, &str)]| {
        read(text, pairs).unwrap().config.telemetry.sample_ratio.0
    };
    assert_eq!(ratio("", &[]), 1.0);
    assert_eq!(ratio("telemetry.sample_ratio = 0", &[]), 0.0);
    assert_eq!(ratio("telemetry.sample_ratio = 0.25", &[]), 0.25);
    assert_eq!(ratio("", &[("LONGSHORE__TELEMETRY__SAMPLE_RATIO", "0.5")]), 0.5);
}
