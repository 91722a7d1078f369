//! What a file is for.

use std::fmt;
use std::str::FromStr;

/// The purposes that OpenAI documents for an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Assistants,
    Batch,
    FineTune,
    Vision,
    UserData,
    Evals,
}

impl Purpose {
    pub const ALL: [Self; 6] =
        [Self::Assistants, Self::Batch, Self::FineTune, Self::Vision, Self::UserData, Self::Evals];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assistants => "assistants",
            Self::Batch => "batch",
            Self::FineTune => "fine-tune",
            Self::Vision => "vision",
            Self::UserData => "user_data",
            Self::Evals => "evals",
        }
    }

    /// Whether each line's `body.model` is replaced on the way to a provider.
    pub const fn is_rewritten(self) -> bool {
        matches!(self, Self::Batch | Self::FineTune)
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Purpose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|purpose| purpose.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|purpose| format!("`{purpose}`")).collect();
            let text: String = text.chars().take(100).collect();
            format!("`{text}` is not a purpose; it is one of {}", names.join(", "))
        })
    }
}
