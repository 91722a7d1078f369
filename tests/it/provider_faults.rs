//! What a provider can do to one upload.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use serde_json::Value;
use serde_json::json;

use crate::support::Env;
use crate::support::Kind;
use crate::support::Options;
use crate::support::Part;
use crate::support::eventually;
use crate::support::mapping;
use crate::support::status;

const MODELS: &[&str] = &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

/// An installation with as many models as there are faults, and one file that meets one at each.
async fn meet(faults: Vec<Fault>, provider: &str) -> (Env, Value) {
    let env = Env::with(Options {
        models: &MODELS[..faults.len()],
        provider: format!("timeout = \"1s\"\n{provider}"),
        ..Options::default()
    })
    .await;
    for (account, fault) in MODELS.iter().zip(faults) {
        env.spoil(account, fault);
    }
    let file = env.client.upload(env.options.models).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    (env, file)
}

fn garbage(content_type: &str, body: &str, executed: bool) -> Fault {
    Fault::Garbage { content_type: content_type.to_owned(), body: body.to_owned(), executed }
}

fn after_effect(status: u16) -> Fault {
    Fault::AfterEffect { status, headers: Default::default(), body: Value::Null }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_whose_answer_is_lost_or_useless_is_adopted_and_not_repeated() {
    let faults = vec![
        Fault::LostAnswer,
        Fault::CutAnswer { after_bytes: 20 },
        after_effect(500),
        after_effect(502),
        after_effect(504),
        garbage("text/html", "<html>Welcome</html>", true),
        garbage("application/json", "", true),
        garbage("application/json", r#"{"object": "list", "data": []}"#, true),
        Fault::Hang { executed: true },
        after_effect(408),
    ];
    let (env, file) = meet(faults, "").await;
    assert_eq!(file["status"], "processed", "{file}");
    for model in env.options.models {
        assert_eq!(env.sandbox.stats(model).files_created, 1, "{model}");
        assert_eq!(env.calls(model, Operation::Upload), 1, "{model}");
    }
    env.quiet().await;
    env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_may_have_taken_effect_is_repeated_once_the_list_was_asked_twice() {
    let faults = vec![
        Fault::status(500, json!({"error": {"message": "oh"}})),
        Fault::status(502, json!("<html>Bad gateway</html>")),
        Fault::status(504, Value::Null),
        garbage("text/html", "<html>Sign in</html>", false),
        garbage("application/json", "", false),
        garbage("application/json", r#"{"id": 7}"#, false),
        Fault::Hang { executed: false },
        Fault::CutBody { after_bytes: 100_000 },
    ];
    let (env, file) = meet(faults, "").await;
    assert_eq!(file["status"], "processed", "{file}");
    for model in env.options.models {
        assert_eq!(env.calls(model, Operation::Upload), 2, "{model}");
        let operations = env.sandbox.calls(model);
        let order: Vec<_> = operations.iter().map(|call| call.operation).collect();
        let looks = order.iter().filter(|operation| **operation == Operation::List).count();
        assert!(looks >= 2, "{model}: {order:?}");
        assert_eq!(order.last(), Some(&Operation::Upload), "{model}: {order:?}");
    }
    env.quiet().await;
    env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_was_refused_for_now_is_repeated_without_a_look() {
    let faults = vec![
        status(503, &[("retry-after", "1")], Value::Null),
        Fault::status(529, json!({"error": {"type": "overloaded_error"}})),
        Fault::status(409, Value::Null),
        Fault::status(425, Value::Null),
    ];
    let (env, file) = meet(faults, "").await;
    assert_eq!(file["status"], "processed", "{file}");
    for model in env.options.models {
        assert_eq!(env.calls(model, Operation::List), 0, "{model}");
        assert_eq!(mapping(&file, model)["attempts"], 2, "{model}");
    }
    env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_in_the_middle_of_a_body_is_a_plain_retry() {
    let env = Env::start().await;
    env.spoil("a", Fault::CutBody { after_bytes: 200_000 });
    let content = vec![b'x'; 7 << 20];
    let part = Part { filename: "big.txt", purpose: "user_data", models: &["a"], content };
    let (code, file) = env.client.try_upload(part).await;
    assert_eq!(code, 200, "{file}");
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    assert_eq!(env.calls("a", Operation::List), 0);
    assert_eq!(env.calls("a", Operation::Upload), 2);
    assert_eq!(env.sandbox.live_files("a")[0].bytes, 7 << 20);
    env.assert_one_copy(&file);
}

/// Models with an account each, as many as places to cut at.
fn models(count: usize) -> &'static [&'static str] {
    let names = (0..count).map(|number| &*format!("m{number}").leak());
    names.collect::<Vec<_>>().leak()
}

/// One file to many models, at each of which the connection is cut at another place.
async fn cut(places: Vec<Fault>) -> (Env, Value) {
    let models = models(places.len());
    let env = Env::with(Options { models, ..Options::default() }).await;
    for (account, fault) in models.iter().zip(places) {
        env.spoil(account, fault);
    }
    let file = env.client.upload(models).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    env.quiet().await;
    env.assert_one_copy(&file);
    (env, file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_at_any_byte_of_the_answer_is_one_copy() {
    let places = (0..24).map(|place| Fault::CutAnswer { after_bytes: place * 15 });
    let (env, _) = cut(places.collect()).await;
    for model in env.options.models {
        assert_eq!(env.calls(model, Operation::Upload), 1, "{model}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_at_any_byte_of_the_body_is_one_copy() {
    // Behind the head, too: it may be that all was sent by then, or not.
    let places = (0..24).map(|place| Fault::CutBody { after_bytes: place * 25 });
    let (env, _) = cut(places.chain([Fault::DropBefore]).collect()).await;
    for model in env.options.models {
        assert_eq!(env.sandbox.stats(model).files_created, 1, "{model}");
    }
}

/// A success that is packed, as no driver asked for: it is not unpacked, however small it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_compressed_is_useless_and_the_copy_adopted() {
    let headers = [("content-encoding", "gzip"), ("content-type", "application/json")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let packed = Fault::AfterEffect { status: 200, headers, body: json!("\u{1f}packed") };
    let (env, _) = cut(vec![packed]).await;
    assert_eq!(env.calls("m0", Operation::Upload), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_drips_for_longer_than_silence_may_last_is_read_to_its_end() {
    let provider = "timeout = \"1s\"\n".to_owned();
    let env = Env::with(Options { provider, ..Options::default() }).await;
    env.spoil("a", Fault::Drip { interval_ms: 20 });
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(mapping(&file, "a")["attempts"], 1, "{file}");
    env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permanent_refusal_fails_one_model_and_can_be_retried() {
    let env = Env::start().await;
    let body = json!({"error": {"message": "the file smells", "type": "invalid_request_error"}});
    env.spoil("b", Fault::status(400, body));
    let file = env.client.upload(&["a", "b", "c"]).await;
    let id = file["id"].as_str().unwrap();
    let file = env.client.settled(id).await;
    assert_eq!(file["status"], "error", "{file}");
    let details = file["status_details"].as_str().unwrap();
    assert!(details.contains('b') && details.contains("the file smells"), "{details}");
    let failed = mapping(&file, "b");
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["error"]["code"], "provider_rejected");
    assert_eq!(failed["error"]["http_status"], 400);
    assert_eq!(failed["error"]["retryable"], false);
    assert!(failed["error"]["message"].as_str().unwrap().contains("the file smells"));
    assert_eq!(env.job(failed).await["status"], "failed");
    for model in ["a", "c"] {
        assert_eq!(mapping(&file, model)["status"], "ready");
    }

    let (code, file) = env.client.post(&format!("/v1/files/{id}/retry"), json!({})).await;
    assert_eq!((code, &file["status"]), (200, &json!("uploaded")), "{file}");
    let file = env.client.settled(id).await;
    assert_eq!((&file["status"], &file["status_details"]), (&json!("processed"), &Value::Null));
    env.assert_one_copy(&file);
    assert_eq!(env.calls("a", Operation::Upload), 1);
}

/// Waits until the provider's list shows two copies.
async fn both_show(env: &Env) {
    eventually(Duration::from_secs(30), async || {
        let url = format!("{}/files", env.sandbox.base_url("a"));
        let list = env.client.http.get(url).bearer_auth("any").send().await.unwrap();
        let list: Value = list.json().await.unwrap();
        (list["data"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_shows_only_after_the_lag_is_removed() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        // The list lags far beyond the 200 ms that are configured.
        env.sandbox.configure("a", Settings { list_lag_ms: 4000, ..Settings::default() });
        env.spoil("a", Fault::LostAnswer);
        let file = env.client.upload(&["a"]).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        assert_eq!(env.sandbox.live_files("a").len(), 2);
        both_show(&env).await;
        env.quiet().await;
        env.assert_one_copy(&file);
        assert_eq!(env.client.file(file["id"].as_str().unwrap()).await["status"], "processed");
    }
}

/// A provider that denies what it just made: by its list, by the file's own path, and when it is deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_404_right_after_a_create_changes_nothing() {
    let env = Env::start().await;
    for operation in [Operation::Get, Operation::Content] {
        let gone = FaultRule::new(operation, Fault::status(404, Value::Null));
        env.spoil_as("a", FaultRule { times: 0, ..gone });
    }
    env.sandbox.configure("b", Settings { list_lag_ms: 3000, ..Settings::default() });
    let file = env.client.upload(&["a", "b"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    env.quiet().await;
    assert_eq!(env.client.file(file["id"].as_str().unwrap()).await, file);
    env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_copy_that_is_gone_when_it_is_deleted_counts_as_deleted() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        env.spoil("a", Fault::LostAnswer);
        env.sandbox.configure("a", Settings { list_lag_ms: 1500, ..Settings::default() });
        let gone = status(404, &[], json!({"error": {"message": "No such File object"}}));
        env.spoil_as("a", FaultRule::new(Operation::Delete, gone));
        let file = env.client.upload(&["a"]).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        assert_eq!(env.sandbox.live_files("a").len(), 2);
        both_show(&env).await;
        env.quiet().await;
        assert!(env.calls("a", Operation::Delete) >= 1);
        let strays = "SELECT count(*) FROM strays WHERE deleted_at IS NULL";
        assert_eq!(env.database.count(strays).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_copy_that_its_provider_will_not_delete_is_a_dead_letter_that_can_be_retried() {
    for code in [405, 501] {
        let env = Env::start().await;
        env.spoil("a", Fault::LostAnswer);
        env.sandbox.configure("a", Settings { list_lag_ms: 1500, ..Settings::default() });
        let refused = FaultRule::new(Operation::Delete, Fault::status(code, Value::Null));
        env.spoil_as("a", FaultRule { times: 0, ..refused });
        let file = env.client.upload(&["a"]).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(file["status"], "processed", "{file}");
        both_show(&env).await;
        env.quiet().await;
        let (_, jobs) = env.client.get("/v1/jobs?kind=verify_upload&status=failed").await;
        let job = &jobs["data"][0];
        assert_eq!(job["error"]["code"], "provider_unsupported", "{jobs}");
        assert_eq!(env.client.file(file["id"].as_str().unwrap()).await, file);

        env.sandbox.clear_faults("a");
        let path = format!("/v1/jobs/{}/retry", job["id"].as_str().unwrap());
        assert_eq!(env.client.post(&path, json!({})).await.0, 200);
        env.quiet().await;
        env.assert_one_copy(&file);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_fails_settles_nothing() {
    let env = Env::start().await;
    for (account, fault) in [
        ("a", Fault::status(500, Value::Null)),
        ("b", garbage("text/html", "<html></html>", true)),
        ("c", Fault::CutAnswer { after_bytes: 5 }),
    ] {
        env.spoil(account, Fault::LostAnswer);
        env.spoil_as(account, FaultRule { times: 2, ..FaultRule::new(Operation::List, fault) });
    }
    let file = env.client.upload(&["a", "b", "c"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    for model in env.options.models {
        assert_eq!(env.sandbox.stats(model).files_created, 1, "{model}");
    }
    env.assert_one_copy(&file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_left_to_a_person_where_a_provider_cannot_list() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let env = Env::with(Options::on(kind)).await;
        env.spoil("a", Fault::LostAnswer);
        let no_list = FaultRule::new(Operation::List, Fault::status(405, Value::Null));
        env.spoil_as("a", FaultRule { times: 0, ..no_list });
        let file = env.client.upload(&["a"]).await;
        let file = env.client.settled(file["id"].as_str().unwrap()).await;
        assert_eq!(mapping(&file, "a")["status"], "failed");
        assert_eq!(mapping(&file, "a")["error"]["code"], "outcome_unknown", "{file}");
        assert_eq!(env.calls("a", Operation::Upload), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_left_to_a_person_where_names_are_not_marked() {
    let (env, file) =
        meet(vec![Fault::LostAnswer, Fault::Hang { executed: false }], "mark_filenames = false\n")
            .await;
    assert_eq!(file["status"], "error", "{file}");
    for model in env.options.models {
        assert_eq!(mapping(&file, model)["error"]["code"], "outcome_unknown", "{file}");
        assert_eq!(env.calls(model, Operation::Upload), 1, "{model}");
    }
    assert_eq!(env.sandbox.live_files("a")[0].filename, "notes.txt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_stands_still_holds_up_no_other() {
    let env =
        Env::with(Options { provider: "max_concurrency = 2\n".to_owned(), ..Options::default() })
            .await;
    let hold = FaultRule::new(Operation::Upload, Fault::Hold { hold_before: true });
    env.spoil_as("a", FaultRule { times: 0, ..hold });
    let mut ids = Vec::new();
    for _ in 0..15 {
        ids.push(env.client.upload(&["a", "b"]).await["id"].as_str().unwrap().to_owned());
    }
    eventually(Duration::from_secs(20), async || {
        (env.sandbox.live_files("b").len() == ids.len()).then_some(())
    })
    .await;
    assert_eq!(env.sandbox.stats("a").max_in_flight, 2);
    assert_eq!(env.sandbox.live_files("a").len(), 0);
    env.sandbox.clear_faults("a");
    env.sandbox.release("a");
    for id in &ids {
        assert_eq!(env.client.settled(id).await["status"], "processed");
    }
    assert_eq!(env.sandbox.stats("a").max_in_flight, 2);
}
