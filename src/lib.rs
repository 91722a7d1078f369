//! Longshore: files, batches and fine-tuning jobs of LLM providers, carried durably.
