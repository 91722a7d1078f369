//! No secret is shown, neither by `Debug` nor in a message.

use super::{read, refused};

const CANARY: &str = "canary-3f9x2ab";

#[test]
fn debug_shows_no_secret() {
    let text = r#"
[auth]
admin_key = "${SECRET}-admin"
encryption_key = "Y2FuYXJ5LTNmOXgyYWJjYW5hcnktM2Y5eDJhYmNhbmE="
[[auth.keys]]
key = "canary-3f9x2ab"
owner = "alice"
[database]
url = "postgres://me:${SECRET}@host/db"
[redis]
url = "redis://:${SECRET}@host"
[telemetry]
otlp_headers = "authorization=Bearer%20${SECRET}"
[blobs]
url = "s3://bucket"
access_key_id = "k"
secret_access_key = "${SECRET}"
[[providers]]
name = "openai"
kind = "openai"
api_key = "${SECRET}"
webhook_secret = "${SECRET}"
[[models]]
name = "m"
provider = "openai"
"#;
    let loaded = read(text, &[("SECRET", CANARY), ("AWS_SESSION_TOKEN", CANARY)]).unwrap();
    let shown = format!("{loaded:?} {loaded:#?}");
    assert!(!shown.contains("canary"), "{shown}");
    // The first bytes of the encryption key, as a list of numbers.
    assert!(!shown.contains("99, 97, 110"), "{shown}");
    assert!(shown.contains("postgres://me:***@host/db"));
    assert!(shown.contains("redis://:***@host"));
    assert!(!loaded.found.concat().contains("canary"));
}

#[test]
fn messages_about_secrets_do_not_repeat_them() {
    for (setting, value) in [
        ("auth.admin_key", "${SECRET} with a space"),
        ("auth.encryption_key", "${SECRET}"),
        ("database.url", "${SECRET}"),
        ("database.url", "mysql://me:${SECRET}@host"),
        ("redis.url", "me:${SECRET}@host://"),
        ("redis.url", "https://${SECRET}"),
        ("blobs.url", "${SECRET}"),
        ("blobs.url", "s3://me:${SECRET}@bucket"),
        ("blobs.secret_access_key", "${SECRET} with a space"),
        ("server.listen", "${SECRET}"),
        ("workers.lease", "${SECRET}"),
        ("workers.concurrency", "${SECRET}"),
        ("telemetry.otlp_endpoint", "me:${SECRET}@host"),
        ("telemetry.otlp_headers", "${SECRET}"),
        ("telemetry.otlp_headers", "no header=${SECRET}"),
        ("auth.admin_key", "canary-3f9x2ab${unclosed"),
        ("auth.admin_key", "${canary-3f9x2ab}"),
    ] {
        for value in [value.to_owned(), value.replace("${SECRET}", CANARY)] {
            // A secret written where none belongs is quoted, as any text is; one from a variable is not.
            if value.contains(CANARY) && ["server.listen", "workers.lease"].contains(&setting) {
                continue;
            }
            let lines = refused(&format!("{setting} = '{value}'"), &[("SECRET", CANARY)]);
            assert!(!lines.concat().contains(CANARY), "{lines:?}");
        }
    }
    let number = refused("auth.admin_key = 31415926", &[]);
    assert_eq!(
        number,
        ["longshore.toml:1: `auth.admin_key`: must be a string, not a whole number"]
    );
    let list = refused("", &[("LONGSHORE__PROVIDERS", "[{api_key = \"canary-3f9x2ab\"")]);
    assert_eq!(
        list,
        ["environment `LONGSHORE__PROVIDERS`: `providers`: must be a list, not a string"]
    );
}

#[test]
fn empty_secrets_count_as_not_set() {
    let text = "[auth]\nadmin_key = \"${GONE:-}\"\nencryption_key = \"\"\n[redis]\nurl = \"\"\n[telemetry]\notlp_endpoint = \"\"";
    let config = read(text, &[]).unwrap().config;
    assert!(config.auth.admin_key.is_none());
    assert!(config.auth.encryption_key.is_none());
    assert!(config.redis.url.is_none());
    assert!(config.telemetry.otlp_endpoint.is_none());
}
