//! Sizes and times as people read them.

use std::time::{Duration, UNIX_EPOCH};

/// The last second of the year 9999, past which no date can be written.
const LAST_SECOND: u64 = 253_402_300_799;

/// A number of bytes with a unit, to three or four digits: `512 B`, `1.5 KiB`, `200 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = 0;
    // In tenths of the unit, so that rounding up to the next unit is seen before the unit is chosen.
    let mut tenths = rounded(u128::from(count) * 10, 1024);
    while tenths >= 10_240 {
        unit += 1;
        tenths = rounded(u128::from(count) * 10, 1024_u128.pow(unit + 1));
    }
    let name = UNITS[unit as usize];
    if tenths < 1000 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        format!("{} {name}", rounded(tenths, 10))
    }
}

fn rounded(dividend: u128, divisor: u128) -> u128 {
    (dividend + divisor / 2) / divisor
}

/// Unix seconds as a date and time in UTC, `-` where there is none, the number where it is no date.
pub fn time(unix_seconds: Option<i64>) -> String {
    let Some(seconds) = unix_seconds else {
        return "-".to_owned();
    };
    match u64::try_from(seconds) {
        Ok(seconds) if seconds <= LAST_SECOND => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
        }
        _ => seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_the_unit_that_keeps_them_short() {
        let shown = [0, 1023, 1024, 1536, 102_348, 200 << 20, (1 << 20) - 1, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "99.9 KiB", "200 MiB", "1.0 MiB", "16.0 EiB"]
        );
    }

    #[test]
    fn times_are_in_utc_and_never_a_panic() {
        assert_eq!(time(Some(1_795_392_000)), "2026-11-23T00:00:00Z");
        assert_eq!(time(None), "-");
        assert_eq!(time(Some(-1)), "-1");
        assert_eq!(time(Some(i64::MAX)), i64::MAX.to_string());
    }

    proptest! {
        #[test]
        fn every_size_and_time_has_a_short_text(count in any::<u64>(), seconds in any::<i64>()) {
            prop_assert!(bytes(count).len() <= 8);
            prop_assert!(time(Some(seconds)).len() <= 20);
        }
    }
}
