//! A line as the API shows it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::MapAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;

use super::LineOutcome;
use super::Problem;

/// What is shown of a broken line.
pub const SHOWN: u64 = 16 * 1024;

/// What is said of a line beside what it says itself.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'p> {
    pub id: &'p str,
    pub model: &'p str,
    pub outcome: LineOutcome,
    pub problem: Option<Problem>,
}

/// Writes a line with what is said of it. Every key of the line is kept as it is, but for those whose names are
/// ours: they become `provider_id` and so on, and what has such a name itself `provider_provider_id`. Of a broken line it writes the text, as far as it is UTF-8.
pub fn present(line: &[u8], presented: Presented<'_>, out: &mut Vec<u8>) {
    let members = if presented.outcome == LineOutcome::Broken { None } else { members(line) };
    let status = if members.is_some() { presented.outcome } else { LineOutcome::Broken };
    out.push(b'{');
    member(out, "id", presented.id);
    member(out, "model", presented.model);
    member(out, "status", status.as_str());
    if let Some(problem) = presented.problem {
        member(out, "problem", problem.as_str());
    }
    match members {
        Some(members) => {
            for (key, value) in members {
                name(out, key, value.get());
            }
        }
        None => member(out, "raw", shown(line)),
    }
    out.push(b'}');
}

fn name(out: &mut Vec<u8>, key: &RawValue, value: &str) {
    out.push(b',');
    let name: Option<Cow<'_, str>> = serde_json::from_str(key.get()).ok();
    match name.as_deref() {
        Some(name) if is_ours(name) => {
            out.extend_from_slice(format!("\"provider_{name}\"").as_bytes());
        }
        _ => out.extend_from_slice(key.get().as_bytes()),
    }
    out.push(b':');
    out.extend_from_slice(value.as_bytes());
}

fn is_ours(name: &str) -> bool {
    let mut name = name;
    while let Some(rest) = name.strip_prefix("provider_") {
        name = rest;
    }
    matches!(name, "id" | "model" | "status" | "problem")
}

fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    out.extend_from_slice(format!("\"{name}\":{}", serde_json::Value::from(value)).as_bytes());
}

fn shown(line: &[u8]) -> &str {
    let line = &line[..line.len().min(SHOWN as usize)];
    match str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => str::from_utf8(&line[..error.valid_up_to()]).unwrap_or_default(),
    }
}

/// The keys and values of an object, as they are written.
fn members(line: &[u8]) -> Option<Vec<(&RawValue, &RawValue)>> {
    struct Members;

    impl<'l> Visitor<'l> for Members {
        type Value = Vec<(&'l RawValue, &'l RawValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'l>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut members = Vec::new();
            while let Some(member) = map.next_entry()? {
                members.push(member);
            }
            Ok(members)
        }
    }

    let mut deserializer = serde_json::Deserializer::from_str(str::from_utf8(line).ok()?);
    deserializer.deserialize_map(Members).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    fn shown_as(line: &[u8], outcome: LineOutcome, problem: Option<Problem>) -> Value {
        let mut out = Vec::new();
        let presented = Presented { id: "result_1", model: "a \"model\"", outcome, problem };
        present(line, presented, &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn every_key_of_a_line_is_kept_and_ours_come_first() {
        let line = br#"{"id":"batch_req_1","custom_id":"a","response":{"x": 1.0e2},"model":null,"error":null}"#;
        let mut out = Vec::new();
        let presented = Presented {
            id: "result_1",
            model: "m",
            outcome: LineOutcome::Succeeded,
            problem: None,
        };
        present(line, presented, &mut out);
        let expected = r#"{"id":"result_1","model":"m","status":"succeeded","provider_id":"batch_req_1","custom_id":"a","response":{"x": 1.0e2},"provider_model":null,"error":null}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn no_key_comes_twice() {
        let shown =
            shown_as(br#"{"id":1,"provider_id":2,"provider_x":3}"#, LineOutcome::Failed, None);
        let expected = json!({"id": "result_1", "model": "a \"model\"", "status": "failed", "provider_id": 1,
            "provider_provider_id": 2, "provider_x": 3});
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_problem_is_told() {
        let shown =
            shown_as(b"{\"custom_id\":\"a\"}", LineOutcome::Failed, Some(Problem::Duplicate));
        let expected = json!({"id": "result_1", "model": "a \"model\"", "status": "failed", "problem": "duplicate",
            "custom_id": "a"});
        assert_eq!(shown, expected);
    }

    #[test]
    fn an_empty_object_is_still_one() {
        assert_eq!(shown_as(b"{}", LineOutcome::Failed, None)["status"], "failed");
    }

    #[test]
    fn of_a_broken_line_what_can_be_read_is_shown() {
        let shown = shown_as(b"{\"a\": \xff", LineOutcome::Broken, None);
        assert_eq!((&shown["status"], &shown["raw"]), (&json!("broken"), &json!("{\"a\": ")));
        let long = vec![b'x'; 100_000];
        assert_eq!(
            shown_as(&long, LineOutcome::Broken, None)["raw"].as_str().unwrap().len(),
            SHOWN as usize
        );
    }

    #[test]
    fn what_is_no_object_any_more_is_shown_as_broken() {
        assert_eq!(shown_as(b"[]", LineOutcome::Succeeded, None)["status"], "broken");
    }
}
