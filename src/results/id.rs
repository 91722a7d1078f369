//! The id of a line: which one of which file of which run.

use std::fmt;
use std::str::FromStr;

use super::Source;
use crate::ids::NotAnId;
use crate::ids::RunId;

const PREFIX: &str = "result_";

/// A line, as clients name it: `result_…`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultId {
    pub run: RunId,
    pub source: Source,
    pub line: i64,
}

impl fmt::Display for ResultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Output => 'o',
            Source::Error => 'e',
        };
        write!(f, "{PREFIX}{}{source}{}", self.run.0.simple(), self.line)
    }
}

impl FromStr for ResultId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let (run, rest) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_at_checked(32)).ok_or(NotAnId)?;
        let (source, line) = match rest.split_at_checked(1) {
            Some(("o", line)) => (Source::Output, line),
            Some(("e", line)) => (Source::Error, line),
            _ => return Err(NotAnId),
        };
        let run = RunId(uuid::Uuid::try_parse(run).map_err(|_| NotAnId)?);
        let id = Self { run, source, line: line.parse().map_err(|_| NotAnId)? };
        // One text for each line.
        if id.to_string() == text { Ok(id) } else { Err(NotAnId) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reading_undoes_writing(run: u128, is_output: bool, line in 1i64..) {
            let source = if is_output { Source::Output } else { Source::Error };
            let id = ResultId { run: RunId(uuid::Uuid::from_u128(run)), source, line };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn junk_is_refused(text in ".*", rest in "[0-9a-foe+-]{30,40}") {
            prop_assert!(text.parse::<ResultId>().is_err());
            if let Ok(id) = format!("{PREFIX}{rest}").parse::<ResultId>() {
                prop_assert_eq!(id.to_string(), format!("{}{}", PREFIX, rest));
            }
        }
    }
}
