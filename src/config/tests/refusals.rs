//! Every way to be refused, word for word.

use proptest::prelude::*;

use super::{read, refused, with_provider};
use crate::config::{Config, Variables};

/// Checks that `text` is refused with this one line.
#[track_caller]
fn refuses(text: &str, line: &str) {
    assert_eq!(refused(text, &[]), [line]);
}

#[test]
fn unknown_keys_and_sections_are_named_with_what_was_meant() {
    refuses(
        "[server]\nopen_metrics = true\n\n[workers]\nlaese = \"20s\"\n",
        "longshore.toml:5: `workers.laese` is not a setting; did you mean `lease`?",
    );
    refuses(
        "[workers]\nthreads = 4",
        "longshore.toml:2: `workers.threads` is not a setting; there are `concurrency`, `lease`, `drain`, `listen`",
    );
    refuses(
        "\n[serverr]\n",
        "longshore.toml:2: `serverr` is not a setting; did you mean `server`?",
    );
    refuses(
        &with_provider(
            "[[providers]]\nname = \"b\"\nkind = \"openai\"\napi_key = \"k\"\napi_kee = \"k\"",
        ),
        "longshore.toml:12: `providers[1].api_kee` is not a setting; did you mean `api_key`?",
    );
    refuses(
        "workers = { lease = \"20s\",\n  slots = 3 }",
        "longshore.toml:2: `workers.slots` is not a setting; there are `concurrency`, `lease`, `drain`, `listen`",
    );
    refuses(
        "redis.db = 1",
        "longshore.toml:1: `redis.db` is not a setting; there are `url`, `ca_file`",
    );
}

#[test]
fn settings_of_the_database_and_of_redis_that_cannot_work_are_refused() {
    refuses(
        "[database]\nmax_connections = 1",
        "longshore.toml:2: `database.max_connections`: one connection is too few: what a request writes would wait \
         for what a worker reads; write at least 2",
    );
    refuses(
        "[database]\nlock_timeout = \"40s\"",
        "longshore.toml:2: `database.lock_timeout` is `40s`, longer than `database.statement_timeout`, which is \
         `30s`; swap or change them",
    );
    refuses(
        "[redis]\nca_file = \"/nowhere/ca.pem\"",
        "longshore.toml:2: `redis.ca_file`: cannot read `/nowhere/ca.pem`: No such file or directory (os error 2)",
    );
}

#[test]
fn sizes_and_durations_are_shown_how_to_be_written() {
    refuses(
        "[server]\n\nmax_file_bytes = \"512Mib3\"",
        "longshore.toml:3: `server.max_file_bytes`: `512Mib3` is not a size; write it like \"512MiB\" or \"200MB\"",
    );
    refuses(
        "[server]\nmax_file_bytes = -5",
        "longshore.toml:2: `server.max_file_bytes`: `-5` is not a size; write it like \"512MiB\" or \"200MB\"",
    );
    refuses(
        "[server]\nmax_file_bytes = 0",
        "longshore.toml:2: `server.max_file_bytes`: must be at least one byte",
    );
    refuses(
        "[workers]\nlease = \"20\"",
        "longshore.toml:2: `workers.lease`: `20` has no unit; write it like \"20s\", \"10m\" or \"24h\"",
    );
    refuses(
        "[workers]\nlease = 20",
        "longshore.toml:2: `workers.lease`: `20` has no unit; write it like \"20s\", \"10m\" or \"24h\"",
    );
    refuses(
        "[sweeps]\nevery = \"often\"",
        "longshore.toml:2: `sweeps.every`: `often` is not a duration; write it like \"20s\", \"10m\" or \"24h\"",
    );
    refuses(
        "[sweeps]\nevery = \"0s\"",
        "longshore.toml:2: `sweeps.every`: must be longer than nothing; write it like \"20s\"",
    );
    refuses(
        "[retention]\nfailed_jobs = \"101years\"",
        "longshore.toml:2: `retention.failed_jobs`: `101years` is longer than 100 years; write something shorter",
    );
    refuses(
        "[sweeps]\nevery = true",
        "longshore.toml:2: `sweeps.every`: must be a duration like \"20s\", \"10m\" or \"24h\"",
    );
    refuses(
        "[blobs]\nkeep = \"ever\"",
        "longshore.toml:2: `blobs.keep`: `ever` is neither \"file\" nor a time; write it like \"file\" or \"7d\"",
    );
}

#[test]
fn values_of_the_wrong_type_say_which_is_right() {
    refuses(
        "[server]\nopen_metrics = \"yes\"",
        "longshore.toml:2: `server.open_metrics`: must be true or false, not a string",
    );
    refuses(
        "[server]\nlisten = 4700",
        "longshore.toml:2: `server.listen`: must be a string, not a whole number",
    );
    refuses(
        "[server]\ndefault_models = \"m\"",
        "longshore.toml:2: `server.default_models`: must be a list, not a string",
    );
    refuses(
        "[server]\ndefault_models = [\n  1.5,\n]",
        "longshore.toml:3: `server.default_models[0]`: must be a string, not a fraction",
    );
    refuses("server = 1979-05-27", "longshore.toml:1: `server`: must be a table, not a date");
    refuses(
        "[providers]\nname = \"a\"",
        "longshore.toml:1: `providers`: must be a list, not a table; write `[[providers]]`, with two brackets, for each of them",
    );
    refuses(
        "[workers]\nconcurrency = 0",
        "longshore.toml:2: `workers.concurrency`: must be a whole number from 1 to 4294967295, not `0`",
    );
    refuses(
        "[workers]\nconcurrency = -1",
        "longshore.toml:2: `workers.concurrency`: must be a whole number from 1 to 4294967295, not `-1`",
    );
    refuses(
        "[retry]\nmax_attempts = 5000000000",
        "longshore.toml:2: `retry.max_attempts`: must be a whole number from 1 to 4294967295, not `5000000000`",
    );
    refuses(
        "[workers]\nconcurrency = \"4\"",
        "longshore.toml:2: `workers.concurrency`: must be a whole number, not a string",
    );
}

#[test]
fn a_missing_variable_is_named_with_the_two_ways_out() {
    refuses(
        "\n\n[auth]\n\nadmin_key = \"${LONGSHORE_ADMIN_KEY}\"",
        "longshore.toml:5: `auth.admin_key`: the environment variable `LONGSHORE_ADMIN_KEY` is not set; set it, or write `${LONGSHORE_ADMIN_KEY:-}` to go without",
    );
    // That the provider then lacks its key, and the model its provider, is not worth a line of its own.
    refuses(
        "[[providers]]\nname = \"${NAME}\"\nkind = \"openai\"\n[[models]]\nname = \"m\"\nprovider = \"p\"",
        "longshore.toml:2: `providers[0].name`: the environment variable `NAME` is not set; set it, or write `${NAME:-}` to go without",
    );
}

#[test]
fn settings_of_the_server_and_its_parts_are_checked() {
    refuses(
        "[server]\nlisten = \"localhost:4700\"",
        "longshore.toml:2: `server.listen`: `localhost:4700` is not an address to listen on; write it like \"127.0.0.1:4700\" or \"[::1]:4700\"",
    );
    refuses(
        "[workers]\nlease = \"500ms\"",
        "longshore.toml:2: `workers.lease`: `500ms` is out of range; write something from \"1s\" to \"1h\"",
    );
    refuses(
        "[workers]\ndrain = \"2h\"",
        "longshore.toml:2: `workers.drain`: `2h` is too long for a shutdown; write at most \"1h\"",
    );
    refuses(
        "[workers]\nlisten = \"4701\"",
        "longshore.toml:2: `workers.listen`: `4701` is not an address to listen on; write it like \"127.0.0.1:4700\" or \"[::1]:4700\"",
    );
    refuses(
        "[workers]\nlisten = \"127.0.0.1:4700\"",
        "longshore.toml:2: `workers.listen` is `127.0.0.1:4700`, which `server.listen` is too; each needs an address of its own",
    );
    refuses(
        "[server]\ndrain_delay = \"61m\"",
        "longshore.toml:2: `server.drain_delay`: `1h 1m` is too long for a shutdown; write at most \"1h\"",
    );
    refuses(
        "[retry]\nmax_delay = \"500ms\"",
        "longshore.toml:2: `retry.base_delay` is `1s`, longer than `retry.max_delay`, which is `500ms`; swap or change them",
    );
    refuses(
        "[batches]\npoll = \"10m\"",
        "longshore.toml:2: `batches.poll` is `10m`, longer than `batches.poll_max`, which is `5m`; swap or change them",
    );
    refuses(
        "[auth]\nencryption_key = \"dG9vIHNob3J0\"",
        "longshore.toml:2: `auth.encryption_key`: this is not 32 bytes in base64; make one with `openssl rand -base64 32`",
    );
    refuses(
        "[telemetry]\notlp_endpoint = \"collector:4317\"",
        "longshore.toml:2: `telemetry.otlp_endpoint`: `collector:4317` is not a web address; write it like \"https://api.example.com/v1\"",
    );
    refuses(
        "[telemetry]\notlp_endpoint = \"http://collector:4318/v1/traces/\"",
        "longshore.toml:2: `telemetry.otlp_endpoint`: `http://collector:4318/v1/traces/` ends with /v1/traces, which is added to it; leave that out",
    );
    refuses(
        "[telemetry]\notlp_endpoint = \"http://collector?key=x\"",
        "longshore.toml:2: `telemetry.otlp_endpoint`: must end with its path; what the collector asks for goes into `otlp_headers`",
    );
    for wrong in ["x", "=x", "a b=c", "x=%0A"] {
        refuses(
            &format!("[telemetry]\notlp_headers = \"{wrong}\""),
            "longshore.toml:2: `telemetry.otlp_headers`: these are no headers; write them like \"name=value,name=value\", percent-encoded",
        );
    }
    for wrong in ["1.5", "-1", "2"] {
        refuses(
            &format!("[telemetry]\nsample_ratio = {wrong}"),
            &format!(
                "longshore.toml:2: `telemetry.sample_ratio`: `{wrong}` is not a part of all traces; write 1.0 for all of them, 0.1 for a tenth"
            ),
        );
    }
}

#[test]
fn keys_are_not_empty_and_each_has_one_owner() {
    let key =
        |key: &str, owner: &str| format!("[[auth.keys]]\nkey = \"{key}\"\nowner = \"{owner}\"\n");
    refuses(
        &format!("{}{}", key("a", "alice"), key("a", "bob")),
        "longshore.toml:5: `auth.keys[1].key` is the same key as `auth.keys[0].key`; each needs its own",
    );
    refuses(
        &format!("[auth]\nadmin_key = \"a\"\n{}", key("a", "alice")),
        "longshore.toml:4: `auth.keys[0].key` is the same key as `auth.admin_key`; each needs its own",
    );
    refuses(
        &key("", "alice"),
        "longshore.toml:2: `auth.keys[0].key`: is empty; set it, or take the entry out",
    );
    refuses(&key("a", ""), "longshore.toml:3: `auth.keys[0].owner`: is empty; give it a name");
    refuses(
        "[[auth.keys]]\nkey = \"a\"",
        "longshore.toml:1: `auth.keys[0]` has no `owner`; add it, as `longshore config example` shows it",
    );
    refuses(
        "[auth]\nadmin_key = \"line\\nbreak\"",
        "longshore.toml:2: `auth.admin_key`: holds a space or a line break, which no key does; look for a stray one",
    );
}

#[test]
fn a_limit_of_requests_is_none_or_one_that_can_be_kept() {
    refuses(
        "[limits]\nrequests_per_minute = 1000001",
        "longshore.toml:2: `limits.requests_per_minute`: `1000001` is more than a limit can be; write at most 1000000, or 0 for none",
    );
    refuses(
        "[[auth.keys]]\nkey = \"a\"\nowner = \"alice\"\nrequests_per_minute = 2000000",
        "longshore.toml:4: `auth.keys[0].requests_per_minute`: `2000000` is more than a limit can be; write at most 1000000, or 0 for none",
    );
    refuses(
        "[limits]\nrequests_per_minute = -1",
        "longshore.toml:2: `limits.requests_per_minute`: must be a whole number, or 0 for none, not `-1`",
    );
    refuses(
        "[limits]\nmax_pending_jobs_per_owner = \"many\"",
        "longshore.toml:2: `limits.max_pending_jobs_per_owner`: must be a whole number, not a string",
    );
}

#[test]
fn addresses_of_database_redis_and_blobs_are_of_known_kinds() {
    refuses(
        "[database]\nurl = \"mysql://host/db\"",
        "longshore.toml:2: `database.url`: `mysql://` is not supported; write it like \"sqlite://data/longshore.db\" or \"postgres://user:password@host/database\"",
    );
    refuses(
        "[redis]\nurl = \"http://host\"",
        "longshore.toml:2: `redis.url`: `http://` is not supported; write it like \"redis://host:6379\", or \"rediss://…\" for TLS",
    );
    refuses(
        "[blobs]\nurl = \"ftp://bucket\"",
        "longshore.toml:2: `blobs.url`: `ftp://` is not supported; write it like \"file://data/blobs\", \"s3://bucket/prefix\", \"gs://bucket/prefix\" or \"az://container/prefix\"",
    );
    refuses(
        "[blobs]\nurl = \"file://\"",
        "longshore.toml:2: `blobs.url`: `file://` names no folder; write it like \"file://data/blobs\", \"s3://bucket/prefix\", \"gs://bucket/prefix\" or \"az://container/prefix\"",
    );
    refuses(
        "[blobs]\nurl = \"data/blobs\"",
        "longshore.toml:2: `blobs.url`: this is not a URL with a scheme; write it like \"file://data/blobs\", \"s3://bucket/prefix\", \"gs://bucket/prefix\" or \"az://container/prefix\"",
    );
    refuses(
        "[database]\nurl = \"sqlite://a.db\"\n[redis]\nurl = \"redis://host\"",
        "longshore.toml:4: `redis.url` is set and `database.url` is SQLite: Redis joins processes, SQLite does not; set `database.url` to a postgres:// one, or leave `redis.url` empty",
    );
}

#[test]
fn providers_are_complete_distinct_and_of_a_supported_kind() {
    let provider = |settings: &str| format!("[[providers]]\nname = \"a\"\n{settings}");
    refuses(
        &provider("kind = \"gemini\""),
        "longshore.toml:3: `providers[0].kind`: kind `gemini` is not supported yet; supported: openai",
    );
    refuses(
        &provider("kind = \"opnai\""),
        "longshore.toml:3: `providers[0].kind`: `opnai` is not a kind of provider; supported: openai",
    );
    refuses(
        &provider(""),
        "longshore.toml:1: `providers[0]` has no `kind`; add it, as `longshore config example` shows it",
    );
    refuses(
        &provider("kind = \"openai\""),
        "longshore.toml:1: the provider `a` has no `api_key`; set it: only one on this machine can do without",
    );
    refuses(
        &provider("kind = \"openai\"\napi_key = \"\""),
        "longshore.toml:4: the provider `a` has no `api_key`; set it: only one on this machine can do without",
    );
    refuses(
        &provider("kind = \"openai\"\nbase_url = \"ftp://host\""),
        "longshore.toml:4: `providers[0].base_url`: `ftp://host` is not a web address; write it like \"https://api.example.com/v1\"",
    );
    refuses(
        &provider("kind = \"openai\"\nbase_url = \"https://me:canary@host\""),
        "longshore.toml:4: `providers[0].base_url`: a user or password has no place in this address; leave it out",
    );
    refuses(
        &provider("kind = \"openai\"\nrequests_per_minute = 0"),
        "longshore.toml:4: `providers[0].requests_per_minute`: must be a whole number from 1 to 4294967295, not `0`",
    );
    refuses(
        "[[providers]]\nname = \"open ai\"\nkind = \"openai\"",
        "longshore.toml:2: `providers[0].name`: `open ai` is not a provider's name; use letters, digits, `-` and `_`",
    );
    refuses(
        &with_provider("[[providers]]\nname = \"openai\"\nkind = \"openai\"\napi_key = \"k\""),
        "longshore.toml:9: `providers[1].name`: `providers[0]` is named `openai` too; each needs a name of its own",
    );
}

#[test]
fn models_lead_to_a_configured_provider_and_are_listed_once() {
    refuses(
        &with_provider("[[models]]\nname = \"x\"\nprovider = \"foo\""),
        "longshore.toml:10: model `x` names the provider `foo`, which is not configured; configured: openai",
    );
    refuses(
        "[[models]]\nname = \"x\"\nprovider = \"foo\"",
        "longshore.toml:3: model `x` names the provider `foo`, which is not configured; configured: none",
    );
    refuses(
        &with_provider("[[models]]\nname = \"m\"\nprovider = \"openai\"\nmodel = \"m\""),
        "longshore.toml:8: model `m` is listed twice, both as `m` of the provider `openai`; take out this one or `models[0]`",
    );
    refuses(
        &with_provider(
            "id = \"one\"\n[[models]]\nname = \"x\"\nprovider = \"openai\"\nid = \"one\"",
        ),
        "longshore.toml:12: model `x` has the id `one`, which `models[0]` has too; each needs an id of its own",
    );
    refuses(
        &with_provider("[server]\ndefault_models = [\"m\",\n  \"n\"]"),
        "longshore.toml:10: `server.default_models` names the model `n`, which is not configured; configured: m",
    );
    refuses(
        &with_provider("[[models]]\nname = \" x\"\nprovider = \"openai\""),
        "longshore.toml:9: `models[1].name`: ` x` begins or ends with a space; take it out",
    );
    refuses(
        &with_provider("[[models]]\nname = \"x\\u0007\"\nprovider = \"openai\""),
        "longshore.toml:9: `models[1].name`: `x\\u{7}` holds a control character; take it out",
    );
}

#[test]
fn one_name_may_stand_for_several_deployments() {
    let text = with_provider("[[models]]\nname = \"m\"\nprovider = \"openai\"\nmodel = \"other\"");
    let config = read(&text, &[]).unwrap().config;
    let models: Vec<_> = config.deployments_named("m").map(|model| model.model.as_str()).collect();
    assert_eq!(models, ["m", "other"]);
    assert_eq!(config.deployments_named("n").count(), 0);
    assert!(config.provider("openai").is_some());
    assert!(config.provider("other").is_none());
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text = "[workers]\nlaese = \"1s\"\nconcurrency = 0\n[batches]\npoll = \"1h\"\n[redis]\nurl = \"redis://h\"\n[server]\nlisten = \"${GONE}\"";
    let lines = refused(text, &[("LONGSHORE__SWEEPS__EVERY", "5")]);
    let starts: Vec<_> = lines.iter().map(|line| line.split('`').next().unwrap()).collect();
    assert_eq!(
        starts,
        [
            "longshore.toml:2: ",
            "longshore.toml:3: ",
            "longshore.toml:5: ",
            "longshore.toml:7: ",
            "longshore.toml:9: ",
            "environment "
        ]
    );
}

#[test]
fn a_file_that_is_all_mistakes_is_not_read_to_its_end() {
    let text: String = (0..5000).map(|number| format!("junk_{number:04} = 1\n")).collect();
    let lines = refused(&text, &[]);
    assert_eq!(lines.len(), 26);
    assert_eq!(lines[0], "longshore.toml: there may be more: reading stopped after 25 mistakes");
}

#[test]
fn what_is_not_toml_is_refused_with_its_line_and_not_its_text() {
    let lines = refused("[auth]\nadmin_key = canary\n", &[]);
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("longshore.toml:2: this is not TOML: "), "{lines:?}");
    assert!(!lines[0].contains("canary"), "{lines:?}");
}

#[test]
fn a_file_that_was_asked_for_must_be_readable_and_of_a_sane_size() {
    let folder = tempfile::tempdir().unwrap();
    let load = |name: &str| Config::load(Some(&folder.path().join(name)), &Variables::new());
    let missing = load("gone.toml").unwrap_err().to_string();
    assert!(missing.contains("gone.toml: cannot be read: No such file"), "{missing}");
    assert!(missing.ends_with("name a readable file, or leave out `--config`"), "{missing}");

    std::fs::write(folder.path().join("large.toml"), "#".repeat(1024 * 1024 + 1)).unwrap();
    let large = load("large.toml").unwrap_err().to_string();
    assert!(large.contains("cannot be read: it is larger than 1MiB"), "{large}");

    std::fs::write(folder.path().join("fine.toml"), "[server]\nlisten = \"127.0.0.1:1\"").unwrap();
    assert_eq!(load("fine.toml").unwrap().config.server.listen.port(), 1);
}

#[test]
fn nesting_without_end_is_refused_and_does_not_exhaust_the_stack() {
    for text in [
        format!("{}=1", vec!["a"; 100_000].join(".")),
        format!("[{}]", vec!["a"; 100_000].join(".")),
        format!("a={}", "[".repeat(100_000)),
        format!("a={}", "{a=".repeat(100_000)),
    ] {
        assert!(read(&text, &[]).is_err());
    }
}

#[test]
fn settings_of_an_object_store_fit_the_store() {
    refuses(
        "[blobs]\nregion = \"eu-west-1\"",
        "longshore.toml:2: `blobs.region` is for object stores, and `blobs.url` is a folder; take it out",
    );
    refuses(
        "[blobs]\nurl = \"s3://bucket\"\naccess_key_id = \"k\"",
        "longshore.toml:3: `blobs.access_key_id` is set and `blobs.secret_access_key` is not; set both, or neither",
    );
    refuses(
        "[blobs]\nurl = \"s3://bucket\"\nendpoint = \"http://minio:9000\"",
        "longshore.toml:3: `blobs.endpoint` is http://, without encryption; use https://, or set `blobs.allow_http` to true",
    );
    refuses(
        "[blobs]\nurl = \"gs://bucket\"\nregion = \"eu\"",
        "longshore.toml:3: `blobs.region` is not for gs://, whose credentials come from `GOOGLE_APPLICATION_CREDENTIALS`; take it out",
    );
    refuses(
        "[blobs]\nurl = \"s3://bucket/a\"\n[server]\nmax_file_bytes = \"100GiB\"",
        "longshore.toml:4: `server.max_file_bytes` is 100GiB, but an object in `s3://bucket/a` may have 50000MiB",
    );
    refuses(
        "[blobs]\nurl = \"s3://key:canary@bucket\"",
        "longshore.toml:2: `blobs.url`: only a bucket and a prefix have a place in this URL; write it like \"file://data/blobs\", \"s3://bucket/prefix\", \"gs://bucket/prefix\" or \"az://container/prefix\"",
    );
    let text = "[blobs]\nurl = \"s3://bucket\"\nendpoint = \"http://minio:9000\"";
    let loaded = read(text, &[("AWS_ALLOW_HTTP", "true"), ("AWS_REGION", "eu"), ("OTHER", "x")]);
    let loaded = loaded.unwrap();
    assert!(loaded.warnings[0].contains("`blobs.endpoint` is http://"), "{:?}", loaded.warnings);
    let names = loaded.config.blobs.environment.iter().map(|(name, _)| name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["AWS_ALLOW_HTTP", "AWS_REGION"]);
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "\\PC*") {
        let _either_is_fine = read(&text, &[]);
    }

    #[test]
    fn no_pieces_of_a_configuration_make_reading_panic(
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "[", "]", "[[", "]]", "=", ".", "\n", "\"", "{", "}", ",", "server", "auth", "keys", "providers",
                "models", "name", "kind", "openai", "listen", "lease", "20s", "-1", "1.5", "true", "${", "A", ":-", "$",
                "é", "\u{0}", "1979-05-27", "[[models]]\n", "[[auth.keys]]\n", "name = \"a\"\n", "key = \"a\"\n",
            ]),
            0..40,
        ),
        value in ".*",
    ) {
        let _either_is_fine = read(&pieces.concat(), &[("A", &value), ("LONGSHORE__MODELS", &value)]);
    }
}
