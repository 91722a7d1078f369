//! One line of an output or error file, read in one pass: of which request it is the result, whether it succeeded, and
//! what was used.
//!
//! A line counts unless it is no JSON object with a `custom_id` that is a text: whatever else is in it, of whatever
//! type, takes nothing from it. What does not matter here is passed over without being built.

mod lenient;

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::de::MapAccess;

use self::lenient::Lenient;
use self::lenient::Object;
use self::lenient::number;
use self::lenient::object;
use self::lenient::pass_over;
use self::lenient::text;
use self::lenient::whole;
use crate::runs::Usage;

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'l> {
    /// Decoded, as it is stored.
    pub custom_id: Cow<'l, str>,
    pub has_succeeded: bool,
    pub status_code: Option<i32>,
    pub usage: Option<Usage>,
}

impl<'l> Line<'l> {
    /// Reads a line; none for one that is no result.
    pub fn read(text: &'l [u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?;
        // What fails here may still be JSON: a response that is a number beyond all numbers, say.
        let fields = whole::<Fields<'l, false>>(text)
            .or_else(|| whole::<Fields<'l, true>>(text).map(Fields::hurried))?;
        let response = fields.response;
        let is_good = response.status_code.is_some_and(|status| (200..300).contains(&status));
        Some(Self {
            custom_id: fields.custom_id?,
            has_succeeded: is_good && !fields.has_error,
            status_code: response.status_code.and_then(|status| i32::try_from(status).ok()),
            usage: response.body.usage.map(Tokens::total),
        })
    }
}

/// The keys of a line. Read carefully, a response costs a second pass, and spoils nothing.
#[derive(Default)]
struct Fields<'l, const IS_CAREFUL: bool> {
    custom_id: Option<Cow<'l, str>>,
    has_error: bool,
    response: Response,
}

impl<'l> Fields<'l, true> {
    fn hurried(self) -> Fields<'l, false> {
        let Self { custom_id, has_error, response } = self;
        Fields { custom_id, has_error, response }
    }
}

impl<'l, const IS_CAREFUL: bool> Object<'l> for Fields<'l, IS_CAREFUL> {
    fn take<A: MapAccess<'l>>(&mut self, key: &[u8], map: &mut A) -> Result<(), A::Error> {
        match key {
            b"custom_id" => self.custom_id = text(map.next_value()?),
            b"error" => self.has_error = map.next_value::<Option<IgnoredAny>>()?.is_some(),
            b"response" if IS_CAREFUL => {
                let Status(status_code) = object(map.next_value()?);
                self.response = Response { status_code, body: Body::default() };
            }
            b"response" => self.response = map.next_value::<Lenient<_>>()?.0,
            _ => pass_over(map)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Response {
    status_code: Option<u64>,
    body: Body,
}

impl<'l> Object<'l> for Response {
    fn take<A: MapAccess<'l>>(&mut self, key: &[u8], map: &mut A) -> Result<(), A::Error> {
        match key {
            b"status_code" => self.status_code = number(map.next_value()?),
            b"body" => self.body = map.next_value::<Lenient<_>>()?.0,
            _ => pass_over(map)?,
        }
        Ok(())
    }
}

/// A response, but for its body.
#[derive(Default)]
struct Status(Option<u64>);

impl<'l> Object<'l> for Status {
    fn take<A: MapAccess<'l>>(&mut self, key: &[u8], map: &mut A) -> Result<(), A::Error> {
        match key {
            b"status_code" => self.0 = number(map.next_value()?),
            _ => pass_over(map)?,
        }
        Ok(())
    }
}

#[derive(Default)]
struct Body {
    usage: Option<Tokens>,
}

impl<'l> Object<'l> for Body {
    fn take<A: MapAccess<'l>>(&mut self, key: &[u8], map: &mut A) -> Result<(), A::Error> {
        match key {
            b"usage" => {
                let tokens: Tokens = object(map.next_value()?);
                self.usage = tokens.is_any.then_some(tokens);
            }
            _ => pass_over(map)?,
        }
        Ok(())
    }
}

/// Usage, in the shapes of chat completions, of responses, and of embeddings.
#[derive(Clone, Copy, Default)]
struct Tokens {
    is_any: bool,
    has_total: bool,
    usage: Usage,
}

impl Tokens {
    fn total(mut self) -> Usage {
        if !self.has_total {
            let sum = self.usage.input_tokens.saturating_add(self.usage.output_tokens);
            self.usage.total_tokens = sum;
        }
        self.usage
    }
}

impl<'l> Object<'l> for Tokens {
    fn take<A: MapAccess<'l>>(&mut self, key: &[u8], map: &mut A) -> Result<(), A::Error> {
        let usage = &mut self.usage;
        let (place, found) = match key {
            b"input_tokens" | b"prompt_tokens" => {
                (&mut usage.input_tokens, number(map.next_value()?))
            }
            b"output_tokens" | b"completion_tokens" => {
                (&mut usage.output_tokens, number(map.next_value()?))
            }
            b"total_tokens" => {
                let total = number(map.next_value()?);
                self.has_total = total.is_some();
                (&mut usage.total_tokens, total)
            }
            b"input_tokens_details" | b"prompt_tokens_details" => {
                let details: Details = object(map.next_value()?);
                (&mut usage.input_tokens_details.cached_tokens, details.cached)
            }
            b"output_tokens_details" | b"completion_tokens_details" => {
                let details: Details = object(map.next_value()?);
                (&mut usage.output_tokens_details.reasoning_tokens, details.reasoning)
            }
            _ => return pass_over(map),
        };
        if let Some(found) = found {
            *place = found;
            self.is_any = true;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Details {
    cached: Option<u64>,
    reasoning: Option<u64>,
}

impl<'l> Object<'l> for Details {
    fn take<A: MapAccess<'l>>(&mut self, key: &[u8], map: &mut A) -> Result<(), A::Error> {
        match key {
            b"cached_tokens" => self.cached = number(map.next_value()?),
            b"reasoning_tokens" => self.reasoning = number(map.next_value()?),
            _ => pass_over(map)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::results::stored;
    use crate::runs::usage::InputTokensDetails;
    use crate::runs::usage::OutputTokensDetails;

    fn read(line: &Value) -> Option<Line<'static>> {
        let text = line.to_string();
        let line = Line::read(text.as_bytes())?;
        Some(Line { custom_id: Cow::Owned(line.custom_id.into_owned()), ..line })
    }

    fn with_usage(usage: &Value) -> Option<Usage> {
        let response = json!({"status_code": 200, "body": {"usage": usage}});
        read(&json!({"custom_id": "a", "response": response})).unwrap().usage
    }

    #[test]
    fn a_line_is_judged_by_its_status_and_its_error() {
        let lines = [
            (json!({"status_code": 200}), json!(null), true),
            (json!({"status_code": 299}), json!(null), true),
            (json!({"status_code": "200"}), json!(null), true),
            (json!({"status_code": 200.0}), json!(null), true),
            (json!({"status_code": 400}), json!(null), false),
            (json!({"status_code": 0}), json!(null), false),
            (json!({"status_code": -200}), json!(null), false),
            (json!({"status_code": [200]}), json!(null), false),
            (json!({}), json!(null), false),
            (json!(null), json!(null), false),
            (json!("200"), json!(null), false),
            (json!({"status_code": 200}), json!({"code": "batch_expired"}), false),
        ];
        for (response, error, expected) in lines {
            let line = json!({"id": "1", "custom_id": "a", "response": response, "error": error});
            assert_eq!(read(&line).unwrap().has_succeeded, expected, "{line}");
        }
    }

    #[test]
    fn usage_is_read_in_every_shape() {
        let chat = json!({"prompt_tokens": 70, "completion_tokens": 32, "total_tokens": 102,
            "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 7}});
        let responses = json!({"input_tokens": 70, "output_tokens": 32, "total_tokens": 102,
            "input_tokens_details": {"cached_tokens": 5}, "output_tokens_details": {"reasoning_tokens": 7}});
        let expected = Usage {
            input_tokens: 70,
            input_tokens_details: InputTokensDetails { cached_tokens: 5 },
            output_tokens: 32,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: 7 },
            total_tokens: 102,
        };
        assert_eq!(with_usage(&chat), Some(expected));
        assert_eq!(with_usage(&responses), Some(expected));
        let embeddings = Usage { input_tokens: 8, total_tokens: 8, ..Usage::default() };
        assert_eq!(with_usage(&json!({"prompt_tokens": 8, "total_tokens": 8})), Some(embeddings));
        assert_eq!(with_usage(&json!({"prompt_tokens": 8})), Some(embeddings));
    }

    #[test]
    fn usage_of_odd_types_is_none() {
        for usage in [
            json!(null),
            json!(7),
            json!("many"),
            json!([1]),
            json!({}),
            json!({"total_tokens": {}}),
        ] {
            assert_eq!(with_usage(&usage), None, "{usage}");
        }
    }

    #[test]
    fn what_is_no_object_with_a_custom_id_is_broken() {
        for line in [
            "",
            "{",
            "null",
            "[]",
            "7",
            "{}",
            r#"{"custom_id":7}"#,
            r#"{"custom_id":null}"#,
            r#"{"custom_id":"a"}}"#,
            r#"{"custom_id":"a"} {}"#,
            r#"{"custom_id":"a","x":}"#,
            r#"{"custom_id":"a","response":{"#,
            "{\"custom_id\":\"a\n\"}",
        ] {
            assert_eq!(Line::read(line.as_bytes()), None, "{line}");
        }
        assert_eq!(Line::read(b"{\"custom_id\":\"a\",\"x\":\"\xff\"}"), None, "no UTF-8");
    }

    #[test]
    fn numbers_and_texts_that_no_type_holds_take_nothing_from_a_line() {
        let response = |rest: &str| {
            format!(r#"{{"custom_id":"a","response":{{"status_code":200,{rest}}},"error":null}}"#)
        };
        for line in [
            response(r#""body":1e999"#),
            response(r#""body":"\ud800""#),
            response(r#""body":{"usage":1e999}"#),
            response(r#""body":{"usage":{"prompt_tokens":1e999,"total_tokens":"\udfff"}}"#),
            response(r#""body":{"\ud800":"\ud800"}"#),
        ] {
            assert!(Line::read(line.as_bytes()).unwrap().has_succeeded, "{line}");
        }
        let line = r#"{"custom_id":"a","response":1e999}"#;
        assert_eq!(Line::read(line.as_bytes()).map(|line| line.has_succeeded), Some(false));
        let line = r#"{"custom_id":"\ud800","response":"\ud800"}"#;
        assert_eq!(Line::read(line.as_bytes()).unwrap().custom_id, stored(b"\xed\xa0\x80"));
    }

    #[test]
    fn escapes_are_undone_in_keys_and_ids() {
        let line = Line::read(br#"{"custom\u005fid":"\u0061\"\n"}"#).unwrap();
        assert_eq!(line.custom_id, "a\"\n");
    }

    #[test]
    fn the_last_of_two_keys_counts() {
        let line = Line::read(br#"{"custom_id":"a","error":{},"error":null,"custom_id":"b"}"#);
        assert_eq!(line.unwrap().custom_id, "b");
    }

    #[test]
    fn deep_nesting_in_a_body_is_no_matter() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let line = format!(r#"{{"custom_id":"a","response":{{"body":{deep}}},"x":{deep}}}"#);
        assert!(Line::read(line.as_bytes()).is_some());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        let keys = prop::sample::select(vec![
            "custom_id",
            "response",
            "error",
            "status_code",
            "body",
            "usage",
            "prompt_tokens",
            "total_tokens",
            "input_tokens_details",
            "cached_tokens",
            "id",
        ]);
        leaf.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(keys.clone().prop_map(str::to_owned), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_object_with_a_custom_id_counts(line in any_json(), id in ".{0,20}") {
            let mut line = line;
            if let Some(object) = line.as_object_mut() {
                object.insert("custom_id".to_owned(), Value::from(id.clone()));
                let found = read(&line).expect("it has a custom_id");
                prop_assert_eq!(found.custom_id, stored(id.as_bytes()));
                let response = line.get("response");
                let status = response.and_then(|response| response.get("status_code")).and_then(Value::as_u64);
                if let Some(status) = status {
                    let is_good = (200..300).contains(&status) && line.get("error").is_none_or(Value::is_null);
                    prop_assert_eq!(found.has_succeeded, is_good);
                }
            } else {
                prop_assert_eq!(read(&line), None);
            }
        }

        #[test]
        fn junk_is_read_without_a_panic(text in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Line::read(&text);
        }

        #[test]
        fn what_is_no_json_is_broken(line in any_json(), cut in 0usize..300) {
            let text = json!({"custom_id": "a", "response": line}).to_string();
            let cut = text.floor_char_boundary(cut.min(text.len() - 1));
            prop_assert_eq!(Line::read(&text.as_bytes()[..cut]), None);
        }
    }
}
