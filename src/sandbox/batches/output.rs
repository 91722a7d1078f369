//! The files that a batch makes: an answer for each line, in another order than the input's.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;

use super::BatchCounts;
use super::BatchEnd;
use super::BatchFile;
use super::BatchSettings;
use super::BatchUsage;
use super::Oddity;
use super::answers;
use super::input::Input;
use super::input::Line;
use crate::sandbox::Purpose;
use crate::sandbox::files::NewFile;

/// All that the files of a batch follow from.
pub(in crate::sandbox) struct Ending {
    pub(super) batch_id: String,
    pub(super) endpoint: String,
    pub(super) created_at: u64,
    pub(super) input: Arc<Input>,
    pub(super) settings: Arc<BatchSettings>,
    pub(in crate::sandbox) end: BatchEnd,
    /// How many lines were answered before the end.
    pub(super) done: usize,
    pub(super) output_life_seconds: u64,
}

/// What a batch has come to.
#[derive(Default)]
pub(in crate::sandbox) struct Results {
    pub(in crate::sandbox) output: Option<NewFile>,
    pub(in crate::sandbox) error: Option<NewFile>,
    pub(super) counts: BatchCounts,
    pub(super) usage: Option<BatchUsage>,
}

/// What became of the first `done` lines.
pub(super) fn counts(input: &Input, settings: &BatchSettings, done: usize) -> BatchCounts {
    let lines = input.lines.iter().enumerate().take(done);
    let failed = lines
        .filter(|(number, line)| settings.failure(*number, &line.custom_id).is_some())
        .count() as u64;
    BatchCounts { total: input.lines.len() as u64, completed: done as u64 - failed, failed }
}

/// A file that a batch has made.
pub(super) fn file(batch_id: &str, file: BatchFile, life_seconds: u64, content: Bytes) -> NewFile {
    let filename = format!("{batch_id}_{}.jsonl", file.as_str());
    NewFile {
        expires_after_seconds: Some(life_seconds),
        ..NewFile::of_bytes(filename, Purpose::BatchOutput, content)
    }
}

impl Ending {
    /// Takes as long as the files are large.
    pub(in crate::sandbox) fn write(&self) -> Results {
        if matches!(self.end, BatchEnd::Failed { .. }) {
            return Results::default();
        }
        let mut usage = BatchUsage::default();
        let mut counts = counts(&self.input, &self.settings, self.done);
        let mut output = Lines::new(self);
        let mut error = Lines::new(self);
        for (number, line) in self.input.lines.iter().enumerate().take(self.done).rev() {
            match self.settings.failure(number, &line.custom_id) {
                None => output.push(&self.success(number, line, &mut usage)),
                Some(status) if self.settings.failures_in_output => {
                    output.push(&self.failure(number, line, status));
                }
                Some(status) => error.push(&self.failure(number, line, status)),
            }
        }
        if matches!(self.end, BatchEnd::Expired { .. }) {
            for (number, line) in self.input.lines.iter().enumerate().skip(self.done) {
                counts.failed += 1;
                error.push(&self.expired(number, line));
            }
        }
        let usage = (counts.completed > 0).then_some(usage);
        if self.end == BatchEnd::CompletedWithoutFiles {
            return Results { counts, usage, ..Results::default() };
        }
        let file = |kind, lines: Lines<'_>| {
            let content = lines.finish()?;
            Some(file(&self.batch_id, kind, self.output_life_seconds, content))
        };
        Results {
            output: file(BatchFile::Output, output),
            error: file(BatchFile::Error, error),
            counts,
            usage,
        }
    }

    fn success(&self, number: usize, line: &Line, usage: &mut BatchUsage) -> Value {
        let answer = answers::Answer {
            id: &self.line_id(number),
            created_at: self.created_at,
            model: &self.input.model,
            text: self.text(number, line),
            tokens: answers::tokens(line.body_bytes, &self.endpoint),
        };
        answers::add(usage, answer.tokens);
        let body = answer.body(&self.endpoint);
        self.line(number, &line.custom_id, 200, &body)
    }

    fn text(&self, number: usize, line: &Line) -> String {
        let mut size = self.settings.answer_bytes;
        if number == 0 {
            size += self.settings.long_answer_bytes;
        }
        let mut text = format!("Answer to {}", line.custom_id);
        let missing = size.saturating_sub(text.len());
        text.extend(std::iter::repeat_n('.', missing));
        text
    }

    fn failure(&self, number: usize, line: &Line, status: u16) -> Value {
        let (class, code) = match status {
            0 => {
                let error = json!({"code": "server_error", "message": "The request was lost."});
                return self.unanswered(number, line, &error);
            }
            429 => ("requests", "rate_limit_exceeded"),
            500.. => ("server_error", "server_error"),
            _ => ("invalid_request_error", "unsupported_parameter"),
        };
        let body = json!({"error": {
            "message": format!("The sandbox was asked to answer {status}."), "type": class,
            "param": null, "code": code,
        }});
        self.line(number, &line.custom_id, status, &body)
    }

    fn expired(&self, number: usize, line: &Line) -> Value {
        let message = "This request did not run before the completion window closed.";
        let error = json!({"code": "batch_expired", "message": message});
        self.unanswered(number, line, &error)
    }

    fn line(&self, number: usize, custom_id: &str, status: u16, body: &Value) -> Value {
        let id = self.line_id(number);
        json!({
            "id": format!("batch_req_{id}"),
            "custom_id": custom_id,
            "response": {"status_code": status, "request_id": format!("req_{id}"), "body": body},
            "error": null,
        })
    }

    fn unanswered(&self, number: usize, line: &Line, error: &Value) -> Value {
        let id = format!("batch_req_{}", self.line_id(number));
        json!({"id": id, "custom_id": line.custom_id, "response": null, "error": error})
    }

    fn line_id(&self, number: usize) -> String {
        let batch = self.batch_id.strip_prefix("batch_").unwrap_or(&self.batch_id);
        format!("{batch}{number:06}")
    }
}

/// A file as it is written, with its oddities.
struct Lines<'l> {
    ending: &'l Ending,
    bytes: Vec<u8>,
    count: usize,
    /// Where the first line ends.
    first: usize,
}

impl<'l> Lines<'l> {
    fn new(ending: &'l Ending) -> Self {
        Self { ending, bytes: Vec::new(), count: 0, first: 0 }
    }

    fn has(&self, oddity: Oddity) -> bool {
        self.ending.settings.oddities.contains(&oddity)
    }

    fn push(&mut self, line: &Value) {
        serde_json::to_writer(&mut self.bytes, line).expect("a vector takes everything");
        self.end_line();
        self.count += 1;
        if self.count == 1 {
            self.first = self.bytes.len();
            self.interrupt();
        }
    }

    fn end_line(&mut self) {
        let end: &[u8] = if self.has(Oddity::Crlf) { b"\r\n" } else { b"\n" };
        self.bytes.extend_from_slice(end);
    }

    /// What stands behind the first line, where it is to be odd.
    fn interrupt(&mut self) {
        if self.has(Oddity::BrokenLine) {
            self.bytes.extend_from_slice(br#"{"id":"batch_req_broken","custom_id":"t-"#);
            self.end_line();
        }
        if self.has(Oddity::BlankLine) {
            self.end_line();
        }
        if self.has(Oddity::UnknownCustomId) {
            let stranger = self.ending.line(999_999, "nobody-asked", 200, &json!({}));
            serde_json::to_writer(&mut self.bytes, &stranger).expect("a vector takes everything");
            self.end_line();
        }
    }

    /// None for a file without a line, which does not exist.
    fn finish(mut self) -> Option<Bytes> {
        if self.count == 0 {
            return None;
        }
        if self.has(Oddity::DuplicateCustomId) {
            let first = self.bytes[..self.first].to_vec();
            self.bytes.extend_from_slice(&first);
        }
        if self.has(Oddity::NoFinalNewline) {
            let end = self.bytes.trim_ascii_end().len();
            self.bytes.truncate(end);
        }
        Some(self.bytes.into())
    }
}
