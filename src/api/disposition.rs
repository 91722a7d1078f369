//! `Content-Disposition`, read as browsers and SDKs write it in forms (WHATWG HTML, RFC 7578), and
//! written for downloads (RFC 6266).

use percent_encoding::AsciiSet;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::percent_decode_str;
use percent_encoding::utf8_percent_encode;

/// The characters that RFC 5987 leaves unescaped in an extended value.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// What the header of a form's part says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FormPart {
    pub name: Option<String>,
    pub filename: Option<String>,
}

/// Reads the header of a form's part. `filename*` counts before `filename`.
pub fn read(header: &[u8]) -> FormPart {
    let text = String::from_utf8_lossy(header);
    let mut part = FormPart::default();
    let mut extended = None;
    for (name, value) in parameters(&text) {
        match name.to_ascii_lowercase().as_str() {
            "name" => part.name = Some(unescape_percent(&value)),
            "filename" => part.filename = Some(unescape_percent(&value)),
            "filename*" => extended = read_extended(&value),
            _ => {}
        }
    }
    part.filename = extended.or(part.filename);
    part
}

/// The parameters behind the first `;`, quotes and backslashes undone.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let Some((_, mut rest)) = text.split_once(';') else { return found };
    while let Some((name, behind)) = rest.split_once('=') {
        let name = name.trim().trim_start_matches(';').trim().to_owned();
        let behind = behind.trim_start();
        let value;
        (value, rest) = match behind.strip_prefix('"') {
            Some(quoted) => read_quoted(quoted),
            None => {
                let (value, rest) = behind.split_once(';').unwrap_or((behind, ""));
                (value.trim().to_owned(), rest)
            }
        };
        found.push((name, value));
        rest = rest.trim_start().trim_start_matches(';');
    }
    found
}

/// A quoted text without its quotes, and what follows it. Only `\\` and `\"` are escapes: a lone
/// backslash is part of a Windows path.
fn read_quoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return (value, &text[place + 1..]),
            '\\' => match characters.next_if(|(_, next)| matches!(next, '\\' | '"')) {
                Some((_, escaped)) => value.push(escaped),
                None => value.push('\\'),
            },
            _ => value.push(character),
        }
    }
    (value, "")
}

/// `%22`, `%0D` and `%0A`, which browsers write for what cannot stand in the header; nothing else.
fn unescape_percent(text: &str) -> String {
    let mut text = text.to_owned();
    for (escape, character) in
        [("%22", "\""), ("%0D", "\r"), ("%0d", "\r"), ("%0A", "\n"), ("%0a", "\n")]
    {
        text = text.replace(escape, character);
    }
    text
}

/// An extended value of RFC 5987: `UTF-8''…`.
fn read_extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, encoded) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    percent_decode_str(encoded).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// The header of a download: a plain name for old clients, and the exact one.
pub fn attachment(filename: &str) -> String {
    let plain: String = filename
        .chars()
        .map(|character| match character {
            '"' | '\\' | '/' => '_',
            ' '..='~' => character,
            _ => '_',
        })
        .take(200)
        .collect();
    format!(
        "attachment; filename=\"{plain}\"; filename*=UTF-8''{}",
        utf8_percent_encode(filename, ATTR_CHAR)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filename(header: &str) -> Option<String> {
        read(header.as_bytes()).filename
    }

    #[test]
    fn filenames_are_read_as_their_writers_meant_them() {
        for (header, expected) in [
            (r#"form-data; name="file"; filename="in.jsonl""#, "in.jsonl"),
            (r#"form-data; name="file"; filename=in.jsonl"#, "in.jsonl"),
            (r#"form-data; name=file; filename="a \"b\" \\ c""#, r#"a "b" \ c"#),
            (r#"form-data; name="file"; filename="C:\dir\in.jsonl""#, r"C:\dir\in.jsonl"),
            (r#"form-data; name="file"; filename="a%22b%0D%0Ac%41""#, "a\"b\r\nc%41"),
            (r#"form-data; name="file"; filename="a;b=c.txt""#, "a;b=c.txt"),
            (
                r#"form-data; filename="old"; filename*=UTF-8''na%C3%AFve.txt; name="file""#,
                "naïve.txt",
            ),
            (r#"form-data; filename*=utf-8'en'%22.txt; filename="old"; name="file""#, "\".txt"),
            (r#"form-data; name="file"; filename="naïve.txt""#, "naïve.txt"),
            (r#"form-data; name="file"; filename="""#, ""),
        ] {
            assert_eq!(filename(header).as_deref(), Some(expected), "{header}");
            assert_eq!(read(header.as_bytes()).name.as_deref(), Some("file"), "{header}");
        }
    }

    #[test]
    fn a_field_without_a_filename_has_none() {
        assert_eq!(filename(r#"form-data; name="purpose""#), None);
        assert_eq!(read(b"form-data"), FormPart::default());
    }

    proptest! {
        #[test]
        fn junk_never_panics(header in prop::collection::vec(any::<u8>(), 0..200)) {
            read(&header);
        }

        #[test]
        fn the_name_of_a_download_reads_back_and_is_a_header(name in ".{0,100}") {
            let header = attachment(&name);
            prop_assert!(header.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            prop_assert_eq!(filename(&header), Some(name));
        }
    }
}
