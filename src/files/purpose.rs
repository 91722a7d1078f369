//! What a file is for.

use crate::words::words;

words! {
    /// The purposes that OpenAI documents for an upload.
    Purpose, "a purpose" {
        Assistants = "assistants",
        Batch = "batch",
        FineTune = "fine-tune",
        Vision = "vision",
        UserData = "user_data",
        Evals = "evals",
    }
}

impl Purpose {
    /// Whether each line's `body.model` is replaced on the way to a provider.
    pub const fn is_rewritten(self) -> bool {
        matches!(self, Self::Batch | Self::FineTune)
    }
}
