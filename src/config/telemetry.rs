//! Settings of traces: where to, with which headers, and how many.

use std::fmt;

use percent_encoding::percent_decode_str;
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::de::{Deserialize, Deserializer, Error, Visitor};

use super::{deserializer::VALUE, url};

/// The base of a collector's address; empty means none.
pub(super) fn endpoint<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Url>, D::Error> {
    let Some(url) = url::http(deserializer)? else { return Ok(None) };
    if url.query().is_some() || url.fragment().is_some() {
        return Err(D::Error::custom(
            "must end with its path; what the collector asks for goes into `otlp_headers`",
        ));
    }
    if url.path().trim_end_matches('/').ends_with("/v1/traces") {
        return Err(D::Error::custom(format_args!(
            "`{VALUE}` ends with /v1/traces, which is added to it; leave that out"
        )));
    }
    Ok(Some(url))
}

/// Headers for the collector, which may hold a key. `Debug` hides them.
#[derive(Clone)]
pub struct OtlpHeaders(HeaderMap);

impl OtlpHeaders {
    /// The headers, for the client that sends them.
    pub fn to_map(&self) -> HeaderMap {
        self.0.clone()
    }

    /// Reads `name=value,name=value`, percent-encoded, as OTEL_EXPORTER_OTLP_HEADERS has them.
    fn parse(text: &str) -> Option<Self> {
        let mut headers = HeaderMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=')?;
            let value: Vec<u8> = percent_decode_str(value.trim()).collect();
            let mut value = HeaderValue::from_bytes(&value).ok()?;
            value.set_sensitive(true);
            headers.append(HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value);
        }
        (!headers.is_empty()).then_some(Self(headers))
    }
}

impl fmt::Debug for OtlpHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OtlpHeaders(***)")
    }
}

/// Empty means none.
pub(super) fn headers<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<OtlpHeaders>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let headers = OtlpHeaders::parse(&text);
    let message =
        "these are no headers; write them like \"name=value,name=value\", percent-encoded";
    headers.map(Some).ok_or_else(|| D::Error::custom(message))
}

/// A part of a whole, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(pub f64);

impl Default for Ratio {
    fn default() -> Self {
        Self(1.0)
    }
}

pub(super) fn ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ratio, D::Error> {
    deserializer.deserialize_any(RatioVisitor)
}

struct RatioVisitor;

impl RatioVisitor {
    fn of<E: Error>(ratio: Option<f64>) -> Result<Ratio, E> {
        let ratio = ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).map(Ratio);
        ratio.ok_or_else(|| {
            E::custom(format_args!(
                "`{VALUE}` is not a part of all traces; write 1.0 for all of them, 0.1 for a tenth"
            ))
        })
    }
}

impl Visitor<'_> for RatioVisitor {
    type Value = Ratio;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 to 1")
    }

    fn visit_f64<E: Error>(self, ratio: f64) -> Result<Ratio, E> {
        Self::of(Some(ratio))
    }

    fn visit_i64<E: Error>(self, ratio: i64) -> Result<Ratio, E> {
        Self::of(i32::try_from(ratio).ok().map(f64::from))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Ratio, E> {
        Self::of(text.trim().parse().ok())
    }
}
