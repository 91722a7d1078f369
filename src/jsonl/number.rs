//! The grammar of a number, a byte at a time.

/// How much of a number has been read, named after the last thing in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Minus,
    LeadingZero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    /// The number that begins with `byte`, a digit or the minus.
    pub(super) fn begin(byte: u8) -> Self {
        match byte {
            b'-' => Self::Minus,
            b'0' => Self::LeadingZero,
            _ => Self::Integer,
        }
    }

    /// The number with `byte` added; `None` if `byte` is not part of it.
    pub(super) fn then(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Minus, b'0') => Some(Self::LeadingZero),
            (Self::Minus, b'1'..=b'9') | (Self::Integer, b'0'..=b'9') => Some(Self::Integer),
            (Self::LeadingZero | Self::Integer, b'.') => Some(Self::Point),
            (Self::Point | Self::Fraction, b'0'..=b'9') => Some(Self::Fraction),
            (Self::LeadingZero | Self::Integer | Self::Fraction, b'e' | b'E') => {
                Some(Self::Exponent)
            }
            (Self::Exponent, b'+' | b'-') => Some(Self::ExponentSign),
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => {
                Some(Self::ExponentDigits)
            }
            _ => None,
        }
    }

    /// The length of the number at the start of `bytes`; `None` if it is incomplete, or may go on after them.
    pub(super) fn whole_length(bytes: &[u8]) -> Option<usize> {
        let (first, rest) = bytes.split_first()?;
        let mut number = Self::begin(*first);
        for (index, byte) in rest.iter().enumerate() {
            match number.then(*byte) {
                Some(longer) => number = longer,
                None => return number.is_complete().then_some(index + 1),
            }
        }
        None
    }

    /// Whether the number may end here.
    pub(super) fn is_complete(self) -> bool {
        match self {
            Self::LeadingZero | Self::Integer | Self::Fraction | Self::ExponentDigits => true,
            Self::Minus | Self::Point | Self::Exponent | Self::ExponentSign => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_number(text: &str) -> bool {
        let mut bytes = text.bytes();
        let first = Number::begin(bytes.next().unwrap());
        bytes.try_fold(first, Number::then).is_some_and(Number::is_complete)
    }

    #[test]
    fn a_number_is_whole_once_something_else_follows() {
        assert_eq!(Number::whole_length(b"-1.5e3,"), Some(6));
        assert_eq!(Number::whole_length(b"0]"), Some(1));
        // What follows a leading zero is for others to refuse.
        assert_eq!(Number::whole_length(b"01,"), Some(1));
        for text in ["", "7", "-1.5e", "1.,", "-]"] {
            assert_eq!(Number::whole_length(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn numbers_are_those_of_the_grammar() {
        for text in ["0", "-0", "12", "-1.50", "0e0", "1E+9", "2e-07", "9.9e9", "1e999999"] {
            assert!(is_number(text), "{text}");
        }
        for text in ["-", "01", "-01", "-.5", "1.", "1.e1", "1e", "1e+", "1e1.0", "1.5.5", "0x1"] {
            assert!(!is_number(text), "{text}");
        }
    }
}
