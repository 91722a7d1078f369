//! An upload, from the request to the last provider's answer.

use serde_json::json;

use crate::support::Env;
use crate::support::Part;

/// Requests in the batch format, as many as asked for.
fn requests(count: usize) -> Vec<u8> {
    let line = |number| {
        json!({"custom_id": format!("r-{number}"), "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "whatever", "messages": []}})
        .to_string()
    };
    (0..count).map(|number| line(number) + "\n").collect::<String>().into_bytes()
}

#[tokio::test]
async fn a_file_goes_to_every_model_it_names() {
    let env = Env::start().await;
    let file = env.client.upload(&["a", "b", "c"]).await;
    assert_eq!(file["status"], "uploaded");
    let file = env.client.settled(file["id"].as_str().unwrap()).await;
    assert_eq!(file["status"], "processed", "{file}");
    for (mapping, account) in file["mappings"].as_array().unwrap().iter().zip(["a", "b", "c"]) {
        let held = env.sandbox.live_files(account);
        assert_eq!(held.len(), 1);
        assert_eq!(mapping["provider_file_id"], held[0].id.as_str());
        assert_eq!(mapping["attempts"], 1);
    }
}

#[tokio::test]
async fn each_model_gets_a_batch_file_with_its_own_name_and_the_rest_untouched() {
    let env = Env::start().await;
    let content = requests(100);
    let part = Part {
        filename: "in.jsonl",
        purpose: "batch",
        models: &["a", "b"],
        content: content.clone(),
    };
    let (status, file) = env.client.try_upload(part).await;
    assert_eq!(status, 200, "{file}");
    env.client.settled(file["id"].as_str().unwrap()).await;
    for account in ["a", "b"] {
        let expected = String::from_utf8(content.clone())
            .unwrap()
            .replace("whatever", &format!("{account}-2026"));
        let held = env.sandbox.live_files(account);
        assert_eq!(held[0].bytes, expected.len() as u64);
        let url = format!("{}/files/{}/content", env.sandbox.base_url(account), held[0].id);
        let sent =
            env.client.http.get(url).bearer_auth("any").send().await.unwrap().text().await.unwrap();
        assert_eq!(sent, expected);
        let length = env.sandbox.calls(account)[0].content_length;
        assert!(
            length.is_some_and(|length| length > expected.len() as u64),
            "no exact length was announced"
        );
    }
}
