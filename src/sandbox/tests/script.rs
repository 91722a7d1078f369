//! Scripting over HTTP, the ledger, and the life of the server.

use serde_json::json;

use super::*;

impl Blue {
    fn control(&self, path: &str) -> String {
        format!("{}/{path}", self.sandbox.control_url("blue"))
    }
}

#[tokio::test]
async fn an_account_is_scripted_over_http_as_in_process() {
    let blue = Blue::start();
    let client = &blue.client;
    let settings = json(
        client.put(blue.control("settings")).json(&json!({"latency_ms": 1, "expected_key": "k"})),
    )
    .await;
    let expected =
        Settings { latency_ms: 1, expected_key: Some("k".to_owned()), ..Settings::default() };
    assert_eq!(serde_json::from_value::<Settings>(settings).unwrap(), expected);
    assert_eq!(blue.sandbox.settings("blue"), expected);
    blue.configure(Settings::default());

    let rule = json!({
        "on": "list", "times": 0,
        "fault": {"kind": "status", "status": 503, "body": {"error": {}}},
    });
    assert_eq!(status(client.post(blue.control("faults")).json(&rule)).await, 204);
    assert_eq!(status(blue.get("/files")).await, 503);
    assert_eq!(status(blue.get("/files")).await, 503);
    assert_eq!(status(client.delete(blue.control("faults"))).await, 204);
    assert_eq!(status(blue.get("/files")).await, 200);

    let hold = json!({"on": "list", "fault": {"kind": "hold", "hold_before": true}});
    assert_eq!(status(client.post(blue.control("faults")).json(&hold)).await, 204);
    let held = tokio::spawn(blue.get("/files").send());
    blue.held(1).await;
    assert_eq!(status(client.post(blue.control("release"))).await, 204);
    assert_eq!(held.await.unwrap().unwrap().status(), 200);

    let plant = json!({"filename": "x.jsonl", "purpose": "batch_output", "bytes": LINE});
    let planted = json(client.post(blue.control("files/plant")).json(&plant)).await;
    let listed = json(blue.get("/files")).await;
    assert_eq!(listed["data"][0]["id"], planted["id"]);
    assert_eq!(listed["data"][0]["bytes"], LINE.len());
    let path = format!("/files/{}/content", planted["id"].as_str().unwrap());
    assert_eq!(text(blue.get(&path).send().await.unwrap()).await, LINE);
}

#[tokio::test]
async fn a_script_that_makes_no_sense_is_refused_and_changes_nothing() {
    let blue = Blue::start();
    let client = &blue.client;
    let fault = json!({"on": "get", "fault": {"kind": "status", "status": 99}});
    for request in [
        client.put(blue.control("settings")).json(&json!({"latency": 1})),
        client.post(blue.control("faults")).json(&fault),
        client.post(blue.control("faults")).body("{"),
        client.post(blue.control("files/plant")).json(&json!({"filename": "x"})),
        client.put(blue.control("settings")).body(vec![b' '; (16 << 20) + 1]),
    ] {
        assert_eq!(error(request).await.0, 400);
    }
    assert_eq!(error(client.get(blue.control("nothing"))).await.0, 404);
    assert_eq!(blue.sandbox.settings("blue"), Settings::default());
    assert_eq!(blue.sandbox.stats("blue").faults_queued, 0);
}

#[tokio::test]
async fn the_ledger_lists_the_calls_in_order_and_counts_them() {
    let blue = Blue::start();
    let before = blue.sandbox.stats("blue");
    assert!(before.calls.is_empty() && before.first_byte_at_ms.is_none());

    let id = blue.uploaded("a.jsonl").await;
    status(blue.get("/files")).await;
    status(blue.delete(&id)).await;
    status(blue.delete(&id)).await;
    // Scripting is not a call of the provider.
    let ledger = json(blue.client.get(blue.control("ledger"))).await;
    let stats = json(blue.client.get(blue.control("stats"))).await;

    let calls: Vec<Call> = serde_json::from_value(ledger["calls"].clone()).unwrap();
    assert_eq!(calls, blue.sandbox.calls("blue"));
    let seen: Vec<_> = calls
        .iter()
        .map(|call| (call.seq, call.operation, call.file_id.as_deref(), call.status.unwrap()))
        .collect();
    let id = id.as_str();
    assert_eq!(
        seen,
        [
            (1, Operation::Upload, Some(id), 200),
            (2, Operation::List, None, 200),
            (3, Operation::Delete, Some(id), 200),
            (4, Operation::Delete, Some(id), 404),
        ]
    );
    assert_eq!(calls[0].filename.as_deref(), Some("a.jsonl"));
    assert_eq!(calls[0].bytes, Some(LINE.len() as u64));
    assert!(calls.is_sorted_by_key(|call| call.at_ms));
    assert!(calls[0].first_byte_at_us.unwrap() >= calls[0].at_ms * 1000);
    assert!(calls[1].first_byte_at_us.is_none(), "only uploads have a body");

    let files: Vec<StoredFile> = serde_json::from_value(ledger["files"].clone()).unwrap();
    assert_eq!(files, blue.sandbox.files("blue"));
    assert!(files[0].deleted);

    let stats: Stats = serde_json::from_value(stats).unwrap();
    assert_eq!(stats, blue.sandbox.stats("blue"));
    assert_eq!(stats.calls[&Operation::Delete], 2);
    assert_eq!((stats.files_created, stats.files_deleted, stats.files_live), (1, 1, 0));
    assert_eq!((stats.bytes_created, stats.max_in_flight), (LINE.len() as u64, 1));
    assert!(stats.first_byte_at_ms.is_some());
}

#[tokio::test]
async fn the_most_uploads_at_a_time_are_remembered() {
    let blue = Blue::start();
    let rule = FaultRule::new(Operation::Upload, Fault::Hold { hold_before: true });
    blue.sandbox.add_fault("blue", FaultRule { times: 3, ..rule }).unwrap();
    let uploads: Vec<_> = ["1.jsonl", "2.jsonl", "3.jsonl"]
        .map(|name| tokio::spawn(blue.upload(name, "batch", LINE).send()))
        .into();
    blue.reached(Operation::Upload, 3).await;
    blue.sandbox.release("blue");
    for upload in uploads {
        assert_eq!(within(upload).await.unwrap().unwrap().status(), 200);
    }
    let stats = blue.sandbox.stats("blue");
    assert_eq!((stats.in_flight, stats.max_in_flight), (0, 3));
}

#[tokio::test]
async fn a_shutdown_closes_the_port_and_the_calls_it_held() {
    let blue = Blue::start();
    blue.fault(Operation::List, Fault::Hang { executed: true });
    let hanging = tokio::spawn(blue.get("/files").send());
    blue.held(1).await;

    within(blue.sandbox.shutdown()).await;
    assert!(within(hanging).await.unwrap().is_err());
    assert!(TcpStream::connect(blue.sandbox.local_addr()).await.is_err());
    assert_eq!(blue.sandbox.stats("blue").held, 0);
}

#[tokio::test]
async fn the_sandbox_stops_with_its_last_handle() {
    let blue = Blue::start();
    let address = blue.sandbox.local_addr();
    let other = blue.sandbox.clone();
    drop(blue);
    drop(TcpStream::connect(address).await.unwrap());
    drop(other);
    within(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

#[test]
fn binding_outside_of_a_runtime_is_an_error() {
    assert!(Sandbox::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).is_err());
}

#[tokio::test]
async fn a_sandbox_that_listens_everywhere_is_reached_on_this_machine() {
    let sandbox = Sandbox::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
    let port = sandbox.local_addr().port();
    assert_eq!(sandbox.base_url("blue"), format!("http://127.0.0.1:{port}/blue/v1"));
}
