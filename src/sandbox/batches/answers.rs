//! What an endpoint answers to one request.

use serde_json::Value;
use serde_json::json;

use super::BatchUsage;

/// Bytes of a request that count as a token.
const BYTES_PER_TOKEN: u64 = 4;
/// What an answer counts as, whatever its size.
const OUTPUT_TOKENS: u64 = 12;

/// An answer that is a success.
pub(super) struct Answer<'a> {
    /// Unique to the request.
    pub(super) id: &'a str,
    pub(super) created_at: u64,
    pub(super) model: &'a str,
    pub(super) text: String,
    pub(super) tokens: Tokens,
}

/// The tokens of a request and its answer.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    input: u64,
    cached: u64,
    output: u64,
    reasoning: u64,
}

/// Follows from the request's size, so that a sum over many can be checked.
pub(super) fn tokens(body_bytes: u32, endpoint: &str) -> Tokens {
    let input = u64::from(body_bytes) / BYTES_PER_TOKEN;
    let output = if endpoint == "/v1/embeddings" { 0 } else { OUTPUT_TOKENS };
    Tokens { input, cached: input / 2, output, reasoning: output / 4 }
}

pub(super) fn add(usage: &mut BatchUsage, tokens: Tokens) {
    usage.input_tokens += tokens.input;
    usage.input_tokens_details.cached_tokens += tokens.cached;
    usage.output_tokens += tokens.output;
    usage.output_tokens_details.reasoning_tokens += tokens.reasoning;
    usage.total_tokens += tokens.input + tokens.output;
}

impl Answer<'_> {
    pub(super) fn body(&self, endpoint: &str) -> Value {
        match endpoint {
            "/v1/chat/completions" => self.chat_completion(),
            "/v1/responses" => self.response(),
            "/v1/embeddings" => self.embedding(),
            "/v1/completions" => self.completion(),
            "/v1/moderations" => self.moderation(),
            _ => json!({"created": self.created_at, "data": [{"b64_json": self.text}]}),
        }
    }

    fn chat_completion(&self) -> Value {
        let message = json!({"role": "assistant", "content": self.text, "refusal": null});
        json!({
            "id": format!("chatcmpl-{}", self.id),
            "object": "chat.completion",
            "created": self.created_at,
            "model": self.model,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"}],
            "usage": self.usage(),
            "system_fingerprint": "fp_sandbox",
        })
    }

    fn completion(&self) -> Value {
        let choice =
            json!({"index": 0, "text": self.text, "logprobs": null, "finish_reason": "stop"});
        json!({
            "id": format!("cmpl-{}", self.id),
            "object": "text_completion",
            "created": self.created_at,
            "model": self.model,
            "choices": [choice],
            "usage": self.usage(),
        })
    }

    fn response(&self) -> Value {
        let tokens = self.tokens;
        let content = json!([{"type": "output_text", "text": self.text, "annotations": []}]);
        json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created_at,
            "status": "completed",
            "model": self.model,
            "output": [{
                "id": format!("msg_{}", self.id), "type": "message", "status": "completed",
                "role": "assistant", "content": content,
            }],
            "usage": {
                "input_tokens": tokens.input,
                "input_tokens_details": {"cached_tokens": tokens.cached},
                "output_tokens": tokens.output,
                "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
                "total_tokens": tokens.input + tokens.output,
            },
        })
    }

    fn embedding(&self) -> Value {
        let embedding: Vec<_> = self.text.bytes().map(|byte| f64::from(byte) / 256.0).collect();
        json!({
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": embedding}],
            "model": self.model,
            "usage": {"prompt_tokens": self.tokens.input, "total_tokens": self.tokens.input},
        })
    }

    fn moderation(&self) -> Value {
        json!({"id": format!("modr-{}", self.id), "model": self.model, "results": [{"flagged": false}]})
    }

    fn usage(&self) -> Value {
        let tokens = self.tokens;
        json!({
            "prompt_tokens": tokens.input,
            "completion_tokens": tokens.output,
            "total_tokens": tokens.input + tokens.output,
            "prompt_tokens_details": {"cached_tokens": tokens.cached},
            "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
        })
    }
}
