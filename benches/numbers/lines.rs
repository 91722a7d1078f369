//! The line checker and the rewriter, alone on one core.

use std::hint::black_box;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream;
use longshore::jsonl::ByteStream;
use longshore::jsonl::Check;
use longshore::jsonl::Edits;

use crate::Bench;
use crate::report::Line;
use crate::report::Unit;

const SAMPLE: &str = include_str!("../../src/cli/demo/airports.batch.jsonl");
const BYTES: usize = 64_000_000;
/// What a socket or a file gives at a time.
const CHUNK: usize = 64 * 1024;
const PASSES: usize = 5;

pub async fn all(_: &Bench) -> anyhow::Result<Vec<Line>> {
    let (mut checked, mut rewritten) = (
        Line::new("line check of a batch, one core"),
        Line::new("rewriting (scan and splice of the model), one core"),
    );
    let (mut spliced, inputs) = (
        Line::new("splicing alone, the places known"),
        [
            ("airports", airports(BYTES)),
            ("300 B lines", of_length(300, BYTES)),
            ("900 B lines", of_length(900, BYTES)),
        ],
    );
    for (name, input) in inputs {
        let (check, scan_and_splice, splice) =
            tokio::task::spawn_blocking(move || measure(&input)).await??;
        checked = checked.at_least(name, check, Unit::MegabytesPerSecond, 500.0);
        rewritten = rewritten.at_least(name, scan_and_splice, Unit::MegabytesPerSecond, 500.0);
        spliced = spliced.figure(name, splice, Unit::MegabytesPerSecond);
    }
    Ok(vec![checked, rewritten, spliced])
}

/// MB/s of the check, of scan and splice together, and of the splice: the median of some passes.
fn measure(input: &Bytes) -> anyhow::Result<(f64, f64, f64)> {
    let (mut checks, mut splices) = (Vec::new(), Vec::new());
    for _ in 0..PASSES {
        let begun = Instant::now();
        let edits = scan(input)?;
        checks.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        let length = splice(&edits, input)?;
        splices.push(begun.elapsed().as_secs_f64());
        let expected = edits.rewritten_len(input.len() as u64, MODEL);
        anyhow::ensure!(length == expected, "{length} bytes instead of {expected}");
    }
    let megabytes = input.len() as f64 / 1e6;
    let (check, splice) = (median(checks), median(splices));
    Ok((megabytes / check, megabytes / (check + splice), megabytes / splice))
}

const MODEL: &str = "gpt-4o-mini-2024-07-18";

fn scan(input: &Bytes) -> anyhow::Result<Edits> {
    let mut check = Check::batch(None);
    for chunk in input.chunks(CHUNK) {
        check.feed(chunk)?;
    }
    Ok(check.finish()?.edits)
}

fn splice(edits: &Edits, input: &Bytes) -> anyhow::Result<u64> {
    let input = input.clone();
    let chunks = (0..input.len()).step_by(CHUNK);
    let chunks = chunks.map(move |at| Ok(input.slice(at..input.len().min(at + CHUNK))));
    let body: ByteStream = stream::iter(chunks.collect::<Vec<_>>()).boxed();
    let mut rewritten = edits.splice(body, MODEL);
    let mut length = 0;
    // Everything is there already, so nothing is ever waited for.
    while let Some(chunk) = rewritten.next().now_or_never().flatten() {
        length += black_box(chunk?).len() as u64;
    }
    Ok(length)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_unstable_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The requests of the demo, again and again, each with a `custom_id` of its own.
pub fn airports(bytes: usize) -> Bytes {
    let mut text = String::with_capacity(bytes + 1024);
    let mut round = 0;
    while text.len() < bytes {
        let prefix = format!("{{\"custom_id\": \"{round}-");
        for line in SAMPLE.lines() {
            text += &line.replacen("{\"custom_id\": \"", &prefix, 1);
            text.push('\n');
            if text.len() >= bytes {
                break;
            }
        }
        round += 1;
    }
    text.into()
}

/// Requests of `length` bytes each, their line feed included.
fn of_length(length: usize, bytes: usize) -> Bytes {
    let mut text = String::with_capacity(bytes + length);
    for number in 0.. {
        if text.len() >= bytes {
            break;
        }
        let mut line = format!(
            "{{\"custom_id\":\"request-{number:08}\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\
             \"body\":{{\"model\":\"gpt-4o-mini\",\"max_tokens\":100,\"messages\":[{{\"role\":\"user\",\"content\":\""
        );
        const END: &str = "\"}]}}\n";
        const WORDS: &str = "the quick brown fox jumps over the lazy dog ";
        let words = length.saturating_sub(line.len() + END.len());
        line.extend(WORDS.chars().cycle().take(words));
        text += &line;
        text += END;
    }
    text.into()
}
