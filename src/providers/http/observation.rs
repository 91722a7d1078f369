//! What operators see of a call to a provider: a span, a line of the log and metrics, without any of its content.

use metrics::Counter;
use reqwest::{Method, StatusCode, Url};
use tokio::time::Instant;

use crate::providers::ProviderError;
use crate::traces::{Description, KeyValue, Span};

/// One call, from when it begins until [`Observation::end`].
pub(super) struct Observation {
    provider: String,
    operation: &'static str,
    method: Method,
    started: Instant,
    span: Span,
}

impl Observation {
    pub fn start(provider: &str, base: &Url, operation: &'static str, method: &Method) -> Self {
        let span = Span::child(|| {
            let mut call = Description::call(method, operation, base);
            call.attributes.push(KeyValue::new("provider.name", provider.to_owned()));
            call
        });
        Self {
            span,
            provider: provider.to_owned(),
            operation,
            method: method.clone(),
            started: Instant::now(),
        }
    }

    pub fn end(self, outcome: Result<StatusCode, &ProviderError>) {
        let Self { provider, operation, method, started, span } = self;
        let duration = started.elapsed();
        let status = match outcome {
            Ok(status) => Some(status.as_u16()),
            Err(error) => error.http_status,
        };
        if let Some(status) = status {
            span.answered(status);
        }
        if let Err(error) = outcome {
            span.fail(error.kind.code());
        }
        drop(span);
        tracing::debug!(
            provider.name = %provider,
            operation,
            %method,
            status,
            error = outcome.err().map(|error| error.kind.code()),
            outcome_unknown = outcome.is_err_and(|error| error.outcome_unknown),
            duration_ms = duration.as_millis() as u64,
            "called `{provider}`"
        );
        let status = status.map_or_else(|| "error".to_owned(), |status| status.to_string());
        metrics::histogram!(
            "longshore_provider_call_seconds",
            "provider" => provider.clone(), "operation" => operation
        )
        .record(duration.as_secs_f64());
        metrics::counter!(
            "longshore_provider_calls_total",
            "provider" => provider, "operation" => operation, "status" => status
        )
        .increment(1);
    }
}

pub(super) fn sent(provider: &str) -> Counter {
    bytes(provider, "sent")
}

pub(super) fn received(provider: &str) -> Counter {
    bytes(provider, "received")
}

fn bytes(provider: &str, direction: &'static str) -> Counter {
    metrics::counter!(
        "longshore_provider_bytes_total",
        "provider" => provider.to_owned(), "direction" => direction
    )
}
