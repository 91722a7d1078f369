//! Each kind of fault, and what its client sees.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_scripted_status_is_answered_without_executing_the_call() {
    let blue = Blue::start();
    blue.fault(
        Operation::Upload,
        Fault::Status {
            status: 429,
            headers: BTreeMap::from([
                ("retry-after".to_owned(), "7".to_owned()),
                ("x-request-id".to_owned(), "req_scripted".to_owned()),
            ]),
            body: json!({"error": {"code": "slow_down"}}),
            drain: true,
        },
    );

    let response = blue.upload("a.jsonl", "batch", LINE).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(response.headers()["x-request-id"], "req_scripted");
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "slow_down");
    assert!(blue.sandbox.files("blue").is_empty());

    let call = blue.last_call();
    assert_eq!((call.status, call.fault.as_deref()), (Some(429), Some("status")));
    blue.uploaded("a.jsonl").await;
    assert_eq!(blue.last_call().fault, None);
}

#[tokio::test]
async fn a_status_without_draining_is_answered_before_the_body_is_sent() {
    let blue = Blue::start();
    let fault = Fault::Status {
        status: 413,
        headers: BTreeMap::new(),
        body: json!("too much"),
        drain: false,
    };
    blue.fault(Operation::Upload, fault);

    let head = "POST /blue/v1/files HTTP/1.1\r\nhost: sandbox\r\nauthorization: Bearer k\r\n\
                content-type: multipart/form-data; boundary=edge\r\ncontent-length: 1000\r\n\r\n";
    let answer = rest_of(blue.dial(head.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.ends_with("too much"), "{answer}");
}

#[tokio::test]
async fn after_the_effect_the_answer_says_it_failed() {
    let blue = Blue::start();
    let fault = || Fault::AfterEffect { status: 500, headers: BTreeMap::new(), body: Value::Null };
    blue.fault(Operation::Upload, fault());
    blue.fault(Operation::Delete, fault());

    let response = blue.upload("a.jsonl", "batch", LINE).send().await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(text(response).await, "");
    assert_eq!(blue.live_names(), ["a.jsonl"]);
    let call = blue.last_call();
    let id = call.file_id.unwrap();
    assert_eq!((call.status, call.bytes), (Some(500), Some(LINE.len() as u64)));

    assert_eq!(status(blue.delete(&id)).await, 500);
    assert_eq!(status(blue.delete(&id)).await, 404);
}

#[tokio::test]
async fn a_dropped_call_has_no_answer_and_no_effect_and_a_lost_answer_has_its_effect() {
    let blue = Blue::start();
    blue.fault(Operation::Upload, Fault::DropBefore);
    blue.fault(Operation::Upload, Fault::LostAnswer);

    assert!(blue.upload("dropped.jsonl", "batch", LINE).send().await.is_err());
    assert_eq!(blue.last_call().file_id, None);
    assert!(blue.upload("lost.jsonl", "batch", LINE).send().await.is_err());
    assert!(blue.last_call().file_id.is_some());

    assert_eq!(blue.live_names(), ["lost.jsonl"]);
    let seen: Vec<_> = blue
        .sandbox
        .calls("blue")
        .into_iter()
        .map(|call| (call.status, call.fault.unwrap()))
        .collect();
    assert_eq!(seen, [(None, "drop_before".to_owned()), (None, "lost_answer".to_owned())]);
    assert_eq!(blue.sandbox.stats("blue").in_flight, 0);
}

#[tokio::test]
async fn a_body_is_cut_after_so_many_bytes() {
    let blue = Blue::start();
    blue.fault(Operation::Upload, Fault::CutBody { after_bytes: 10 });
    let head = "POST /blue/v1/files HTTP/1.1\r\nhost: sandbox\r\nauthorization: Bearer k\r\n\
                content-type: multipart/form-data; boundary=edge\r\ncontent-length: 1000\r\n\r\n";

    let mut stream = blue.dial(head.as_bytes()).await;
    blue.reached(Operation::Upload, 1).await;
    stream.write_all(b"123456789").await.unwrap();
    // It waits for the tenth byte.
    eventually(|| blue.sandbox.stats("blue").first_byte_at_ms.is_some()).await;
    assert_eq!(blue.sandbox.stats("blue").in_flight, 1);
    stream.write_all(b"0").await.unwrap();
    assert_eq!(rest_of(stream).await, "");
    assert!(blue.sandbox.files("blue").is_empty());

    // A body that has no such byte is cut at its end.
    blue.fault(Operation::Upload, Fault::CutBody { after_bytes: 1 << 40 });
    assert!(blue.upload("a.jsonl", "batch", LINE).send().await.is_err());
    assert!(blue.sandbox.files("blue").is_empty());
}

#[tokio::test]
async fn an_answer_is_cut_after_so_many_bytes() {
    let blue = Blue::start();
    let id = blue.uploaded("a.jsonl").await;
    let request = format!(
        "GET /blue/v1/files/{id}/content HTTP/1.1\r\nhost: sandbox\r\nauthorization: Bearer k\r\n\r\n"
    );
    for (after_bytes, sent) in [(5, &LINE[..5]), (0, ""), (1000, &LINE[..LINE.len() - 1])] {
        blue.fault(Operation::Content, Fault::CutAnswer { after_bytes });
        let answer = rest_of(blue.dial(request.as_bytes()).await).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", LINE.len())), "{head}");
        assert_eq!(body, sent);
    }

    blue.fault(Operation::Content, Fault::ShortAnswer { bytes: 3 });
    let request = request.replace("host: ", "connection: close\r\nhost: ");
    let answer = rest_of(blue.dial(request.as_bytes()).await).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("content-length"), "{head}");
    assert_eq!(body, format!("3\r\n{}\r\n0\r\n\r\n", &LINE[..3]));

    blue.fault(Operation::Upload, Fault::CutAnswer { after_bytes: 20 });
    let response = blue.upload("b.jsonl", "batch", LINE).send().await.unwrap();
    assert!(response.bytes().await.is_err());
    assert_eq!(blue.live_names(), ["a.jsonl", "b.jsonl"]);
}

#[tokio::test]
async fn garbage_comes_with_status_200_whether_executed_or_not() {
    let blue = Blue::start();
    let garbage = |executed| Fault::Garbage {
        content_type: "text/html".to_owned(),
        body: "<html>".to_owned(),
        executed,
    };
    blue.fault(Operation::Upload, garbage(true));
    blue.fault(Operation::Upload, garbage(false));

    for name in ["done.jsonl", "not-done.jsonl"] {
        let response = blue.upload(name, "batch", LINE).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/html");
        assert_eq!(text(response).await, "<html>");
    }
    assert_eq!(blue.live_names(), ["done.jsonl"]);
}

#[tokio::test]
async fn a_hanging_call_is_answered_when_released_if_it_was_executed_and_else_closed() {
    let blue = Blue::start();
    blue.fault(Operation::Upload, Fault::Hang { executed: true });
    blue.fault(Operation::Upload, Fault::Hang { executed: false });

    let executed = tokio::spawn(blue.upload("done.jsonl", "batch", LINE).send());
    blue.held(1).await;
    let not_executed = tokio::spawn(blue.upload("not-done.jsonl", "batch", LINE).send());
    blue.held(2).await;
    assert_eq!(blue.live_names(), ["done.jsonl"]);
    assert!(!executed.is_finished() && !not_executed.is_finished());

    blue.sandbox.release("blue");
    assert_eq!(executed.await.unwrap().unwrap().status(), 200);
    assert!(not_executed.await.unwrap().is_err());
    assert_eq!(blue.sandbox.stats("blue").held, 0);
}

#[tokio::test]
async fn a_hanging_call_ends_when_its_client_hangs_up() {
    for executed in [true, false] {
        let blue = Blue::start();
        blue.fault(Operation::Upload, Fault::Hang { executed });
        let impatient = tokio::spawn(blue.upload("a.jsonl", "batch", LINE).send());
        blue.held(1).await;
        assert_eq!(blue.sandbox.stats("blue").in_flight, 1);

        impatient.abort();
        blue.held(0).await;
        eventually(|| blue.sandbox.stats("blue").in_flight == 0).await;
        assert_eq!(blue.live_names().len(), usize::from(executed));
        assert_eq!(blue.last_call().status, None);
    }
}

#[tokio::test]
async fn a_held_call_goes_on_when_released_as_if_nothing_had_happened() {
    for (hold_before, stored_meanwhile) in [(true, 0), (false, 1)] {
        let blue = Blue::start();
        blue.fault(Operation::Upload, Fault::Hold { hold_before });
        let call = tokio::spawn(blue.upload("a.jsonl", "batch", LINE).send());
        blue.held(1).await;
        assert_eq!(blue.live_names().len(), stored_meanwhile);
        assert!(!call.is_finished());

        blue.sandbox.release("blue");
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
        assert_eq!(blue.live_names(), ["a.jsonl"]);
    }
}

#[tokio::test]
async fn a_release_right_after_the_arrival_is_not_missed() {
    let blue = Blue::start();
    for round in 1..=100 {
        blue.fault(Operation::Get, Fault::Hold { hold_before: false });
        let call = tokio::spawn(blue.get("/files/file-gone").send());
        blue.reached(Operation::Get, round).await;
        blue.sandbox.release("blue");
        assert_eq!(within(call).await.unwrap().unwrap().status(), 404);
    }

    // But one before the arrival does not count.
    blue.fault(Operation::Get, Fault::Hold { hold_before: false });
    blue.sandbox.release("blue");
    let call = tokio::spawn(blue.get("/files/file-gone").send());
    blue.held(1).await;
    blue.sandbox.release("blue");
    assert_eq!(within(call).await.unwrap().unwrap().status(), 404);
}

#[tokio::test]
async fn a_dripping_answer_arrives_whole_but_slowly() {
    let blue = Blue::start();
    let id = blue.uploaded("a.jsonl").await;
    blue.fault(Operation::Content, Fault::Drip { interval_ms: 3 });
    let before = Instant::now();
    let response = blue.get(&format!("/files/{id}/content")).send().await.unwrap();
    assert_eq!(text(response).await, LINE);
    assert!(before.elapsed() >= Duration::from_millis(3 * LINE.len() as u64));
}

#[tokio::test]
async fn a_fault_for_a_name_meets_only_the_files_so_named() {
    let blue = Blue::start();
    let good = blue.uploaded("good.jsonl").await;
    let bad = blue.uploaded("bad.jsonl").await;
    for (on, fault) in [
        (Operation::Upload, Fault::status(500, Value::Null)),
        (Operation::Upload, Fault::DropBefore),
        (Operation::Upload, Fault::CutBody { after_bytes: 1 << 20 }),
        (Operation::Get, Fault::status(500, Value::Null)),
        (Operation::Content, Fault::status(500, Value::Null)),
        (Operation::Delete, Fault::status(500, Value::Null)),
    ] {
        let rule = FaultRule::new(on, fault);
        let named = FaultRule { filename_contains: Some("bad".to_owned()), ..rule };
        blue.sandbox.add_fault("blue", named).unwrap();
    }

    for (id, expected) in [(good, 200), (bad, 500)] {
        assert_eq!(status(blue.get(&format!("/files/{id}"))).await, expected);
        assert_eq!(status(blue.get(&format!("/files/{id}/content"))).await, expected);
        assert_eq!(status(blue.delete(&id)).await, expected);
    }
    assert_eq!(status(blue.upload("other.jsonl", "batch", LINE)).await, 200);
    assert_eq!(status(blue.upload("a-bad.jsonl", "batch", LINE)).await, 500);
    assert_eq!(blue.last_call().filename.as_deref(), Some("a-bad.jsonl"));
    assert!(blue.upload("a-bad.jsonl", "batch", LINE).send().await.is_err());
    assert!(blue.upload("a-bad.jsonl", "batch", LINE).send().await.is_err());
    assert_eq!(status(blue.upload("a-bad.jsonl", "batch", LINE)).await, 200);

    // A form that is refused before its file part is met by none, and refused as ever.
    let rule = FaultRule::new(Operation::Upload, Fault::DropBefore);
    let named = FaultRule { filename_contains: Some("bad".to_owned()), ..rule };
    blue.sandbox.add_fault("blue", named).unwrap();
    let form = Form::new().text("color", "blue").text("purpose", "batch");
    assert_eq!(status(blue.post(form)).await, 400);
}

#[tokio::test]
async fn latency_comes_between_the_effect_and_the_answer() {
    let blue = Blue::start();
    blue.configure(Settings { latency_ms: 50, ..Settings::default() });
    let before = Instant::now();
    assert_eq!(status(blue.get("/files")).await, 200);
    assert!(before.elapsed() >= Duration::from_millis(50));

    blue.configure(Settings { latency_ms: 3_600_000, ..Settings::default() });
    let slow = tokio::spawn(blue.upload("a.jsonl", "batch", LINE).send());
    eventually(|| blue.live_names() == ["a.jsonl"]).await;
    assert!(!slow.is_finished());
    slow.abort();
}
