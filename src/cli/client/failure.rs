//! Why a call brought no answer, in words for the person who made it.

use std::{error::Error as _, io, time::Duration};

use reqwest::{
    StatusCode, Url,
    header::{DATE, HeaderMap, LOCATION, RETRY_AFTER},
};
use serde::Deserialize;

use crate::cli::output::plain;

/// A wait that a person is told of: shorter ones are waited for.
const LONG_WAIT: Duration = Duration::from_secs(60);
/// How much of a body that is not ours is shown.
const SNIPPET_CHARACTERS: usize = 200;

/// A call that failed. Each variant's text is for a person, whole, and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing listens there.
    #[error(
        "no server answers at `{base}`: start one with `longshore up`, or name another with LONGSHORE_URL or `--url`"
    )]
    NoServer { base: String },
    /// No connection came about, for another reason: name, route, certificate.
    #[error("cannot reach `{base}`: {cause}")]
    Unreachable { base: String, cause: String },
    /// The connection broke off. What was asked for may have been done.
    #[error("lost the connection to `{base}`: {cause}")]
    Lost { base: String, cause: String },
    /// Nothing moved for the limit of silence, or a call took longer than its limit.
    #[error("`{base}` was silent for {}", humantime::format_duration(*limit))]
    Silent { base: String, limit: Duration },
    /// The server said no.
    #[error("{0}")]
    Refused(Refusal),
    /// What came back is not what this API answers.
    #[error("`{base}` does not answer as a Longshore server does: {cause}")]
    Nonsense { base: String, cause: String },
    /// The fault is on this side: a file that could not be read to its end.
    #[error("{0}")]
    Here(String),
}

/// An answer of 300 or more.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    pub status: StatusCode,
    /// How long the server asks to wait before the next try.
    pub retry_after: Option<Duration>,
    /// Whether the server says that trying again changes nothing (`x-should-retry: false`).
    pub is_final: bool,
    /// The field at fault, where the server named one.
    pub param: Option<String>,
    /// The server's word for what is wrong.
    pub code: Option<String>,
    /// Whether it came from a Longshore server. One that refuses to create has made nothing.
    pub is_ours: bool,
    text: String,
}

#[derive(Deserialize)]
struct Body {
    error: BodyError,
}

#[derive(Deserialize)]
struct BodyError {
    message: String,
    #[serde(default)]
    param: Option<String>,
    #[serde(default)]
    code: Option<String>,
}

impl Failure {
    /// Whether what was asked for may have been done all the same. A server of ours that refuses has done
    /// nothing.
    pub fn leaves_it_open(&self) -> bool {
        match self {
            Self::Refused(refusal) => !refusal.is_ours,
            Self::Lost { .. } | Self::Silent { .. } | Self::Nonsense { .. } => true,
            Self::NoServer { .. } | Self::Unreachable { .. } | Self::Here(_) => false,
        }
    }

    /// Whether the server says that there is no such thing.
    pub fn is_unknown_thing(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.is_ours && refusal.code.as_deref() == Some("not_found"))
    }

    /// Whether every other call would fail in the same way: no server, or none that takes the key.
    pub fn is_about_the_server(&self) -> bool {
        match self {
            Self::NoServer { .. } | Self::Unreachable { .. } | Self::Nonsense { .. } => true,
            Self::Refused(refusal) => {
                !refusal.is_ours || refusal.status == StatusCode::UNAUTHORIZED
            }
            Self::Lost { .. } | Self::Silent { .. } | Self::Here(_) => false,
        }
    }

    /// Reads a refusal from the answer's parts. `has_key` is whether a key was sent.
    pub fn refusal(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        base: &Url,
        has_key: bool,
    ) -> Self {
        let is_final = headers.get("x-should-retry").is_some_and(|value| value == "false");
        let refusal = match serde_json::from_slice::<Body>(body) {
            Ok(Body { error }) => Refusal {
                status,
                retry_after: retry_after(headers),
                is_final,
                text: explained(status, headers, &error, base, has_key),
                is_ours: true,
                param: error.param,
                code: error.code,
            },
            Err(_) => Refusal {
                status,
                retry_after: retry_after(headers),
                is_final,
                text: foreign(status, headers, body, base),
                is_ours: false,
                param: None,
                code: None,
            },
        };
        Self::Refused(refusal)
    }

    /// Says what became of a request that brought no usable answer.
    pub fn from_transport(error: &reqwest::Error, base: &Url) -> Self {
        let base = base.to_string();
        let mut refused = false;
        let mut cause = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            refused |= inner
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            cause = inner.to_string();
            source = inner.source();
        }
        let mut cause = plain(&cause).into_owned();
        // Where TLS meets plain HTTP.
        if cause.contains("InvalidContentType") && base.starts_with("https://") {
            cause = "it does not speak https there; write `http://…`".to_owned();
        }
        if error.is_connect() && refused {
            Self::NoServer { base }
        } else if error.is_connect() {
            Self::Unreachable { base, cause }
        } else if error.is_builder() {
            Self::Here(cause)
        } else {
            Self::Lost { base, cause }
        }
    }
}

fn explained(
    status: StatusCode,
    headers: &HeaderMap,
    error: &BodyError,
    base: &Url,
    has_key: bool,
) -> String {
    let message = plain(error.message.trim());
    if status == StatusCode::UNAUTHORIZED {
        return if has_key {
            format!("{message} (sent was the one of LONGSHORE_API_KEY or `--api-key`)")
        } else {
            format!(
                "`{base}` wants a key: set LONGSHORE_API_KEY, or give `--api-key`; \
                 `longshore keys create --owner NAME`, where the server runs, makes one"
            )
        };
    }
    let mut notes = Vec::new();
    if let Some(param) = &error.param {
        notes.push(format!("param `{}`", plain(param)));
    }
    if let Some(code) = &error.code {
        notes.push(format!("code `{}`", plain(code)));
    }
    if notes.is_empty() {
        notes.push(format!("status {}", status.as_u16()));
    }
    // What is the server's own fault is looked up in its logs, by this id.
    if status.is_server_error()
        && let Some(id) = headers.get("x-request-id").and_then(|value| value.to_str().ok())
    {
        notes.push(format!("request `{}`", plain(id)));
    }
    if let Some(wait) = retry_after(headers).filter(|wait| *wait > LONG_WAIT) {
        notes.push(format!("try again in {}", humantime::format_duration(wait)));
    }
    let said = format!("{message} ({})", notes.join(", "));
    // Another server of this shape, such as a provider.
    if status == StatusCode::NOT_FOUND && error.code.is_none() {
        return format!(
            "{said}: is `{base}` a Longshore server? LONGSHORE_URL or `--url` names it"
        );
    }
    said
}

/// An answer of something else: a proxy, or another server at that address.
fn foreign(status: StatusCode, headers: &HeaderMap, body: &[u8], base: &Url) -> String {
    if status.is_redirection()
        && let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok())
    {
        return format!(
            "`{base}` redirects to `{}`: set LONGSHORE_URL or `--url` to where the server is",
            plain(location)
        );
    }
    if status == StatusCode::UNAUTHORIZED {
        return format!("`{base}` wants a key: set LONGSHORE_API_KEY, or give `--api-key`");
    }
    let text = String::from_utf8_lossy(body);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let snippet: String = line.chars().take(SNIPPET_CHARACTERS).collect();
    let said = if snippet.is_empty() { String::new() } else { format!(": `{}`", plain(&snippet)) };
    format!("`{base}` answered {status}, not in the way of a Longshore server{said}")
}

/// Seconds, or a date, which is read against the answer's own `Date`: the two clocks may differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let now = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Url {
        Url::parse("http://127.0.0.1:4700/v1").unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn text(status: u16, pairs: &[(&'static str, &str)], body: &str, has_key: bool) -> String {
        let status = StatusCode::from_u16(status).unwrap();
        Failure::refusal(status, &headers(pairs), body.as_bytes(), &base(), has_key).to_string()
    }

    #[test]
    fn a_refusal_shows_message_param_and_code() {
        let body = r#"{"error":{"message":"line 3 has no `custom_id`","type":"invalid_request_error","param":"file","code":"invalid_jsonl"}}"#;
        assert_eq!(
            text(400, &[], body, true),
            "line 3 has no `custom_id` (param `file`, code `invalid_jsonl`)"
        );
    }

    #[test]
    fn a_refusal_without_param_and_code_shows_the_status_and_for_a_fault_of_the_server_the_request()
    {
        let body = r#"{"error":{"message":"internal error","type":"server_error","param":null,"code":null}}"#;
        assert_eq!(
            text(500, &[("x-request-id", "req-7")], body, true),
            "internal error (status 500, request `req-7`)"
        );
    }

    #[test]
    fn a_401_says_which_variable_to_set() {
        let body = r#"{"error":{"message":"no key was sent","type":"authentication_error"}}"#;
        let missing = text(401, &[], body, false);
        assert!(missing.contains("wants a key: set LONGSHORE_API_KEY"), "{missing}");
        let refused = text(401, &[], body, true);
        assert!(refused.contains("sent was the one of LONGSHORE_API_KEY"), "{refused}");
        assert!(text(401, &[], "<html>", false).contains("set LONGSHORE_API_KEY"));
    }

    #[test]
    fn a_long_wait_that_the_server_asks_for_is_told() {
        let body =
            r#"{"error":{"message":"the disk is full","type":"server_error","code":"disk_full"}}"#;
        assert_eq!(
            text(507, &[("retry-after", "7200")], body, true),
            "the disk is full (code `disk_full`, try again in 2h)"
        );
    }

    #[test]
    fn a_provider_in_place_of_a_server_is_suspected() {
        let body = r#"{"error":{"message":"nothing is at `/v1/files`","type":"x","code":null}}"#;
        let said = text(404, &[], body, true);
        assert!(said.contains("is `http://127.0.0.1:4700/v1` a Longshore server?"), "{said}");
    }

    #[test]
    fn an_answer_of_something_else_is_shown_short_and_harmless() {
        let page = format!("<html>\n\u{1b}[2J{}</html>", "x".repeat(5000));
        let said = text(502, &[], &page, true);
        assert!(said.starts_with("`http://127.0.0.1:4700/v1` answered 502 Bad Gateway"), "{said}");
        assert!(said.len() < 400 && !said.contains('\u{1b}'), "{said}");
    }

    #[test]
    fn a_redirect_names_the_right_address() {
        let said = text(308, &[("location", "https://files.example/v1")], "", true);
        assert!(
            said.contains("redirects to `https://files.example/v1`: set LONGSHORE_URL or"),
            "{said}"
        );
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date_of_the_servers_clock() {
        assert_eq!(retry_after(&headers(&[("retry-after", "7")])), Some(Duration::from_secs(7)));
        let date = [
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT"),
        ];
        assert_eq!(retry_after(&headers(&date)), Some(Duration::from_secs(30)));
        let past = [
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT"),
        ];
        assert_eq!(retry_after(&headers(&past)), Some(Duration::ZERO));
        for nonsense in ["-3", "soon", ""] {
            assert_eq!(retry_after(&headers(&[("retry-after", nonsense)])), None);
        }
    }
}
