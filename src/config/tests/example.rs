//! The example is valid, has every setting, and states the defaults.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error, Visitor, value::Error as Stop};

use super::read;
use crate::config::{
    ApiKey, Auth, Batches, Blobs, Config, Database, Limits, Model, Provider, Redis, Retention,
    Retry, Server, Sweeps, Telemetry, Webhooks, Workers, example,
};

/// The example with the entry in it that is commented out.
fn uncommented() -> String {
    let lines = example().lines().map(|line| match line.strip_prefix("# ") {
        Some(code)
            if code.starts_with("[[auth")
                || code.starts_with("key =")
                || code.starts_with("owner =")
                || code.starts_with("requests_per_minute =") =>
        {
            code
        }
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_valid_with_nothing_but_the_providers_key() {
    let loaded = read(example(), &[("OPENAI_API_KEY", "k")]).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn the_example_is_valid_with_every_variable_set() {
    let pairs = [
        ("OPENAI_API_KEY", "k"),
        ("OPENAI_WEBHOOK_SECRET", "whsec_x"),
        ("LONGSHORE_ADMIN_KEY", "a"),
        ("LONGSHORE_ENCRYPTION_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
        ("ALICE_KEY", "b"),
    ];
    let config = read(&uncommented(), &pairs).unwrap().config;
    assert_eq!(config.auth.keys[0].owner, "alice");
    assert!(config.auth.admin_key.is_some() && config.auth.encryption_key.is_some());
    assert!(config.providers[0].webhook_secret.is_some());
    assert_eq!(config.models[0].deployment_id(), "dep_633097f299d7777e");
}

#[test]
fn every_value_in_the_example_is_the_default() {
    let pairs = [("OPENAI_API_KEY", "k")];
    let shown = read(example(), &pairs).unwrap().config;
    let bare = "[[providers]]\nname = \"openai\"\nkind = \"openai\"\napi_key = \"k\"\n[[models]]\nname = \"gpt-4o-mini\"\nprovider = \"openai\"\nmodel = \"gpt-4o-mini-2024-07-18\"";
    let default = read(bare, &pairs).unwrap().config;
    assert_eq!(format!("{shown:#?}"), format!("{default:#?}"));
    let without = Config { providers: Vec::new(), models: Vec::new(), ..shown };
    assert_eq!(format!("{without:#?}"), format!("{:#?}", Config::default()));
}

#[test]
fn every_setting_is_in_the_example() {
    let text = uncommented();
    let document = toml_edit::Document::parse(text.as_str()).unwrap();
    let sections = BTreeMap::from([
        ("server", settings::<Server>()),
        ("auth", settings::<Auth>()),
        ("limits", settings::<Limits>()),
        ("database", settings::<Database>()),
        ("redis", settings::<Redis>()),
        ("blobs", settings::<Blobs>()),
        ("workers", settings::<Workers>()),
        ("retry", settings::<Retry>()),
        ("batches", settings::<Batches>()),
        ("sweeps", settings::<Sweeps>()),
        ("retention", settings::<Retention>()),
        ("webhooks", settings::<Webhooks>()),
        ("telemetry", settings::<Telemetry>()),
        ("providers", settings::<Provider>()),
        ("models", settings::<Model>()),
    ]);
    for section in settings::<Config>() {
        let item = document.get(&section).unwrap_or_else(|| panic!("no [{section}]"));
        let item = item.get(0).unwrap_or(item);
        for setting in &sections[section.as_str()] {
            assert!(item.get(setting).is_some(), "no {section}.{setting}");
        }
    }
    for setting in settings::<ApiKey>() {
        assert!(document["auth"]["keys"][0].get(&setting).is_some(), "no auth.keys.{setting}");
    }
}

/// The names of the settings in `T`.
fn settings<T: for<'de> Deserialize<'de>>() -> Vec<String> {
    let mut names = Vec::new();
    let stopped = T::deserialize(Listing(&mut names));
    assert!(stopped.is_err() && !names.is_empty());
    names
}

/// Notes which fields a struct asks for, and stops.
struct Listing<'a>(&'a mut Vec<String>);

impl<'de> Deserializer<'de> for Listing<'_> {
    type Error = Stop;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Stop> {
        self.0.extend(fields.iter().map(|field| (*field).to_owned()));
        Err(Stop::custom("seen"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stop> {
        Err(Stop::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
