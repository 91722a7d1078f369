//! A batch that comes into an account through no call.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use super::Input;
use super::NewBatch;
use super::StoredBatch;
use crate::sandbox::account::Account;

/// A stranger's batch. Where its input file is not there, or was not kept, it has no lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlantedBatch {
    pub input_file_id: String,
    #[serde(default = "chat_completions")]
    pub endpoint: String,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

fn chat_completions() -> String {
    "/v1/chat/completions".to_owned()
}

impl PlantedBatch {
    /// Over this input, at `/v1/chat/completions`, without metadata.
    pub fn over(input_file_id: &str) -> Self {
        Self {
            input_file_id: input_file_id.to_owned(),
            endpoint: chat_completions(),
            metadata: BTreeMap::new(),
        }
    }

    pub(in crate::sandbox) fn plant(self, account: &Arc<Account>) -> StoredBatch {
        let content = account.content(&self.input_file_id).and_then(|(_, content)| content);
        let input = content
            .map(|content| Input::read(&content, &self.endpoint, usize::MAX))
            .unwrap_or_default();
        account.plant_batch(NewBatch {
            input_file_id: self.input_file_id,
            input,
            endpoint: self.endpoint,
            metadata: Some(self.metadata).filter(|metadata| !metadata.is_empty()),
            output_life_seconds: None,
        })
    }
}
