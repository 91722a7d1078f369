//! The line check and the rewriting: wherever chunks begin and end, the outcome is the same; only model names differ
//! afterwards, and the length is what was foretold.

#![no_main]

mod chunks;

use bytes::Bytes;
use chunks::Cut;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream;
use libfuzzer_sys::fuzz_target;
use longshore::jsonl::Check;
use longshore::jsonl::Edits;
use longshore::jsonl::Fault;
use longshore::jsonl::FaultKind;
use longshore::jsonl::Scanned;
use serde_json::Value;

/// It has what has to be escaped.
const MODEL: &str = "gpt \"4\"\\\u{e9}\n";
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

fuzz_target!(|input: &[u8]| {
    let Some((mut cut, content)) = Cut::split(input) else { return };
    let max_lines = input[0].is_multiple_of(16).then_some(3);
    let rules: [fn(Option<u64>) -> Check; 2] = [Check::batch, |_| Check::fine_tune()];
    for check in rules {
        let whole = scan(check(max_lines), &[content]);
        let in_chunks = scan(check(max_lines), &cut.apply(content));
        assert_eq!(whole, in_chunks, "the borders of chunks made a difference to the scan");
        match whole {
            Ok(scanned) => rewrite(&scanned.edits, content, &mut cut),
            Err(fault) => is_justified(&fault, content),
        }
    }
});

fn scan(mut check: Check, chunks: &[&[u8]]) -> Result<Scanned, Fault> {
    for chunk in chunks {
        if let Err(fault) = check.feed(chunk) {
            assert_eq!(check.feed(b"{}"), Err(fault.clone()), "a fault is final");
            return Err(fault);
        }
    }
    check.finish()
}

/// A line that is called no JSON is none to others either.
fn is_justified(fault: &Fault, content: &[u8]) {
    if let FaultKind::InvalidJson { .. } = fault.kind {
        let line = lines(content).nth(fault.line as usize - 1);
        let line = line.expect("the fault is on a line that there is");
        assert!(serde_json::from_slice::<Value>(line).is_err(), "valid, but: {fault}");
    }
}

fn rewrite(edits: &Edits, content: &[u8], cut: &mut Cut) {
    let rewritten = splice(edits, &[content]);
    assert_eq!(rewritten.len() as u64, edits.rewritten_len(content.len() as u64, MODEL));
    assert!(
        rewritten == splice(edits, &cut.apply(content)),
        "the borders of chunks made a difference to the rewritten file"
    );
    if edits.is_empty() {
        assert!(rewritten == content);
    }
    assert_eq!(lines(content).count(), lines(&rewritten).count());
    for (before, after) in lines(content).zip(lines(&rewritten)) {
        // Numbers beyond all measure and halves of surrogates are JSON, but not to everybody.
        let Ok(mut expected) = serde_json::from_slice::<Value>(before) else { continue };
        if let Some(body) = expected.get_mut("body").and_then(Value::as_object_mut) {
            body.insert("model".to_owned(), MODEL.into());
        }
        let found: Value = serde_json::from_slice(after).expect("a rewritten line is JSON still");
        assert_eq!(found, expected);
    }
}

fn splice(edits: &Edits, chunks: &[&[u8]]) -> Vec<u8> {
    let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    let rewritten = edits.splice(stream::iter(chunks).boxed(), MODEL).collect::<Vec<_>>();
    // Everything is there already, so nothing is waited for.
    let rewritten = rewritten.now_or_never().expect("nothing is waited for");
    rewritten
        .into_iter()
        .flat_map(|chunk| chunk.expect("it is the file that was scanned"))
        .collect()
}

fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    content.split(|byte| *byte == b'\n')
}
