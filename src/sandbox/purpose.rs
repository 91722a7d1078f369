//! What files are uploaded or made for.

use serde::{Deserialize, Serialize};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Assistants,
    Batch,
    #[serde(rename = "fine-tune")]
    FineTune,
    Vision,
    UserData,
    Evals,
    /// Made by the provider, as are those below: such a file can be planted, not uploaded.
    AssistantsOutput,
    BatchOutput,
    #[serde(rename = "fine-tune-results")]
    FineTuneResults,
}

impl Purpose {
    const ALL: [Self; 9] = [
        Self::Assistants,
        Self::Batch,
        Self::FineTune,
        Self::Vision,
        Self::UserData,
        Self::Evals,
        Self::AssistantsOutput,
        Self::BatchOutput,
        Self::FineTuneResults,
    ];

    /// The form in requests and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assistants => "assistants",
            Self::Batch => "batch",
            Self::FineTune => "fine-tune",
            Self::Vision => "vision",
            Self::UserData => "user_data",
            Self::Evals => "evals",
            Self::AssistantsOutput => "assistants_output",
            Self::BatchOutput => "batch_output",
            Self::FineTuneResults => "fine-tune-results",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == text)
    }

    /// Whether a client may upload such a file.
    pub(super) const fn is_uploadable(self) -> bool {
        match self {
            Self::Assistants
            | Self::Batch
            | Self::FineTune
            | Self::Vision
            | Self::UserData
            | Self::Evals => true,
            Self::AssistantsOutput | Self::BatchOutput | Self::FineTuneResults => false,
        }
    }

    /// Whether the provider hands the contents out again.
    pub(super) const fn is_downloadable(self) -> bool {
        !matches!(self, Self::Assistants | Self::Vision | Self::UserData)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_has_one_form_in_json_and_in_a_form_field() {
        for purpose in Purpose::ALL {
            assert_eq!(serde_json::to_value(purpose).unwrap(), purpose.as_str());
            assert_eq!(Purpose::parse(purpose.as_str()), Some(purpose));
        }
    }
}
