//! OpenAI's JSON, read tolerantly: fields that are missing or of another type are left out, where they can be.

mod batch;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

pub(super) use self::batch::{batch, batch_page, new_batch};
use crate::providers::refusal::Refusal;
use crate::providers::{Page, ProviderFileId, RemoteFile};

/// Whole numbers are exact in `f64` up to here.
const LARGEST_WHOLE: f64 = 9_007_199_254_740_991.0;

/// A value of the expected type, or whatever else a server may put there.
#[derive(Deserialize)]
#[serde(untagged)]
enum Loose<T> {
    Is(T),
    Other(IgnoredAny),
}

impl<T> Loose<T> {
    fn value(self) -> Option<T> {
        match self {
            Self::Is(value) => Some(value),
            Self::Other(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct FileObject {
    id: String,
    object: Option<Loose<String>>,
    filename: Option<Loose<String>>,
    purpose: Option<Loose<String>>,
    // A float, since some servers write sizes and times as `412.0`.
    bytes: Option<Loose<f64>>,
    created_at: Option<Loose<f64>>,
    expires_at: Option<Loose<f64>>,
    status: Option<Loose<String>>,
}

impl FileObject {
    /// None where this is no file: without an id, or without anything else that only a file has.
    fn into_file(self) -> Option<RemoteFile> {
        let object = self.object.and_then(Loose::value);
        let is_file = match object.as_deref() {
            Some(object) => object == "file",
            None => matches!(self.bytes, Some(Loose::Is(_))),
        };
        let bytes = match self.bytes {
            None => 0,
            Some(bytes) => whole(bytes)?,
        };
        if self.id.is_empty() || !is_file {
            return None;
        }
        Some(RemoteFile {
            id: ProviderFileId(self.id),
            filename: self.filename.and_then(Loose::value).unwrap_or_default(),
            purpose: self.purpose.and_then(Loose::value).unwrap_or_default(),
            bytes,
            created_at: time(self.created_at),
            expires_at: time(self.expires_at),
            status: self.status.and_then(Loose::value),
        })
    }
}

#[derive(Deserialize)]
struct ListObject {
    data: Vec<FileObject>,
    has_more: Option<Loose<bool>>,
}

#[derive(Deserialize)]
struct DeletedObject {
    deleted: bool,
}

pub(super) fn file(body: &[u8]) -> Option<RemoteFile> {
    serde_json::from_slice::<FileObject>(body).ok()?.into_file()
}

/// The page, or none if any entry cannot be read: callers conclude from an entry's absence.
pub(super) fn page(body: &[u8]) -> Option<Page> {
    let ListObject { data, has_more } = serde_json::from_slice(body).ok()?;
    let files: Vec<_> = data.into_iter().map(FileObject::into_file).collect::<Option<_>>()?;
    // Where the server does not say, there may be more until a page is empty.
    let more = has_more.and_then(Loose::value).unwrap_or(true);
    let next = files.last().filter(|_| more).map(|file| file.id.clone());
    Some(Page { files, next })
}

pub(super) fn is_deleted(body: &[u8]) -> bool {
    serde_json::from_slice::<DeletedObject>(body).is_ok_and(|object| object.deleted)
}

/// The error body: OpenAI's own, and what its lookalikes and the proxies before them write instead.
pub(super) fn refusal(body: &[u8]) -> Refusal {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
        return Refusal::default();
    };
    match body.get("error") {
        Some(Value::Object(error)) => Refusal {
            message: text(error.get("message")),
            code: text(error.get("code")),
            class: text(error.get("type")),
        },
        Some(Value::String(message)) => {
            Refusal { message: Some(message.clone()), ..Refusal::default() }
        }
        _ => Refusal {
            message: text(body.get("message")).or_else(|| text(body.get("detail"))),
            code: text(body.get("code")),
            class: text(body.get("type")),
        },
    }
}

/// A text, or a number where others write one.
fn text(value: Option<&Value>) -> Option<String> {
    match value {
        Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    }
}

/// A count or a size.
fn whole(value: Loose<f64>) -> Option<u64> {
    let number = value.value()?;
    ((0.0..=LARGEST_WHOLE).contains(&number) && number.fract() == 0.0).then_some(number as u64)
}

fn time(value: Option<Loose<f64>>) -> Option<i64> {
    let seconds = value.and_then(Loose::value)?;
    // Zero is how some servers say "never".
    (1.0..=LARGEST_WHOLE).contains(&seconds).then_some(seconds as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> ProviderFileId {
        ProviderFileId(text.to_owned())
    }

    #[test]
    fn a_file_object_is_read_whole() {
        let expected = RemoteFile {
            id: id("file-Qm4tZ9wK2bX7"),
            filename: "job-17__tickets.jsonl".to_owned(),
            purpose: "batch".to_owned(),
            bytes: 412,
            created_at: Some(1_793_000_000),
            expires_at: Some(1_793_604_800),
            status: Some("processed".to_owned()),
        };
        assert_eq!(
            file(include_bytes!("fixtures/openai-file-object.json")),
            Some(expected.clone())
        );

        let minimal = RemoteFile { expires_at: None, status: None, ..expected };
        assert_eq!(file(include_bytes!("fixtures/openai-file-object-minimal.json")), Some(minimal));
    }

    #[test]
    fn odd_fields_of_a_file_are_left_out() {
        let odd =
            br#"{"id":"f","bytes":412.0,"created_at":"2026-01-01","expires_at":0,"filename":null,
                       "purpose":7,"status":{},"status_details":null,"more":[1]}"#;
        let expected = RemoteFile {
            id: id("f"),
            filename: String::new(),
            purpose: String::new(),
            bytes: 412,
            created_at: None,
            expires_at: None,
            status: None,
        };
        assert_eq!(file(odd), Some(expected));
        assert_eq!(file(br#"{"id":"f","object":"file","bytes":null}"#).unwrap().bytes, 0);
    }

    #[test]
    fn what_is_not_a_file_is_not_taken_for_one() {
        for body in [
            "",
            "null",
            "[]",
            "\"file-1\"",
            "<html></html>",
            r#"{"ok":true}"#,
            r#"{"id":"chatcmpl-1","object":"chat.completion"}"#,
            r#"{"id":"req-1","status":"ok"}"#,
            r#"{"id":"","object":"file"}"#,
            r#"{"id":5,"object":"file"}"#,
            r#"{"id":"f","object":"file","bytes":-1}"#,
            r#"{"id":"f","object":"file","bytes":0.5}"#,
            r#"{"id":"f","object":"file","bytes":"412"}"#,
            r#"{"id":"f","object":"file","bytes":1e300}"#,
            r#"{"id":"f","object":"file","bytes":4"#,
        ] {
            assert_eq!(file(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_page_goes_on_after_its_last_file_until_the_server_says_otherwise_or_a_page_is_empty() {
        let first = page(include_bytes!("fixtures/openai-file-list.json")).unwrap();
        assert_eq!(first.files.len(), 2);
        assert_eq!(first.next, Some(id("file-Out5hR8yLp3")));

        let next = |body: &str| page(body.as_bytes()).unwrap().next;
        assert_eq!(next(include_str!("fixtures/openai-file-list-empty.json")), None);
        assert_eq!(next(r#"{"data":[{"id":"f","object":"file"}],"has_more":false}"#), None);
        assert_eq!(next(r#"{"data":[{"id":"f","object":"file"}]}"#), Some(id("f")));
        assert_eq!(next(r#"{"data":[{"id":"f","object":"file"}],"has_more":null}"#), Some(id("f")));
        assert_eq!(next(r#"{"data":[],"has_more":true}"#), None);
        assert_eq!(next(r#"{"data":[]}"#), None);
    }

    #[test]
    fn a_page_with_an_unreadable_entry_is_no_page() {
        for body in [
            r#"{"data":[{"id":"f","object":"file"},{"object":"file"}],"has_more":false}"#,
            r#"{"data":[null],"has_more":false}"#,
            r#"{"data":{},"has_more":false}"#,
            r#"{"has_more":false}"#,
            "[]",
        ] {
            assert_eq!(page(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_file_counts_as_deleted_only_when_the_answer_says_so() {
        assert!(is_deleted(include_bytes!("fixtures/openai-file-deleted.json")));
        for body in ["", "{}", "<html>", r#"{"deleted":false}"#, r#"{"deleted":"true"}"#] {
            assert!(!is_deleted(body.as_bytes()), "{body}");
        }
    }

    #[test]
    fn error_bodies_of_other_shapes_are_read_as_far_as_they_go() {
        let refusal_of = |body: &str| {
            let Refusal { message, code, class } = refusal(body.as_bytes());
            [message, code, class].map(Option::unwrap_or_default)
        };
        assert_eq!(
            refusal_of(r#"{"error":{"message":"m","type":"t","code":429}}"#),
            ["m", "429", "t"]
        );
        assert_eq!(refusal_of(r#"{"error":{"message":"","code":null}}"#), ["", "", ""]);
        assert_eq!(refusal_of(r#"{"error":"m"}"#), ["m", "", ""]);
        assert_eq!(refusal_of(r#"{"detail":"Not Found"}"#), ["Not Found", "", ""]);
        assert_eq!(
            refusal_of(r#"{"object":"error","message":"m","type":"t","code":"c"}"#),
            ["m", "c", "t"]
        );
        assert_eq!(refusal_of("<html>502</html>"), ["", "", ""]);
    }

    proptest! {
        #[test]
        fn no_body_makes_a_reader_panic(body in "[\\[\\]{}:,\"a-z0-9.e-]{0,80}") {
            let _ = (file(body.as_bytes()), page(body.as_bytes()), refusal(body.as_bytes()));
        }
    }
}
