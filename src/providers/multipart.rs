//! A `multipart/form-data` body around one streamed file, whose exact length is known before it is sent.

use std::fmt::Write;

use bytes::Bytes;

/// What comes before and after the file's own bytes.
pub(super) struct Form {
    /// The value of the request's `content-type`.
    pub content_type: String,
    pub head: Bytes,
    pub tail: Bytes,
}

impl Form {
    /// Plain fields first, then the file, so that a server knows its purpose before the bytes come.
    ///
    /// `boundary` must not occur in the file: a random one of 128 bits does not.
    pub fn around_file(
        boundary: &str,
        fields: &[(&str, String)],
        filename: &str,
        content_type: &str,
    ) -> Self {
        let mut head = String::new();
        for (name, value) in fields {
            write!(
                head,
                "--{boundary}\r\nContent-Disposition: form-data; name=\"{}\"\r\n\r\n{value}\r\n",
                quoted(name)
            )
            .expect("writing to a string cannot fail");
        }
        write!(
            head,
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}\"\r\n\
             Content-Type: {}\r\n\r\n",
            quoted(filename),
            header_safe(content_type)
        )
        .expect("writing to a string cannot fail");

        Self {
            content_type: format!("multipart/form-data; boundary={boundary}"),
            head: head.into(),
            tail: format!("\r\n--{boundary}--\r\n").into(),
        }
    }

    /// The length of the whole body around a file of `bytes`.
    pub fn length(&self, bytes: u64) -> u64 {
        // A `usize` fits, and no file comes near the end of `u64`; one that claimed to would fail as too short.
        bytes.saturating_add((self.head.len() + self.tail.len()) as u64)
    }
}

/// As WHATWG's form encoding escapes names, and with `_` for the control characters that it lets through.
fn quoted(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '"' => quoted.push_str("%22"),
            '\r' => quoted.push_str("%0D"),
            '\n' => quoted.push_str("%0A"),
            c if c.is_control() => quoted.push('_'),
            c => quoted.push(c),
        }
    }
    quoted
}

/// The content type itself where it is one plain line that looks like a type, else the type of any bytes.
fn header_safe(content_type: &str) -> &str {
    let plain = content_type.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if plain && content_type.contains('/') && content_type.len() <= 255 {
        content_type
    } else {
        "application/octet-stream"
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use proptest::prelude::*;

    use super::*;

    fn disposition(filename: &str, content_type: &str) -> String {
        let form = Form::around_file("b", &[], filename, content_type);
        String::from_utf8(form.head.to_vec()).unwrap()
    }

    #[test]
    fn filenames_cannot_leave_their_quotes_or_their_line() {
        let head = disposition("a\"b\r\nc\0d\u{7f}é.jsonl", "text/plain");
        assert_eq!(
            head,
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a%22b%0D%0Ac_d_é.jsonl\"\r\n\
             Content-Type: text/plain\r\n\r\n"
        );
    }

    #[test]
    fn a_content_type_that_is_not_one_plain_line_is_sent_as_octets() {
        for bad in ["", "text", "text/plain\r\nx: y", "text/\u{e9}", &"a/".repeat(200)] {
            assert!(
                disposition("f", bad).ends_with("Content-Type: application/octet-stream\r\n\r\n")
            );
        }
        assert!(
            disposition("f", "text/plain; charset=utf-8")
                .contains(": text/plain; charset=utf-8\r\n")
        );
    }

    proptest! {
        #[test]
        fn any_form_parses_back_into_its_fields_and_its_file(
            purpose in "[a-z_-]{1,20}",
            filename in "[^\\p{Cc}\"\\\\]{1,40}",
            content in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let form = Form::around_file("boundary7", &[("purpose", purpose.clone())], &filename, "a/b");
            let body = [&form.head[..], &content, &form.tail].concat();
            prop_assert_eq!(form.length(content.len() as u64), body.len() as u64);

            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (fields, name) = runtime.block_on(async {
                let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from(body))]);
                let mut parser = multer::Multipart::new(body, "boundary7");
                let mut fields = Vec::new();
                let mut name = None;
                while let Some(field) = parser.next_field().await.unwrap() {
                    name = field.file_name().map(str::to_owned);
                    fields.push((field.name().unwrap().to_owned(), field.bytes().await.unwrap()));
                }
                (fields, name)
            });
            prop_assert_eq!(fields, [
                ("purpose".to_owned(), Bytes::from(purpose)),
                ("file".to_owned(), Bytes::from(content)),
            ]);
            prop_assert_eq!(name, Some(filename));
        }
    }
}
