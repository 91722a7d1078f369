//! The official OpenAI SDKs for Python and for Node, unmodified. What they expect is in `tests/sdk`.

use std::time::Duration;

use longshore::sandbox::BatchState;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use sea_orm::ConnectionTrait as _;
use sea_orm::TransactionTrait as _;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Env;
use crate::support::Options;
use crate::support::batches::WATCHFUL;
use crate::support::database::Kind;
use crate::support::eventually;
use crate::support::script;
use crate::support::status;

/// Runs a script of `tests/sdk`, which says `ok` when all is as it expects.
async fn passes(name: &str, arguments: &[&str]) {
    assert_eq!(script(name, arguments, &[]).await, "ok\n");
}

/// The model `c` refuses the first file whose name says so.
fn refuse_one(env: &Env) {
    let refusal = status(400, &[], json!({"error": {"message": "not this one"}}));
    let rule = FaultRule::new(Operation::Upload, refusal);
    env.spoil_as("c", FaultRule { filename_contains: Some("refused".to_owned()), ..rule });
}

#[tokio::test]
async fn the_python_sdk_works_unmodified() {
    let env = Env::start().await;
    refuse_one(&env);
    passes("files.py", &[&env.client.base, ALICE_KEY, BOB_KEY, ADMIN_KEY]).await;
}

#[tokio::test]
async fn the_node_sdk_works_unmodified() {
    let env = Env::start().await;
    refuse_one(&env);
    passes("files.mjs", &[&env.client.base, ALICE_KEY, BOB_KEY]).await;
}

/// Where the model `a` fails one request, and `c` holds its batches.
async fn with_batches() -> Env {
    let env = Env::with(Options { extra: WATCHFUL.to_owned(), ..Options::default() }).await;
    env.treat_batches("a", |batches| batches.failing = [("r-1".to_owned(), 400)].into());
    env.treat_batches("c", |batches| batches.hold_at = Some(BatchState::InProgress));
    env
}

#[tokio::test]
async fn the_python_sdk_runs_batches_unmodified() {
    let env = with_batches().await;
    passes("batches.py", &[&env.client.base, ALICE_KEY, BOB_KEY]).await;
}

#[tokio::test]
async fn the_node_sdk_runs_batches_unmodified() {
    let env = with_batches().await;
    passes("batches.mjs", &[&env.client.base, ALICE_KEY, BOB_KEY]).await;
}

#[tokio::test]
async fn the_sdks_manage_webhooks_and_take_what_is_delivered() {
    let extra = format!("{WATCHFUL}[webhooks]\nallow_private_addresses = true\n");
    let env = Env::with(Options { extra, ..Options::default() }).await;
    passes("webhooks.py", &[&env.client.base, ALICE_KEY, BOB_KEY]).await;
    passes("webhooks.mjs", &[&env.client.base, ALICE_KEY]).await;
}

#[tokio::test]
async fn an_sdk_that_lost_the_answer_repeats_the_upload_and_gets_it() {
    for name in ["lost.py", "lost.mjs"] {
        let env = Env::with(Options::on(Kind::Postgres)).await;
        Box::pin(repeats_and_makes_one(&env, name, "files", &[])).await;
    }
}

#[tokio::test]
async fn an_sdk_that_lost_the_answer_repeats_the_create_of_a_batch_and_makes_no_second() {
    for name in ["lost.py", "lost.mjs"] {
        let env = Env::with(Options::on(Kind::Postgres)).await;
        let file = env.client.upload_requests(&["a"], 1).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        let file = file["id"].as_str().unwrap();
        Box::pin(repeats_and_makes_one(&env, name, "batches", &[file])).await;
        env.has_batches("a", 1).await;
    }
}

/// Loses the first answer to a script that makes a row of a table, and looks that it made one.
async fn repeats_and_makes_one(env: &Env, name: &str, table: &str, more: &[&str]) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let arguments = [&[base.as_str(), ALICE_KEY], more].concat();
    tokio::join!(passes(name, &arguments), lose_the_first_answer(env, listener, table));
    let count = format!("SELECT COUNT(*) FROM {table}");
    assert_eq!(env.database.count(&count).await, 1, "{name}");
}

/// Stands between an SDK and the server for two connections. The first it cuts off when the whole request has
/// arrived and nothing is answered yet; the second may pass once the first has made its row of `table`.
async fn lose_the_first_answer(env: &Env, listener: TcpListener, table: &str) {
    // The commit has to wait for this lock, so the connection can be gone before there is an answer.
    let own = sea_orm::Database::connect(&env.database.url).await.unwrap();
    let lock = own.begin().await.unwrap();
    lock.execute_unprepared(&format!("LOCK TABLE {table} IN EXCLUSIVE MODE")).await.unwrap();
    let (mut sdk, _) = listener.accept().await.unwrap();
    let mut server = env.client.connect().await;
    let committing = async {
        let waiting = format!(
            "SELECT COUNT(*) FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass"
        );
        eventually(Duration::from_secs(10), async || {
            (env.database.count(&waiting).await > 0).then_some(())
        })
        .await;
    };
    tokio::select! {
        () = forward(&mut sdk, &mut server) => panic!("the request ended by itself"),
        () = committing => {}
    }
    drop((sdk, server));
    lock.commit().await.unwrap();
    let (mut sdk, _) = listener.accept().await.unwrap();
    let count = format!("SELECT COUNT(*) FROM {table}");
    eventually(Duration::from_secs(10), async || {
        (env.database.count(&count).await == 1).then_some(())
    })
    .await;
    let mut server = env.client.connect().await;
    tokio::io::copy_bidirectional(&mut sdk, &mut server).await.unwrap();
}

/// Passes on what one sends to the other until it ends.
async fn forward(from: &mut TcpStream, to: &mut TcpStream) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap();
        if read == 0 {
            return;
        }
        to.write_all(&buffer[..read]).await.unwrap();
    }
}

#[tokio::test]
async fn the_sandbox_behaves_as_the_sdks_expect_of_a_provider() {
    let env = Env::start().await;
    passes("sandbox.py", &[&env.sandbox.base_url("a")]).await;
    passes("sandbox.mjs", &[&env.sandbox.base_url("b")]).await;
}
