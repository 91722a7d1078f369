//! Programs of `tests/sdk`, run by the interpreters that `tests/run.sh` has set up.

use std::path::Path;
use std::path::PathBuf;

use tokio::process::Command;

/// The folder of the scripts.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("sdk")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("tests/run.sh sets {name}"))
}

/// Runs a script by its name, with Python or with Node, and answers what it printed. It must succeed.
pub async fn script(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = if name.ends_with(".py") {
        Command::new(variable("LONGSHORE_TEST_PYTHON"))
    } else {
        let mut command = Command::new("node");
        command.env("NODE_PATH", variable("LONGSHORE_TEST_NODE_MODULES"));
        command
    };
    command
        .arg(folder().join(name))
        .args(arguments)
        .env("NO_PROXY", "127.0.0.1")
        .env_remove("OPENAI_BASE_URL")
        .envs(environment.iter().copied())
        .kill_on_drop(true);
    let output = command.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
