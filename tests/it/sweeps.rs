//! Sweeps: many files deleted by one job.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::answer;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(60);

async fn sweep(client: &Client, asked: Value) -> Value {
    let (status, sweep) = client.post("/v1/sweeps", asked).await;
    assert_eq!(status, 200, "{sweep}");
    sweep
}

fn path(sweep: &Value) -> String {
    format!("/v1/sweeps/{}", sweep["id"].as_str().unwrap())
}

/// The sweep once it has ended.
async fn ended(client: &Client, sweep: &Value) -> Value {
    eventually(PATIENCE, async || {
        let (status, sweep) = client.get(&format!("{}?wait=10", path(sweep))).await;
        (status == 200 && !sweep["finished_at"].is_null()).then_some(sweep)
    })
    .await
}

fn counts(matched: u32, pending: u32, deleted: u32, failed: u32) -> Value {
    json!({"matched": matched, "pending": pending, "deleted": deleted, "failed": failed, "skipped": 0})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_deletes_what_its_filter_says_and_nothing_else() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        env.seed("alice", 300).await;
        env.seed("bob", 20).await;
        let dry = sweep(&env.client, json!({"metadata": {"number": "3"}, "dry_run": true})).await;
        assert_eq!((&dry["object"], &dry["status"]), (&json!("sweep"), &json!("queued")));
        let dry = ended(&env.client, &dry).await;
        assert_eq!((&dry["status"], &dry["counts"]), (&json!("succeeded"), &counts(30, 30, 0, 0)));
        assert_eq!(env.sandbox.live_files("a").len(), 320, "it only counts");

        let some =
            sweep(&env.client, json!({"metadata": {"number": "3"}, "purpose": "user_data"})).await;
        let some = ended(&env.client, &some).await;
        assert_eq!(
            (&some["status"], &some["counts"]),
            (&json!("succeeded"), &counts(30, 0, 30, 0))
        );
        assert_eq!(env.sandbox.live_files("a").len(), 290);
        for nothing in [
            json!({"purpose": "batch"}),
            json!({"status": "error"}),
            json!({"model": "b"}),
            json!({"created_before": 1_000_000}),
        ] {
            let none = ended(&env.client, &sweep(&env.client, nothing.clone()).await).await;
            assert_eq!(
                (&none["status"], &none["counts"]),
                (&json!("succeeded"), &counts(0, 0, 0, 0))
            );
            assert_eq!(none["filter"], nothing);
        }
        let all = ended(&env.client, &sweep(&env.client, json!({"all": true})).await).await;
        assert_eq!(all["counts"], counts(270, 0, 270, 0), "{all}");
        assert_eq!(env.sandbox.live_files("a").len(), 20, "another owner's are left");
        assert_eq!(
            env.as_key(BOB_KEY).get("/v1/files").await.1["data"].as_array().unwrap().len(),
            20
        );
        let (status, list) = env.client.get("/v1/sweeps?limit=2").await;
        assert_eq!((status, &list["data"][0], &list["has_more"]), (200, &all, &json!(true)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_swept_by_their_ids_and_an_admin_sweeps_for_an_owner() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        let ids = env.seed("alice", 30).await;
        let bobs = env.seed("bob", 1).await;
        let (status, error) =
            env.client.post("/v1/sweeps", json!({"file_ids": [ids[0], bobs[0]]})).await;
        assert_eq!((status, &error["error"]["type"]), (403, &json!("permission_error")));
        let (status, error) =
            env.client.post("/v1/sweeps", json!({"file_ids": [ids[0], "nonsense"]})).await;
        assert_eq!((status, &error["error"]["param"]), (404, &json!("file_ids")));
        let twice = [&ids[..10], &ids[..10]].concat();
        let named = ended(&env.client, &sweep(&env.client, json!({"file_ids": twice})).await).await;
        assert_eq!(named["counts"], counts(10, 0, 10, 0), "{named}");
        // What is deleted already is passed over, so that the request can be repeated.
        let again =
            ended(&env.client, &sweep(&env.client, json!({"file_ids": ids[5..15]})).await).await;
        assert_eq!(again["counts"], counts(5, 0, 5, 0), "{again}");

        let admin = env.as_key(ADMIN_KEY);
        let request =
            admin.request(Method::POST, "/v1/sweeps").header("X-Longshore-Owner", "alice");
        let (status, erased) =
            answer(request.json(&json!({"all": true})).send().await.unwrap()).await;
        assert_eq!(status, 200, "{erased}");
        assert_eq!(ended(&env.client, &erased).await["counts"], counts(15, 0, 15, 0));
        assert_eq!(env.sandbox.live_files("a").len(), 1);
    }
}

#[tokio::test]
async fn a_sweep_that_says_nothing_or_nonsense_is_refused_with_what_would_be_right() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    for (asked, code, hint) in [
        (json!({}), "missing_required_parameter", "file_ids"),
        (json!({"dry_run": true}), "missing_required_parameter", "file_ids"),
        (json!({"file_ids": ["x"], "purpose": "batch"}), "invalid_value", "exclude"),
        (json!({"file_ids": [], "purpose": "batch"}), "invalid_value", "exclude"),
        (json!({"purpose": "porpoise"}), "invalid_value", "porpoise"),
        (json!({"status": "deleted?"}), "invalid_value", "deleted?"),
        (json!({"created_befor": 1}), "invalid_json", "created_before"),
        (json!({"file_ids": vec!["x"; 10_001]}), "invalid_value", "10000"),
    ] {
        let (status, error) = env.client.post("/v1/sweeps", asked.clone()).await;
        assert_eq!((status, &error["error"]["code"]), (400, &json!(code)), "{asked} {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains(hint), "{error}");
    }
    let (status, _) = env.client.get("/v1/sweeps/sweep_0197").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_sweep_that_is_repeated_with_its_key_is_the_first_one() {
    let env = Env::with(Options { command: "serve", ..Options::default() }).await;
    let send = async |asked: Value| {
        let request =
            env.client.request(Method::POST, "/v1/sweeps").header("Idempotency-Key", "k-1");
        answer(request.json(&asked).send().await.unwrap()).await
    };
    let first = send(json!({"purpose": "batch", "dry_run": true})).await;
    assert_eq!(first.0, 200);
    assert_eq!(send(json!({"dry_run": true, "purpose": "batch"})).await, first);
    assert_eq!(send(json!({"purpose": "batch"})).await.0, 422);
    assert_eq!(env.database.count("SELECT count(*) FROM sweeps").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_sweep_takes_no_more_files_and_deletes_those_it_took() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        env.seed("alice", 1000).await;
        env.lane("a", "pause").await;
        let begun = sweep(&env.client, json!({"all": true})).await;
        eventually(PATIENCE, async || {
            let (_, sweep) = env.client.get(&path(&begun)).await;
            (sweep["counts"]["matched"].as_u64()? > 0).then_some(())
        })
        .await;
        let (status, error) = env
            .client
            .post(&format!("/v1/jobs/{}/cancel", begun["job_id"].as_str().unwrap()), json!({}))
            .await;
        assert_eq!((status, &error["error"]["code"]), (409, &json!("job_of_a_sweep")));
        let (status, cancelled) =
            env.client.post(&format!("{}/cancel", path(&begun)), json!({})).await;
        assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")), "{cancelled}");
        let (status, _) = env.client.post(&format!("{}/cancel", path(&begun)), json!({})).await;
        assert_eq!(status, 409);
        env.lane("a", "resume").await;
        let over = eventually(PATIENCE, async || {
            let (_, sweep) = env.client.get(&path(&begun)).await;
            (sweep["counts"]["pending"] == 0).then_some(sweep)
        })
        .await;
        assert_eq!(over["status"], "cancelled");
        let taken = over["counts"]["matched"].as_u64().unwrap();
        assert_eq!(over["counts"]["deleted"], taken, "{over}");
        assert_eq!(env.sandbox.live_files("a").len() as u64, 1000 - taken);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_with_a_file_that_cannot_be_deleted_says_so_and_ends_well_when_it_can() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        env.seed("alice", 20).await;
        let refused = FaultRule {
            times: 2,
            ..FaultRule::new(Operation::Delete, Fault::status(405, Value::Null))
        };
        env.spoil_as("a", refused);
        let over = ended(&env.client, &sweep(&env.client, json!({"all": true})).await).await;
        assert_eq!((&over["status"], &over["counts"]), (&json!("failed"), &counts(20, 0, 18, 2)));
        let (_, jobs) = env.client.get("/v1/jobs?kind=delete_file&status=failed").await;
        for job in jobs["data"].as_array().unwrap() {
            let (status, job) = env
                .client
                .post(&format!("/v1/jobs/{}/retry", job["id"].as_str().unwrap()), json!({}))
                .await;
            assert_eq!(status, 200, "{job}");
        }
        let over = eventually(PATIENCE, async || {
            let (_, sweep) = env.client.get(&path(&over)).await;
            (sweep["status"] == "succeeded").then_some(sweep)
        })
        .await;
        assert_eq!(over["counts"], counts(20, 0, 20, 0));
        assert!(env.sandbox.live_files("a").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_stands_still_holds_up_a_sweep_at_no_other() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let options = Options { log: "info", ..Options::on(kind) };
        let mut crew = Crew::with(options).await;
        crew.env.seed_at(&["a", "b"], "alice", 600).await;
        crew.env.lane("a", "pause").await;
        let begun = sweep(&crew.env.client, json!({"all": true})).await;
        eventually(PATIENCE, async || crew.env.sandbox.live_files("b").is_empty().then_some(()))
            .await;
        assert_eq!(crew.env.sandbox.live_files("a").len(), 600);
        let queued =
            "SELECT count(*) FROM jobs WHERE lane = 'provider:at-a' AND finished_at IS NULL";
        let queued = crew.env.database.count(queued).await;
        assert!(queued <= 500, "{queued} deletes wait for a provider that stands still");

        // While it rests, its workers die more often than a job of its own doing may kill them.
        for _ in 0..4 {
            crew.kill();
            crew.restart();
            tokio::time::sleep(Duration::from_millis(2500)).await;
        }
        crew.env.lane("a", "resume").await;
        let done = eventually(PATIENCE, async || {
            let (_, sweep) = crew.env.client.get(&path(&begun)).await;
            (sweep["counts"]["pending"] == 0).then_some(sweep)
        })
        .await;
        assert_eq!(done["counts"], counts(600, 0, 600, 0), "{done}");
        assert!(
            crew.env.sandbox.live_files("a").is_empty()
                && crew.env.sandbox.live_files("b").is_empty()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_of_five_thousand_files_survives_three_kills_and_its_counts_are_exact() {
    for (kind, count) in [(Kind::Sqlite, 5000), (Kind::Postgres, 2000)] {
        // Its log would take longer than its work.
        let mut crew = Crew::with(Options { log: "info", ..Options::on(kind) }).await;
        crew.env.seed("alice", count as usize).await;
        let begun = sweep(&crew.env.client, json!({"all": true})).await;
        // While it takes files, and twice while they go.
        for deleted in [0, 300, 1000] {
            eventually(PATIENCE, async || {
                let (_, sweep) = crew.env.client.get(&path(&begun)).await;
                let counts = &sweep["counts"];
                (counts["matched"].as_u64()? > 0 && counts["deleted"].as_u64()? >= deleted)
                    .then_some(())
            })
            .await;
            crew.kill();
            crew.restart();
        }
        let over = ended(&crew.env.client, &begun).await;
        assert_eq!(
            (&over["status"], &over["counts"]),
            (&json!("succeeded"), &counts(count, 0, count, 0))
        );
        assert!(crew.env.sandbox.live_files("a").is_empty());
        let mut deletes: BTreeMap<String, usize> = BTreeMap::new();
        for call in crew.env.sandbox.calls("a") {
            if call.operation == Operation::Delete {
                *deletes.entry(call.file_id.unwrap()).or_default() += 1;
            }
        }
        assert_eq!(deletes.len(), count as usize);
        // Only what was under way at a kill is asked for again.
        let repeated = deletes.values().filter(|calls| **calls > 1).count();
        assert!(repeated <= 3 * 8, "{repeated} deletes were repeated");
        crew.env.quiet().await;
    }
}
