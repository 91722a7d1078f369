//! The environment over the file.

use proptest::prelude::*;

use super::{read, refused, with_provider};
use crate::config::ByteSize;

#[test]
fn a_variable_lies_over_the_file_whatever_its_case() {
    let text = "[server]\nlisten = \"127.0.0.1:1\"\nmax_file_bytes = \"1MiB\"";
    let pairs =
        [("LONGSHORE__SERVER__LISTEN", "127.0.0.1:2"), ("longshore__Server__Open_Metrics", "true")];
    let loaded = read(text, &pairs).unwrap();
    assert_eq!(loaded.config.server.listen.port(), 2);
    assert!(loaded.config.server.open_metrics);
    assert_eq!(loaded.config.server.max_file_bytes, ByteSize::mebibytes(1));
    assert_eq!(
        loaded.found,
        [
            "the settings are from `longshore.toml`",
            "set by the environment: `server.listen`, `server.open_metrics`"
        ]
    );
}

#[test]
fn numbers_sizes_and_lists_are_spelled_as_in_the_file() {
    let pairs = [
        ("LONGSHORE__WORKERS__CONCURRENCY", "7"),
        ("LONGSHORE__SERVER__MAX_FILE_BYTES", "1048576"),
        ("LONGSHORE__SERVER__DEFAULT_MODELS", r#"["m"]"#),
    ];
    let config = read(&with_provider(""), &pairs).unwrap().config;
    assert_eq!(config.workers.concurrency.get(), 7);
    assert_eq!(config.server.max_file_bytes, ByteSize::mebibytes(1));
    assert_eq!(config.server.default_models, ["m"]);
}

#[test]
fn a_text_that_looks_like_a_number_stays_a_text_where_one_is_needed() {
    let pairs = [("LONGSHORE__MODELS__0__MODEL", "4"), ("LONGSHORE__MODELS__0__ID", "true")];
    let config = read(&with_provider(""), &pairs).unwrap().config;
    assert_eq!(
        (config.models[0].model.as_str(), config.models[0].id.as_deref()),
        ("4", Some("true"))
    );
}

#[test]
fn entries_of_lists_are_set_and_added_by_their_number() {
    let mut pairs = vec![
        ("LONGSHORE__MODELS__0__MODEL", "changed"),
        ("LONGSHORE__PROVIDERS__1__NAME", "local"),
        ("LONGSHORE__PROVIDERS__1__KIND", "openai"),
        ("LONGSHORE__PROVIDERS__1__BASE_URL", "http://127.0.0.1:1/v1"),
    ];
    let names: Vec<_> = (1..12).map(|index| format!("LONGSHORE__MODELS__{index}__NAME")).collect();
    let providers: Vec<_> =
        (1..12).map(|index| format!("LONGSHORE__MODELS__{index}__PROVIDER")).collect();
    let values: Vec<_> = (1..12).map(|index| format!("m{index}")).collect();
    pairs.extend(names.iter().map(String::as_str).zip(values.iter().map(String::as_str)));
    pairs.extend(providers.iter().map(|name| (name.as_str(), "local")));

    let config = read(&with_provider(""), &pairs).unwrap().config;
    assert_eq!(config.models[0].model, "changed");
    assert_eq!(config.models[11].name, "m11");
    assert_eq!(config.providers[1].name, "local");
    assert!(config.providers[1].api_key.is_none());
}

#[test]
fn a_whole_list_can_be_given_and_refined() {
    let pairs = [
        (
            "LONGSHORE__MODELS",
            r#"[{name = "a", provider = "openai"}, {name = "b", provider = "openai"}]"#,
        ),
        ("LONGSHORE__MODELS__1__MODEL", "c"),
    ];
    let config = read(&with_provider(""), &pairs).unwrap().config;
    let models: Vec<_> = config.models.iter().map(|model| (&*model.name, &*model.model)).collect();
    assert_eq!(models, [("a", "a"), ("b", "c")]);
}

#[test]
fn what_the_environment_sets_need_not_be_right_in_the_file() {
    let text = "[auth]\nadmin_key = \"${GONE}\"\n[workers]\nlease = 5";
    let pairs = [("LONGSHORE__AUTH__ADMIN_KEY", "a$b${c}$$"), ("LONGSHORE__WORKERS__LEASE", "5s")];
    let config = read(text, &pairs).unwrap().config;
    let key = config.auth.admin_key.unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&key), "a$b${c}$$");
}

#[test]
fn interpolated_text_spells_numbers_and_lists_too() {
    let text = with_provider(
        "[server]\nopen_metrics = \"${OPEN:-true}\"\ndefault_models = '${MODELS:-[\"m\"]}'\n[workers]\nconcurrency = \"${N}\"",
    );
    let config = read(&text, &[("N", "3")]).unwrap().config;
    assert!(config.server.open_metrics);
    assert_eq!(config.server.default_models, ["m"]);
    assert_eq!(config.workers.concurrency.get(), 3);
}

#[test]
fn a_message_shows_what_is_written_in_the_file_not_what_was_filled_in() {
    assert_eq!(
        refused("[server]\nlisten = \"${KEY}\"", &[("KEY", "canary")]),
        [
            "longshore.toml:2: `server.listen`: `${KEY}` is not an address to listen on; write it like \"127.0.0.1:4700\" or \"[::1]:4700\""
        ]
    );
}

#[test]
fn mistakes_in_variables_name_the_variable() {
    let refused = |name, value| refused(&with_provider(""), &[(name, value)]);
    assert_eq!(
        refused("LONGSHORE__WORKERS__LEASE", "20"),
        [
            "environment `LONGSHORE__WORKERS__LEASE`: `workers.lease`: `20` has no unit; write it like \"20s\", \"10m\" or \"24h\""
        ]
    );
    assert_eq!(
        refused("LONGSHORE__WORKERS__LAESE", "20s"),
        [
            "environment `LONGSHORE__WORKERS__LAESE`: `workers.laese` is not a setting; did you mean `lease`?"
        ]
    );
    assert_eq!(
        refused("LONGSHORE__WORKERS__LEASE__X", "20s"),
        [
            "environment `LONGSHORE__WORKERS__LEASE__X`: `workers.lease`: must be a duration like \"20s\", \"10m\" or \"24h\""
        ]
    );
    assert_eq!(
        refused("LONGSHORE__WORKERS__CONCURRENCY", "many"),
        [
            "environment `LONGSHORE__WORKERS__CONCURRENCY`: `workers.concurrency`: must be a whole number, not a string"
        ]
    );
    for nothing in ["LONGSHORE__", "LONGSHORE____LISTEN", "LONGSHORE__A__B__C__D__E__F__G"] {
        assert_eq!(
            refused(nothing, "x"),
            [format!(
                "environment `{nothing}`: this names no setting; write it like `LONGSHORE__SERVER__LISTEN`"
            )]
        );
    }
    assert_eq!(
        refused("LONGSHORE__MODELS__2__NAME", "x"),
        [
            "environment `LONGSHORE__MODELS__2__NAME`: `models` has no entry 1 yet; number them from 0 without gaps"
        ]
    );
    assert_eq!(
        refused("LONGSHORE__MODELS__1__NAME", "x"),
        [
            "environment `LONGSHORE__MODELS__1__NAME`: `models[1]` has no `provider`; add it, as `longshore config example` shows it"
        ]
    );
}

#[test]
fn two_spellings_of_one_variable_are_refused() {
    let pairs = [("LONGSHORE__WORKERS__LEASE", "20s"), ("LONGSHORE__WORKERS__lease", "30s")];
    assert_eq!(
        refused("", &pairs),
        [
            "environment `LONGSHORE__WORKERS__lease`: `workers.lease` is set by `LONGSHORE__WORKERS__LEASE` too; keep one"
        ]
    );
}

#[test]
fn variables_with_one_underscore_are_no_settings() {
    let pairs =
        [("LONGSHORE_URL", "x"), ("LONGSHORE_API_KEY", "x"), ("LONGSHORE_LOG", "x"), ("LÖNG", "x")];
    assert!(read("", &pairs).is_ok());
}

proptest! {
    #[test]
    fn no_variables_make_reading_panic(
        pairs in prop::collection::vec(
            ("(SERVER|MODELS|PROVIDERS|AUTH|0|1|_|é)(__(LISTEN|NAME|KEYS|0|1|2|x)){0,4}", "[\\[\\]{}=\",a-z0-9]{0,20}"),
            0..6,
        ),
    ) {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (format!("LONGSHORE__{name}"), value)).collect();
        let borrowed: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let _either_is_fine = read(&with_provider(""), &borrowed);
    }
}
