//! Batches on their way to providers: each once, whatever happens.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::OverLimit;
use serde_json::Value;
use serde_json::json;

use crate::support::ADMIN_KEY;
use crate::support::ALICE_KEY;
use crate::support::BOB_KEY;
use crate::support::Client;
use crate::support::Crew;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::batches::WATCHFUL;
use crate::support::batches::run;
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(30);

fn watchful(kind: Kind) -> Options {
    Options { extra: WATCHFUL.to_owned(), ..Options::on(kind) }
}

fn spoil(env: &Env, account: &str, fault: Fault) {
    env.spoil_as(account, FaultRule::new(Operation::CreateBatch, fault));
}

/// The outcome of a create is unknown, and that is as long ago as it takes.
async fn long_ago(env: &Env) {
    // A look that is under way would go by what it read before.
    eventually(PATIENCE, async || {
        let running =
            "SELECT count(*) FROM jobs WHERE kind = 'submit_batch' AND status = 'running'";
        (env.database.count(running).await == 0).then_some(())
    })
    .await;
    env.database.execute("UPDATE batch_runs SET unknown_since = unknown_since - 700000").await;
    env.bring_on("submit_batch").await;
}

/// A batch whose create has met `fault`, once its outcome is settled or given up.
async fn created_despite(env: &Env, client: &Client, fault: Fault) -> Value {
    let file = client.upload_requests(&["a"], 2).await;
    client.settled(file["id"].as_str().unwrap()).await;
    spoil(env, "a", fault);
    client.batch_on(&file).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_waits_for_its_file_and_is_then_created_once_at_each_provider() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(watchful(kind)).await;
        env.spoil("b", Fault::Hold { hold_before: true });
        let file = env.client.upload_requests(&["a", "b"], 3).await;
        let (status, batch) = env
            .client
            .try_batch(&file, json!({"metadata": {"job": "7"}, "output_expires_after": null}))
            .await;
        assert_eq!(status, 200, "{batch}");
        assert_eq!(
            (&batch["status"], &batch["metadata"]),
            (&json!("validating"), &json!({"job": "7"}))
        );
        env.has_batches("a", 1).await;
        let waiting = env.client.batch(&batch).await;
        assert_eq!(run(&waiting, "b")["blocked_by"], "upload");
        env.held("b", 1).await;
        env.sandbox.release("b");
        env.has_batches("b", 1).await;
        env.client
            .batch_when(&batch, |batch| {
                ["a", "b"].iter().all(|model| !run(batch, model)["provider_batch_id"].is_null())
            })
            .await;
        for account in ["a", "b"] {
            let there = env.sandbox.batches(account);
            assert_eq!(there.len(), 1, "{there:?}");
            let metadata = there[0].metadata.clone().unwrap();
            assert_eq!(
                metadata.keys().collect::<Vec<_>>(),
                ["longshore"],
                "the client's stays here"
            );
            assert_eq!(env.calls(account, Operation::CreateBatch), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_whose_answer_is_lost_is_found_in_the_list_and_not_repeated() {
    let after =
        |code| Fault::AfterEffect { status: code, headers: Default::default(), body: Value::Null };
    let faults = [
        Fault::LostAnswer,
        after(500),
        after(502),
        after(504),
        Fault::CutAnswer { after_bytes: 10 },
        Fault::Garbage {
            content_type: "text/html".to_owned(),
            body: "<html>Sign in</html>".to_owned(),
            executed: true,
        },
        Fault::Hang { executed: true },
    ];
    let provider = "timeout = \"1s\"".to_owned();
    let env = Env::with(Options { provider, ..watchful(Kind::Sqlite) }).await;
    for (number, fault) in faults.into_iter().enumerate() {
        let batch = created_despite(&env, &env.client, fault.clone()).await;
        env.client
            .batch_when(&batch, |batch| !run(batch, "a")["provider_batch_id"].is_null())
            .await;
        assert_eq!(env.sandbox.batches("a").len(), number + 1, "{fault:?}");
        assert_eq!(env.calls("a", Operation::CreateBatch), number as u64 + 1, "{fault:?}");
        env.sandbox.release("a");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_is_in_no_list_is_repeated_only_after_a_second_look_much_later() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(watchful(kind)).await;
        let batch = created_despite(&env, &env.client, Fault::status(500, Value::Null)).await;
        let waiting = env
            .client
            .batch_when(&batch, |batch| run(batch, "a")["error"]["code"] == "outcome_unknown")
            .await;
        assert_eq!(run(&waiting, "a")["blocked_by"], "outcome");
        // Hastened or not, one look is not enough, and neither are many at the same time.
        for _ in 0..3 {
            let looks = env.calls("a", Operation::ListBatches);
            env.bring_on("submit_batch").await;
            eventually(PATIENCE, async || {
                (env.calls("a", Operation::ListBatches) > looks).then_some(())
            })
            .await;
        }
        assert_eq!(env.calls("a", Operation::CreateBatch), 1);
        long_ago(&env).await;
        env.has_batches("a", 1).await;
        assert_eq!(env.calls("a", Operation::CreateBatch), 2);
        env.client
            .batch_when(&batch, |batch| !run(batch, "a")["provider_batch_id"].is_null())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_list_cannot_be_read_nothing_is_repeated() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    let fault = Fault::status(503, Value::Null);
    env.spoil_as("a", FaultRule { times: 0, ..FaultRule::new(Operation::ListBatches, fault) });
    let batch = created_despite(&env, &env.client, Fault::LostAnswer).await;
    // A list that fails is asked for again, however long ago the create was, and proves nothing.
    for looks in 1..=3 {
        eventually(PATIENCE, async || {
            (env.calls("a", Operation::ListBatches) >= looks).then_some(())
        })
        .await;
        long_ago(&env).await;
    }
    assert_eq!(env.calls("a", Operation::CreateBatch), 1);
    env.sandbox.clear_faults("a");
    env.client.batch_when(&batch, |batch| !run(batch, "a")["provider_batch_id"].is_null()).await;
    assert_eq!(env.sandbox.batches("a").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_provider_has_no_list_a_person_decides() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    let rule = FaultRule {
        times: 0,
        ..FaultRule::new(Operation::ListBatches, Fault::status(404, Value::Null))
    };
    env.spoil_as("a", rule.clone());
    let lost = created_despite(&env, &env.client, Fault::LostAnswer).await;
    let lost =
        env.client.batch_when(&lost, |batch| run(batch, "a")["status"] == "needs_attention").await;
    assert_eq!(lost["status"], "validating");
    assert_eq!(run(&lost, "a")["error"]["code"], "outcome_unknown");

    // It is there: this one is given up, and that one is imported.
    assert_eq!(env.client.cancel_batch(&lost).await.0, 200);
    assert_eq!(env.client.batch_ended(&lost).await["status"], "cancelled");
    let there = env.sandbox.batches("a")[0].id.clone();
    let (status, imported) = env
        .client
        .post("/v1/batches/import", json!({"model": "a", "provider_batch_id": there}))
        .await;
    assert_eq!(status, 200, "{imported}");

    // It is not there: the job is retried.
    let absent = created_despite(&env, &env.client, Fault::status(500, Value::Null)).await;
    env.client.batch_when(&absent, |batch| run(batch, "a")["status"] == "needs_attention").await;
    retry_submission(&env, &absent).await;
    env.client.batch_when(&absent, |batch| !run(batch, "a")["provider_batch_id"].is_null()).await;
    assert_eq!(env.sandbox.batches("a").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_in_a_create_leaves_one_batch() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        for hold_before in [false, true] {
            let mut env = Env::with(watchful(kind)).await;
            let batch = created_despite(&env, &env.client, Fault::Hold { hold_before }).await;
            env.held("a", 1).await;
            env.server.kill();
            env.sandbox.release("a");
            env.restart();
            if hold_before {
                // Nobody waits for the answer, so the sandbox does not go on; what a proxy would do is unknown.
                env.client
                    .batch_when(&batch, |batch| run(batch, "a")["blocked_by"] == "outcome")
                    .await;
                long_ago(&env).await;
            }
            env.client
                .batch_when(&batch, |batch| !run(batch, "a")["provider_batch_id"].is_null())
                .await;
            assert_eq!(env.sandbox.batches("a").len(), 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_a_provider_has_no_room_for_goes_when_another_has_ended() {
    for over_limit in [OverLimit::default(), OverLimit::Refuse { code: None }, OverLimit::Fail] {
        let env = Env::with(watchful(Kind::Sqlite)).await;
        env.treat_batches("a", |batches| {
            batches.max_open_batches = Some(1);
            batches.over_limit = over_limit.clone();
            batches.hold_at = Some(longshore::sandbox::BatchState::InProgress);
        });
        let file = env.client.upload_requests(&["a"], 2).await;
        env.client.settled(file["id"].as_str().unwrap()).await;
        let first = env.client.batch_on(&file).await;
        env.has_batches("a", 1).await;
        let second = env.client.batch_on(&file).await;
        let waiting = env
            .client
            .batch_when(&second, |batch| run(batch, "a")["blocked_by"] == "capacity")
            .await;
        assert_eq!(waiting["status"], "validating");
        assert_eq!(run(&waiting, "a")["error"]["code"], "provider_capacity", "{over_limit:?}");
        // It stands in nobody's way.
        env.client.upload(&["a"]).await;
        assert!(env.provider("a").await["paused_by"].is_null());

        let there = env.sandbox.batches("a")[0].id.clone();
        env.sandbox
            .end_batch("a", &there, longshore::sandbox::BatchEnd::failed("invalid_request"))
            .unwrap();
        assert_eq!(env.client.batch_ended(&first).await["status"], "failed");
        // By itself it would go after half a minute at the earliest.
        eventually(Duration::from_secs(10), async || {
            let batch = env.client.batch(&second).await;
            (!run(&batch, "a")["provider_batch_id"].is_null()).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_never_finds_room_fails_in_the_end() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    env.treat_batches("a", |batches| batches.max_open_batches = Some(0));
    let file = env.client.upload_requests(&["a"], 2).await;
    let batch = env.client.batch_on(&file).await;
    env.client.batch_when(&batch, |batch| run(batch, "a")["blocked_by"] == "capacity").await;
    env.database.execute("UPDATE batch_runs SET refusals = 11").await;
    env.bring_on("submit_batch").await;
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["status"], "failed");
    assert_eq!(run(&batch, "a")["error"]["code"], "provider_capacity");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_for_good_fails_the_run_and_one_for_money_parks_the_provider() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    let refusal = json!({"error": {"message": "no such endpoint", "type": "invalid_request_error", "code": "x"}});
    let refused = created_despite(&env, &env.client, Fault::status(400, refusal)).await;
    let refused = env.client.batch_ended(&refused).await;
    assert_eq!(refused["status"], "failed");
    assert_eq!(run(&refused, "a")["error"]["code"], "provider_rejected");
    assert!(refused["errors"]["data"][0]["message"].as_str().unwrap().contains("no such endpoint"));

    let money = json!({"error": {"message": "pay", "type": "insufficient_quota", "code": "insufficient_quota"}});
    let broke = created_despite(&env, &env.client, Fault::status(429, money)).await;
    env.client.batch_when(&broke, |batch| run(batch, "a")["blocked_by"] == "out_of_money").await;
    assert_eq!(env.provider("a").await["paused_by"], "out_of_money");
    env.lane("a", "resume").await;
    env.client.batch_when(&broke, |batch| !run(batch, "a")["provider_batch_id"].is_null()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_batch_goes_to_no_provider_and_one_that_is_there_is_stopped() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(watchful(kind)).await;
        // Before its file is there.
        env.spoil("a", Fault::Hold { hold_before: true });
        let file = env.client.upload_requests(&["a"], 2).await;
        let early = env.client.batch_on(&file).await;
        env.held("a", 1).await;
        let (status, answer) = env.client.cancel_batch(&early).await;
        assert_eq!((status, &answer["status"]), (200, &json!("cancelled")), "{answer}");
        assert!(!answer["cancelled_at"].is_null() && !answer["cancelling_at"].is_null());
        env.sandbox.release("a");
        env.client.settled(file["id"].as_str().unwrap()).await;

        // While its provider stands still.
        env.lane("a", "pause").await;
        let paused = env.client.batch_on(&file).await;
        assert_eq!(env.client.cancel_batch(&paused).await.1["status"], "cancelled");
        env.lane("a", "resume").await;

        // In the middle of its create: the batch is there, and is stopped.
        spoil(&env, "a", Fault::Hold { hold_before: false });
        env.treat_batches("a", |batches| {
            batches.hold_at = Some(longshore::sandbox::BatchState::InProgress);
        });
        let created = env.client.batch_on(&file).await;
        env.held("a", 1).await;
        assert_eq!(env.client.cancel_batch(&created).await.1["status"], "cancelling");
        assert_eq!(env.client.cancel_batch(&created).await.0, 200, "twice is once");
        env.sandbox.release("a");
        eventually(PATIENCE, async || (env.calls("a", Operation::CancelBatch) == 1).then_some(()))
            .await;

        // And one whose create is refused after the cancel ends here.
        let hold = FaultRule::new(Operation::CreateBatch, Fault::Hold { hold_before: true });
        env.spoil_as("a", hold);
        let refused = env.client.batch_on(&file).await;
        env.held("a", 1).await;
        assert_eq!(env.client.cancel_batch(&refused).await.1["status"], "cancelling");
        env.treat_batches("a", |batches| {
            batches.max_open_batches = Some(0);
            batches.over_limit = OverLimit::default();
        });
        env.sandbox.release("a");
        assert_eq!(env.client.batch_ended(&refused).await["status"], "cancelled");
        assert_eq!(env.sandbox.batches("a").len(), 1);
        let (status, answer) = env.client.cancel_batch(&early).await;
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("batch_ended")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_a_day_without_a_credential_looks_before_it_creates() {
    let mut env = Env::with(watchful(Kind::Sqlite)).await;
    let fault = Fault::status(401, Value::Null);
    env.spoil_as("a", FaultRule { times: 0, ..FaultRule::new(Operation::ListBatches, fault) });
    let batch = created_despite(&env, &env.client, Fault::LostAnswer).await;
    eventually(PATIENCE, async || {
        (env.provider("a").await["paused_by"] == "credential_rejected").then_some(())
    })
    .await;
    env.server.terminate();
    env.database.execute("UPDATE lanes SET paused_at = paused_at - 90000000").await;
    env.database
        .execute("UPDATE jobs SET run_at = run_at - 90000000 WHERE finished_at IS NULL")
        .await;
    env.restart();
    let batch =
        env.client.batch_when(&batch, |batch| run(batch, "a")["status"] == "needs_attention").await;
    assert_eq!(run(&batch, "a")["error"]["code"], "provider_credential_rejected");

    env.sandbox.clear_faults("a");
    env.lane("a", "resume").await;
    retry_submission(&env, &batch).await;
    env.client.batch_when(&batch, |batch| !run(batch, "a")["provider_batch_id"].is_null()).await;
    assert_eq!(env.calls("a", Operation::CreateBatch), 1);
    assert_eq!(env.client.batch_ended(&batch).await["status"], "completed");
}

async fn retry_submission(env: &Env, batch: &Value) {
    let id = batch["id"].as_str().unwrap();
    let path = format!("/v1/jobs?kind=submit_batch&status=failed&batch_id={id}");
    let (_, jobs) = env.client.get(&path).await;
    let job = jobs["data"][0]["id"].as_str().unwrap();
    let (status, job) = env.client.post(&format!("/v1/jobs/{job}/retry"), json!({})).await;
    assert_eq!(status, 200, "{job}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_that_came_before_the_doubt_ends_the_batch_when_it_is_repeated() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    let fault = Fault::status(404, Value::Null);
    env.spoil_as("a", FaultRule { times: 0, ..FaultRule::new(Operation::ListBatches, fault) });
    let batch = created_despite(&env, &env.client, Fault::Hang { executed: false }).await;
    env.held("a", 1).await;
    assert_eq!(env.client.cancel_batch(&batch).await.1["status"], "cancelling");
    // Its connection is closed without an answer.
    env.sandbox.release("a");
    env.client.batch_when(&batch, |batch| run(batch, "a")["status"] == "needs_attention").await;
    assert_eq!(env.client.cancel_batch(&batch).await.0, 200);
    assert_eq!(env.client.batch_ended(&batch).await["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_provider_does_not_know_yet_is_stopped_when_it_does() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    env.treat_batches("a", |batches| {
        batches.hold_at = Some(longshore::sandbox::BatchState::InProgress);
    });
    let fault = Fault::status(404, Value::Null);
    env.spoil_as("a", FaultRule { times: 2, ..FaultRule::new(Operation::CancelBatch, fault) });
    let file = env.client.upload_requests(&["a"], 2).await;
    let batch = env.client.batch_on(&file).await;
    env.has_batches("a", 1).await;
    env.client.batch_when(&batch, |batch| batch["status"] == "in_progress").await;
    assert_eq!(env.client.cancel_batch(&batch).await.0, 200);
    assert_eq!(env.client.batch_ended(&batch).await["status"], "cancelled");
    assert_eq!(env.calls("a", Operation::CancelBatch), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_comes_after_its_worker_was_given_up_still_counts() {
    let mut crew = Crew::with(watchful(Kind::Postgres)).await;
    let fault = Fault::status(404, Value::Null);
    let rule = FaultRule { times: 0, ..FaultRule::new(Operation::ListBatches, fault) };
    crew.env.spoil_as("a", rule);
    let client = crew.env.client.clone();
    let batch = created_despite(&crew.env, &client, Fault::Hold { hold_before: false }).await;
    crew.env.held("a", 1).await;
    crew.worker().signal("STOP");
    let _other = crew.env.also("work");
    client.batch_when(&batch, |batch| run(batch, "a")["status"] == "needs_attention").await;
    crew.env.sandbox.release("a");
    crew.worker().signal("CONT");
    assert_eq!(client.batch_ended(&batch).await["status"], "completed");
    assert_eq!(crew.env.calls("a", Operation::CreateBatch), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_batch_that_was_imported_is_not_adopted_as_well() {
    let env = Env::with(watchful(Kind::Sqlite)).await;
    let fault = Fault::status(503, Value::Null);
    env.spoil_as("a", FaultRule { times: 0, ..FaultRule::new(Operation::ListBatches, fault) });
    let lost = created_despite(&env, &env.client, Fault::LostAnswer).await;
    env.has_batches("a", 1).await;
    let there = env.sandbox.batches("a")[0].id.clone();
    // Not by another owner, and not while its own run is open.
    let body = json!({"model": "a", "provider_batch_id": there});
    for key in [BOB_KEY, ALICE_KEY] {
        let client = env.as_key(key);
        let (status, imported) = client.post("/v1/batches/import", body.clone()).await;
        assert_eq!(status, 200, "{imported}");
        let imported = client.batch_ended(&imported).await;
        assert_eq!(imported["status"], "failed", "{imported}");
        assert_eq!(run(&imported, "a")["error"]["code"], "batch_known");
    }
    env.sandbox.clear_faults("a");
    env.bring_on("submit_batch").await;
    assert_eq!(env.client.batch_ended(&lost).await["status"], "completed");
    assert_eq!(env.calls("a", Operation::CreateBatch), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_jobs_of_a_batch_are_cancelled_with_it_and_not_alone() {
    let env = Env::start().await;
    env.lane("a", "pause").await;
    let file = env.client.upload_requests(&["a"], 1).await;
    env.database.execute("UPDATE mappings SET status = 'ready', provider_file_id = 'file-x'").await;
    let batch = env.client.batch_on(&file).await;
    let path = format!("/v1/jobs?batch_id={}", batch["id"].as_str().unwrap());
    let (_, jobs) = env.client.get(&path).await;
    let job = &jobs["data"][0];
    assert_eq!((&job["kind"], &job["batch_id"]), (&json!("submit_batch"), &batch["id"]));
    assert_eq!(job["provider"], "at-a");
    let path = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
    let (status, answer) = env.as_key(ADMIN_KEY).post(&path, json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("job_of_a_batch")), "{answer}");
}
