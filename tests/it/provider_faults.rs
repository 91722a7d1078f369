//! What a provider can do to one upload.

use std::time::Duration;

use longshore::sandbox::Fault;
use longshore::sandbox::FaultRule;
use longshore::sandbox::Operation;
use longshore::sandbox::Settings;
use serde_json::Value;
use serde_json::json;

use crate::support::Env;
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
        Fault::DropBefore,
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_drips_is_read_to_its_end() {
    let env = Env::start().await;
    env.spoil("a", Fault::Drip { interval_ms: 3 });
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_shows_only_after_the_lag_is_removed() {
    let env = Env::start().await;
    // The list lags far beyond the 200 ms that are configured.
    env.sandbox.configure("a", Settings { list_lag_ms: 4000, ..Settings::default() });
    env.spoil("a", Fault::LostAnswer);
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    assert_eq!(env.sandbox.live_files("a").len(), 2);
    eventually(Duration::from_secs(30), async || {
        let url = format!("{}/files", env.sandbox.base_url("a"));
        let list = env.client.http.get(url).bearer_auth("any").send().await.unwrap();
        let list: Value = list.json().await.unwrap();
        (list["data"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    env.quiet().await;
    env.assert_one_copy(&file);
    assert_eq!(env.client.file(file["id"].as_str().unwrap()).await["status"], "processed");
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
    let env = Env::start().await;
    env.spoil("a", Fault::LostAnswer);
    let no_list = FaultRule::new(Operation::List, Fault::status(405, Value::Null));
    env.spoil_as("a", FaultRule { times: 0, ..no_list });
    let file = env.client.upload(&["a"]).await;
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(mapping(&file, "a")["status"], "failed");
    assert_eq!(mapping(&file, "a")["error"]["code"], "outcome_unknown", "{file}");
    assert_eq!(env.calls("a", Operation::Upload), 1);
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
