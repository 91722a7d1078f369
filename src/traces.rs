//! Traces: from a request through the jobs that it makes to the calls of providers, for OpenTelemetry.
//!
//! Spans are made here, with OpenTelemetry's own API, and not by a layer of `tracing`: so the filter of the log does not
//! decide what is traced, and what leaves the process is what was named for it, never what some library logs.
//! Where nothing is configured there is no tracer, and nothing is made.

pub mod outbox;
mod parent;
mod resource;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use futures_util::future::Either;
use opentelemetry::Context;
use opentelemetry::trace::FutureExt as _;
use opentelemetry::trace::Link;
use opentelemetry::trace::SpanBuilder;
use opentelemetry::trace::Status;
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::trace::WithContext;
use opentelemetry_sdk::trace::Sampler;
use opentelemetry_sdk::trace::SdkTracer;
use opentelemetry_sdk::trace::SdkTracerProvider;
use reqwest::Method;
use reqwest::Url;

use self::outbox::Outbox;
pub use self::parent::Origin;
use crate::clock::Timestamp;
use crate::config;

pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::SpanKind;

/// Spans below one request or attempt. What it does beyond them is counted in `longshore.spans_omitted`.
const MOST_CHILDREN: u32 = 100;

/// What begins traces. Cloned freely; by default there are none.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<SdkTracer>);

/// Begins to make traces, and to send them, if the configuration says where to. `environment` may name the service.
///
/// # Errors
///
/// When no client for the collector can be made, or the environment's attributes cannot be read.
pub fn start(
    config: &config::Telemetry,
    environment: &BTreeMap<String, String>,
) -> anyhow::Result<(Traces, Option<Outbox>)> {
    let Some(endpoint) = config.traces_endpoint() else { return Ok((Traces::default(), None)) };
    let resource = resource::resource(environment)?;
    let (queue, outbox) = outbox::open(endpoint, config.otlp_headers.as_ref(), &resource)?;
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio.0)));
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_resource(resource)
        .with_span_processor(queue)
        .build();
    Ok((Traces(Some(provider.tracer("longshore"))), Some(outbox)))
}

/// What a span says of itself when it begins.
pub struct Description {
    pub name: Cow<'static, str>,
    pub kind: SpanKind,
    pub attributes: Vec<KeyValue>,
    /// If that was earlier.
    pub began_at: Option<Timestamp>,
}

impl Description {
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        attributes: Vec<KeyValue>,
    ) -> Self {
        Self { name: name.into(), kind, attributes, began_at: None }
    }

    /// A part of our own work.
    pub fn internal(name: &'static str) -> Self {
        Self::new(name, SpanKind::Internal, Vec::new())
    }

    /// A call over HTTP. Of the address it says the host alone: a path may name what is nobody's business.
    pub fn call(method: &Method, operation: &str, url: &Url) -> Self {
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("server.address", url.host_str().unwrap_or_default().to_owned()),
        ];
        attributes.extend(
            url.port_or_known_default().map(|port| KeyValue::new("server.port", i64::from(port))),
        );
        Self::new(format!("{method} {operation}"), SpanKind::Client, attributes)
    }
}

/// What the spans of one request or attempt share.
struct Scope {
    tracer: SdkTracer,
    children: AtomicU32,
    /// How often what is done here was tried before.
    resends: u32,
}

impl Traces {
    /// Begins what is traced by itself: a request, an attempt. `describe` is only asked where there are traces.
    pub fn begin(&self, resends: u32, describe: impl FnOnce() -> (Origin, Description)) -> Span {
        let Some(tracer) = &self.0 else { return Span::default() };
        let (origin, description) = describe();
        let (parent, links) = match origin {
            Origin::Nowhere => (Context::new(), Vec::new()),
            Origin::Within(parent) => (Context::new().with_remote_span_context(parent), Vec::new()),
            Origin::After(earlier) => (Context::new(), vec![Link::new(earlier, Vec::new(), 0)]),
        };
        let scope =
            Arc::new(Scope { tracer: tracer.clone(), children: AtomicU32::new(0), resends });
        let span = build(description).with_links(links).start_with_context(tracer, &parent);
        Span { here: Here(Some(Context::new().with_span(span).with_value(scope))), is_first: true }
    }

    /// What is done goes on in the trace of its origin, but has no span of its own there.
    pub fn within(&self, origin: impl FnOnce() -> Origin) -> Span {
        let Some(tracer) = &self.0 else { return Span::default() };
        let Origin::Within(parent) = origin() else { return Span::default() };
        let scope = Scope { tracer: tracer.clone(), children: AtomicU32::new(0), resends: 0 };
        // A span that is another's is not recorded here: it has no children, and ends elsewhere.
        let context = Context::new().with_remote_span_context(parent).with_value(Arc::new(scope));
        Span { here: Here(Some(context)), is_first: false }
    }
}

fn build(description: Description) -> SpanBuilder {
    let Description { name, kind, attributes, began_at } = description;
    let builder = SpanBuilder::from_name(name).with_kind(kind).with_attributes(attributes);
    match began_at {
        Some(began_at) => {
            let since = Duration::from_millis(u64::try_from(began_at.0).unwrap_or(0));
            builder.with_start_time(UNIX_EPOCH + since)
        }
        None => builder,
    }
}

/// A future that is run in a place.
pub type Held<F> = Either<WithContext<F>, F>;

/// The place in a trace where something is done; nowhere, where there are no traces. What a transaction writes, it
/// writes in the place of who asked for it.
#[derive(Clone, Debug, Default)]
pub struct Here(Option<Context>);

/// Where the code that asks is run.
pub fn here() -> Here {
    Here(Context::map_current(|current| {
        current.get::<Arc<Scope>>().is_some().then(|| current.clone())
    }))
}

/// The place as a job keeps it: the W3C's `traceparent`.
pub fn traceparent() -> Option<String> {
    here().0.map(|context| parent::to_text(context.span().span_context()))
}

impl Here {
    pub fn is_somewhere(&self) -> bool {
        self.0.is_some()
    }

    /// Runs `future` in this place.
    pub fn hold<F: Future>(&self, future: F) -> Held<F> {
        match &self.0 {
            Some(context) => Either::Left(future.with_context(context.clone())),
            None => Either::Right(future),
        }
    }

    /// Says that what is done here used what was done there.
    pub fn link_to(&self, other: &Self) {
        if let (Some(here), Some(there)) = (&self.0, &other.0) {
            here.span().add_link(there.span().span_context().clone(), Vec::new());
        }
    }
}

/// A span, until it is dropped. Without traces it is nothing.
#[derive(Debug, Default)]
pub struct Span {
    here: Here,
    /// Whether it was begun by itself, and is no other's child.
    is_first: bool,
}

impl Span {
    /// A part of what is done here. Nothing where that is not recorded, or has many parts already.
    pub fn child(describe: impl FnOnce() -> Description) -> Self {
        let Here(Some(parent)) = here() else { return Self::default() };
        let Some(scope) = parent.get::<Arc<Scope>>() else { return Self::default() };
        if !parent.span().is_recording()
            || scope.children.fetch_add(1, Ordering::Relaxed) >= MOST_CHILDREN
        {
            return Self::default();
        }
        let mut description = describe();
        if description.kind == SpanKind::Client && scope.resends > 0 {
            let resends = KeyValue::new("http.request.resend_count", i64::from(scope.resends));
            description.attributes.push(resends);
        }
        let span = build(description).start_with_context(&scope.tracer, &parent);
        Self { here: Here(Some(parent.with_span(span))), is_first: false }
    }

    pub fn here(&self) -> &Here {
        &self.here
    }

    /// Runs `future` as what this span is about.
    pub fn hold<F: Future>(&self, future: F) -> Held<F> {
        self.here.hold(future)
    }

    pub fn set(&self, attribute: impl FnOnce() -> KeyValue) {
        if let Some(context) = &self.here.0 {
            context.span().set_attribute(attribute());
        }
    }

    /// What it is about has failed, by a word that says how.
    pub fn fail(&self, code: &str) {
        if let Some(context) = &self.here.0 {
            context.span().set_attribute(KeyValue::new("error.type", code.to_owned()));
            context.span().set_status(Status::error(code.to_owned()));
        }
    }

    /// The call was answered.
    pub fn answered(&self, status: u16) {
        self.set(|| KeyValue::new("http.response.status_code", i64::from(status)));
    }

    /// For the log, so that its lines lead to the trace.
    pub fn trace_id(&self) -> Option<String> {
        let context = self.here.0.as_ref()?;
        Some(context.span().span_context().trace_id().to_string())
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(context) = &self.here.0 else { return };
        if self.is_first
            && let Some(scope) = context.get::<Arc<Scope>>()
        {
            let omitted = scope.children.load(Ordering::Relaxed).saturating_sub(MOST_CHILDREN);
            if omitted > 0 {
                let omitted = KeyValue::new("longshore.spans_omitted", i64::from(omitted));
                context.span().set_attribute(omitted);
            }
        }
        // Writes that go on may hold the context for longer.
        context.span().end();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::SpanData;
    use opentelemetry_sdk::trace::SpanProcessor;

    use super::*;

    type Spans = Arc<Mutex<Vec<SpanData>>>;

    #[derive(Debug)]
    struct Recorder(Spans);

    impl SpanProcessor for Recorder {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    /// Traces, and the spans of them that have ended.
    pub fn recorded() -> (Traces, Spans) {
        let spans = Spans::default();
        let recorder = Recorder(Arc::clone(&spans));
        let sampler = Sampler::ParentBased(Box::new(Sampler::AlwaysOn));
        let provider =
            SdkTracerProvider::builder().with_sampler(sampler).with_span_processor(recorder);
        (Traces(Some(provider.build().tracer("test"))), spans)
    }

    fn call() -> Description {
        Description::call(&Method::GET, "file", &Url::parse("https://host/secret").unwrap())
    }

    fn attribute(span: &SpanData, key: &str) -> Option<String> {
        let attributes = span.attributes.iter();
        attributes.filter(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string()).next()
    }

    #[tokio::test]
    async fn what_does_much_shows_some_of_it_and_says_how_much_it_does_not_show() {
        let (traces, spans) = recorded();
        let whole = traces.begin(2, || (Origin::Nowhere, Description::internal("whole")));
        let parts = async {
            for _ in 0..MOST_CHILDREN + 5 {
                tokio::task::yield_now().await;
                drop(Span::child(call));
            }
        };
        whole.hold(parts).await;
        drop(whole);
        let spans = spans.lock().unwrap();
        assert_eq!(spans.len(), MOST_CHILDREN as usize + 1);
        let (whole, parts) = spans.split_last().unwrap();
        assert_eq!(attribute(whole, "longshore.spans_omitted").as_deref(), Some("5"));
        for part in parts {
            assert_eq!(part.parent_span_id, whole.span_context.span_id());
            assert_eq!(attribute(part, "http.request.resend_count").as_deref(), Some("2"));
            assert_eq!(attribute(part, "server.address").as_deref(), Some("host"));
            assert!(!format!("{:?}", part.attributes).contains("secret"));
        }
    }

    #[tokio::test]
    async fn a_place_without_a_span_of_its_own_is_its_origins() {
        const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let (traces, spans) = recorded();
        let quiet = traces.within(|| Origin::of_text(Some(SAID)));
        let there = quiet.hold(async {
            drop(Span::child(call));
            traceparent()
        });
        assert_eq!(there.await.as_deref(), Some(SAID));
        drop(quiet);
        assert!(spans.lock().unwrap().is_empty());
        // Nor does what is not kept grow parts, but it is a place all the same.
        let unsampled = SAID.replace("-01", "-00");
        let origin = || Origin::of_text(Some(&unsampled));
        let unkept = traces.begin(0, || (origin(), Description::internal("unkept")));
        let there = unkept.hold(async {
            drop(Span::child(call));
            traceparent()
        });
        assert!(there.await.is_some_and(|place| place.ends_with("-00")));
        drop(unkept);
        assert!(spans.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn without_traces_nothing_is_asked_and_there_is_no_place() {
        let none = Traces::default();
        let span = none.begin(0, || unreachable!("nobody wants to know"));
        let nowhere = span.hold(async {
            drop(Span::child(|| unreachable!("nobody wants to know")));
            traceparent()
        });
        assert_eq!(nowhere.await, None);
        assert_eq!(span.trace_id(), None);
    }
}
