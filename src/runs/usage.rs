//! What a batch used, in OpenAI's shape: <https://platform.openai.com/docs/api-reference/batch/object>.

use std::ops::AddAssign;

use serde::Deserialize;
use serde::Serialize;
use utoipa::ToSchema;

/// Tokens, summed over the answers of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BatchUsage)]
pub struct Usage {
    pub input_tokens: u64,
    pub input_tokens_details: InputTokensDetails,
    pub output_tokens: u64,
    pub output_tokens_details: OutputTokensDetails,
    pub total_tokens: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InputTokensDetails {
    pub cached_tokens: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OutputTokensDetails {
    pub reasoning_tokens: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        let add = |to: &mut u64, more: u64| *to = to.saturating_add(more);
        add(&mut self.input_tokens, other.input_tokens);
        add(&mut self.input_tokens_details.cached_tokens, other.input_tokens_details.cached_tokens);
        add(&mut self.output_tokens, other.output_tokens);
        add(
            &mut self.output_tokens_details.reasoning_tokens,
            other.output_tokens_details.reasoning_tokens,
        );
        add(&mut self.total_tokens, other.total_tokens);
    }
}
