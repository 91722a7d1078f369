//! docker-compose.yml and what belongs to it, as far as no engine is needed.

use std::path::Path;

use crate::support::ENCRYPTION_KEY;
use crate::support::run;
use crate::support::script;

#[tokio::test]
async fn the_compose_file_keeps_what_it_promises() {
    assert_eq!(script("compose.py", &[env!("CARGO_MANIFEST_DIR")], &[]).await, "ok\n");
}

#[test]
fn the_configuration_of_the_compose_file_is_in_order_and_takes_its_secrets_from_outside() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join(".docker/longshore.toml");
    let arguments = ["config", "check", "--config", config.to_str().unwrap()];
    let folder = tempfile::tempdir().unwrap();
    let refused = run(folder.path(), &arguments, &[]);
    assert_eq!(refused.code, 2, "{}", refused.output);
    for name in ["LONGSHORE_ADMIN_KEY", "LONGSHORE_POSTGRES_PASSWORD"] {
        assert!(refused.log.contains(name), "{}", refused.log);
    }
    let environment = [
        ("LONGSHORE_ADMIN_KEY", "canary-a"),
        ("LONGSHORE_POSTGRES_PASSWORD", "canary-b"),
        ("LONGSHORE_ENCRYPTION_KEY", ENCRYPTION_KEY),
        // Nobody is there to be asked.
        ("LONGSHORE__DATABASE__URL", "postgres://longshore:canary-b@127.0.0.1:1/longshore"),
    ];
    let checked = run(folder.path(), &arguments, &environment);
    assert_eq!(checked.code, 0, "{}", checked.log);
    assert!(checked.output.contains("model swift"), "{}", checked.output);
    assert!(!(checked.output + &checked.log).contains("canary"));
}
