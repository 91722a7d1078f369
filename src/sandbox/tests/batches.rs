//! The batches API, and what can be made of a batch.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

/// A batch's input of `count` lines to `url`, with the ids `t-0`, `t-1`, ….
fn input_to(url: &str, count: usize) -> String {
    let line = |number| {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "?"}]});
        let id = format!("t-{number}");
        json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
    };
    (0..count).map(line).collect()
}

fn input(count: usize) -> String {
    input_to("/v1/chat/completions", count)
}

/// As fast as it goes.
fn at_once() -> BatchSettings {
    BatchSettings { phase_ms: 0, ..BatchSettings::default() }
}

fn held_at(state: BatchState) -> BatchSettings {
    BatchSettings { hold_at: Some(state), ..at_once() }
}

impl Blue {
    fn with(batches: BatchSettings) -> Self {
        let blue = Self::start();
        blue.configure(Settings { batches, ..Settings::default() });
        blue
    }

    fn plant_input(&self, content: String) -> String {
        self.sandbox.plant("blue", "in.jsonl", Purpose::Batch, content.into()).id
    }

    fn create(&self, input: &str, endpoint: &str) -> RequestBuilder {
        let body = json!({
            "input_file_id": input, "endpoint": endpoint, "completion_window": "24h",
            "metadata": {"longshore": "marker"},
        });
        self.client.post(self.url("/batches")).bearer_auth("sk-test").json(&body)
    }

    /// Creates a batch over `content` and gives its id.
    async fn batch(&self, content: String) -> String {
        let input = self.plant_input(content);
        let batch = json(self.create(&input, "/v1/chat/completions")).await;
        batch["id"].as_str().unwrap().to_owned()
    }

    fn cancel(&self, id: &str) -> RequestBuilder {
        self.client.post(self.url(&format!("/batches/{id}/cancel"))).bearer_auth("sk-test")
    }

    fn shown(&self, id: &str) -> StoredBatch {
        self.sandbox.batches("blue").into_iter().find(|batch| batch.id == id).unwrap()
    }

    async fn becomes(&self, id: &str, status: &str) -> StoredBatch {
        eventually(|| self.shown(id).status == status).await;
        self.shown(id)
    }

    async fn content(&self, file: &Option<String>) -> String {
        let path = format!("/files/{}/content", file.as_ref().unwrap());
        text(self.get(&path).send().await.unwrap()).await
    }

    async fn lines(&self, file: &Option<String>) -> Vec<Value> {
        let content = self.content(file).await;
        content.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["custom_id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_batch_goes_its_way_and_answers_every_line_in_another_order() {
    let blue = Blue::with(BatchSettings { phase_ms: 20, ..BatchSettings::default() });
    let input = blue.plant_input(input(4));
    let created = json(blue.create(&input, "/v1/chat/completions")).await;
    let id = created["id"].as_str().unwrap();
    assert_eq!((&created["object"], &created["status"]), (&json!("batch"), &json!("validating")));
    assert_eq!(created["metadata"], json!({"longshore": "marker"}));
    assert_eq!(created["request_counts"], json!({"total": 0, "completed": 0, "failed": 0}));

    let batch = blue.becomes(id, "completed").await;
    let times = [batch.in_progress_at, batch.finalizing_at, batch.completed_at].map(Option::unwrap);
    assert!(times.is_sorted() && times[0] >= batch.created_at, "{batch:?}");
    let ended = json(blue.get(&format!("/batches/{id}"))).await;
    assert_eq!(ended["request_counts"], json!({"total": 4, "completed": 4, "failed": 0}));
    assert!(ended["error_file_id"].is_null() && ended["failed_at"].is_null());
    assert_eq!(ended["model"], "m");

    let lines = blue.lines(&batch.output_file_id).await;
    assert_eq!(ids(&lines), ["t-3", "t-2", "t-1", "t-0"]);
    let mut tokens = 0;
    for line in &lines {
        let body = &line["response"]["body"];
        let answer = format!("Answer to {}", line["custom_id"].as_str().unwrap());
        assert!(line["id"].as_str().unwrap().starts_with("batch_req_") && line["error"].is_null());
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(body["choices"][0]["message"]["content"], answer);
        tokens += body["usage"]["total_tokens"].as_u64().unwrap();
    }
    let usage = batch.usage.unwrap();
    assert_eq!((usage.total_tokens, usage.input_tokens + usage.output_tokens), (tokens, tokens));

    let file = json(blue.get(&format!("/files/{}", batch.output_file_id.unwrap()))).await;
    assert_eq!(file["purpose"], "batch_output");
    assert_eq!(file["filename"], format!("{id}_output.jsonl"));
    assert_eq!(file["expires_at"], file["created_at"].as_u64().unwrap() + 2_592_000);
    let stats = blue.sandbox.stats("blue");
    assert_eq!((stats.batches_created, stats.batches_open), (1, 0));
    assert_eq!(stats.calls[&Operation::CreateBatch], 1);
    let call = &blue.sandbox.calls("blue")[0];
    assert_eq!((call.batch_id.as_deref(), call.status), (Some(id), Some(200)));
}

#[tokio::test]
async fn each_endpoint_answers_in_its_own_shape() {
    let blue = Blue::with(at_once());
    for (endpoint, pointer) in [
        ("/v1/responses", "/output/0/content/0/text"),
        ("/v1/embeddings", "/data/0/embedding/0"),
        ("/v1/completions", "/choices/0/text"),
        ("/v1/moderations", "/results/0/flagged"),
        ("/v1/images/generations", "/data/0/b64_json"),
    ] {
        let input = blue.plant_input(input_to(endpoint, 1));
        let batch = json(blue.create(&input, endpoint)).await;
        let batch = blue.becomes(batch["id"].as_str().unwrap(), "completed").await;
        let lines = blue.lines(&batch.output_file_id).await;
        let body = &lines[0]["response"]["body"];
        assert!(body.pointer(pointer).is_some(), "{endpoint}: {body}");
    }
}

#[tokio::test]
async fn lines_fail_as_they_were_told_to() {
    let failing = BTreeMap::from([("t-0".to_owned(), 500), ("t-1".to_owned(), 0)]);
    let blue = Blue::with(BatchSettings { failing, failing_percent: 50, ..at_once() });
    let id = blue.batch(input(6)).await;
    let batch = blue.becomes(&id, "completed").await;
    assert_eq!(batch.request_counts, BatchCounts { total: 6, completed: 2, failed: 4 });
    assert_eq!(ids(&blue.lines(&batch.output_file_id).await), ["t-4", "t-2"]);
    let failed = blue.lines(&batch.error_file_id).await;
    let statuses: Vec<_> = failed.iter().map(|line| &line["response"]["status_code"]).collect();
    assert_eq!(statuses, [&json!(400), &json!(400), &Value::Null, &json!(500)]);
    assert_eq!(failed[2]["error"]["code"], "server_error");
    assert_eq!(failed[0]["response"]["body"]["error"]["code"], "unsupported_parameter");

    let settings = BatchSettings { failing_percent: 50, failures_in_output: true, ..at_once() };
    blue.configure(Settings { batches: settings, ..Settings::default() });
    let id = blue.batch(input(4)).await;
    let batch = blue.becomes(&id, "completed").await;
    assert!(batch.error_file_id.is_none());
    assert_eq!(blue.lines(&batch.output_file_id).await.len(), 4);

    let settings = BatchSettings { failing_percent: 100, ..at_once() };
    blue.configure(Settings { batches: settings, ..Settings::default() });
    let id = blue.batch(input(2)).await;
    let batch = blue.becomes(&id, "completed").await;
    assert!(batch.output_file_id.is_none() && batch.error_file_id.is_some());
    assert_eq!((batch.request_counts.failed, batch.usage), (2, None));
}

#[tokio::test]
async fn an_input_that_is_no_good_fails_after_the_create() {
    let blue = Blue::with(at_once());
    let mixed = format!("{}{{\n{}", input(1), input(1));
    let id = blue.batch(mixed).await;
    let batch = blue.becomes(&id, "failed").await;
    let errors = batch.errors.unwrap().data;
    let told: Vec<_> = errors.iter().map(|error| (error.code.as_str(), error.line)).collect();
    assert_eq!(told, [("invalid_json_line", Some(2)), ("duplicate_custom_id", Some(3))]);
    assert!(batch.failed_at.is_some() && batch.in_progress_at.is_none());
    assert_eq!(batch.request_counts, BatchCounts::default());
}

#[tokio::test]
async fn a_batch_ends_as_the_settings_or_the_test_say() {
    let ends = [
        (BatchEnd::Completed, "completed", Some(4), None),
        (BatchEnd::CompletedWithoutFiles, "completed", None, None),
        (BatchEnd::failed("token_limit_exceeded"), "failed", None, None),
        (BatchEnd::Expired { done_percent: 50 }, "expired", Some(2), Some(2)),
        (BatchEnd::Cancelled { done_percent: 25 }, "cancelled", Some(1), None),
        (BatchEnd::Cancelled { done_percent: 0 }, "cancelled", None, None),
    ];
    for (end, status, output, error) in ends {
        let settings = BatchSettings { end: end.clone(), ..at_once() };
        let by_itself = Blue::with(settings);
        let id = by_itself.batch(input(4)).await;
        let first = by_itself.becomes(&id, status).await;

        let by_hand = Blue::with(held_at(BatchState::Validating));
        let id = by_hand.batch(input(4)).await;
        let second = by_hand.sandbox.end_batch("blue", &id, end.clone()).unwrap();

        for (blue, batch) in [(&by_itself, first), (&by_hand, second)] {
            assert_eq!(batch.status, status);
            for (file, count) in [(&batch.output_file_id, output), (&batch.error_file_id, error)] {
                assert_eq!(file.is_some(), count.is_some(), "{end:?}: {batch:?}");
                if let Some(count) = count {
                    assert_eq!(blue.lines(file).await.len(), count, "{end:?}");
                }
            }
            if let Some(errors) = &batch.errors {
                assert_eq!(errors.data[0].code, "token_limit_exceeded");
            }
            // It has ended, whatever comes.
            let again = blue.sandbox.end_batch("blue", &batch.id, BatchEnd::Completed).unwrap();
            assert_eq!(again, batch);
        }
    }
}

#[tokio::test]
async fn a_held_batch_waits_to_be_released_and_shows_any_word() {
    let blue = Blue::with(held_at(BatchState::InProgress));
    let id = blue.batch(input(4)).await;
    let batch = blue.becomes(&id, "in_progress").await;
    assert_eq!(batch.request_counts, BatchCounts { total: 4, completed: 2, failed: 0 });

    blue.sandbox.set_batch_status("blue", &id, Some("paused")).unwrap();
    assert_eq!(json(blue.get(&format!("/batches/{id}"))).await["status"], "paused");
    blue.sandbox.set_batch_status("blue", &id, None).unwrap();
    assert_eq!(blue.shown(&id).status, "in_progress");

    blue.sandbox.release_batches("blue");
    blue.becomes(&id, "completed").await;
    assert_eq!(
        blue.sandbox.set_batch_status("blue", "batch_0", None),
        Err(UnknownBatch("batch_0".to_owned()))
    );
}

#[tokio::test]
async fn a_cancelled_batch_keeps_what_was_done() {
    let blue = Blue::with(held_at(BatchState::InProgress));
    let id = blue.batch(input(4)).await;
    blue.becomes(&id, "in_progress").await;
    assert_eq!(json(blue.cancel(&id)).await["status"], "cancelling");
    let batch = blue.becomes(&id, "cancelled").await;
    assert_eq!(ids(&blue.lines(&batch.output_file_id).await), ["t-1", "t-0"]);
    assert_eq!(batch.request_counts, BatchCounts { total: 4, completed: 2, failed: 0 });
    assert!(batch.error_file_id.is_none() && batch.cancelling_at.is_some());
}

#[tokio::test]
async fn a_batch_can_be_cancelled_again_until_it_has_ended() {
    let blue = Blue::with(BatchSettings { phase_ms: 3_600_000, ..BatchSettings::default() });
    let id = blue.batch(input(1)).await;
    let cancelling = json(blue.cancel(&id)).await;
    assert_eq!(cancelling["status"], "cancelling");
    assert_eq!(json(blue.cancel(&id)).await, cancelling);

    blue.sandbox.end_batch("blue", &id, BatchEnd::Cancelled { done_percent: 0 }).unwrap();
    assert_eq!(error(blue.cancel(&id)).await.0, 409);
    assert_eq!(error(blue.cancel("batch_0")).await.0, 404);
}

#[tokio::test]
async fn what_cannot_be_a_batch_is_refused() {
    let blue = Blue::with(at_once());
    let input = blue.plant_input(input(1));
    let other = blue.sandbox.plant("blue", "x", Purpose::UserData, Bytes::new()).id;
    let post = |body: Value| {
        let mut whole = json!({"input_file_id": input, "endpoint": "/v1/embeddings",
            "completion_window": "24h"});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        blue.client.post(blue.url("/batches")).bearer_auth("sk-test").json(&whole)
    };
    for (body, expected) in [
        (json!({"input_file_id": "file-0"}), (404, json!("input_file_id"))),
        (json!({"input_file_id": other}), (400, json!("input_file_id"))),
        (json!({"endpoint": "/v1/files"}), (400, json!("endpoint"))),
        (json!({"completion_window": "1h"}), (400, json!("completion_window"))),
        (json!({"metadata": {"k": "x".repeat(513)}}), (400, json!("metadata"))),
        (json!({"metadata": {"k": 1}}), (400, Value::Null)),
        (json!({"color": "blue"}), (400, Value::Null)),
        (
            json!({"output_expires_after": {"anchor": "created_at", "seconds": 60}}),
            (400, json!("output_expires_after")),
        ),
    ] {
        let (status, error) = error(post(body.clone())).await;
        assert_eq!((status, error["param"].clone()), expected, "{body}");
    }
    assert!(blue.sandbox.batches("blue").is_empty());

    let life = json!({"anchor": "created_at", "seconds": 3600});
    let batch =
        json(post(json!({"endpoint": "/v1/chat/completions", "output_expires_after": life})));
    let id = batch.await["id"].as_str().unwrap().to_owned();
    let batch = blue.becomes(&id, "completed").await;
    let file = json(blue.get(&format!("/files/{}", batch.output_file_id.unwrap()))).await;
    assert_eq!(file["expires_at"], file["created_at"].as_u64().unwrap() + 3600);
}

#[tokio::test]
async fn the_list_is_paged_newest_first_and_lags() {
    let blue = Blue::with(held_at(BatchState::Validating));
    let mut created = Vec::new();
    for _ in 0..25 {
        created.push(blue.batch(input(1)).await);
    }
    created.reverse();
    let first = json(blue.get("/batches")).await;
    assert_eq!(first["data"].as_array().unwrap().len(), 20);
    assert_eq!(first["has_more"], true);
    let after = first["last_id"].as_str().unwrap();
    let second = json(blue.get(&format!("/batches?limit=100&after={after}"))).await;
    assert_eq!(second["has_more"], false);
    let pages = [first, second];
    let listed: Vec<_> =
        pages.iter().flat_map(|page| page["data"].as_array().unwrap()).map(|b| &b["id"]).collect();
    assert_eq!(listed, created.iter().collect::<Vec<_>>());

    for bad in ["limit=0", "limit=101", "limit=x", "after=batch_0"] {
        assert_eq!(error(blue.get(&format!("/batches?{bad}"))).await.0, 400, "{bad}");
    }

    blue.configure(Settings { list_lag_ms: 3_600_000, ..Settings::default() });
    let late = blue.batch(input(1)).await;
    assert_eq!(json(blue.get("/batches?limit=1")).await["first_id"], created[0]);
    assert_eq!(status(blue.get(&format!("/batches/{late}"))).await, 200);

    let planted = PlantedBatch::over("file-of-somebody");
    let planted = blue.sandbox.plant_batch("blue", planted);
    assert_eq!(json(blue.get("/batches?limit=1")).await["first_id"], planted.id);
}

#[tokio::test]
async fn too_many_batches_are_refused_without_a_wait_or_fail() {
    let full = BatchSettings { max_open_batches: Some(1), ..held_at(BatchState::Validating) };
    let blue = Blue::with(full.clone());
    let first = blue.batch(input(1)).await;
    let input_id = blue.plant_input(input(1));
    let refused = blue.create(&input_id, "/v1/chat/completions").send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(!refused.headers().contains_key("retry-after"));
    let body: Value = refused.json().await.unwrap();
    assert_eq!(body["error"]["code"], "batch_enqueued_limit_reached");

    let fail = BatchSettings { over_limit: OverLimit::Fail, hold_at: None, phase_ms: 0, ..full };
    blue.configure(Settings { batches: fail, ..Settings::default() });
    let id = blue.batch(input(1)).await;
    let errors = blue.becomes(&id, "failed").await.errors.unwrap();
    assert_eq!(errors.data[0].code, "token_limit_exceeded");

    blue.sandbox.end_batch("blue", &first, BatchEnd::Completed).unwrap();
    let id = blue.batch(input(1)).await;
    blue.becomes(&id, "completed").await;
}

#[tokio::test]
async fn the_output_is_odd_where_it_is_asked_to_be() {
    let content = async |oddities: &[Oddity]| {
        let blue = Blue::with(BatchSettings { oddities: oddities.to_vec(), ..at_once() });
        let id = blue.batch(input(3)).await;
        let batch = blue.becomes(&id, "completed").await;
        assert_eq!(batch.request_counts.completed, 3);
        blue.content(&batch.output_file_id).await
    };
    let crlf = content(&[Oddity::Crlf, Oddity::BlankLine]).await;
    assert_eq!((crlf.matches("\r\n").count(), crlf.matches('\n').count()), (4, 4));
    assert_eq!(crlf.lines().nth(1), Some(""));
    assert!(content(&[Oddity::NoFinalNewline]).await.ends_with('}'));
    let broken = content(&[Oddity::BrokenLine]).await;
    assert!(serde_json::from_str::<Value>(broken.lines().nth(1).unwrap()).is_err());
    let strange = content(&[Oddity::DuplicateCustomId, Oddity::UnknownCustomId]).await;
    let lines: Vec<Value> = strange.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(ids(&lines), ["t-2", "nobody-asked", "t-1", "t-0", "t-2"]);
}

#[tokio::test]
async fn answers_are_as_long_as_they_shall_be() {
    let settings = BatchSettings { answer_bytes: 5000, long_answer_bytes: 3 << 20, ..at_once() };
    let blue = Blue::with(settings);
    let id = blue.batch(input(2)).await;
    let batch = blue.becomes(&id, "completed").await;
    let sizes: Vec<_> = blue.content(&batch.output_file_id).await.lines().map(str::len).collect();
    assert!((5000..6000).contains(&sizes[0]), "{sizes:?}");
    assert!(((3 << 20) + 5000..(3 << 20) + 6000).contains(&sizes[1]), "{sizes:?}");
}

#[tokio::test]
async fn a_test_gives_the_bytes_of_a_file_before_or_after_the_end() {
    let blue = Blue::with(held_at(BatchState::InProgress));
    let id = blue.batch(input(2)).await;
    let give = |file, bytes| blue.sandbox.set_batch_output("blue", &id, file, bytes).unwrap();
    let large = Bytes::from(vec![b'x'; 20 << 20]);
    assert!(give(BatchFile::Output, large.clone()).output_file_id.is_none());
    blue.sandbox.release_batches("blue");
    let batch = blue.becomes(&id, "completed").await;
    assert_eq!(blue.content(&batch.output_file_id).await.len(), large.len());

    let replaced = give(BatchFile::Output, Bytes::from_static(b"{}\n"));
    assert_eq!(replaced.output_file_id, batch.output_file_id);
    assert_eq!(blue.content(&batch.output_file_id).await, "{}\n");
    let file = json(blue.get(&format!("/files/{}", batch.output_file_id.unwrap()))).await;
    assert_eq!(file["bytes"], 3);

    let added = give(BatchFile::Error, Bytes::from_static(b"[]"));
    assert_eq!(blue.content(&added.error_file_id).await, "[]");
}

#[tokio::test]
async fn output_files_are_listed_and_deleted_like_others() {
    let blue = Blue::with(at_once());
    let id = blue.batch(input(1)).await;
    let output = blue.becomes(&id, "completed").await.output_file_id.unwrap();
    let listed = json(blue.get("/files?purpose=batch_output")).await;
    assert_eq!(listed["data"][0]["id"], output);
    assert_eq!(status(blue.delete(&output)).await, 200);
    assert_eq!(status(blue.get(&format!("/files/{output}/content"))).await, 404);
    assert_eq!(blue.shown(&id).output_file_id, Some(output));
}

#[tokio::test]
async fn faults_meet_batches_as_they_meet_files() {
    let blue = Blue::with(held_at(BatchState::Validating));
    let input_id = blue.plant_input(input(1));
    blue.fault(Operation::CreateBatch, Fault::LostAnswer);
    blue.fault(Operation::CreateBatch, Fault::status(503, Value::Null));
    assert!(blue.create(&input_id, "/v1/chat/completions").send().await.is_err());
    assert_eq!(blue.sandbox.batches("blue").len(), 1, "the answer is lost, not the batch");
    assert_eq!(status(blue.create(&input_id, "/v1/chat/completions")).await, 503);
    assert_eq!(blue.sandbox.batches("blue").len(), 1);

    let id = blue.shown_ids().pop().unwrap();
    let path = format!("/batches/{id}");
    blue.fault(Operation::ListBatches, Fault::CutAnswer { after_bytes: 5 });
    assert!(blue.get("/batches").send().await.unwrap().text().await.is_err());
    let rule = FaultRule::new(Operation::GetBatch, Fault::DropBefore);
    let named = FaultRule { filename_contains: Some("in.jsonl".to_owned()), ..rule };
    blue.sandbox.add_fault("blue", named).unwrap();
    assert!(blue.get(&path).send().await.is_err());
    assert_eq!(status(blue.get(&path)).await, 200);

    blue.fault(Operation::CancelBatch, Fault::Hang { executed: true });
    let hanging = tokio::spawn(blue.cancel(&id).send());
    blue.held(1).await;
    blue.becomes(&id, "cancelled").await;
    hanging.abort();
}

impl Blue {
    fn shown_ids(&self) -> Vec<String> {
        self.sandbox.batches("blue").into_iter().map(|batch| batch.id).collect()
    }
}

#[tokio::test]
async fn batches_are_steered_over_http_as_in_process() {
    let blue = Blue::with(held_at(BatchState::Validating));
    let control = |path: &str| format!("{}/{path}", blue.sandbox.control_url("blue"));
    let client = &blue.client;
    let input_id = blue.plant_input(input(2));
    let planted =
        json(client.post(control("batches/plant")).json(&json!({"input_file_id": input_id}))).await;
    let id = planted["id"].as_str().unwrap();

    let shown = client.put(control(&format!("batches/{id}/status")));
    assert_eq!(json(shown.json(&json!({"status": "odd"}))).await["status"], "odd");
    let shown = client.put(control(&format!("batches/{id}/status")));
    assert_eq!(json(shown.json(&json!({"status": null}))).await["status"], "validating");
    let large = vec![b'x'; 20 << 20];
    json(client.put(control(&format!("batches/{id}/output"))).body(large)).await;
    let end = json!({"kind": "expired", "done_percent": 50});
    let ended = json(client.post(control(&format!("batches/{id}/end"))).json(&end)).await;
    assert_eq!(ended["status"], "expired");
    let ledger = json(client.get(control("ledger"))).await;
    assert_eq!(ledger["batches"], json!([ended]));
    assert_eq!(ledger["files"][1]["bytes"], 20 << 20);

    let second = blue.batch(input(1)).await;
    assert_eq!(status(client.post(control("batches/release"))).await, 204);
    blue.becomes(&second, "completed").await;

    assert_eq!(error(client.post(control("batches/x/end")).json(&end)).await.0, 404);
    let bad = json!({"kind": "done"});
    assert_eq!(error(client.post(control(&format!("batches/{id}/end"))).json(&bad)).await.0, 400);
    assert_eq!(error(client.get(control(&format!("batches/{id}/nothing")))).await.0, 404);
}

#[tokio::test]
async fn the_end_of_a_batch_is_told_until_it_is_taken() {
    let blue = Blue::start();
    // Another account plays the receiver: it answers as its faults say.
    let url = blue.sandbox.base_url("green").replace("/v1", "/v1/files");
    let fault = FaultRule::new(Operation::Upload, Fault::status(500, Value::Null));
    blue.sandbox.add_fault("green", fault).unwrap();
    let taken = FaultRule::new(Operation::Upload, Fault::status(204, Value::Null));
    blue.sandbox.add_fault("green", FaultRule { times: 2, ..taken }).unwrap();
    let webhook = Some(Webhook { url, secret: "whsec_a2V5".to_owned() });
    blue.configure(Settings { batches: at_once(), webhook, ..Settings::default() });

    let id = blue.batch(input(1)).await;
    eventually(|| blue.sandbox.stats("blue").events_taken == 1).await;
    assert_eq!(blue.sandbox.stats("blue").events_refused, 1);
    blue.sandbox.tell_again("blue", &id).unwrap();
    eventually(|| blue.sandbox.stats("blue").events_taken == 2).await;
    assert_eq!(blue.sandbox.stats("green").calls[&Operation::Upload], 3);
}
