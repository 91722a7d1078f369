//! Results: fetched, read line by line, counted, and served.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use longshore::sandbox::BatchEnd;
use longshore::sandbox::BatchFile;
use longshore::sandbox::BatchSettings;
use longshore::sandbox::BatchState;
use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Oddity;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::BOB_KEY;
use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::answer;
use crate::support::batches::requests;
use crate::support::batches::run;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::status;

const BOTH: [Kind; 2] = [Kind::Sqlite, Kind::Postgres];
const PATIENCE: Duration = Duration::from_secs(60);

fn options(kind: Kind) -> Options {
    let extra = "[batches]\npoll = \"50ms\"\npoll_max = \"200ms\"\n".to_owned();
    Options { extra, models: &["a", "b"], ..Options::on(kind) }
}

fn configure(env: &Env, account: &str, batches: BatchSettings) {
    let batches = BatchSettings { phase_ms: 20, ..batches };
    let settings = Settings { batches, keep_bytes: 256 << 20, ..Settings::default() };
    env.sandbox.configure(account, settings);
}

fn id(thing: &Value) -> &str {
    thing["id"].as_str().unwrap()
}

async fn results(env: &Env, batch: &Value, query: &str) -> Value {
    let (status, list) = env.client.get(&format!("/v1/batches/{}/results{query}", id(batch))).await;
    assert_eq!(status, 200, "{list}");
    list
}

async fn created(env: &Env, models: &[&str], count: usize) -> Value {
    env.client.batch_on(&env.client.upload_requests(models, count).await).await
}

fn custom_ids(list: &Value) -> Vec<&str> {
    let data = list["data"].as_array().unwrap();
    data.iter().filter_map(|line| line["custom_id"].as_str()).collect()
}

async fn job(env: &Env, batch: &Value, kind: &str) -> Value {
    let (_, jobs) = env.client.get(&format!("/v1/jobs?batch_id={}&kind={kind}", id(batch))).await;
    jobs["data"][0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_fetched_counted_and_served() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        configure(
            &env,
            "a",
            BatchSettings { failing: [("r-2".to_owned(), 400)].into(), ..BatchSettings::default() },
        );
        let batch = env.client.batch_ended(&created(&env, &["a"], 5).await).await;
        assert_eq!(batch["status"], "completed", "{batch}");
        assert_eq!(batch["request_counts"], json!({"total": 5, "completed": 4, "failed": 1}));
        let provider = &env.sandbox.batches("a")[0];
        let usage = serde_json::to_value(provider.usage.unwrap()).unwrap();
        assert_eq!(batch["usage"], usage);

        let (_, files) = env.client.get("/v1/files?purpose=batch_output").await;
        assert_eq!(files["data"].as_array().unwrap().len(), 2, "{files}");
        let output = env.client.file(batch["output_file_id"].as_str().unwrap()).await;
        assert_eq!(
            (&output["status"], &output["purpose"]),
            (&json!("processed"), &json!("batch_output"))
        );
        let copy = mapping(&output, "a");
        assert_eq!(copy["status"], "ready");
        assert_eq!(copy["provider_file_id"], json!(provider.output_file_id));
        let lines = env.client.content(&batch["output_file_id"]).await;
        assert_eq!(json!(lines.len()), output["bytes"]);

        let all = results(&env, &batch, "").await;
        assert_eq!(custom_ids(&all), ["r-4", "r-3", "r-1", "r-0", "r-2"]);
        let first: Value =
            serde_json::from_slice(lines.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
        let shown = &all["data"][0];
        assert_eq!((&shown["status"], &shown["model"]), (&json!("succeeded"), &json!("a")));
        assert_eq!((&shown["response"], &shown["provider_id"]), (&first["response"], &first["id"]));

        let one = results(&env, &batch, "?custom_id=r-3").await;
        assert_eq!((custom_ids(&one), &one["has_more"]), (vec!["r-3"], &json!(false)));
        assert_eq!(custom_ids(&results(&env, &batch, "?status=failed").await), ["r-2"]);
        assert_eq!(
            custom_ids(&results(&env, &batch, "?status=failed&custom_id=r-3").await),
            [""; 0]
        );
        assert_eq!(custom_ids(&results(&env, &batch, "?status=broken").await), [""; 0]);
        assert_eq!(custom_ids(&results(&env, &batch, "?model=b").await), [""; 0]);
        let (mut paged, mut after) = (Vec::new(), String::new());
        loop {
            let page = results(&env, &batch, &format!("?limit=2&after={after}")).await;
            paged.extend(custom_ids(&page).into_iter().map(str::to_owned));
            after = page["last_id"].as_str().unwrap().to_owned();
            if page["has_more"] == false {
                break;
            }
        }
        assert_eq!(paged, ["r-4", "r-3", "r-1", "r-0", "r-2"]);

        let path = format!("/v1/batches/{}/results", id(&batch));
        let (code, error) = env.as_key(BOB_KEY).get(&path).await;
        assert_eq!(code, 403, "{error}");
        for query in ["?limit=0", "?limit=1001", "?after=result_1", "?status=odd"] {
            let (code, error) = env.client.get(&format!("{path}{query}")).await;
            assert_eq!(code, 400, "{query}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_are_odd_are_kept_counted_and_told() {
    let line = |custom_id: &str| {
        let response =
            json!({"status_code": 200, "request_id": "q", "body": {"usage": {"prompt_tokens": 3}}});
        json!({"id": "1", "custom_id": custom_id, "response": response, "error": null}).to_string()
    };
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        configure(
            &env,
            "a",
            BatchSettings { hold_at: Some(BatchState::Finalizing), ..BatchSettings::default() },
        );
        let batch = created(&env, &["a"], 4).await;
        let at = eventually(PATIENCE, async || {
            env.sandbox.batches("a").first().map(|batch| batch.id.clone())
        })
        .await;
        let output = format!(
            "{}\r\n\r\n{{\"custom_id\": broken\r\n{}\n{}\n{}\n\u{fffd}\0\n{}",
            line("r-0"),
            line("nobody"),
            line("r-1"),
            line("r-0"),
            line("r-3"),
        );
        let error = "{\"custom_id\":\"r-2\",\"response\":null,\"error\":{\"code\":\"x\"}}\n{\"custom_id\":\"r-1\",\"error\":{}}";
        for (file, bytes) in [(BatchFile::Output, output), (BatchFile::Error, error.to_owned())] {
            env.sandbox.set_batch_output("a", &at, file, Bytes::from(bytes)).unwrap();
        }
        env.sandbox.release_batches("a");

        let batch = env.client.batch_ended(&batch).await;
        assert_eq!(batch["status"], "completed", "{batch}");
        assert_eq!(batch["request_counts"], json!({"total": 4, "completed": 3, "failed": 1}));
        assert_eq!(batch["usage"]["input_tokens"], 9);
        let irregular = json!({"broken": 2, "duplicate": 2, "unknown": 1});
        assert_eq!(batch["runs"][0]["irregular_lines"], irregular);
        let all = results(&env, &batch, "").await;
        let told: Vec<_> = all["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|line| {
                let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
                (text("custom_id"), text("status"), text("problem"))
            })
            .collect();
        let expected = [
            ("r-0", "succeeded", ""),
            ("", "broken", ""),
            ("nobody", "succeeded", "stranger"),
            ("r-1", "succeeded", ""),
            ("r-0", "succeeded", "duplicate"),
            ("", "broken", ""),
            ("r-3", "succeeded", ""),
            ("r-2", "failed", ""),
            ("r-1", "failed", "duplicate"),
        ]
        .map(|(id, status, problem)| (id.to_owned(), status.to_owned(), problem.to_owned()));
        assert_eq!(told, expected);
        assert_eq!(all["data"][1]["raw"], "{\"custom_id\": broken");
        assert_eq!(custom_ids(&results(&env, &batch, "?custom_id=r-0").await), ["r-0", "r-0"]);
        assert_eq!(
            results(&env, &batch, "?status=broken").await["data"].as_array().unwrap().len(),
            2
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sandbox_does_to_its_files_is_borne() {
    let env = Env::with(options(Kind::Sqlite)).await;
    for (oddities, irregular) in [
        (vec![Oddity::Crlf, Oddity::NoFinalNewline, Oddity::BlankLine], [0, 0, 0]),
        (vec![Oddity::BrokenLine], [1, 0, 0]),
        (vec![Oddity::DuplicateCustomId], [0, 1, 0]),
        (vec![Oddity::UnknownCustomId], [0, 0, 1]),
    ] {
        configure(&env, "a", BatchSettings { oddities, ..BatchSettings::default() });
        let batch = env.client.batch_ended(&created(&env, &["a"], 6).await).await;
        let counts = json!({"total": 6, "completed": 6, "failed": 0});
        assert_eq!((&batch["status"], &batch["request_counts"]), (&json!("completed"), &counts));
        let [broken, duplicate, unknown] = irregular;
        let irregular = json!({"broken": broken, "duplicate": duplicate, "unknown": unknown});
        assert_eq!(batch["runs"][0]["irregular_lines"], irregular);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outputs_of_several_runs_are_merged_and_say_their_model() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        configure(&env, "a", BatchSettings::default());
        configure(
            &env,
            "b",
            BatchSettings { failing: [("r-1".to_owned(), 500)].into(), ..BatchSettings::default() },
        );
        let batch = env.client.batch_ended(&created(&env, &["a", "b"], 3).await).await;
        assert_eq!(batch["status"], "completed", "{batch}");
        assert_eq!(batch["request_counts"], json!({"total": 6, "completed": 5, "failed": 1}));
        let merged = String::from_utf8(env.client.content(&batch["output_file_id"]).await).unwrap();
        let mut of_model: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in merged.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line[key].as_str().unwrap().to_owned();
            of_model.entry(text("model")).or_default().push(text("custom_id"));
        }
        let expected = [("a", vec!["r-2", "r-1", "r-0"]), ("b", vec!["r-2", "r-0"])];
        let expected: BTreeMap<_, _> = expected
            .into_iter()
            .map(|(model, ids)| (model.to_owned(), ids.into_iter().map(str::to_owned).collect()))
            .collect();
        assert_eq!(of_model, expected);
        assert!(
            env.client.content(&batch["error_file_id"]).await.starts_with(b"{\"model\":\"b\",")
        );
        assert_eq!(custom_ids(&results(&env, &batch, "?custom_id=r-1").await), ["r-1", "r-1"]);
        assert_eq!(custom_ids(&results(&env, &batch, "?custom_id=r-1&model=b").await), ["r-1"]);
        assert_eq!(custom_ids(&results(&env, &batch, "").await).len(), 6);
        let runs = batch["runs"].as_array().unwrap();
        assert!(runs.iter().all(|run| run["output_file_id"].is_string()), "{batch}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_does_not_come_back_in_the_merged_file() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        configure(&env, "a", BatchSettings::default());
        let hold_at = Some(BatchState::InProgress);
        configure(&env, "b", BatchSettings { hold_at, ..BatchSettings::default() });
        let batch = created(&env, &["a", "b"], 3).await;
        let is_between = |batch: &Value| {
            run(batch, "a")["status"] == "completed" && run(batch, "b")["status"] == "in_progress"
        };
        let batch = env.client.batch_when(&batch, is_between).await;
        env.client.remove(&json!({"id": run(&batch, "a")["output_file_id"]})).await;
        env.sandbox.release_batches("b");
        let batch = env.client.batch_ended(&batch).await;
        let merged = String::from_utf8(env.client.content(&batch["output_file_id"]).await).unwrap();
        assert_eq!(merged.lines().count(), 3);
        assert!(merged.lines().all(|line| line.starts_with("{\"model\":\"b\",")), "{merged}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_batch_came_to_its_results_are_kept() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let ends = [
            (
                BatchEnd::CompletedWithoutFiles,
                "completed",
                json!({"total": 4, "completed": 4, "failed": 0}),
                0,
            ),
            (
                BatchEnd::Expired { done_percent: 50 },
                "expired",
                json!({"total": 4, "completed": 2, "failed": 2}),
                4,
            ),
            (
                BatchEnd::Cancelled { done_percent: 50 },
                "cancelled",
                json!({"total": 4, "completed": 2, "failed": 0}),
                2,
            ),
        ];
        for (end, word, counts, lines) in ends {
            configure(&env, "a", BatchSettings { end, ..BatchSettings::default() });
            let batch = env.client.batch_ended(&created(&env, &["a"], 4).await).await;
            assert_eq!(
                (&batch["status"], &batch["request_counts"]),
                (&json!(word), &counts),
                "{batch}"
            );
            assert_eq!(custom_ids(&results(&env, &batch, "").await).len(), lines, "{word}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_or_is_none_is_fetched_again() {
    let env = Env::with(options(Kind::Sqlite)).await;
    configure(&env, "a", BatchSettings::default());
    let page = Fault::Garbage {
        content_type: "text/html".to_owned(),
        body: "<html>".to_owned(),
        executed: false,
    };
    let json_of_another_shape = Fault::Garbage {
        content_type: "application/json".to_owned(),
        body: json!({"error": {"message": "try later"}}).to_string(),
        executed: false,
    };
    let nothing = Fault::Garbage {
        content_type: "text/plain".to_owned(),
        body: String::new(),
        executed: false,
    };
    for fault in [
        Fault::CutAnswer { after_bytes: 100 },
        Fault::LostAnswer,
        Fault::ShortAnswer { bytes: 100 },
        json_of_another_shape,
        page,
        nothing,
        status(503, &[], json!(null)),
        status(429, &[("retry-after", "1")], json!(null)),
        status(404, &[], json!({"error": {"message": "No such File object"}})),
    ] {
        env.spoil_as("a", FaultRule::new(Operation::Content, fault));
    }
    let batch = env.client.batch_ended(&created(&env, &["a"], 5).await).await;
    assert_eq!(
        batch["request_counts"],
        json!({"total": 5, "completed": 5, "failed": 0}),
        "{batch}"
    );
    assert_eq!(env.calls("a", Operation::Content), 10);
}

/// A provider that is given up on after two seconds.
fn impatient(kind: Kind) -> Options {
    Options { provider: "list_lag = \"1ms\"".to_owned(), ..options(kind) }
}

async fn retry_job(env: &Env, job: &Value) {
    let (code, error) = env.client.post(&format!("/v1/jobs/{}/retry", id(job)), json!({})).await;
    assert_eq!(code, 200, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_the_provider_does_not_have_are_lost_until_their_job_is_retried() {
    for kind in BOTH {
        let mut options = impatient(kind);
        options.extra.push_str("delete_provider_files = true\n");
        let env = Env::with(options).await;
        configure(&env, "a", BatchSettings::default());
        let missing = status(404, &[], json!({"error": {"message": "No such File object"}}));
        let page = Fault::Garbage {
            content_type: "text/html".to_owned(),
            body: "<html>".to_owned(),
            executed: false,
        };
        for (operation, fault) in [
            (Operation::Get, missing.clone()),
            (Operation::Content, missing),
            (Operation::Content, page),
        ] {
            env.spoil_as("a", FaultRule { times: 0, ..FaultRule::new(operation, fault) });
            let batch = env.client.batch_ended(&created(&env, &["a"], 5).await).await;
            assert_eq!(
                (&batch["status"], &batch["output_file_id"]),
                (&json!("completed"), &json!(null)),
                "{batch}"
            );
            assert_eq!(batch["runs"][0]["error"]["code"], "output_lost", "{batch}");
            assert_eq!(batch["errors"]["data"][0]["code"], "output_lost", "{batch}");
            let job = job(&env, &batch, "ingest_batch").await;
            assert_eq!(
                (&job["status"], &job["error"]["code"]),
                (&json!("failed"), &json!("output_lost")),
                "{job}"
            );

            env.sandbox.clear_faults("a");
            retry_job(&env, &job).await;
            let batch = env.client.batch_when(&batch, |batch| !batch["usage"].is_null()).await;
            let counts = json!({"total": 5, "completed": 5, "failed": 0});
            assert_eq!(
                (&batch["status"], &batch["request_counts"]),
                (&json!("completed"), &counts)
            );
            assert_eq!(
                (&batch["errors"], &batch["runs"][0]["error"]),
                (&json!(null), &json!(null))
            );
            assert_eq!(custom_ids(&results(&env, &batch, "").await).len(), 5);
            eventually(PATIENCE, async || env.sandbox.live_files("a").is_empty().then_some(()))
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_refused_takes_nothing_from_the_one_that_is_here() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let failing = [("r-1".to_owned(), 500)].into();
        configure(&env, "a", BatchSettings { failing, ..BatchSettings::default() });
        let refusal = status(400, &[], json!({"error": {"message": "no"}}));
        env.spoil_as("a", FaultRule { skip: 1, ..FaultRule::new(Operation::Content, refusal) });
        let batch = env.client.batch_ended(&created(&env, &["a"], 3).await).await;
        assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 2, "failed": 0}));
        assert_eq!(batch["runs"][0]["error"]["code"], "results_unavailable", "{batch}");
        let output = batch["output_file_id"].clone();
        assert!(output.is_string() && batch["error_file_id"].is_null(), "{batch}");

        retry_job(&env, &job(&env, &batch, "ingest_batch").await).await;
        let batch = env.client.batch_when(&batch, |batch| batch["error_file_id"].is_string()).await;
        let counts = json!({"total": 3, "completed": 2, "failed": 1});
        assert_eq!((&batch["request_counts"], &batch["output_file_id"]), (&counts, &output));
        assert_eq!(custom_ids(&results(&env, &batch, "").await), ["r-2", "r-0", "r-1"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_are_fewer_than_the_provider_says_are_kept_there_and_here() {
    let mut options = options(Kind::Sqlite);
    options.extra.push_str("delete_provider_files = true\n");
    let env = Env::with(options).await;
    let hold_at = Some(BatchState::Finalizing);
    configure(&env, "a", BatchSettings { hold_at, ..BatchSettings::default() });
    let batch = created(&env, &["a"], 3).await;
    let at = eventually(PATIENCE, async || {
        env.sandbox.batches("a").first().map(|batch| batch.id.clone())
    })
    .await;
    let half = Bytes::from("{\"custom_id\":\"r-0\",\"response\":{\"status_code\":200}}\n");
    env.sandbox.set_batch_output("a", &at, BatchFile::Output, half).unwrap();
    env.sandbox.release_batches("a");
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 1, "failed": 0}));
    assert_eq!(batch["runs"][0]["error"]["code"], "output_incomplete", "{batch}");
    assert_eq!(custom_ids(&results(&env, &batch, "").await), ["r-0"]);
    assert_eq!(env.sandbox.live_files("a").len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingestion_that_kills_its_workers_ends_the_batch() {
    for kind in BOTH {
        let mut env = Env::with(options(kind)).await;
        let failing = [("r-1".to_owned(), 500)].into();
        configure(&env, "a", BatchSettings { failing, ..BatchSettings::default() });
        let hold = Fault::Hold { hold_before: true };
        env.spoil_as(
            "a",
            FaultRule { skip: 1, times: 0, ..FaultRule::new(Operation::Content, hold) },
        );
        let batch = created(&env, &["a"], 3).await;
        let fetched = "SELECT count(*) FROM batch_outputs WHERE blob_key IS NOT NULL";
        eventually(PATIENCE, async || (env.database.count(fetched).await == 1).then_some(())).await;
        env.database.execute("UPDATE jobs SET deaths = 2 WHERE kind = 'ingest_batch'").await;
        env.server.kill();
        env.restart();
        let batch = env.client.batch_ended(&batch).await;
        assert_eq!(batch["status"], "completed", "{batch}");
        assert_eq!(batch["runs"][0]["error"]["code"], "results_unavailable", "{batch}");

        env.sandbox.clear_faults("a");
        retry_job(&env, &job(&env, &batch, "ingest_batch").await).await;
        let batch = env.client.batch_when(&batch, |batch| !batch["usage"].is_null()).await;
        assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 2, "failed": 1}));
        // The file that was here before the kill was not fetched again.
        assert_eq!(env.calls("a", Operation::Content), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_gone_before_they_were_read_are_fetched_again() {
    let mut env = Env::with(options(Kind::Sqlite)).await;
    let failing = [("r-1".to_owned(), 500)].into();
    configure(&env, "a", BatchSettings { failing, ..BatchSettings::default() });
    let hold = Fault::Hold { hold_before: true };
    env.spoil_as("a", FaultRule { skip: 1, ..FaultRule::new(Operation::Content, hold) });
    let batch = created(&env, &["a"], 3).await;
    let fetched = "SELECT count(*) FROM batch_outputs WHERE blob_key IS NOT NULL";
    eventually(PATIENCE, async || (env.database.count(fetched).await == 1).then_some(())).await;
    env.server.kill();
    std::fs::remove_dir_all(env.folder().join("blobs/outputs")).unwrap();
    env.restart();
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 2, "failed": 1}));
    assert!(!env.client.content(&batch["output_file_id"]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_ingestion_goes_on_where_it_stopped() {
    let line = |number: usize| {
        let body = json!({"usage": {"prompt_tokens": 1}, "text": "x".repeat(200)});
        let response = json!({"status_code": 200, "body": body});
        format!("{}\n", json!({"custom_id": format!("r-{number}"), "response": response}))
    };
    for kind in BOTH {
        let mut env = Env::with(options(kind)).await;
        let hold_at = Some(BatchState::Finalizing);
        configure(&env, "a", BatchSettings { hold_at, ..BatchSettings::default() });
        let batch = created(&env, &["a"], 20_000).await;
        let at = eventually(PATIENCE, async || {
            env.sandbox.batches("a").first().map(|batch| batch.id.clone())
        })
        .await;
        // Behind all others, a line that comes again and one that nobody asked for.
        let output: String = (0..20_000).chain([7, 20_000]).map(line).collect();
        env.sandbox.set_batch_output("a", &at, BatchFile::Output, output.into()).unwrap();
        env.sandbox.release_batches("a");
        let indexed = "SELECT COALESCE(max(lines), 0) FROM batch_outputs";
        eventually(PATIENCE, async || (env.database.count(indexed).await > 2000).then_some(()))
            .await;
        env.server.kill();
        let before = env.database.count(indexed).await;
        assert!(before < 20_000, "it was faster than the test");
        let key = env.database.query("SELECT blob_key FROM batch_outputs").await;
        let key: String = key[0].try_get("", "blob_key").unwrap();

        env.restart();
        let batch = env.client.batch_ended(&batch).await;
        let counts = json!({"total": 20_000, "completed": 20_000, "failed": 0});
        assert_eq!(
            (&batch["request_counts"], &batch["usage"]["input_tokens"]),
            (&counts, &json!(20_000))
        );
        let irregular = json!({"broken": 0, "duplicate": 1, "unknown": 1});
        assert_eq!(batch["runs"][0]["irregular_lines"], irregular);
        assert_eq!(env.database.count("SELECT count(*) FROM batch_results").await, 20_002);
        assert_eq!(env.calls("a", Operation::Content), 1, "the file was fetched again");
        let kept = env.database.query("SELECT blob_key FROM batch_outputs").await;
        assert_eq!(kept[0].try_get::<String>("", "blob_key").unwrap(), key);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_file_of_results_go_its_copy_and_its_results() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        configure(&env, "a", BatchSettings::default());
        let batch = env.client.batch_ended(&created(&env, &["a"], 3).await).await;
        let output = json!({"id": batch["output_file_id"]});
        env.client.remove(&output).await;
        let path = format!("/v1/batches/{}/results", id(&batch));
        let (code, error) = env.client.get(&path).await;
        assert_eq!((code, &error["error"]["code"]), (409, &json!("results_gone")), "{error}");
        let deletion = env.client.purged(&output).await;
        assert_eq!(deletion["status"], "done", "{deletion}");
        let live: Vec<_> =
            env.sandbox.live_files("a").into_iter().map(|file| file.filename).collect();
        assert!(live.iter().all(|name| name.starts_with("in.")), "{live:?}");
        eventually(PATIENCE, async || {
            let folder = env.folder().join("blobs/outputs");
            let left = walk(&folder);
            (left == 0).then_some(())
        })
        .await;
        let rows = "SELECT count(*) FROM batch_results";
        eventually(PATIENCE, async || (env.database.count(rows).await == 0).then_some(())).await;
        let (code, error) = env.client.get(&path).await;
        assert_eq!((code, &error["error"]["code"]), (409, &json!("results_gone")), "{error}");
        let (_, shown) = env.client.get(&format!("/v1/batches/{}", id(&batch))).await;
        assert_eq!(shown["request_counts"], batch["request_counts"]);
    }
}

fn walk(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { walk(&path) } else { 1 })
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_keep_nothing_where_they_are_told_to() {
    for kind in BOTH {
        let mut options = options(kind);
        options.extra.push_str("delete_provider_files = true\n");
        let env = Env::with(options).await;
        let failing =
            BatchSettings { failing: [("r-2".to_owned(), 400)].into(), ..BatchSettings::default() };
        configure(&env, "a", failing);
        let batch = env.client.batch_ended(&created(&env, &["a"], 3).await).await;
        assert_eq!(batch["status"], "completed");
        eventually(PATIENCE, async || env.sandbox.live_files("a").is_empty().then_some(())).await;
        let input = eventually(PATIENCE, async || {
            let input = env.client.file(batch["input_file_id"].as_str().unwrap()).await;
            (mapping(&input, "a")["status"] == "deleted").then_some(input)
        })
        .await;
        assert_eq!(input["status"], "processed");
        assert!(!env.client.content(&batch["output_file_id"]).await.is_empty());
        assert_eq!(custom_ids(&results(&env, &batch, "").await).len(), 3);
        // Files whose copies are gone already can be deleted as well.
        for file in [&batch["input_file_id"], &batch["output_file_id"]] {
            let file = json!({"id": file});
            env.client.remove(&file).await;
            assert_eq!(env.client.purged(&file).await["status"], "done");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_is_kept_at_its_provider_until_its_last_batch_has_ended() {
    for kind in BOTH {
        let mut options = options(kind);
        options.extra.push_str("delete_provider_files = true\n");
        let env = Env::with(options).await;
        let hold_at = Some(BatchState::InProgress);
        let end = BatchEnd::Cancelled { done_percent: 0 };
        configure(&env, "a", BatchSettings { hold_at, end, ..BatchSettings::default() });
        let file = env.client.upload_requests(&["a"], 3).await;
        let last = env.client.batch_on(&file).await;
        env.client.batch_when(&last, |batch| batch["status"] == "in_progress").await;
        configure(&env, "a", BatchSettings::default());
        let first = env.client.batch_ended(&env.client.batch_on(&file).await).await;
        assert_eq!(first["status"], "completed", "{first}");
        let only_input = || {
            let live = env.sandbox.live_files("a");
            (live.len() == 1 && live[0].filename.starts_with("in.")).then_some(())
        };
        eventually(PATIENCE, async || only_input()).await;

        // It comes to nothing, not even a file.
        env.sandbox.release_batches("a");
        let last = env.client.batch_ended(&last).await;
        assert_eq!((&last["status"], &last["errors"]), (&json!("cancelled"), &json!(null)));
        eventually(PATIENCE, async || env.sandbox.live_files("a").is_empty().then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_custom_ids_are_found_again() {
    let ids = ["a\0b".to_owned(), "å\n".repeat(500), "\"\\".repeat(1 << 19)];
    let request = |id: &String| {
        let body = json!({"model": "gpt", "messages": [{"role": "user", "content": "Hello"}]});
        let line =
            json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body});
        format!("{line}\n")
    };
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        configure(&env, "a", BatchSettings::default());
        let content = ids.iter().map(request).collect::<String>().into_bytes();
        let part = Part { filename: "in.jsonl", purpose: "batch", models: &["a"], content };
        let (code, file) = env.client.try_upload(part).await;
        assert_eq!(code, 200, "{file}");
        let batch = env.client.batch_ended(&env.client.batch_on(&file).await).await;
        let counts = json!({"total": 3, "completed": 3, "failed": 0});
        assert_eq!(batch["request_counts"], counts, "{batch}");
        let irregular = json!({"broken": 0, "duplicate": 0, "unknown": 0});
        assert_eq!(batch["runs"][0]["irregular_lines"], irregular);
        let found = results(&env, &batch, &format!("?custom_id={}", "%C3%A5%0A".repeat(500))).await;
        assert_eq!(custom_ids(&found), [&ids[1]]);
        let all = results(&env, &batch, "").await;
        assert_eq!(custom_ids(&all), [&ids[2], &ids[1], &ids[0]]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_results_is_neither_uploaded_nor_sent_on() {
    let env = Env::with(options(Kind::Sqlite)).await;
    configure(&env, "a", BatchSettings::default());
    let part =
        Part { filename: "x.jsonl", purpose: "batch_output", models: &["a"], content: requests(1) };
    let (code, error) = env.client.try_upload(part).await;
    assert_eq!((code, &error["error"]["param"]), (400, &json!("purpose")), "{error}");
    let batch = env.client.batch_ended(&created(&env, &["a"], 1).await).await;
    let path = format!("/v1/files/{}/mappings", batch["output_file_id"].as_str().unwrap());
    let (code, error) = env.client.post(&path, json!({"target_model_names": ["b"]})).await;
    assert_eq!((code, &error["error"]["code"]), (409, &json!("not_an_upload")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_fifty_megabytes_is_one_line_among_others() {
    let env = Env::with(options(Kind::Sqlite)).await;
    configure(&env, "a", BatchSettings { long_answer_bytes: 50 << 20, ..BatchSettings::default() });
    let batch = env.client.batch_ended(&created(&env, &["a"], 3).await).await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 3, "failed": 0}));
    let page = results(&env, &batch, "").await;
    assert_eq!((custom_ids(&page), &page["has_more"]), (vec!["r-2", "r-1"], &json!(true)));
    let long = results(&env, &batch, "?custom_id=r-0").await;
    let text = long["data"][0]["response"]["body"]["choices"][0]["message"]["content"].as_str();
    assert!(text.unwrap().len() >= 50 << 20);
    let job = job(&env, &batch, "ingest_batch").await;
    assert_eq!(
        (&job["status"], &job["progress"]["unit"]),
        (&json!("succeeded"), &json!("bytes")),
        "{job}"
    );
}

async fn retried(env: &Env, batch: &Value, body: Value) -> (u16, Value) {
    env.client.post(&format!("/v1/batches/{}/retry", id(batch)), body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_of_a_batch_can_be_retried_in_a_new_one() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let failing: BTreeMap<_, _> = [("r-1".to_owned(), 500), ("r-3".to_owned(), 400)].into();
        configure(&env, "a", BatchSettings { failing, ..BatchSettings::default() });
        let input = requests(5);
        let batch = created(&env, &["a"], 5).await;
        let (code, error) = retried(&env, &batch, json!({})).await;
        assert_eq!((code, &error["error"]["code"]), (409, &json!("batch_not_ended")), "{error}");
        let batch = env.client.batch_ended(&batch).await;

        configure(&env, "a", BatchSettings::default());
        let path = format!("/v1/batches/{}/retry", id(&batch));
        let again =
            || env.client.request(Method::POST, &path).header("idempotency-key", "k").send();
        let (code, new) = answer(again().await.unwrap()).await;
        assert_eq!(code, 200, "{new}");
        let (_, same) = answer(again().await.unwrap()).await;
        assert_eq!(id(&same), id(&new));
        let new = env.client.batch_ended(&new).await;
        assert_eq!(new["request_counts"], json!({"total": 2, "completed": 2, "failed": 0}));
        let file = env.client.file(new["input_file_id"].as_str().unwrap()).await;
        assert_eq!(
            (&file["filename"], &file["purpose"]),
            (&json!("in.retry.jsonl"), &json!("batch"))
        );
        let lines: Vec<_> = input.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(env.client.content(&new["input_file_id"]).await, [lines[1], lines[3]].concat());

        let (code, error) = retried(&env, &new, json!({})).await;
        assert_eq!((code, &error["error"]["code"]), (409, &json!("nothing_to_retry")), "{error}");
        let bob = env.as_key(BOB_KEY);
        assert_eq!(bob.post(&path, json!({})).await.0, 403);
        env.client.remove(&json!({"id": batch["input_file_id"]})).await;
        let (code, error) = retried(&env, &batch, json!({})).await;
        assert_eq!((code, &error["error"]["code"]), (409, &json!("input_gone")), "{error}");
        // Neither a refusal nor a repetition leaves bytes: the input of the second batch is all that stays.
        eventually(PATIENCE, async || (env.blobs() == 1).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_models_lack_different_requests_one_must_be_named() {
    let env = Env::with(options(Kind::Sqlite)).await;
    for (account, request) in [("a", "r-0"), ("b", "r-1")] {
        let failing = [(request.to_owned(), 500)].into();
        configure(&env, account, BatchSettings { failing, ..BatchSettings::default() });
    }
    let batch = env.client.batch_ended(&created(&env, &["a", "b"], 3).await).await;
    let (code, error) = retried(&env, &batch, json!({})).await;
    assert_eq!((code, &error["error"]["param"]), (400, &json!("model")), "{error}");
    let (code, error) = retried(&env, &batch, json!({"model": "c"})).await;
    assert_eq!((code, &error["error"]["param"]), (400, &json!("model")), "{error}");
    configure(&env, "b", BatchSettings::default());
    let (code, new) = retried(&env, &batch, json!({"model": "b"})).await;
    assert_eq!(code, 200, "{new}");
    let new = env.client.batch_ended(&new).await;
    assert_eq!(new["request_counts"], json!({"total": 1, "completed": 1, "failed": 0}));
    assert_eq!(custom_ids(&results(&env, &new, "").await), ["r-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_is_for_the_models_that_lack_something() {
    let env = Env::with(options(Kind::Sqlite)).await;
    let failing =
        BatchSettings { failing: [("r-1".to_owned(), 500)].into(), ..BatchSettings::default() };
    configure(&env, "a", failing);
    configure(&env, "b", BatchSettings::default());
    let batch = env.client.batch_ended(&created(&env, &["a", "b"], 3).await).await;
    configure(&env, "a", BatchSettings::default());
    let (code, new) = retried(&env, &batch, json!({})).await;
    assert_eq!(code, 200, "{new}");
    let new = env.client.batch_ended(&new).await;
    assert_eq!(custom_ids(&results(&env, &new, "").await), ["r-1"]);
    assert_eq!((&new["runs"][0]["model"], new["runs"].as_array().unwrap().len()), (&json!("a"), 1));
    let (code, error) = retried(&env, &batch, json!({"model": "b"})).await;
    assert_eq!((code, &error["error"]["code"]), (409, &json!("nothing_to_retry")), "{error}");
    let (code, error) = retried(&env, &new, json!({})).await;
    assert_eq!((code, &error["error"]["code"]), (409, &json!("nothing_to_retry")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_retried_once_at_a_time_and_never_once_it_is_answered() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let failing = |ids: &[&str]| BatchSettings {
            failing: ids.iter().map(|id| ((*id).to_owned(), 500)).collect(),
            ..BatchSettings::default()
        };
        configure(&env, "a", failing(&["r-1", "r-3"]));
        let batch = env.client.batch_ended(&created(&env, &["a"], 5).await).await;
        let hold_at = Some(BatchState::InProgress);
        configure(&env, "a", BatchSettings { hold_at, ..failing(&["r-3"]) });
        let clicks = (0..10).map(|_| retried(&env, &batch, json!({})));
        let clicks = futures_util::future::join_all(clicks).await;
        let made: Vec<_> = clicks.iter().filter(|(code, _)| *code == 200).collect();
        assert_eq!(made.len(), 1, "{clicks:?}");
        let first = made[0].1.clone();
        assert!(clicks.iter().all(|(code, _)| [200, 409].contains(code)), "{clicks:?}");
        let (code, error) = retried(&env, &batch, json!({"force": true})).await;
        assert_eq!((code, &error["error"]["code"]), (409, &json!("retry_under_way")), "{error}");
        env.client.batch_when(&first, |batch| batch["status"] == "in_progress").await;
        env.sandbox.release_batches("a");
        let first = env.client.batch_ended(&first).await;
        assert_eq!(first["request_counts"], json!({"total": 2, "completed": 1, "failed": 1}));

        configure(&env, "a", BatchSettings::default());
        // Whether the batch or its retry is retried: it is the same request.
        let (code, second) = retried(&env, &first, json!({})).await;
        assert_eq!(code, 200, "{second}");
        let second = env.client.batch_ended(&second).await;
        assert_eq!(custom_ids(&results(&env, &second, "").await), ["r-3"]);
        for batch in [&batch, &first, &second] {
            let (code, error) = retried(&env, batch, json!({"force": true})).await;
            assert_eq!(
                (code, &error["error"]["code"]),
                (409, &json!("nothing_to_retry")),
                "{error}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_deployments_of_one_model_lack_is_retried_where_it_is_lacking() {
    let mut options = options(Kind::Sqlite);
    options.extra.push_str("[[models]]\nname = \"a\"\nprovider = \"at-b\"\nmodel = \"a-at-b\"\n");
    let env = Env::with(options).await;
    for (account, request) in [("a", "r-0"), ("b", "r-1")] {
        let failing = [(request.to_owned(), 500)].into();
        configure(&env, account, BatchSettings { failing, ..BatchSettings::default() });
    }
    let batch = env.client.batch_ended(&created(&env, &["a"], 3).await).await;
    let runs = batch["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{batch}");
    let (code, error) = retried(&env, &batch, json!({"model": "a"})).await;
    assert_eq!((code, &error["error"]["param"]), (400, &json!("model")), "{error}");
    for (provider, request) in [("at-a", "r-0"), ("at-b", "r-1")] {
        let run = runs.iter().find(|run| run["provider"] == provider).unwrap();
        for account in ["a", "b"] {
            configure(&env, account, BatchSettings::default());
        }
        let asked = json!({"deployment_id": run["deployment_id"]});
        let (code, new) = retried(&env, &batch, asked).await;
        assert_eq!(code, 200, "{new}");
        let new = env.client.batch_ended(&new).await;
        assert_eq!(new["runs"].as_array().unwrap().len(), 1, "{new}");
        assert_eq!(new["runs"][0]["provider"], provider);
        assert_eq!(custom_ids(&results(&env, &new, "").await), [request]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_success_counts_behind_a_failure_and_what_is_unknown_is_retried_by_force() {
    let env = Env::with(options(Kind::Sqlite)).await;
    let hold_at = Some(BatchState::Finalizing);
    configure(&env, "a", BatchSettings { hold_at, ..BatchSettings::default() });
    let batch = created(&env, &["a"], 3).await;
    let at = eventually(PATIENCE, async || {
        env.sandbox.batches("a").first().map(|batch| batch.id.clone())
    })
    .await;
    let line = |custom_id: &str, status: u16| {
        format!("{}\n", json!({"custom_id": custom_id, "response": {"status_code": status}}))
    };
    let output = [line("r-0", 500), line("r-0", 200), line("r-1", 200)].concat();
    env.sandbox.set_batch_output("a", &at, BatchFile::Output, output.into()).unwrap();
    env.sandbox.release_batches("a");
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["runs"][0]["error"]["code"], "output_incomplete", "{batch}");
    configure(&env, "a", BatchSettings::default());
    let (code, error) = retried(&env, &batch, json!({})).await;
    assert_eq!((code, &error["error"]["code"]), (409, &json!("answers_unknown")), "{error}");
    let (code, new) = retried(&env, &batch, json!({"force": true})).await;
    assert_eq!(code, 200, "{new}");
    let new = env.client.batch_ended(&new).await;
    assert_eq!(custom_ids(&results(&env, &new, "").await), ["r-2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_with_a_key_is_made_once_and_answered_when_its_input_is_gone() {
    for kind in BOTH {
        let env = Env::with(options(kind)).await;
        let failing = [("r-1".to_owned(), 500)].into();
        configure(&env, "a", BatchSettings { failing, ..BatchSettings::default() });
        let batch = env.client.batch_ended(&created(&env, &["a"], 3).await).await;
        let path = format!("/v1/batches/{}/retry", id(&batch));
        let retry =
            || env.client.request(Method::POST, &path).header("idempotency-key", "k").send();
        let answers = futures_util::future::join_all((0..50).map(|_| retry())).await;
        let mut made = Vec::new();
        for response in answers {
            let (code, body) = answer(response.unwrap()).await;
            match code {
                200 => made.push(id(&body).to_owned()),
                _ => assert_eq!(body["error"]["code"], "idempotency_key_in_use", "{body}"),
            }
        }
        made.dedup();
        assert_eq!(made.len(), 1, "{made:?}");
        assert_eq!(env.database.count("SELECT count(*) FROM batches").await, 2);
        env.client.remove(&json!({"id": batch["input_file_id"]})).await;
        let (code, same) = answer(retry().await.unwrap()).await;
        assert_eq!((code, id(&same)), (200, made[0].as_str()), "{same}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_ingestion_is_no_orphan() {
    let mut env = Env::with(options(Kind::Sqlite)).await;
    let failing = [("r-1".to_owned(), 500)].into();
    configure(&env, "a", BatchSettings { failing, ..BatchSettings::default() });
    // The output file is here, and the error file is not.
    let hold = Fault::Hold { hold_before: true };
    env.spoil_as("a", FaultRule { skip: 1, ..FaultRule::new(Operation::Content, hold) });
    let batch = created(&env, &["a"], 3).await;
    let fetched = "SELECT count(*) FROM batch_outputs WHERE blob_key IS NOT NULL";
    eventually(PATIENCE, async || (env.database.count(fetched).await == 1).then_some(())).await;
    env.server.kill();
    env.age_blobs();
    env.restart();
    // Maintenance looks for orphans as soon as it starts.
    let batch = env.client.batch_ended(&batch).await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 2, "failed": 1}));
    assert!(!env.client.content(&batch["output_file_id"]).await.is_empty());
    // The output, the held call, and the error file.
    assert_eq!(env.calls("a", Operation::Content), 3);
}
