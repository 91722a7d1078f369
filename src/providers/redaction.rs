//! Makes text that came from outside fit to be stored and shown.

use secrecy::{ExposeSecret, SecretString};

/// Text of a provider that goes into an error is cut to this many characters.
const MAX_CHARS: usize = 500;

/// `text` without control characters, without `secret`, and bounded.
pub(super) fn presentable(text: &str, secret: &SecretString) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .filter(|c| !c.is_control())
        .collect();
    // After cleaning, so that a control character inside the secret does not hide it, and before
    // cutting, so that the cut does not leave the better part of it.
    let clean = match secret.expose_secret() {
        "" => clean,
        secret => clean.replace(secret, "[redacted]"),
    };
    clean.trim().chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secret_is_taken_out_even_where_control_characters_break_it_or_the_cut_goes_through_it() {
        let secret = SecretString::from("sk-secret");
        assert_eq!(presentable("bad key sk-\u{0}sec\u{7f}ret!", &secret), "bad key [redacted]!");
        let long = format!("{}sk-secret", "x".repeat(MAX_CHARS - 4));
        assert_eq!(presentable(&long, &secret), format!("{}[red", "x".repeat(MAX_CHARS - 4)));
    }

    #[test]
    fn line_breaks_become_spaces() {
        assert_eq!(presentable("one\r\ntwo\tthree\n", &SecretString::from("k")), "one  two three");
    }

    proptest! {
        #[test]
        fn whatever_a_provider_writes_the_result_is_bounded_and_clean(text in any::<String>()) {
            let result = presentable(&format!("{text}sk-secret{text}"), &SecretString::from("sk-secret"));
            prop_assert!(result.chars().count() <= MAX_CHARS);
            prop_assert!(!result.chars().any(char::is_control));
            prop_assert!(!result.contains("sk-secret"));
        }
    }
}
