//! Ids as a person gives them on the command line.

use std::{fmt, str::FromStr};

/// The id of something on the server, as it was typed or pasted.
///
/// The server alone knows what an id means, so nothing is read out of it. What is checked is that it
/// stays one segment of a URL's path: never empty, `.` or `..`, and nothing in it is invisible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenId(String);

/// Longer than any id that the server mints, and short enough for a request line.
const MAX_LENGTH: usize = 6000;

impl GivenId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GivenId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for GivenId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = text.trim();
        if id.is_empty() || id == "." || id == ".." {
            return Err(
                "it is not an id: `longshore files ls`, `batches ls`, `jobs ls` and `sweeps ls` show them"
                    .to_owned(),
            );
        }
        if id.len() > MAX_LENGTH {
            return Err(format!("it has {} bytes, and an id has at most {MAX_LENGTH}", id.len()));
        }
        if !id.chars().all(|character| character.is_ascii_graphic()) {
            return Err(
                "an id has only letters, digits and signs of ASCII, and no spaces".to_owned()
            );
        }
        Ok(Self(id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_as_it_was_pasted_without_the_space_around_it() {
        assert_eq!(" job_1-a_B=\n".parse::<GivenId>().unwrap().as_str(), "job_1-a_B=");
    }

    #[test]
    fn what_would_change_the_path_of_a_request_is_no_id() {
        for text in ["", " ", ".", "..", "a b", "a\nb", "é", &"a".repeat(MAX_LENGTH + 1)] {
            assert!(text.parse::<GivenId>().is_err(), "`{text}` was taken");
        }
    }
}
