//! Puts what went wrong in a call into a `ProviderError`, with a text that is fit to be shown.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap};
use reqwest::{Response, StatusCode};

use super::answer::{self, Unread};
use super::{Http, Judge};
use crate::providers::redaction::presentable;
use crate::providers::retry_after::retry_after;
use crate::providers::{ErrorKind, ProviderError};

/// Enough for any error worth reading.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

const OUTAGE: ErrorKind = ErrorKind::Outage { retry_after: None };

impl Http {
    /// `text` of this provider, fit to be stored and shown.
    pub fn presentable(&self, text: &str) -> String {
        presentable(text, &self.secret)
    }

    /// An error of this provider.
    pub fn error(
        &self,
        kind: ErrorKind,
        status: Option<StatusCode>,
        message: &str,
    ) -> ProviderError {
        ProviderError {
            kind,
            outcome_unknown: false,
            message: presentable(message, &self.secret),
            http_status: status.map(|status| status.as_u16()),
            provider_code: None,
            provider_request_id: None,
        }
    }

    /// An answer that says it succeeded and cannot be used; `reason` completes "openai answered 200 …".
    pub fn garbled(
        &self,
        status: StatusCode,
        request_id: Option<String>,
        reason: &str,
    ) -> ProviderError {
        let message = format!("{} answered {} {reason}", self.provider, status.as_u16());
        let error = self.error(ErrorKind::Garbled, Some(status), &message);
        ProviderError { provider_request_id: request_id, ..error }
    }

    /// The provider's name for the call that it answers.
    pub fn request_id(&self, response: &Response) -> Option<String> {
        let id = response.headers().get(self.dialect.request_id)?.to_str().ok()?;
        Some(presentable(id, &self.secret))
    }

    /// The error that an answer other than a success stands for.
    pub(super) async fn refused(&self, response: Response, judge: Judge) -> ProviderError {
        let status = response.status();
        let request_id = self.request_id(&response);
        let wait = retry_after(response.headers(), wall_clock());
        // The status already decides much; a body that drips is not worth more than one silence.
        let silence = self.limits.silence;
        let body = answer::read(response, MAX_REFUSAL_BYTES, silence, silence).await;
        let refusal = (self.dialect.explain)(&body.unwrap_or_default());

        let said = match &refusal.message {
            Some(message) => format!(": {}", presentable(message, &self.secret)),
            None if status.is_redirection() => {
                ", a redirect, which is not followed: check its `base_url`".to_owned()
            }
            None => " without saying why".to_owned(),
        };
        ProviderError {
            kind: judge(status.as_u16(), &refusal, wait),
            outcome_unknown: false,
            message: format!("{} answered {}{said}", self.provider, status.as_u16()),
            http_status: Some(status.as_u16()),
            provider_code: refusal.code.map(|code| presentable(&code, &self.secret)),
            provider_request_id: request_id,
        }
    }

    /// A success whose body could not be read whole.
    pub(super) fn unread(
        &self,
        status: StatusCode,
        request_id: Option<String>,
        unread: Unread,
    ) -> ProviderError {
        let garbled = |reason: &str| self.garbled(status, request_id, reason);
        match unread {
            Unread::Oversized => garbled("with more than such an answer may hold"),
            Unread::Broken(cause) => garbled(&format!("but its answer broke off: {cause}")),
            Unread::Slow => {
                ProviderError { kind: OUTAGE, ..garbled("but did not finish its answer in time") }
            }
        }
    }

    /// The provider did nothing for as long as silence may last.
    pub(super) fn silent(&self, what: &str) -> ProviderError {
        let message = format!("{} {what} for {:?}", self.provider, self.limits.silence);
        self.error(OUTAGE, None, &message)
    }

    /// The connection did not come about, or broke before there was an answer.
    pub(super) fn lost(&self, error: reqwest::Error) -> ProviderError {
        let name = &self.provider;
        let what = match error.is_connect() {
            true => format!("cannot connect to {name}"),
            false => format!("the connection to {name} was lost before it answered"),
        };
        self.error(OUTAGE, None, &format!("{what}: {}", answer::root_cause(error)))
    }
}

/// By how many seconds our clock is ahead of an answer's `Date`.
pub(super) fn clock_ahead(headers: &HeaderMap) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let seconds = |distance: Duration| i64::try_from(distance.as_secs()).ok();
    match wall_clock().duration_since(date) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => seconds(behind.duration()).map(|behind| -behind),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a provider names dates; only the distance to them leaves this place"
)]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
