//! Where a trace comes from, in the W3C's words: the header `traceparent`, and a column of jobs.

use axum::http::HeaderMap;
use opentelemetry::propagation::Extractor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::SpanContext;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;

const TRACEPARENT: &str = "traceparent";

/// Where a trace comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// It begins here.
    Nowhere,
    /// It goes on.
    Within(SpanContext),
    /// It begins here, as a consequence of another.
    After(SpanContext),
}

impl Origin {
    /// What a client says. What is malformed, or said twice, counts as not said.
    pub fn of_headers(headers: &HeaderMap) -> Self {
        if headers.get_all(TRACEPARENT).iter().count() > 1 {
            return Self::Nowhere;
        }
        Self::of(&Headers(headers))
    }

    /// What was stored with a job.
    pub fn of_text(text: Option<&str>) -> Self {
        text.map_or(Self::Nowhere, |text| Self::of(&Text(text)))
    }

    fn of(extractor: &dyn Extractor) -> Self {
        let context = TraceContextPropagator::new()
            .extract_with_context(&opentelemetry::Context::new(), extractor);
        if !context.has_active_span() {
            return Self::Nowhere;
        }
        Self::Within(context.span().span_context().clone())
    }

    /// The same place, of which this is no part but a consequence.
    pub fn consequence(self) -> Self {
        match self {
            Self::Within(earlier) => Self::After(earlier),
            other => other,
        }
    }
}

/// `tracestate` is not kept: it is for systems that hand it on, and nothing is handed on from here.
pub(super) fn to_text(context: &SpanContext) -> String {
    format!(
        "00-{}-{}-{:02x}",
        context.trace_id(),
        context.span_id(),
        u8::from(context.is_sampled())
    )
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

struct Text<'t>(&'t str);

impl Extractor for Text<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_a_client_says_goes_on_and_is_stored_as_it_was_said() {
        let unsampled = SAMPLED.replace("-01", "-00");
        for said in [SAMPLED, &unsampled] {
            let Origin::Within(context) = Origin::of_headers(&headers(&[said])) else {
                panic!("{said}")
            };
            assert_eq!(to_text(&context), said);
            assert_eq!(Origin::of_text(Some(said)), Origin::Within(context));
        }
    }

    #[test]
    fn what_is_malformed_or_said_twice_counts_as_not_said() {
        let long = format!("{SAMPLED}-more");
        for said in [
            "",
            "00",
            "x",
            &long,
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-zz",
        ] {
            assert_eq!(Origin::of_headers(&headers(&[said])), Origin::Nowhere, "{said}");
        }
        assert_eq!(Origin::of_headers(&headers(&[SAMPLED, SAMPLED])), Origin::Nowhere);
        assert_eq!(Origin::of_headers(&headers(&[])), Origin::Nowhere);
        assert_eq!(Origin::of_text(None), Origin::Nowhere);
    }
}
