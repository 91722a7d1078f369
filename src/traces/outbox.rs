//! Spans on their way to the collector: a bounded queue, and one task that sends from it, over OTLP/HTTP.
//!
//! Whoever ends a span never waits. What the queue has no room for, or the collector does not take, is dropped and
//! counted.

use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::Span;
use opentelemetry_sdk::trace::SpanData;
use opentelemetry_sdk::trace::SpanProcessor;
use prost::Message as _;
use reqwest::Client;
use reqwest::Response;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use reqwest::header::RETRY_AFTER;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::OtlpHeaders;

/// Spans that wait; of a kilobyte or so each.
const QUEUE: usize = 8192;
/// Spans in one request.
const BATCH: usize = 512;
/// How long a span waits for others to go with it.
const GATHER: Duration = Duration::from_secs(1);
/// For one request, all of it.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests for one batch, while it might be taken at the next.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Also where the collector asks for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often the log says that the collector does not take what it is sent.
const COMPLAINT: Duration = Duration::from_secs(60);
/// What is read of an answer.
const MAX_ANSWER: usize = 64 * 1024;

/// The task that sends. Dropped without [`Outbox::flush`], it ends with the runtime.
#[derive(Debug)]
pub struct Outbox {
    closing: CancellationToken,
    task: JoinHandle<()>,
}

/// Where spans go when they end.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Sender<SpanData>);

/// Begins to send.
///
/// # Errors
///
/// When there can be no client, for want of certificates.
pub(super) fn open(
    endpoint: Url,
    headers: Option<&OtlpHeaders>,
    resource: &Resource,
) -> anyhow::Result<(Queue, Outbox)> {
    let mut all = headers.map(OtlpHeaders::to_map).unwrap_or_default();
    all.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    let client = client(&endpoint)?;
    let courier = Courier {
        client,
        endpoint,
        headers: all,
        resource: resource.into(),
        complained_at: None,
        is_failing: false,
    };
    let (queue, spans) = mpsc::channel(QUEUE);
    let closing = CancellationToken::new();
    let task = tokio::spawn(courier.run(spans, closing.clone()));
    Ok((Queue(queue), Outbox { closing, task }))
}

fn client(endpoint: &Url) -> anyhow::Result<Client> {
    let builder = Client::builder()
        .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
        .timeout(LIMIT)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy();
    let builder = match endpoint.scheme() {
        "https" => builder.https_only(true),
        // The system's certificates are not needed, and may not be there.
        _ => builder.tls_certs_only([]),
    };
    builder.build().map_err(|error| {
        let error = error.without_url();
        anyhow::anyhow!("cannot set up TLS for `telemetry.otlp_endpoint`: are the system's root certificates installed? {error}")
    })
}

impl Outbox {
    /// Sends what waits, for `limit` at most.
    pub async fn flush(self, limit: Duration) {
        let Self { closing, mut task } = self;
        closing.cancel();
        match tokio::time::timeout(limit, &mut task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "sending traces ended before its time")
            }
            Err(_) => {
                task.abort();
                tracing::warn!("the last traces were not sent within {} ms", limit.as_millis());
            }
        }
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.0.try_send(span).is_err() {
            dropped("queue_full", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn dropped(reason: &'static str, count: u64) {
    metrics::counter!("longshore_spans_dropped_total", "reason" => reason).increment(count);
}

/// How a request ended that did not bring the spans there.
struct Undelivered {
    /// In words that hold nothing secret.
    because: String,
    /// Whether, and when at the earliest, they may be taken after all.
    again_after: Option<Duration>,
}

struct Courier {
    client: Client,
    endpoint: Url,
    headers: HeaderMap,
    resource: ResourceAttributesWithSchema,
    complained_at: Option<Instant>,
    is_failing: bool,
}

impl Courier {
    async fn run(mut self, mut spans: mpsc::Receiver<SpanData>, closing: CancellationToken) {
        loop {
            let batch = gather(&mut spans, &closing).await;
            let is_over = (closing.is_cancelled() || spans.is_closed()) && spans.is_empty();
            if !batch.is_empty() {
                self.deliver(batch, &closing).await;
            }
            if is_over {
                return;
            }
        }
    }

    /// Sends a batch until it is taken, or there is no hope that it will be. While the process ends, it is tried once.
    async fn deliver(&mut self, batch: Vec<SpanData>, closing: &CancellationToken) {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = Bytes::from(ExportTraceServiceRequest { resource_spans }.encode_to_vec());
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            let undelivered = match self.send(body.clone()).await {
                Ok(refused) => {
                    metrics::counter!("longshore_spans_sent_total")
                        .increment(count.saturating_sub(refused));
                    return;
                }
                Err(undelivered) => undelivered,
            };
            self.complain(&undelivered.because);
            let Some(after) = undelivered.again_after else {
                dropped("refused", count);
                return;
            };
            if tries >= TRIES || closing.is_cancelled() {
                dropped("undelivered", count);
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(after.max(pause).min(LONGEST_PAUSE)) => {}
                () = closing.cancelled() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Answers how many spans the collector refused of those that it was sent.
    async fn send(&mut self, body: Bytes) -> Result<u64, Undelivered> {
        let request = self.client.post(self.endpoint.clone()).headers(self.headers.clone());
        let response = request.body(body).send().await.map_err(|error| Undelivered {
            because: lost(error),
            again_after: Some(Duration::ZERO),
        })?;
        let status = response.status();
        if !status.is_success() {
            // As the protocol has it: the others will not be taken the next time either.
            let is_passing = matches!(status.as_u16(), 429 | 502..=504);
            return Err(Undelivered {
                because: format!("it answered {status}"),
                again_after: is_passing.then(|| retry_after(&response)),
            });
        }
        if std::mem::take(&mut self.is_failing) {
            tracing::info!("traces reach their collector again");
            self.complained_at = None;
        }
        let Some(partial) = partial_success(response).await else { return Ok(0) };
        let refused = u64::try_from(partial).unwrap_or(0);
        dropped("refused", refused);
        self.complain(&format!("it refused {refused} spans"));
        Ok(refused)
    }

    fn complain(&mut self, because: &str) {
        self.is_failing = true;
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT) {
            self.complained_at = Some(Instant::now());
            let host = self.endpoint.host_str().unwrap_or_default();
            tracing::warn!("the collector of traces at `{host}` does not take them: {because}");
        }
    }
}

/// The next spans to go together: as many as go in one request, or what has come by the next tick.
async fn gather(
    spans: &mut mpsc::Receiver<SpanData>,
    closing: &CancellationToken,
) -> Vec<SpanData> {
    let mut batch = Vec::new();
    let tick = tokio::time::sleep(GATHER);
    tokio::pin!(tick);
    loop {
        let room = BATCH - batch.len();
        tokio::select! {
            biased;
            received = spans.recv_many(&mut batch, room) => {
                if received == 0 || batch.len() >= BATCH {
                    return batch;
                }
            }
            () = closing.cancelled() => return batch,
            () = &mut tick => return batch,
        }
    }
}

async fn partial_success(mut response: Response) -> Option<i64> {
    let mut body = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_ANSWER {
            return None;
        }
    }
    // What is no answer of the protocol says nothing against what it was sent.
    let answer = ExportTraceServiceResponse::decode(body.as_slice()).ok()?;
    answer.partial_success.map(|partial| partial.rejected_spans).filter(|refused| *refused > 0)
}

fn retry_after(response: &Response) -> Duration {
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Duration::from_secs(seconds.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0))
}

fn lost(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return format!("it did not answer within {LIMIT:?}");
    }
    if error.is_connect() {
        return "it cannot be reached".to_owned();
    }
    error.to_string()
}
