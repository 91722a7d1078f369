//! Durations, written with their unit: `"20s"`, `"10m"`, `"24h"`, `"7d"`.

use std::{fmt, time::Duration};

use serde::de::{self, Deserializer, Visitor};

use super::deserializer::VALUE;

/// The longest duration that is taken; any of them can be added to a date without leaving the calendar.
pub(super) const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// Any duration, `"0s"` too.
pub(super) fn any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_any(DurationVisitor)
}

/// A duration longer than nothing: what would turn in circles without rest if it were zero.
pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    match any(deserializer)? {
        Duration::ZERO => {
            Err(de::Error::custom("must be longer than nothing; write it like \"20s\""))
        }
        duration => Ok(duration),
    }
}

/// Reads a duration. The error is a predicate with [`VALUE`] as its subject.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("`{VALUE}` has no unit; write it like \"20s\", \"10m\" or \"24h\""));
    }
    let duration = humantime::parse_duration(text).map_err(|_| {
        format!("`{VALUE}` is not a duration; write it like \"20s\", \"10m\" or \"24h\"")
    })?;
    if duration > LONGEST {
        return Err(format!("`{VALUE}` is longer than 100 years; write something shorter"));
    }
    Ok(duration)
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like \"20s\", \"10m\" or \"24h\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Duration, E> {
        parse(&number.to_string()).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_reach_from_milliseconds_to_days() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(parse("1h 30m"), Ok(Duration::from_mins(90)));
        assert_eq!(parse("7d"), Ok(Duration::from_hours(168)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn a_number_without_unit_and_an_endless_time_are_refused() {
        let no_unit = "`{value}` has no unit; write it like \"20s\", \"10m\" or \"24h\"";
        assert_eq!(parse("20").unwrap_err(), no_unit);
        assert_eq!(parse("0").unwrap_err(), no_unit);
        let not_one = "`{value}` is not a duration; write it like \"20s\", \"10m\" or \"24h\"";
        for text in ["", "soon", "-1s", "5 parsecs", "99999999999999999999s"] {
            assert_eq!(parse(text).unwrap_err(), not_one, "{text}");
        }
        let too_long = "`{value}` is longer than 100 years; write something shorter";
        assert_eq!(parse("36501d").unwrap_err(), too_long);
    }

    proptest! {
        #[test]
        fn no_text_makes_parsing_panic(text in "[0-9a-z. -]{0,30}") {
            let _either_is_fine = parse(&text);
        }
    }
}
