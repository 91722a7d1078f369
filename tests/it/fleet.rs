//! The processes of an installation, as an operator sees them.

use std::time::Duration;

use longshore::sandbox::Fault;
use serde_json::Value;

use crate::support::ADMIN_KEY;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::eventually;
use crate::support::run;

const BOTH: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];
const PATIENCE: Duration = Duration::from_secs(30);

/// All that are listed.
async fn listed(env: &Env) -> Vec<Value> {
    let (status, list) = env.as_key(ADMIN_KEY).get("/v1/admin/workers").await;
    assert_eq!((status, &list["object"], &list["has_more"]), (200, &"list".into(), &false.into()));
    list["data"].as_array().unwrap().clone()
}

/// The one of this role, once it is as it should be.
async fn worker(env: &Env, role: &str, is: impl Fn(&Value) -> bool) -> Value {
    eventually(PATIENCE, async || {
        listed(env).await.into_iter().find(|worker| worker["role"] == role && is(worker))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_is_listed_with_its_jobs_while_it_runs_drains_and_when_it_has_stopped() {
    for kind in BOTH {
        let mut crew = Crew::with(Options { drain: "20s", ..Options::on(kind) }).await;
        let role = if kind == Kind::Postgres { "work" } else { "up" };
        crew.env.spoil("a", Fault::Hold { hold_before: true });
        crew.env.client.upload(&["a"]).await;
        crew.env.held("a", 1).await;
        let running = worker(&crew.env, role, |worker| worker["running"] == 1).await;
        assert_eq!(running["status"], "running", "{running}");
        assert_eq!(running["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(running["object"], "worker");
        // The whole machine has one clock, and a heartbeat takes less than the tolerance of `doctor`.
        assert!(running["clock_ahead_ms"].as_i64().unwrap().abs() < 5000, "{running}");
        // The name that its attempts are recorded under.
        let owner =
            crew.env.database.query("SELECT lease_owner FROM jobs WHERE status = 'running'");
        let owner: String = owner.await[0].try_get_by_index(0).unwrap();
        assert_eq!(running["id"], owner.as_str());

        assert_eq!(crew.env.client.get("/v1/admin/workers").await.0, 403);
        if kind == Kind::Postgres {
            worker(&crew.env, "serve", |worker| worker["status"] == "running").await;
            crew.worker().signal("TERM");
            let draining = |worker: &Value| worker["status"] == "draining";
            let draining = worker(&crew.env, role, draining).await;
            assert!(draining["draining_at"].is_i64() && draining["stopped_at"].is_null());
        } else {
            crew.worker().signal("TERM");
        }
        crew.env.sandbox.release("a");
        assert_eq!(crew.worker().wait(PATIENCE).code(), Some(0));
        crew.restart();
        let stopped = worker(&crew.env, role, |worker| worker["id"] == running["id"]).await;
        assert_eq!(stopped["status"], "stopped", "{stopped}");
        assert!(stopped["stopped_at"].as_i64() >= stopped["draining_at"].as_i64());
        let next = |worker: &Value| worker["status"] == "running" && worker["id"] != running["id"];
        worker(&crew.env, role, next).await;
        // Who has ended comes last.
        assert_eq!(listed(&crew.env).await.last().unwrap()["id"], running["id"]);
    }
}

async fn works_without_its_row(kind: Kind) {
    let env = Env::with(Options { command: "serve", ..Options::on(kind) }).await;
    env.database.execute("ALTER TABLE workers RENAME TO taken_away").await;
    let mut worker = env.also("work");
    tokio::task::block_in_place(|| worker.logged("could not tell the database"));
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    env.database.execute("ALTER TABLE taken_away RENAME TO workers").await;
    self::worker(&env, "work", |worker| worker["status"] == "running").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_that_cannot_be_written_stops_nothing_and_comes_again() {
    tokio::join!(works_without_its_row(Kind::Sqlite), works_without_its_row(Kind::Postgres));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_killed_is_silent_and_forgotten_after_a_day() {
    for kind in BOTH {
        let mut crew = Crew::on(kind).await;
        let role = if kind == Kind::Postgres { "work" } else { "up" };
        let killed = worker(&crew.env, role, |worker| worker["status"] == "running").await;
        crew.kill();
        crew.env.database.execute("UPDATE workers SET seen_at = seen_at - 60000").await;
        if kind == Kind::Sqlite {
            crew.restart();
        }
        let silent = worker(&crew.env, role, |worker| worker["id"] == killed["id"]).await;
        assert_eq!(silent["status"], "silent", "{silent}");
        crew.env.database.execute("UPDATE workers SET seen_at = seen_at - 86400000").await;
        // A worker prunes when it starts, and each minute.
        let worker = crew.env.also("work");
        eventually(PATIENCE, async || {
            let left = listed(&crew.env).await;
            left.iter().all(|worker| worker["id"] != killed["id"]).then_some(())
        })
        .await;
        drop(worker);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_lists_them_and_the_doctor_tells_who_is_there_and_what_is_amiss() {
    let options = Options { command: "serve", ..Options::on(Kind::Postgres) };
    let env = Env::with(options).await;
    let (_one, mut other) = (env.also("work"), env.also("work"));
    let environment = [("LONGSHORE_URL", &*env.client.base), ("LONGSHORE_API_KEY", ADMIN_KEY)];
    let shown = eventually(PATIENCE, async || {
        let shown = run(&env.folder(), &["workers", "ls"], &environment);
        assert_eq!(shown.code, 0, "{}", shown.log);
        (shown.output.lines().count() == 4).then_some(shown.output)
    })
    .await;
    assert!(shown.starts_with("STATUS") && shown.matches(" work ").count() == 2, "{shown}");
    let json = run(&env.folder(), &["workers", "ls", "--json"], &environment);
    let json: Value = serde_json::from_str(&json.output).unwrap();
    assert_eq!(json["data"].as_array().unwrap().len(), 3);

    // Frozen, so that no heartbeat undoes what the test writes.
    env.server.signal("STOP");
    other.kill();
    let gone = "UPDATE workers SET seen_at = seen_at - 90000, host = 'elsewhere' WHERE pid =";
    env.database.execute(&format!("{gone} {}", other.id())).await;
    let serve = "WHERE role = 'serve'";
    env.database
        .execute(&format!("UPDATE workers SET version = '9.9.9', clock_ahead_ms = 61000 {serve}"))
        .await;
    let doctor = run(&env.folder(), &["doctor", "--json"], &[]);
    assert_eq!(doctor.code, 0, "{}", doctor.output);
    let report: Value = serde_json::from_str(&doctor.output).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    let warnings: Vec<_> = checks
        .filter(|check| check["check"].as_str().unwrap().starts_with("worker"))
        .map(|check| (check["status"].as_str().unwrap(), check["message"].as_str().unwrap()))
        .collect();
    let said = |text: &str| {
        assert!(
            warnings.iter().any(|(status, message)| *status == "warning" && message.contains(text)),
            "`{text}` is not in {warnings:?}"
        );
    };
    said("2 processes: 1 serve, 1 work, of the versions");
    said("9.9.9");
    said("`work` has been silent for 1m");
    said("its clock is 1m 1s ahead of the database's");
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}
