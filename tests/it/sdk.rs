//! The official OpenAI SDK for Python, unmodified. What it expects is in `tests/sdk`.

use tokio::process::Command;

use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Env;

/// Runs a script of `tests/sdk` with the interpreter that the tests were given.
async fn passes(script: &str, arguments: &[&str]) {
    let python =
        std::env::var("LONGSHORE_TEST_PYTHON").expect("tests/run.sh sets LONGSHORE_TEST_PYTHON");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sdk");
    let output = Command::new(python)
        .arg(format!("{path}/{script}"))
        .args(arguments)
        .env("NO_PROXY", "127.0.0.1")
        .env_remove("OPENAI_BASE_URL")
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout), "ok\n");
}

#[tokio::test]
async fn the_python_sdk_works_unmodified() {
    let env = Env::start().await;
    passes("files.py", &[&env.client.base, ALICE_KEY, BOB_KEY]).await;
}

#[tokio::test]
async fn the_sandbox_behaves_as_the_python_sdk_expects_of_a_provider() {
    let env = Env::start().await;
    passes("sandbox.py", &[&env.sandbox.base_url("a")]).await;
}
