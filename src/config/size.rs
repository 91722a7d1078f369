//! Sizes in bytes, written with their unit.

use std::{fmt, str::FromStr};

use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::deserializer::VALUE;

/// A number of bytes. At most `i64::MAX`, so that it fits a database column.
///
/// Written `"512MiB"` (powers of 1024), `"200MB"` (powers of 1000), or as a plain number of bytes.
/// Its text form is read back as the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `count` times 1024², as in `"512MiB"`.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// `count` times 1000², as in `"200MB"`.
    pub const fn megabytes(count: u64) -> Self {
        Self(count * 1_000_000)
    }
}

/// Each unit with its bytes, larger ones first.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// The text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a size; write it like \"512MiB\" or \"200MB\"")]
pub struct NotASize;

impl FromStr for ByteSize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| NotASize)?;
        let bytes_each = match unit.trim_start() {
            "" => 1,
            unit => {
                let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
                known.ok_or(NotASize)?.1
            }
        };
        let bytes = number.checked_mul(bytes_each).ok_or(NotASize)?;
        i64::try_from(bytes).map_err(|_| NotASize)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, bytes_each) = UNITS
            .into_iter()
            .find(|(_, bytes_each)| self.0 >= *bytes_each && self.0.is_multiple_of(*bytes_each))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / bytes_each)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size like \"512MiB\" or \"200MB\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(|error| E::custom(format_args!("`{VALUE}` is {error}")))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<ByteSize, E> {
        match u64::try_from(number) {
            Ok(bytes) => Ok(ByteSize(bytes)),
            Err(_) => Err(E::custom(format_args!("`{VALUE}` is {NotASize}"))),
        }
    }
}

/// A size of at least one byte.
pub(super) fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    match ByteSize::deserialize(deserializer)? {
        ByteSize(0) => Err(de::Error::custom("must be at least one byte")),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn binary_and_decimal_units_differ_and_a_plain_number_is_bytes() {
        let size = |text: &str| text.parse().map(|ByteSize(bytes)| bytes);
        assert_eq!(size("512MiB"), Ok(536_870_912));
        assert_eq!(size("200MB"), Ok(200_000_000));
        assert_eq!(size(" 2 gib "), Ok(2_147_483_648));
        assert_eq!(size("1048576"), Ok(1_048_576));
        assert_eq!(size("7B"), Ok(7));
    }

    #[test]
    fn what_is_not_plainly_a_size_is_refused() {
        let tests = ["", "MB", "512Mib3", "-1", "1.5GB", "5M", "1MB 2MB", "9223372036854775808"];
        for text in tests.into_iter().chain(["9000000TiB", "99999999999999999999"]) {
            assert_eq!(text.parse::<ByteSize>(), Err(NotASize), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_the_largest_unit_that_is_exact() {
        assert_eq!(ByteSize::mebibytes(512).to_string(), "512MiB");
        assert_eq!(ByteSize::megabytes(200).to_string(), "200MB");
        assert_eq!(ByteSize(0).to_string(), "0B");
        assert_eq!(ByteSize(1001).to_string(), "1001B");
    }

    proptest! {
        #[test]
        fn parsing_undoes_printing(number in 0..=i64::MAX as u64, zeros in 0_u32..60) {
            let size = ByteSize(number >> zeros << zeros);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in ".*") {
            let _either_is_fine = text.parse::<ByteSize>();
        }
    }
}
