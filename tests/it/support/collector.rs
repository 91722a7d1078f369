//! A collector of traces: it takes OTLP over HTTP, and answers as it is told.

use std::collections::BTreeMap;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use super::Receiver;
use super::Reply;
use super::eventually;

/// A span that was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub name: String,
    /// As OTLP numbers them: see [`SERVER`] and its like.
    pub kind: i32,
    pub trace: String,
    pub id: String,
    /// Empty for the first of a trace.
    pub parent: String,
    /// The spans that it is linked to.
    pub links: Vec<String>,
    pub attributes: BTreeMap<String, String>,
    pub has_failed: bool,
    /// The `service.instance.id` of who made it.
    pub instance: String,
}

pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;
pub const CONSUMER: i32 = 5;

impl Received {
    /// An attribute; empty where there is none.
    pub fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

pub struct Collector(pub Receiver);

impl Collector {
    pub async fn start() -> Self {
        Self(Receiver::start().await)
    }

    pub async fn answering(reply: Reply) -> Self {
        Self(Receiver::answering(reply).await)
    }

    /// The section of the configuration that names it.
    pub fn section(&self) -> String {
        format!("[telemetry]\notlp_endpoint = \"{}/otlp/\"\n", self.0.base)
    }

    /// All that it was sent, as it came.
    pub fn bodies(&self) -> String {
        let bodies = self.0.delivered();
        bodies.iter().map(|sent| String::from_utf8_lossy(&sent.body).into_owned()).collect()
    }

    /// All spans that it was sent.
    pub fn spans(&self) -> Vec<Received> {
        let mut spans = Vec::new();
        for sent in self.0.delivered() {
            assert_eq!(sent.path, "/otlp/v1/traces");
            assert_eq!(sent.header("content-type"), "application/x-protobuf");
            let request = ExportTraceServiceRequest::decode(sent.body).unwrap();
            for of_process in request.resource_spans {
                let resource = texts(&of_process.resource.unwrap().attributes);
                assert_eq!(resource["service.name"], "longshore");
                assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
                let instance = resource["service.instance.id"].clone();
                let of_scopes = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.extend(of_scopes.map(|span| received(span, &instance)));
            }
        }
        spans
    }

    /// The spans of a trace once `is_whole` says that they are all there.
    pub async fn trace(&self, id: &str, is_whole: impl Fn(&[Received]) -> bool) -> Vec<Received> {
        eventually(Duration::from_secs(60), async || {
            let spans: Vec<_> = self.spans().into_iter().filter(|span| span.trace == id).collect();
            is_whole(&spans).then_some(spans)
        })
        .await
    }
}

fn received(span: Span, instance: &str) -> Received {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    Received {
        name: span.name,
        kind: span.kind,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
        attributes: texts(&span.attributes),
        has_failed: span.status.is_some_and(|status| status.code == 2),
        instance: instance.to_owned(),
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|any| any.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}
