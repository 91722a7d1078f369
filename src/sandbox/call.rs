//! The life of one call: written down, met by a fault or not, executed and answered.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::OptionFuture;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::account::Account;
use super::answer::{Answer, AnswerBody, Closed, Pace};
use super::batches::api as batches;
use super::faults::Fault;
use super::ledger::{Call, Operation};
use super::openai;
use super::request_body::RequestBody;
use super::routes::Target;
use super::settings::Settings;
use super::upload::Upload;

/// A call that nobody releases is closed after this.
const MAX_HOLD: Duration = Duration::from_hours(1);

/// A request that creates a batch is no longer than this.
const MAX_JSON_BYTES: usize = 1 << 20;

/// What the ledger keeps of an id in a path.
const MAX_ID_BYTES: usize = 128;

/// Answers a call of an account's API, or closes its connection where a fault says so.
pub(super) async fn answer(
    account: Arc<Account>,
    target: Target<'_>,
    parts: &Parts,
    incoming: Incoming,
) -> Result<Response<AnswerBody>, Closed> {
    let settings = account.settings();
    let is_authorized = is_authorized(&parts.headers, &settings);
    let call = InFlight::arrive(account, target, &parts.headers, is_authorized);
    let mut body = RequestBody::new(incoming, &call);
    let mut upload = match target {
        Target::Upload => Some(Upload::open(&mut body, &parts.headers, &settings)),
        _ => None,
    };

    let fault = call.meet_fault(target, upload.as_mut()).await?;
    let latency = Duration::from_millis(settings.latency_ms);
    if let Some(fault) = &fault {
        if let Fault::Hold { hold_before: true } = fault {
            call.held().await?;
        } else if fault.prevents_execution() {
            drop(upload);
            let answer = answer_instead(fault, &call, &mut body).await?;
            pause(latency).await;
            return Ok(call.respond(answer, Pace::AtOnce));
        }
    }

    let received = OptionFuture::from(upload.map(Upload::receive)).await.transpose()?;
    let json = match target {
        Target::CreateBatch => body.collect(MAX_JSON_BYTES).await?.unwrap_or_default(),
        _ => BytesMut::new(),
    };
    // Before anything takes effect: a body that breaks after its form was complete is broken too.
    body.drain().await?;
    let answer = match received {
        _ if !is_authorized => openai::unauthorized(),
        Some(Ok(file)) => {
            call.note(|call| {
                call.filename = Some(file.filename.clone());
                call.bytes = Some(file.bytes);
            });
            let (answer, file_id) = openai::store(&call.account, file);
            call.note(|call| call.file_id = file_id);
            answer
        }
        Some(Err(refusal)) => refusal,
        None if target == Target::CreateBatch => {
            let (answer, batch_id) = batches::create(&call.account, &json).await;
            call.note(|call| call.batch_id = batch_id);
            answer
        }
        None => openai::execute(&call.account, target, &parts.uri),
    };
    pause(latency).await;
    let (answer, pace) = spoil(answer, fault.as_ref(), &call).await?;
    Ok(call.respond(answer, pace))
}

/// What a fault that prevents the execution does in its place.
async fn answer_instead(
    fault: &Fault,
    call: &InFlight,
    body: &mut RequestBody<'_>,
) -> Result<Answer, Closed> {
    match fault {
        Fault::Status { status, headers, body: scripted, drain } => {
            if *drain {
                body.drain().await?;
            }
            Ok(Answer::scripted(*status, headers, scripted))
        }
        Fault::Garbage { content_type, body: scripted, .. } => {
            body.drain().await?;
            Ok(garbage(content_type, scripted))
        }
        Fault::CutBody { after_bytes } => {
            body.read_until(*after_bytes).await?;
            Err(Closed)
        }
        Fault::Hang { .. } => {
            // Also shows when the client hangs up, which unread bytes would hide.
            body.drain().await?;
            call.held().await?;
            Err(Closed)
        }
        Fault::DropBefore
        | Fault::AfterEffect { .. }
        | Fault::LostAnswer
        | Fault::CutAnswer { .. }
        | Fault::ShortAnswer { .. }
        | Fault::Drip { .. }
        | Fault::Hold { .. } => Err(Closed),
    }
}

/// What a fault does to the answer of a call that was executed.
async fn spoil(
    answer: Answer,
    fault: Option<&Fault>,
    call: &InFlight,
) -> Result<(Answer, Pace), Closed> {
    match fault {
        Some(Fault::AfterEffect { status, headers, body }) => {
            Ok((Answer::scripted(*status, headers, body), Pace::AtOnce))
        }
        Some(Fault::Garbage { content_type, body, .. }) => {
            Ok((garbage(content_type, body), Pace::AtOnce))
        }
        Some(Fault::LostAnswer) => Err(Closed),
        Some(Fault::CutAnswer { after_bytes }) => {
            let pace = Pace::cut(*after_bytes, answer.body.len()).ok_or(Closed)?;
            Ok((answer, pace))
        }
        Some(Fault::ShortAnswer { bytes }) => {
            let most = usize::try_from(*bytes).unwrap_or(usize::MAX);
            let body = answer.body.slice(..answer.body.len().min(most));
            Ok((Answer { body, ..answer }, Pace::Unannounced))
        }
        Some(Fault::Drip { interval_ms }) => {
            Ok((answer, Pace::drip(Duration::from_millis(*interval_ms))))
        }
        Some(Fault::Hang { .. } | Fault::Hold { hold_before: false }) => {
            call.held().await?;
            Ok((answer, Pace::AtOnce))
        }
        None
        | Some(
            Fault::Status { .. }
            | Fault::DropBefore
            | Fault::CutBody { .. }
            | Fault::Hold { hold_before: true },
        ) => Ok((answer, Pace::AtOnce)),
    }
}

fn garbage(content_type: &str, body: &str) -> Answer {
    let content_type = HeaderValue::try_from(content_type)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    Answer::new(StatusCode::OK, content_type, bytes::Bytes::copy_from_slice(body.as_bytes()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

async fn pause(latency: Duration) {
    if !latency.is_zero() {
        sleep(latency).await;
    }
}

fn is_authorized(headers: &HeaderMap, settings: &Settings) -> bool {
    let key = text(headers, &AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    match (&settings.expected_key, key) {
        (_, None) => false,
        (Some(expected), Some(key)) => key == expected,
        (None, Some(key)) => !key.trim().is_empty(),
    }
}

fn kept_of_id(id: &str) -> String {
    id[..id.floor_char_boundary(MAX_ID_BYTES)].to_owned()
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A call between its arrival and its end, which may be that the client hangs up.
pub(super) struct InFlight {
    account: Arc<Account>,
    operation: Operation,
    seq: u64,
    releases: watch::Receiver<u64>,
    releases_before: u64,
}

impl InFlight {
    fn arrive(
        account: Arc<Account>,
        target: Target<'_>,
        headers: &HeaderMap,
        authorization_ok: bool,
    ) -> Self {
        // Looked at before the arrival is known, so that whoever waits for it and then releases
        // also releases a call that has yet to get to where it would be held.
        let releases = account.releases();
        let releases_before = *releases.borrow();
        let seq = account.arrive(Call {
            seq: 0,
            operation: target.operation(),
            at_ms: millis(account.elapsed()),
            first_byte_at_us: None,
            file_id: target.file_id().map(kept_of_id),
            batch_id: target.batch_id().map(kept_of_id),
            filename: None,
            bytes: None,
            status: None,
            authorization_ok,
            content_length: text(headers, &CONTENT_LENGTH).and_then(|value| value.parse().ok()),
            fault: None,
        });
        Self { account, operation: target.operation(), seq, releases, releases_before }
    }

    /// The fault that meets this call, which may need the name of its file.
    async fn meet_fault(
        &self,
        target: Target<'_>,
        upload: Option<&mut Upload<'_>>,
    ) -> Result<Option<Fault>, Closed> {
        let filename = match (upload, target.file_id()) {
            _ if !self.account.wants_filename(self.operation) => None,
            (Some(upload), _) => upload.filename().await?,
            (None, Some(id)) => self.account.filename(id),
            (None, None) => target.batch_id().and_then(|id| self.account.input_filename(id)),
        };
        let fault = self.account.choose_fault(self.seq, self.operation, filename.as_deref());
        if filename.is_some() {
            self.note(|call| call.filename = filename);
        }
        Ok(fault)
    }

    /// Waits for a release that comes after the call's arrival.
    async fn held(&self) -> Result<(), Closed> {
        let mut releases = self.releases.clone();
        let _held = Held::new(&self.account);
        let released = releases.wait_for(|count| *count > self.releases_before);
        match timeout(MAX_HOLD, released).await {
            Ok(Ok(_)) => Ok(()),
            // The sandbox is gone, or nobody cared.
            Ok(Err(_)) | Err(_) => Err(Closed),
        }
    }

    /// Notes when an upload's body began to arrive.
    pub(super) fn first_byte(&self) {
        if self.operation == Operation::Upload {
            let at = self.account.elapsed();
            self.note(|call| call.first_byte_at_us = Some(micros(at)));
            self.account.note(|ledger| {
                ledger.first_byte_at_ms.get_or_insert(millis(at));
            });
        }
    }

    fn respond(&self, answer: Answer, pace: Pace) -> Response<AnswerBody> {
        self.note(|call| call.status = Some(answer.status.as_u16()));
        answer.into_response(pace)
    }

    /// Changes the ledger's record of this call.
    fn note(&self, change: impl FnOnce(&mut Call)) {
        self.account.note(|ledger| {
            if let Some(call) = ledger.call(self.seq) {
                change(call);
            }
        });
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.account.note(|ledger| ledger.end(self.operation));
    }
}

/// Counts a call as held for as long as it lives.
struct Held<'a> {
    account: &'a Account,
}

impl<'a> Held<'a> {
    fn new(account: &'a Account) -> Self {
        account.note(|ledger| ledger.held += 1);
        Self { account }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.account.note(|ledger| ledger.held -= 1);
    }
}
