//! The module from outside: what is accepted, and what is rewritten.

mod document;
mod properties;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};

use super::*;

const REQUEST: &str = r#"{"custom_id":"a","method":"POST","url":"/v1/x","body":{"model":"m"}}"#;

fn stream_of(chunks: Vec<Bytes>) -> ByteStream {
    stream::iter(chunks).map(Ok).boxed()
}

/// Cuts `content` into pieces of the sizes in `cuts`, over and over.
fn cut(content: &[u8], cuts: &[usize]) -> Vec<Bytes> {
    let mut rest = Bytes::copy_from_slice(content);
    let mut chunks = Vec::new();
    for size in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        chunks.push(rest.split_to((*size).min(rest.len())));
    }
    chunks
}

fn scan_chunks(mut check: Check, chunks: &[Bytes]) -> Result<Scanned, Fault> {
    for chunk in chunks {
        check.feed(chunk)?;
    }
    check.finish()
}

fn scan_whole(check: Check, content: impl AsRef<[u8]>) -> Result<Scanned, Fault> {
    scan_chunks(check, &[Bytes::copy_from_slice(content.as_ref())])
}

fn fault(content: impl AsRef<[u8]>) -> String {
    scan_whole(Check::batch(None), content).unwrap_err().to_string()
}

fn collect(stream: ByteStream) -> io::Result<Vec<u8>> {
    stream
        .try_fold(Vec::new(), |mut content, chunk| {
            content.extend_from_slice(&chunk);
            std::future::ready(Ok(content))
        })
        .now_or_never()
        .expect("a stream that is all there never waits")
}

fn splice_chunks(edits: &Edits, chunks: Vec<Bytes>, model: &str) -> Vec<u8> {
    collect(edits.splice(stream_of(chunks), model)).unwrap()
}

fn rewritten(check: Check, content: &str, model: &str) -> String {
    let content = Bytes::copy_from_slice(content.as_bytes());
    let edits = scan_whole(check, &content).unwrap().edits;
    String::from_utf8(splice_chunks(&edits, vec![content], model)).unwrap()
}

/// The body of an otherwise faultless request, rewritten for the model `x`.
fn rewritten_body(body: &str) -> String {
    let line = |body| format!(r#"{{"custom_id":"a","method":"","url":"","body":{body}}}"#);
    let after = rewritten(Check::batch(None), &line(body), "x");
    let frame = line("");
    let (head, tail) = frame.split_at(frame.len() - 1);
    after.strip_prefix(head).unwrap().strip_suffix(tail).unwrap().to_owned()
}

#[test]
fn the_value_of_the_model_is_replaced_in_place() {
    assert_eq!(rewritten_body(r#"{ "a" : 1, "model" : "m" }"#), r#"{ "a" : 1, "model" : "x" }"#);
    for value in ["12", "-1.5e3", "null", "{\"model\":1}", "[1, [2]]", "true", r#""\"\u00e9é""#] {
        assert_eq!(rewritten_body(&format!(r#"{{"model":{value}}}"#)), r#"{"model":"x"}"#);
        assert_eq!(rewritten_body(&format!(r#"{{"model":{value} }}"#)), r#"{"model":"x" }"#);
    }
}

#[test]
fn a_missing_model_is_inserted_first() {
    assert_eq!(rewritten_body("{}"), r#"{"model":"x"}"#);
    assert_eq!(rewritten_body("{ }"), r#"{"model":"x" }"#);
    assert_eq!(rewritten_body(r#"{ "a":1}"#), r#"{"model":"x", "a":1}"#);
    assert_eq!(
        rewritten_body(r#"{"Model":1,"models":2}"#),
        r#"{"model":"x","Model":1,"models":2}"#
    );
}

#[test]
fn a_model_elsewhere_than_directly_in_the_body_is_left_alone() {
    assert_eq!(
        rewritten_body(r#"{"a":{"model":1},"b":[{"model":2}],"model":3}"#),
        r#"{"a":{"model":1},"b":[{"model":2}],"model":"x"}"#
    );
    let line = r#"{"model":1,"meta":{"model":2},"body":{"body":{"model":3}},"x":[{"model":4}]}"#;
    assert_eq!(
        rewritten(Check::fine_tune(), line, "x"),
        line.replace(r#"{"body":{"model":3}}"#, r#"{"model":"x","body":{"model":3}}"#)
    );
}

#[test]
fn repeated_and_escaped_keys_are_all_replaced() {
    assert_eq!(
        rewritten_body(r#"{"model":1,"mod\u0065l":"two","\u006d\u006F\u0064el":[3]}"#),
        r#"{"model":"x","mod\u0065l":"x","\u006d\u006F\u0064el":"x"}"#
    );
    assert_eq!(
        rewritten(
            Check::fine_tune(),
            r#"{"body":{"model":1},"b\u006fdy":{"a":2},"body":3,"body":{}}"#,
            "x"
        ),
        r#"{"body":{"model":"x"},"b\u006fdy":{"model":"x","a":2},"body":3,"body":{"model":"x"}}"#
    );
}

#[test]
fn the_model_name_is_escaped() {
    assert_eq!(
        rewritten(Check::batch(None), REQUEST, "a\"b\\c\né"),
        REQUEST.replace(r#""m""#, r#""a\"b\\c\né""#)
    );
}

#[test]
fn line_ends_blank_lines_spaces_and_a_byte_order_mark_survive() {
    let other = REQUEST.replace(r#""a""#, r#""b""#);
    let content = format!("\u{feff}\r\n  {REQUEST}\t\r\n\n \r\n{other}");
    let scanned = scan_whole(Check::batch(None), &content).unwrap();
    assert_eq!((scanned.lines, scanned.edits.len()), (2, 2));
    assert_eq!(rewritten(Check::batch(None), &content, "x"), content.replace(r#""m""#, r#""x""#));
}

#[test]
fn a_fine_tuning_file_may_hold_anything() {
    let content = concat!(
        "{\"body\":{\"model\":1}}\n",
        "{\"body\":{\"model\":2},\"body\":{\"model\":3}} x\n",
        "{\"body\":{\"model\":4}\n",
        "not json\n\n[{\"body\":{}}]\n\"body\"\n{\"body\":[]}\n{\"messages\":[]}\n{\"body\":{\"a\":\"\n",
        "{\"custom_id\":1,\"custom_id\":2,\"body\":{}}\n",
        "{\"body\":{\"model\":5"
    );
    let scanned = scan_whole(Check::fine_tune(), content).unwrap();
    assert_eq!((scanned.lines, scanned.edits.len()), (11, 2));
    assert_eq!(
        rewritten(Check::fine_tune(), content, "x"),
        content
            .replace("{\"model\":1}", "{\"model\":\"x\"}")
            .replace("2,\"body\":{}", "2,\"body\":{\"model\":\"x\"}")
    );
    assert!(scan_whole(Check::fine_tune(), "").unwrap().edits.is_empty());
}

#[test]
fn the_first_fault_names_its_line() {
    let second = |line: &str| fault(format!("{REQUEST}\n\n{line}\n{{"));
    let without = |field: &str| REQUEST.replacen(field, "other", 1);
    let with = |from: &str, to: &str| REQUEST.replace("\"a\"", "\"b\"").replacen(from, to, 1);

    insta::assert_snapshot!(
        [
            second(REQUEST),
            second("[]"),
            second(&without("custom_id")),
            second(&with("method", "other")),
            second(&with("url", "other")),
            second(&with("body", "other")),
            second(&with("\"b\"", "7")),
            second(&with("\"POST\"", "null")),
            second(&with("\"/v1/x\"", "[]")),
            second(&with("{\"model\":\"m\"}", "\"{}\"")),
            second(&with("\"b\"", "\"\"")),
            second(&with("\"method\"", "\"custom_i\\u0064\":\"c\",\"method\"")),
            second("{"),
            second("{\"a"),
            second("{\"a\":1,}"),
            second("{\"a\":tru}"),
            second("{\"a\":1.}"),
            second("{\"a\":[1}"),
            second("{\"a\":1]"),
            second("{1:1}"),
            second("{\"a\" 1}"),
            second("{\"a\":}"),
            second("{\"a\":\"\t\"}"),
            second("{\"a\":\"\\x\"}"),
            second("{\"a\":\"\\u12g4\"}"),
            second(&format!("{} {{}}", with("", ""))),
            second("nonsense"),
            fault(b"{\"a\":\"\xff\"}"),
            fault(b"\xef\xbb{}"),
            fault(b"\xef\xbb\xbf{]"),
            fault("\u{feff}"),
            fault(" \r\n\n"),
            fault(""),
            scan_whole(Check::batch(Some(1)), format!("{REQUEST}\n\n{REQUEST}"))
                .unwrap_err()
                .to_string(),
        ]
        .join("\n"),
        @r#"
    line 3: `custom_id` `a` was already used on an earlier line; each must be unique
    line 3: must be a JSON object with `custom_id`, `method`, `url` and `body`
    line 3: `custom_id` is missing; a line has `custom_id`, `method`, `url` and `body`
    line 3: `method` is missing; a line has `custom_id`, `method`, `url` and `body`
    line 3: `url` is missing; a line has `custom_id`, `method`, `url` and `body`
    line 3: `body` is missing; a line has `custom_id`, `method`, `url` and `body`
    line 3: `custom_id` must be a string
    line 3: `method` must be a string
    line 3: `url` must be a string
    line 3: `body` must be an object
    line 3: `custom_id` is empty; it must be a non-empty string
    line 3: the key `custom_id` occurs twice; a line has it once
    line 3: not valid JSON at column 2: the line ends before its object is complete
    line 3: not valid JSON at column 4: the line ends inside a string
    line 3: not valid JSON at column 8: expected a key in quotes
    line 3: not valid JSON at column 9: expected `true`, `false` or `null`
    line 3: not valid JSON at column 8: a digit must follow
    line 3: not valid JSON at column 8: expected `,` or `]`
    line 3: not valid JSON at column 7: expected `,` or `}`
    line 3: not valid JSON at column 2: expected a key in quotes or `}`
    line 3: not valid JSON at column 6: expected `:`
    line 3: not valid JSON at column 6: expected a value
    line 3: not valid JSON at column 7: a control character in a string must be escaped
    line 3: not valid JSON at column 8: a backslash must be followed by one of `"`, `\`, `/`, `b`, `f`, `n`, `r`, `t`, `u`
    line 3: not valid JSON at column 11: `\u` must be followed by four hexadecimal digits
    line 3: not valid JSON at column 70: expected nothing after the object
    line 3: must be a JSON object with `custom_id`, `method`, `url` and `body`
    line 1: not valid JSON at column 7: the text is not UTF-8
    line 1: not valid JSON at column 3: expected a UTF-8 byte order mark
    line 1: not valid JSON at column 5: expected a key in quotes or `}`
    the file has no requests; it must have at least one line
    the file has no requests; it must have at least one line
    the file has no requests; it must have at least one line
    line 3: the file has more than 1 requests; split it into smaller files
    "#
    );
}

#[test]
fn a_limit_on_lines_counts_requests() {
    assert_eq!(scan_whole(Check::batch(Some(1)), format!("\n{REQUEST}\n\n")).unwrap().lines, 1);
}

#[test]
fn a_fault_is_final() {
    let mut check = Check::batch(None);
    let fault = check.feed(b"{]").unwrap_err();
    assert_eq!(check.feed(b"\n"), Err(fault.clone()));
    assert_eq!(check.finish(), Err(fault));
}

#[test]
fn ids_are_compared_by_what_they_say() {
    let fault_of = |first: &str, second: &str| {
        let with_id = |id: &str| REQUEST.replace("\"a\"", &format!("\"{id}\""));
        let content = format!("{}\n{}", with_id(first), with_id(second));
        let found = scan_whole(Check::batch(None), &content).err();
        // A border may lie inside an escape, or between the halves of a pair.
        for size in 1..content.len() {
            let chunks = cut(content.as_bytes(), &[size]);
            assert_eq!(scan_chunks(Check::batch(None), &chunks).err(), found, "{size}");
        }
        found
    };
    let duplicate =
        |id: &str| Some(Fault { line: 2, kind: FaultKind::DuplicateCustomId(id.to_owned()) });
    assert_eq!(fault_of("a/b", r"\u0061\/b"), duplicate("a/b"));
    assert_eq!(fault_of("😀", r"\ud83d\uDE00"), duplicate("😀"));
    assert_eq!(fault_of(r"a\nb", r"a\u000ab"), duplicate(r"a\nb"));
    assert_eq!(fault_of("a", "A"), None);
    assert_eq!(fault_of("a", "a "), None);
    // Halves of a pair are different ids, and accepted as the grammar has them.
    assert_eq!(fault_of(r"\ud83d", r"\ude00"), None);
    assert_eq!(fault_of(r"\ud83d\ud83d\ude00", r"\ud83d\ude00\ud83d"), None);
    assert_eq!(fault_of(r"\ud83d-", r"\ud83d-"), duplicate("\u{fffd}\u{fffd}\u{fffd}-"));
    assert_eq!(fault_of(r"-\ud83d", r"-\ud83d"), duplicate("-\u{fffd}\u{fffd}\u{fffd}"));
    assert_eq!(fault_of(r"-\ud83d", r"-"), None);
    // Long ids count in full and are quoted in part.
    let long = "ä".repeat(500);
    assert_eq!(fault_of(&format!("{long}1"), &format!("{long}2")), None);
    assert_eq!(
        fault_of(&format!("x{long}"), &format!("x{long}")),
        duplicate(&format!("x{}…", "ä".repeat(63)))
    );
}

#[test]
fn nesting_ends_at_512_levels() {
    // The line's object and the body are two of them.
    let body = |levels| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    assert!(
        scan_whole(Check::batch(None), REQUEST.replace("{\"model\":\"m\"}", &body(510))).is_ok()
    );
    assert!(fault(REQUEST.replace("{\"model\":\"m\"}", &body(511))).contains("512 levels"));
    assert!(fault("{\"a\":".repeat(100_000)).contains("512 levels"));
}

#[test]
fn a_shorter_file_than_was_scanned_is_an_error() {
    let edits = scan_whole(Check::batch(None), REQUEST).unwrap().edits;
    for length in [0, 10, REQUEST.len() - 5, REQUEST.len() - 4] {
        let short = Bytes::from_static(&REQUEST.as_bytes()[..length]);
        let error = collect(edits.splice(stream_of(vec![short]), "x")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}");
    }
}

#[test]
fn an_error_of_the_source_passes_through_and_ends_the_stream() {
    let broken =
        || stream::iter([Ok(Bytes::from("{")), Err(io::ErrorKind::TimedOut.into())]).boxed();
    let edits = scan_whole(Check::batch(None), REQUEST).unwrap().edits;
    let items: Vec<_> = edits.splice(broken(), "x").collect().now_or_never().unwrap();
    assert!(matches!(&items[..], [Err(error)] if error.kind() == io::ErrorKind::TimedOut));

    let scanned = scan(broken(), Check::batch(None)).now_or_never().unwrap();
    assert!(
        matches!(scanned, Err(ScanError::Io(error)) if error.kind() == io::ErrorKind::TimedOut)
    );
}

#[test]
fn a_stored_file_is_scanned_as_an_uploaded_one() {
    let stored = stream_of(cut(REQUEST.as_bytes(), &[7]));
    let scanned = scan(stored, Check::batch(None)).now_or_never().unwrap().unwrap();
    assert_eq!(scanned, scan_whole(Check::batch(None), REQUEST).unwrap());

    let faulty = scan(stream_of(vec![Bytes::from("{]")]), Check::batch(None));
    assert!(matches!(faulty.now_or_never().unwrap(), Err(ScanError::Fault(Fault { line: 1, .. }))));
}

#[test]
fn what_is_rewritten_leaves_in_pieces_worth_sending() {
    let content: String = (0..4_000)
        .map(|number| REQUEST.replace("\"a\"", &format!("\"{number}\"")) + "\n")
        .collect();
    let edits = scan_whole(Check::batch(None), &content).unwrap().edits;
    let chunks = stream_of(cut(content.as_bytes(), &[10_000]));
    let pieces: Vec<_> = edits.splice(chunks, "x").collect().now_or_never().unwrap();
    let (_, all_but_the_last) = pieces.split_last().unwrap();
    assert!(all_but_the_last.len() > 2);
    for piece in all_but_the_last {
        assert!(piece.as_ref().unwrap().len() >= 64 * 1024);
    }
}

#[test]
fn what_has_no_edits_is_passed_on_and_not_copied() {
    let content = Bytes::from(" ".repeat(200_000) + REQUEST);
    let edits = scan_whole(Check::batch(None), &content).unwrap().edits;
    let pieces = edits.splice(stream_of(vec![content.clone()]), "x").collect::<Vec<_>>();
    let pieces = pieces.now_or_never().unwrap();
    assert_eq!(pieces[0].as_ref().unwrap().as_ptr(), content.as_ptr());
}
