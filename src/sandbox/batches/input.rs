//! The lines of an input file, judged as the provider judges them while a batch is validating.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::BatchError;

/// Errors told of one file.
const MAX_ERRORS: usize = 100;

/// An input file after it was read.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Input {
    pub(super) lines: Vec<Line>,
    pub(super) model: String,
    /// Why a batch over it fails, if it does.
    pub(super) errors: Vec<BatchError>,
}

/// What is kept of a line.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) custom_id: Box<str>,
    /// The size of the request's body.
    pub(super) body_bytes: u32,
}

#[derive(Deserialize)]
struct Request<'l> {
    #[serde(borrow)]
    custom_id: Option<Cow<'l, str>>,
    #[serde(borrow)]
    method: Option<Cow<'l, str>>,
    #[serde(borrow)]
    url: Option<Cow<'l, str>>,
    #[serde(borrow)]
    body: Option<&'l RawValue>,
}

#[derive(Deserialize)]
struct Body<'l> {
    #[serde(borrow)]
    model: Option<Cow<'l, str>>,
}

impl Input {
    pub(super) fn read(content: &[u8], endpoint: &str, max_requests: usize) -> Self {
        let mut input = Self::default();
        let mut seen = HashSet::new();
        for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
            if line.trim_ascii().is_empty() {
                continue;
            }
            match input.judge(line, endpoint) {
                Ok(line) if !seen.insert(line.custom_id.clone()) => {
                    let message = format!("custom_id {} is used twice.", line.custom_id);
                    let fault = Fault::new("duplicate_custom_id", &message, Some("custom_id"));
                    input.tell(fault, Some(number));
                }
                Ok(line) => input.lines.push(line),
                Err(fault) => input.tell(fault, Some(number)),
            }
        }
        if input.lines.len() > max_requests {
            let message = format!("The batch has more than {max_requests} requests.");
            input.tell(Fault::new("too_many_tasks", &message, None), None);
        }
        if input.lines.is_empty() && input.errors.is_empty() {
            input.tell(Fault::new("empty_file", "The input file is empty.", None), None);
        }
        input
    }

    fn judge(&mut self, line: &[u8], endpoint: &str) -> Result<Line, Fault> {
        let request: Request<'_> = serde_json::from_slice(line).map_err(|_| {
            Fault::new("invalid_json_line", "This line is not parseable as valid JSON.", None)
        })?;
        let Some(custom_id) = request.custom_id.filter(|id| !id.is_empty()) else {
            return Err(Fault::new("invalid_request", "custom_id is missing.", Some("custom_id")));
        };
        if request.method.as_deref() != Some("POST") {
            return Err(Fault::new("invalid_request", "method must be POST.", Some("method")));
        }
        if request.url.as_deref() != Some(endpoint) {
            let message = format!("The URL of this line is not {endpoint}.");
            return Err(Fault::new("url_mismatch", &message, Some("url")));
        }
        let body = request.body.map(RawValue::get).unwrap_or_default();
        let model = serde_json::from_str::<Body<'_>>(body).ok().and_then(|body| body.model);
        let Some(model) = model.filter(|model| !model.is_empty()) else {
            return Err(Fault::new("invalid_request", "model is missing.", Some("body.model")));
        };
        if self.model.is_empty() {
            self.model = model.into_owned();
        } else if self.model != model {
            let message = format!("All lines must have one model: {} is not {model}.", self.model);
            return Err(Fault::new("model_mismatch", &message, Some("body.model")));
        }
        let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
        Ok(Line { custom_id: custom_id.into(), body_bytes })
    }

    fn tell(&mut self, fault: Fault, line: Option<u64>) {
        if self.errors.len() < MAX_ERRORS {
            let Fault { code, message, param } = fault;
            let param = param.map(str::to_owned);
            self.errors.push(BatchError { code: code.to_owned(), message, param, line });
        }
    }
}

struct Fault {
    code: &'static str,
    message: String,
    param: Option<&'static str>,
}

impl Fault {
    fn new(code: &'static str, message: &str, param: Option<&'static str>) -> Self {
        Self { code, message: message.to_owned(), param }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(custom_id: &str, model: &str) -> String {
        format!(
            r#"{{"custom_id":"{custom_id}","method":"POST","url":"/v1/embeddings","body":{{"model":"{model}","input":"x"}}}}"#
        )
    }

    fn errors(lines: &[&str], max_requests: usize) -> Vec<(String, Option<u64>)> {
        let input = Input::read(lines.join("\n").as_bytes(), "/v1/embeddings", max_requests);
        input.errors.into_iter().map(|error| (error.code, error.line)).collect()
    }

    #[test]
    fn good_lines_are_kept_with_their_model_whatever_ends_them() {
        let text = format!("{}\r\n\n{}", line("a", "m"), line("b\\u0031", "m"));
        let input = Input::read(text.as_bytes(), "/v1/embeddings", 2);
        let ids: Vec<_> = input.lines.iter().map(|line| &*line.custom_id).collect();
        assert_eq!((ids, input.model.as_str()), (vec!["a", "b1"], "m"));
        assert!(input.errors.is_empty());
    }

    #[test]
    fn every_bad_line_is_told_with_its_number() {
        let (good, other) = (line("a", "m"), line("b", "n"));
        let told = errors(
            &[
                &good,
                "{",
                &good,
                &other,
                r#"{"custom_id":"c","method":"POST","url":"/v1/responses","body":{"model":"m"}}"#,
                r#"{"custom_id":"d","method":"GET","url":"/v1/embeddings","body":{"model":"m"}}"#,
                r#"{"custom_id":"e","method":"POST","url":"/v1/embeddings","body":{}}"#,
                r#"{"method":"POST","url":"/v1/embeddings","body":{"model":"m"}}"#,
            ],
            9,
        );
        let expected = [
            ("invalid_json_line", 2),
            ("duplicate_custom_id", 3),
            ("model_mismatch", 4),
            ("url_mismatch", 5),
            ("invalid_request", 6),
            ("invalid_request", 7),
            ("invalid_request", 8),
        ];
        assert_eq!(told, expected.map(|(code, line)| (code.to_owned(), Some(line))));
    }

    #[test]
    fn a_file_of_nothing_and_one_of_too_much_are_bad_as_a_whole() {
        assert_eq!(errors(&["", " "], 1), [("empty_file".to_owned(), None)]);
        let (first, second) = (line("a", "m"), line("b", "m"));
        assert_eq!(errors(&[&first, &second], 1), [("too_many_tasks".to_owned(), None)]);
    }
}
