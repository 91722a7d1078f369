//! Enums that are words: in the database, in JSON and on the command line alike.

/// Writes an enum whose values are words, and what such an enum needs: all of them in order, the word of
/// each, and the way back. `$what` completes "`x` is not …".
macro_rules! words {
    (
        $(#[$doc:meta])*
        $name:ident, $what:literal {
            $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.into_iter().find(|value| value.as_str() == text);
                found.ok_or_else(|| $crate::words::unknown(text, $what, &Self::ALL))
            }
        }
    };
}

pub(crate) use words;

/// What is said of a text that is none of the words.
pub fn unknown(text: &str, what: &str, words: &[impl std::fmt::Display]) -> String {
    let words: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    let text: String = text.chars().take(100).collect();
    format!("`{text}` is not {what}; it is one of {}", words.join(", "))
}

#[cfg(test)]
mod tests {
    words! {
        /// For the test alone.
        Colour, "a colour" {
            Red = "red",
            DarkBlue = "dark_blue",
        }
    }

    #[test]
    fn every_word_reads_back_and_others_are_told_what_there_is() {
        for colour in Colour::ALL {
            assert_eq!(colour.to_string().parse(), Ok(colour));
        }
        let unknown = "`green` is not a colour; it is one of `red`, `dark_blue`";
        assert_eq!("green".parse::<Colour>(), Err(unknown.to_owned()));
    }
}
