//! How long a provider asks to be left alone, from the headers of its answer.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

/// No wait is longer: a provider that says "ten years" is asked again in an hour.
const LONGEST: Duration = Duration::from_hours(1);

/// `retry-after-ms`, else `retry-after` in seconds or as an HTTP date; none for what is neither, or is past.
///
/// A date is measured against the answer's own `date`, so that a clock of ours that is wrong does not
/// matter; `now` stands in where there is none.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);

    if let Some(milliseconds) = text("retry-after-ms").and_then(number) {
        return Some(bounded(milliseconds / 1000.0));
    }
    let value = text(RETRY_AFTER.as_str())?;
    if let Some(seconds) = number(value) {
        return Some(bounded(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now =
        text(DATE.as_str()).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(now);
    until.duration_since(now).ok().map(|wait| wait.min(LONGEST))
}

/// A plain decimal number. `f64` alone would also take `-1`, `1e9`, `inf` and `nan`.
fn number(text: &str) -> Option<f64> {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.').then(|| text.parse().ok())?
}

fn bounded(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    // Sun, 06 Nov 1994 08:49:37 GMT
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    type Headers = [(&'static str, &'static str)];

    fn wait(headers: &[(&'static str, &str)]) -> Option<Duration> {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect();
        retry_after(&headers, now())
    }

    #[test]
    fn waits_are_read_in_every_form_and_never_exceed_an_hour() {
        let seconds = |s| Some(Duration::from_secs(s));
        let table: &[(&Headers, Option<Duration>)] = &[
            (&[], None),
            (&[("retry-after", "7")], seconds(7)),
            (&[("retry-after", " 7 ")], seconds(7)),
            (&[("retry-after", "0")], seconds(0)),
            (&[("retry-after", "0.25")], Some(Duration::from_millis(250))),
            (
                &[("retry-after-ms", "6500"), ("retry-after", "7")],
                Some(Duration::from_millis(6500)),
            ),
            (&[("retry-after-ms", "soon"), ("retry-after", "7")], seconds(7)),
            (&[("retry-after-ms", "-1"), ("retry-after", "7")], seconds(7)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT")], seconds(10)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:27 GMT")], None),
            (
                &[
                    ("date", "Sat, 05 Nov 1994 00:00:00 GMT"),
                    ("retry-after", "Sat, 05 Nov 1994 00:00:30 GMT"),
                ],
                seconds(30),
            ),
            (&[("retry-after", "Sat, 06 Nov 2004 08:49:37 GMT")], seconds(3600)),
            (&[("retry-after", "315360000")], seconds(3600)),
            (&[("retry-after", "99999999999999999999999999999999")], seconds(3600)),
            (&[("retry-after", "-5")], None),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "nan")], None),
            (&[("retry-after", "1e9")], None),
            (&[("retry-after", ".")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "tomorrow")], None),
            (&[("retry-after", "\u{e9}")], None),
        ];
        for (headers, expected) in table {
            assert_eq!(wait(headers), *expected, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_asks_for_more_than_an_hour(value in "[ -~]{0,400}|[0-9]{300,400}|[0-9.]{0,9}") {
            let waits = [wait(&[("retry-after", &value)]), wait(&[("retry-after-ms", &value)])];
            prop_assert!(waits.iter().flatten().all(|wait| *wait <= LONGEST));
        }
    }
}
