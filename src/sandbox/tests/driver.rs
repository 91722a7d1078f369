//! OpenAI's driver against the sandbox: what one writes, the other reads.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::TryStreamExt;
use secrecy::SecretString;

use super::*;
use crate::providers::ErrorKind;
use crate::providers::NewBatch;
use crate::providers::Provider;
use crate::providers::ProviderBatchId;
use crate::providers::ProviderFileId;
use crate::providers::RemoteBatchState;
use crate::providers::RemoteCounts;
use crate::providers::SentWhole;
use crate::providers::Upload;
use crate::providers::openai;
use crate::providers::openai::OpenAi;

const INPUT: &str = r#"{"custom_id":"t-1","method":"POST","url":"/v1/responses","body":{"model":"m"}}
{"custom_id":"t-2","method":"POST","url":"/v1/responses","body":{"model":"m"}}
"#;

impl Blue {
    fn driver(&self) -> OpenAi {
        OpenAi::new(openai::Settings {
            name: "blue".to_owned(),
            base_url: self.sandbox.base_url("blue"),
            api_key: SecretString::from("sk-test"),
            timeout: Duration::from_secs(5),
        })
        .unwrap()
    }
}

async fn upload(driver: &OpenAi) -> ProviderFileId {
    let upload = Upload {
        filename: "in.jsonl".to_owned(),
        content_type: "application/jsonl".to_owned(),
        purpose: "batch".to_owned(),
        bytes: INPUT.len() as u64,
        expires_after: None,
        body: futures_util::stream::iter([Ok(Bytes::from_static(INPUT.as_bytes()))]).boxed(),
        sent: SentWhole::default(),
    };
    driver.upload_file(upload).await.unwrap().id
}

fn over(input: &ProviderFileId) -> NewBatch {
    NewBatch {
        input_file_id: input.clone(),
        endpoint: "/v1/responses".to_owned(),
        completion_window: "24h".to_owned(),
        marker: "marker".to_owned(),
        output_expires_after: Some(Duration::from_hours(1)),
        sent: SentWhole::default(),
    }
}

#[tokio::test]
async fn a_batch_is_created_watched_found_and_read() {
    let blue = Blue::start();
    let batches = BatchSettings {
        hold_at: Some(BatchState::InProgress),
        failing: BTreeMap::from([("t-2".to_owned(), 400)]),
        phase_ms: 0,
        ..BatchSettings::default()
    };
    blue.configure(Settings { batches, ..Settings::default() });
    let driver = blue.driver();
    let created = driver.create_batch(over(&upload(&driver).await)).await.unwrap();
    assert_eq!(created.marker.as_deref(), Some("marker"));
    assert_eq!(driver.list_batches(None).await.unwrap().batches.len(), 1);

    eventually(|| blue.sandbox.batches("blue")[0].status == "in_progress").await;
    assert_eq!(driver.batch(&created.id).await.unwrap().state, RemoteBatchState::InProgress);
    blue.sandbox.release_batches("blue");
    eventually(|| blue.sandbox.batches("blue")[0].status == "completed").await;
    let batch = driver.batch(&created.id).await.unwrap();
    assert_eq!(batch.counts, Some(RemoteCounts { total: 2, completed: 1, failed: 1 }));
    for (file, custom_id) in [(batch.output_file_id, "t-1"), (batch.error_file_id, "t-2")] {
        let content = driver.file_content(&file.unwrap(), None).await.unwrap();
        let chunks: Vec<Bytes> = content.body.try_collect().await.unwrap();
        let line: Value = serde_json::from_slice(&chunks.concat()).unwrap();
        assert_eq!(line["custom_id"], custom_id);
    }
    // It has ended: that is what it ended as.
    let cancelled = driver.cancel_batch(&created.id).await.unwrap();
    assert_eq!(cancelled.state, RemoteBatchState::Completed);
}

#[tokio::test]
async fn what_goes_wrong_is_told_by_its_kind() {
    let blue = Blue::start();
    let held = BatchSettings {
        hold_at: Some(BatchState::Validating),
        max_open_batches: Some(1),
        ..BatchSettings::default()
    };
    blue.configure(Settings { batches: held, ..Settings::default() });
    let driver = blue.driver();
    let input = upload(&driver).await;
    blue.fault(Operation::CreateBatch, Fault::LostAnswer);
    let lost = driver.create_batch(over(&input)).await.unwrap_err();
    assert!(lost.outcome_unknown, "{lost}");
    let found = driver.list_batches(None).await.unwrap().batches;
    assert_eq!((found.len(), found[0].marker.as_deref()), (1, Some("marker")));

    let full = driver.create_batch(over(&input)).await.unwrap_err();
    assert_eq!((full.kind, full.outcome_unknown), (ErrorKind::Capacity, false));
    let unknown = driver.create_batch(over(&ProviderFileId("file-0".to_owned()))).await;
    assert_eq!(unknown.unwrap_err().kind, ErrorKind::NotFound);
    let nothing = ProviderBatchId("batch_0".to_owned());
    assert_eq!(driver.batch(&nothing).await.unwrap_err().kind, ErrorKind::NotFound);
    assert_eq!(driver.cancel_batch(&nothing).await.unwrap_err().kind, ErrorKind::NotFound);
}
