//! A point in time as a person writes it: a date, a time, or how long ago.

use std::ops::RangeInclusive;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::clock::Clock;

/// Numbers that are Unix seconds beyond doubt, of the years 2001 to 2286. Another number would be a date
/// without its dashes or a time in milliseconds, and stand for far too many files or for none.
const UNIX_SECONDS: RangeInclusive<i64> = 1_000_000_000..=9_999_999_999;

/// Unix seconds of what was written.
pub fn moment(text: &str) -> Result<i64, String> {
    at(text.trim(), Clock::default().now().unix_seconds())
}

fn at(text: &str, now: i64) -> Result<i64, String> {
    if let Ok(number) = text.parse::<i64>() {
        return if UNIX_SECONDS.contains(&number) {
            Ok(number)
        } else {
            Err("a number should be Unix seconds, of ten digits; a date looks like `2026-01-31`"
                .to_owned())
        };
    }
    if let Ok(age) = humantime::parse_duration(text) {
        let age = i64::try_from(age.as_secs()).ok().filter(|age| *age <= now);
        return age.map(|age| now - age).ok_or_else(|| "it was before 1970".to_owned());
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp.as_second());
    }
    // jiff takes the date of a time without its zone, and leaves the time unread.
    let is_a_date = !text.contains([':', 'T', ' ']);
    if is_a_date && let Ok(day) = text.parse::<Date>() {
        let midnight = day.to_zoned(TimeZone::UTC).map_err(|error| error.to_string())?;
        return Ok(midnight.timestamp().as_second());
    }
    Err("it should be a date such as `2026-01-31` (from its midnight in UTC), a time with its zone such as \
         `2026-01-31T12:00:00Z`, Unix seconds, or an age such as `30d`"
        .to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_795_392_000;

    #[test]
    fn a_date_a_time_and_an_age_are_read() {
        for (text, expected) in [
            ("2026-11-22", NOW - 24 * 3600),
            ("2026-11-23T00:00:00Z", NOW),
            ("2026-11-23T02:00:00+02:00", NOW),
            ("2026-11-23 00:00:00Z", NOW),
            ("1795392000", NOW),
            ("30d", NOW - 30 * 24 * 3600),
            ("1h 30m", NOW - 5400),
        ] {
            assert_eq!(at(text, NOW), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_could_mean_something_else_is_refused_with_what_would_be_right() {
        for text in [
            "",
            "soon",
            "30",
            "-30",
            "20260131",
            "1795392000000",
            "2026-11-23T00:00:00",
            "2026-11-23 00:00",
            "2026-13-01",
            "2000y",
        ] {
            assert!(at(text, NOW).is_err(), "`{text}` was taken as {:?}", at(text, NOW));
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic_and_no_age_is_in_the_future(text in any::<String>(), seconds in 0_u64..u64::MAX) {
            let _ = at(&text, NOW);
            if let Ok(read) = at(&format!("{seconds}s"), NOW) {
                prop_assert!(read <= NOW);
            }
        }
    }
}
