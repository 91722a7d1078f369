//! Batches, as their clients see them: from the create to the end, on one model and on several.

use std::time::Duration;

use longshore::sandbox::BatchEnd;
use longshore::sandbox::BatchState;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::PlantedBatch;
use serde_json::Value;
use serde_json::json;

use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::batches::WATCHFUL;
use crate::support::batches::run;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

fn watchful(kind: Kind) -> Options {
    Options { extra: WATCHFUL.to_owned(), ..Options::on(kind) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_batch_is_said() {
    let env = Env::start().await;
    let file = env.client.upload_requests(&["a", "b"], 1).await;
    let notes = env.client.upload(&["a"]).await;
    let wrong = [
        (json!({"endpoint": "chat"}), "endpoint"),
        (json!({"endpoint": null}), "endpoint"),
        (json!({"completion_window": "1h"}), "completion_window"),
        (json!({"input_file_id": null}), "input_file_id"),
        (json!({"input_file_id": notes["id"]}), "input_file_id"),
        (json!({"model": "c"}), "target_model_names"),
        (json!({"target_model_names": []}), "target_model_names"),
        (json!({"model": "a", "target_model_names": "b"}), "model"),
        (json!({"metadata": {"": "x"}}), "metadata"),
        (
            json!({"output_expires_after": {"anchor": "created_at", "seconds": 60}}),
            "output_expires_after.seconds",
        ),
    ];
    for (more, param) in wrong {
        let (status, answer) = env.client.try_batch(&file, more.clone()).await;
        assert_eq!((status, &answer["error"]["param"]), (400, &json!(param)), "{more}: {answer}");
    }
    let (status, answer) = env.client.try_batch(&json!({"id": "file-abc"}), json!({})).await;
    assert_eq!((status, &answer["error"]["param"]), (404, &json!("input_file_id")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("provider's id"), "{answer}");
    let (status, _) = env.as_key(BOB_KEY).try_batch(&file, json!({})).await;
    assert_eq!(status, 403);
    assert_eq!(env.database.count("SELECT count(*) FROM batches").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_did_not_reach_a_model_makes_no_batch_there() {
    let env = Env::start().await;
    env.spoil("a", Fault::status(400, Value::Null));
    let file = env.client.upload_requests(&["a"], 1).await;
    let waiting = env.client.batch_on(&file).await;
    env.client.settled(file["id"].as_str().unwrap()).await;
    // One that waited for it has failed with it.
    let failed = env.client.batch_ended(&waiting).await;
    assert_eq!(failed["status"], "failed");
    assert_eq!(run(&failed, "a")["error"]["code"], "provider_rejected");
    let (status, answer) = env.client.try_batch(&file, json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("file_not_ready")), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_are_listed_page_by_page_and_by_status() {
    let env = Env::start().await;
    env.lane("a", "pause").await;
    let file = env.client.upload_requests(&["a"], 1).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.insert(0, env.client.batch_on(&file).await["id"].clone());
    }
    let (_, page) = env.client.get("/v1/batches?limit=2").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 2);
    assert_eq!((&page["first_id"], &page["has_more"]), (&ids[0], &json!(true)));
    let path = format!("/v1/batches?limit=2&after={}", page["last_id"].as_str().unwrap());
    let (_, page) = env.client.get(&path).await;
    assert_eq!((&page["data"][0]["id"], &page["has_more"]), (&ids[2], &json!(false)));
    let last = json!({"id": ids[2]});
    assert_eq!(env.client.cancel_batch(&last).await.0, 200);
    let (_, page) = env.client.get("/v1/batches?status=cancelled").await;
    assert_eq!(page["data"].as_array().unwrap().len(), 1);
    assert_eq!(env.as_key(BOB_KEY).get("/v1/batches").await.1["data"], json!([]));
    for path in ["/v1/batches?limit=101", "/v1/batches?status=odd", "/v1/batches?after=x"] {
        assert_eq!(env.client.get(path).await.0, 400, "{path}");
    }
    let path = format!("/v1/batches/{}", ids[0].as_str().unwrap());
    assert_eq!(env.as_key(BOB_KEY).get(&path).await.0, 403);
    assert_eq!(env.client.get("/v1/batches/batch_abc").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_create_makes_no_second_batch() {
    let env = Env::start().await;
    env.lane("a", "pause").await;
    let file = env.client.upload_requests(&["a"], 1).await;
    let body = json!({
        "input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h",
    });
    let create = async |key: (&str, &str), body: &Value| {
        let request = env.client.request(reqwest::Method::POST, "/v1/batches");
        let answer = request.header(key.0, key.1).json(body).send().await.unwrap();
        let is_replayed = answer.headers().contains_key("idempotency-replayed");
        let (status, batch) = crate::support::answer(answer).await;
        (status, is_replayed, batch["id"].clone())
    };
    let first = create(("idempotency-key", "k"), &body).await;
    assert_eq!((first.0, first.1), (200, false));
    assert_eq!(create(("idempotency-key", "k"), &body).await, (200, true, first.2));
    let mut other = body.clone();
    other["metadata"] = json!({"a": "b"});
    assert_eq!(create(("idempotency-key", "k"), &other).await.0, 422);
    assert_eq!(env.database.count("SELECT count(*) FROM batches").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_at_a_provider_is_the_end_of_the_batch() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(watchful(kind)).await;
        let file = env.client.upload_requests(&["a"], 4).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        let ends = [
            (BatchEnd::Completed, "completed", (4, 4, 0)),
            (BatchEnd::CompletedWithoutFiles, "completed", (4, 4, 0)),
            (BatchEnd::failed("invalid_json_line"), "failed", (0, 0, 0)),
            (BatchEnd::Expired { done_percent: 50 }, "expired", (4, 2, 2)),
            (BatchEnd::Cancelled { done_percent: 50 }, "cancelled", (4, 2, 0)),
        ];
        for (end, status, counts) in ends {
            env.treat_batches("a", |batches| batches.end = end.clone());
            let batch = env.client.batch_on(&file).await;
            let batch = env.client.batch_ended(&batch).await;
            assert_eq!(batch["status"], status, "{end:?}: {batch}");
            assert!(!batch[format!("{status}_at")].is_null(), "{batch}");
            let shown = &batch["request_counts"];
            let (total, completed, failed) = counts;
            if !matches!(end, BatchEnd::Failed { .. }) {
                assert_eq!(
                    shown,
                    &json!({"total": total, "completed": completed, "failed": failed}),
                    "{end:?}"
                );
            }
            let has_output = completed > 0 && end != BatchEnd::CompletedWithoutFiles;
            assert_eq!(!batch["output_file_id"].is_null(), has_output, "{end:?}: {batch}");
            assert_eq!(!batch["usage"].is_null(), has_output, "{end:?}: {batch}");
            if let BatchEnd::Failed { .. } = end {
                assert_eq!(batch["errors"]["data"][0]["code"], "invalid_json_line");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_on_several_models_ends_as_the_best_of_its_runs() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    let file = env.client.upload_requests(&["a", "b", "c"], 4).await;
    env.client.settled(file["id"].as_str().unwrap()).await;
    let ends = [
        (
            [BatchEnd::Completed, BatchEnd::failed("x"), BatchEnd::Expired { done_percent: 50 }],
            "completed",
        ),
        (
            [
                BatchEnd::failed("x"),
                BatchEnd::Cancelled { done_percent: 50 },
                BatchEnd::Expired { done_percent: 50 },
            ],
            "expired",
        ),
        ([BatchEnd::failed("x"), BatchEnd::failed("x"), BatchEnd::failed("x")], "failed"),
    ];
    for (ends, status) in ends {
        for (account, end) in ["a", "b", "c"].iter().zip(ends.clone()) {
            env.treat_batches(account, |batches| batches.end = end);
        }
        let batch = env.client.batch_on(&file).await;
        let batch = env.client.batch_ended(&batch).await;
        assert_eq!(batch["status"], status, "{batch}");
        for (model, end) in ["a", "b", "c"].iter().zip(&ends) {
            let run = run(&batch, model);
            assert_eq!(
                run["error_file_id"].is_string(),
                matches!(end, BatchEnd::Expired { .. }),
                "{run}"
            );
        }
        let sum = |name: &str| -> i64 {
            ["a", "b", "c"]
                .iter()
                .map(|model| run(&batch, model)["request_counts"][name].as_i64().unwrap())
                .sum()
        };
        for name in ["total", "completed", "failed"] {
            assert_eq!(batch["request_counts"][name], sum(name), "{batch}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_batch_keeps_what_was_answered_until_then() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
    let file = env.client.upload_requests(&["a"], 4).await;
    let batch = env.client.batch_on(&file).await;
    env.client.batch_when(&batch, |batch| batch["status"] == "in_progress").await;
    let (status, cancelling) = env.client.cancel_batch(&batch).await;
    assert_eq!((status, &cancelling["status"]), (200, &json!("cancelling")));
    let ended = env.client.batch_ended(&batch).await;
    assert_eq!(ended["status"], "cancelled");
    assert!(ended["output_file_id"].is_string(), "{ended}");
    let (status, answer) = env.client.cancel_batch(&batch).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("batch_ended")));

    // A cancel that comes too late for the provider: the batch is what it ended as.
    env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
    let batch = env.client.batch_on(&file).await;
    env.client.batch_when(&batch, |batch| batch["status"] == "in_progress").await;
    env.spoil_as("a", FaultRule::new(Operation::CancelBatch, Fault::Hold { hold_before: true }));
    env.client.cancel_batch(&batch).await;
    env.held("a", 1).await;
    let there = run(&env.client.batch(&batch).await, "a")["provider_batch_id"].clone();
    env.sandbox.end_batch("a", there.as_str().unwrap(), BatchEnd::Completed).unwrap();
    env.sandbox.release("a");
    assert_eq!(env.client.batch_ended(&batch).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_not_known_here_leaves_the_last_one() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
    let file = env.client.upload_requests(&["a"], 1).await;
    let batch = env.client.batch_on(&file).await;
    let shown = env.client.batch_when(&batch, |batch| batch["status"] == "in_progress").await;
    let there = run(&shown, "a")["provider_batch_id"].as_str().unwrap().to_owned();
    env.sandbox.set_batch_status("a", &there, Some("daydreaming")).unwrap();
    eventually(PATIENCE, async || {
        let seen = "SELECT count(*) FROM batch_runs WHERE provider_status = 'daydreaming'";
        (env.database.count(seen).await == 1).then_some(())
    })
    .await;
    assert_eq!(env.client.batch(&batch).await["status"], "in_progress");
    env.sandbox.set_batch_status("a", &there, None).unwrap();
    env.sandbox.release_batches("a");
    assert_eq!(env.client.batch_ended(&batch).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_while_nothing_of_ours_runs_is_fetched_afterwards() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let mut env = Env::with(watchful(kind)).await;
        env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
        let file = env.client.upload_requests(&["a"], 2).await;
        let batch = env.client.batch_on(&file).await;
        env.client.batch_when(&batch, |batch| batch["status"] == "in_progress").await;
        env.server.kill();
        env.sandbox.release_batches("a");
        eventually(PATIENCE, async || {
            (env.sandbox.batches("a")[0].status == "completed").then_some(())
        })
        .await;
        env.restart();
        let batch = env.client.batch_ended(&batch).await;
        assert_eq!(batch["status"], "completed");
        assert_eq!(batch["request_counts"]["completed"], 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_in_a_look_leaves_the_batch_to_the_next() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let mut env = Env::with(watchful(kind)).await;
        let hold = Fault::Hold { hold_before: false };
        env.spoil_as("a", FaultRule::new(Operation::GetBatch, hold));
        let file = env.client.upload_requests(&["a"], 2).await;
        let batch = env.client.batch_on(&file).await;
        env.held("a", 1).await;
        env.server.kill();
        env.sandbox.release("a");
        env.restart();
        let batch = env.client.batch_ended(&batch).await;
        assert_eq!(
            (&batch["status"], &batch["request_counts"]["completed"]),
            (&json!("completed"), &json!(2))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_page_of_the_list_serves_many_batches() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
    let file = env.client.upload_requests(&["a"], 1).await;
    let mut batches = Vec::new();
    for _ in 0..30 {
        batches.push(env.client.batch_on(&file).await);
    }
    env.has_batches("a", 30).await;
    for batch in &batches {
        env.client.batch_when(batch, |batch| batch["status"] == "in_progress").await;
    }
    let calls = || env.calls("a", Operation::GetBatch) + env.calls("a", Operation::ListBatches);
    let looks = "SELECT CAST(sum(looks_alike) AS BIGINT) FROM batch_runs";
    let (calls_before, looks_before) = (calls(), env.database.count(looks).await);
    let (calls, looks) = eventually(PATIENCE, async || {
        let (calls, looks) = (calls() - calls_before, env.database.count(looks).await);
        (looks - looks_before > 300).then_some((calls, looks - looks_before))
    })
    .await;
    assert!(i64::try_from(calls).unwrap() * 3 < looks, "{calls} calls for {looks} looks");
    env.sandbox.release_batches("a");
    for batch in &batches {
        assert_eq!(env.client.batch_ended(batch).await["status"], "completed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_upload_waits_behind_looks_that_use_up_the_rate_budget() {
    let provider = "requests_per_minute = 120".to_owned();
    let env = Env::with(Options { provider, ..watchful(Kind::Sqlite) }).await;
    env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
    // Not by the API, whose submissions would take their time with so little.
    for number in 0..8 {
        let there = env.sandbox.plant_batch("a", PlantedBatch::over("file-none"));
        let body = json!({"model": "a", "provider_batch_id": there.id});
        let (status, batch) = env.client.post("/v1/batches/import", body).await;
        assert_eq!(status, 200, "{number}: {batch}");
    }
    let looks =
        |env: &Env| env.calls("a", Operation::GetBatch) + env.calls("a", Operation::ListBatches);
    eventually(PATIENCE, async || (looks(&env) > 12).then_some(())).await;
    for _ in 0..3 {
        let begun = std::time::Instant::now();
        let file = env.client.upload(&["a"]).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    }
    // And looks go on all the same.
    let before = looks(&env);
    eventually(PATIENCE, async || (looks(&env) > before).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_away_and_a_batch_that_cannot_be_read_hold_up_no_other() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    for account in ["a", "b"] {
        env.treat_batches(account, |batches| batches.hold_at = Some(BatchState::InProgress));
    }
    let file = env.client.upload_requests(&["a", "b"], 1).await;
    env.client.settled(file["id"].as_str().unwrap()).await;
    let (_, away) = env.client.try_batch(&file, json!({"model": "a"})).await;
    let (_, one) = env.client.try_batch(&file, json!({"model": "b"})).await;
    let (_, other) = env.client.try_batch(&file, json!({"model": "b"})).await;
    for batch in [&away, &one, &other] {
        env.client.batch_when(batch, |batch| batch["status"] == "in_progress").await;
    }
    for operation in [Operation::GetBatch, Operation::ListBatches] {
        let fault = Fault::status(503, Value::Null);
        env.spoil_as("a", FaultRule { times: 0, ..FaultRule::new(operation, fault) });
    }
    let garbage = Fault::Garbage {
        content_type: "text/html".to_owned(),
        body: "<html>".to_owned(),
        executed: false,
    };
    for operation in [Operation::GetBatch, Operation::ListBatches] {
        env.spoil_as("b", FaultRule { times: 3, ..FaultRule::new(operation, garbage.clone()) });
    }
    env.sandbox.release_batches("a");
    env.sandbox.release_batches("b");
    for batch in [&one, &other] {
        assert_eq!(env.client.batch_ended(batch).await["status"], "completed");
    }
    assert_eq!(env.client.batch(&away).await["status"], "in_progress");
    env.sandbox.clear_faults("a");
    assert_eq!(env.client.batch_ended(&away).await["status"], "completed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_made_elsewhere_is_taken_over() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(watchful(kind)).await;
        let file = env.client.upload_requests(&["a"], 2).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        let copy = file["mappings"][0]["provider_file_id"].as_str().unwrap();
        let there = env.sandbox.plant_batch("a", PlantedBatch::over(copy));
        let body = json!({"model": "a", "provider_batch_id": there.id});
        let (status, batch) = env.client.post("/v1/batches/import", body.clone()).await;
        assert_eq!((status, &batch["status"]), (200, &json!("validating")), "{batch}");
        let (status, answer) = env.client.post("/v1/batches/import", body.clone()).await;
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("batch_known")));
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(batch["id"].as_str().unwrap())
        );
        assert_eq!(env.as_key(BOB_KEY).post("/v1/batches/import", body).await.0, 403);
        let batch = env.client.batch_ended(&batch).await;
        assert_eq!(batch["status"], "completed", "{batch}");
        assert_eq!(batch["input_file_id"], file["id"], "its input is a file of ours");
        assert_eq!(batch["endpoint"], "/v1/chat/completions");
        assert_eq!(batch["request_counts"]["completed"], 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_its_provider_does_not_know_fails() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    let body = json!({"model": "a", "provider_batch_id": "batch_nobodys"});
    let (status, batch) = env.client.post("/v1/batches/import", body).await;
    assert_eq!(status, 200, "{batch}");
    eventually(PATIENCE, async || {
        let missed = "SELECT count(*) FROM batch_runs WHERE missed_since IS NOT NULL";
        (env.database.count(missed).await == 1).then_some(())
    })
    .await;
    assert_eq!(env.client.batch(&batch).await["status"], "validating", "it may lag");
    env.database.execute("UPDATE batch_runs SET missed_since = missed_since - 60000").await;
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["status"], "failed");
    assert_eq!(run(&batch, "a")["error"]["code"], "provider_batch_lost");
    for wrong in [
        json!({"model": "x", "provider_batch_id": "b"}),
        json!({"model": "a", "provider_batch_id": ""}),
    ] {
        assert_eq!(env.client.post("/v1/batches/import", wrong.clone()).await.0, 400, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_a_batch_runs_on_is_not_deleted_under_it() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(watchful(kind)).await;
        env.treat_batches("a", |batches| batches.hold_at = Some(BatchState::InProgress));
        let file = env.client.upload_requests(&["a"], 4).await;
        let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
        let batch = env.client.batch_on(&file).await;
        env.client.batch_when(&batch, |batch| batch["status"] == "in_progress").await;

        let (status, answer) = env.client.delete(&path).await;
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("file_in_use")), "{answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(batch["id"].as_str().unwrap())
        );
        let spare = env.client.upload_requests(&["a"], 1).await;
        env.client.settled(spare["id"].as_str().unwrap()).await;
        let (_, sweep) = env.client.post("/v1/sweeps", json!({"purpose": "batch"})).await;
        let path_of_sweep = format!("/v1/sweeps/{}?wait=10", sweep["id"].as_str().unwrap());
        let sweep = eventually(PATIENCE, async || {
            let (_, sweep) = env.client.get(&path_of_sweep).await;
            (sweep["status"] == "succeeded").then_some(sweep)
        })
        .await;
        assert_eq!(
            (&sweep["counts"]["deleted"], &sweep["counts"]["skipped"]),
            (&json!(1), &json!(1))
        );

        let (status, answer) = env.client.delete(&format!("{path}?force=true")).await;
        assert_eq!(status, 200, "{answer}");
        let ended = env.client.batch_ended(&batch).await;
        assert_eq!(ended["status"], "cancelled");
        assert_eq!(env.client.purged(&file).await["status"], "done");
        // What it produced until then is kept.
        assert!(ended["output_file_id"].is_string(), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_with_several_deployments_means_a_run_on_each() {
    let extra =
        format!("{WATCHFUL}\n[[models]]\nname = \"a\"\nprovider = \"at-b\"\nmodel = \"a-2026\"\n");
    let env = Env::with(Options { extra, ..Options::default() }).await;
    let part = Part {
        filename: "in.jsonl",
        purpose: "batch",
        models: &["a"],
        content: crate::support::batches::requests(1),
    };
    let (status, file) = env.as_key(ALICE_KEY).try_upload(part).await;
    assert_eq!(status, 200, "{file}");
    let batch = env.client.batch_on(&file).await;
    assert_eq!(batch["runs"].as_array().unwrap().len(), 2, "{batch}");
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["request_counts"], json!({"total": 2, "completed": 2, "failed": 0}));
}
