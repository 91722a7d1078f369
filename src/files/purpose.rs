//! What a file is for.

use crate::words::unknown;
use crate::words::words;

words! {
    /// The purposes that OpenAI documents.
    Purpose, "a purpose" {
        Assistants = "assistants",
        Batch = "batch",
        FineTune = "fine-tune",
        Vision = "vision",
        UserData = "user_data",
        Evals = "evals",
        /// What a batch produced: nobody uploads it.
        BatchOutput = "batch_output",
    }
}

impl Purpose {
    /// Those that a client may upload a file for.
    pub const UPLOADED: [Self; 6] =
        [Self::Assistants, Self::Batch, Self::FineTune, Self::Vision, Self::UserData, Self::Evals];

    /// Reads the purpose of an upload.
    ///
    /// # Errors
    ///
    /// Says which there are.
    pub fn of_upload(text: &str) -> Result<Self, String> {
        let found = Self::UPLOADED.into_iter().find(|purpose| purpose.as_str() == text);
        found.ok_or_else(|| unknown(text, "a purpose", &Self::UPLOADED))
    }

    /// Whether each line's `body.model` is replaced on the way to a provider.
    pub const fn is_rewritten(self) -> bool {
        matches!(self, Self::Batch | Self::FineTune)
    }
}
