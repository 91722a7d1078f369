//! What holds for every document, however it is cut: chunk borders are invisible, and serde says the same.

use proptest::prelude::*;

use super::document::{broken_line, document, json};
use super::*;

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![1]), Just(vec![0, 2]), prop::collection::vec(1..40usize, 1..8)]
}

/// A faultless request whose body has `value`, which is any text, under a key.
fn request_with(value: &[u8]) -> Vec<u8> {
    let mut line = br#"{"custom_id":"a","method":"POST","url":"/","body":{"v":"#.to_vec();
    line.extend_from_slice(value);
    line.extend_from_slice(b"}}");
    line
}

fn is_valid(line: &[u8]) -> bool {
    str::from_utf8(line)
        .is_ok_and(|line| serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_rewritten_is_what_the_document_says(document in document(), cuts in cuts()) {
        let model = "provider/\"model\"-7";
        let original = document.text(None);
        let chunks = cut(original.as_bytes(), &cuts);
        let scanned = scan_chunks(Check::fine_tune(), &chunks).unwrap();

        let spliced = splice_chunks(&scanned.edits, chunks, model);
        prop_assert_eq!(str::from_utf8(&spliced).unwrap(), document.text(Some(model)));
        prop_assert_eq!(
            scanned.edits.rewritten_len(original.len() as u64, model),
            spliced.len() as u64
        );
        prop_assert_eq!(scanned.lines, document.lines());
        prop_assert_eq!(scanned.edits.is_empty(), original == document.text(Some(model)));
    }

    #[test]
    fn a_rewritten_line_means_the_same_but_for_the_model(document in document()) {
        let original = document.text(None);
        let edits = scan_whole(Check::fine_tune(), &original).unwrap().edits;
        let spliced = splice_chunks(&edits, vec![original.clone().into()], "x");
        for (before, after) in original.lines().zip(str::from_utf8(&spliced).unwrap().lines()) {
            let Ok(mut expected) = serde_json::from_str::<serde_json::Value>(before) else {
                // Blank, broken, a lone surrogate or a number beyond `f64`.
                continue;
            };
            if let Some(serde_json::Value::Object(body)) = expected.get_mut("body") {
                body.insert("model".to_owned(), "x".into());
            }
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(after).unwrap(), expected);
        }
    }

    #[test]
    fn chunk_borders_make_no_difference_to_a_check(
        lines in prop::collection::vec(
            prop_oneof![
                (0..6u8).prop_map(|id| REQUEST.replace("\"a\"", &format!("\"\\u003{id}é😀\""))),
                json().prop_map(|json| json.text()),
                broken_line(),
            ],
            0..5
        ),
        cuts in cuts()
    ) {
        let content = lines.join("\r\n");
        let chunks = cut(content.as_bytes(), &cuts);
        prop_assert_eq!(
            scan_chunks(Check::batch(Some(3)), &chunks),
            scan_whole(Check::batch(Some(3)), &content)
        );
    }

    #[test]
    fn a_request_with_anything_wrong_is_told_the_same_a_byte_at_a_time(
        value in json(),
        flips in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![
                any::<u8>(),
                prop::sample::select(b"{}[]\":,\\ 0-.eEutn\n\r".to_vec()),
            ]),
            0..3
        )
    ) {
        let mut content = request_with(value.text().as_bytes());
        content.push(b'\n');
        content.extend_from_slice(REQUEST.as_bytes());
        for (index, byte) in flips {
            let index = index.index(content.len());
            content[index] = byte;
        }
        for check in [|| Check::batch(None), Check::fine_tune] {
            prop_assert_eq!(
                scan_chunks(check(), &cut(&content, &[1])),
                scan_whole(check(), &content)
            );
        }
    }

    #[test]
    fn any_json_is_accepted(value in json(), cuts in cuts()) {
        let line = request_with(value.text().as_bytes());
        prop_assert!(is_valid(&line));
        prop_assert_eq!(scan_chunks(Check::batch(None), &cut(&line, &cuts)).err(), None);
    }

    #[test]
    fn broken_json_is_told_as_serde_tells_it(
        value in json(),
        flips in prop::collection::vec(
            (any::<prop::sample::Index>(), prop_oneof![
                any::<u8>(),
                prop::sample::select(br#"{}[]":,\ 0-.eEut"#.to_vec()),
            ]),
            1..4
        ),
        end in any::<prop::sample::Index>(),
        cuts in cuts()
    ) {
        let mut value = value.text().into_bytes();
        for (index, byte) in flips {
            let index = index.index(value.len());
            // A line feed would make two lines of one.
            value[index] = if byte == b'\n' { b'\r' } else { byte };
        }
        value.truncate(end.index(value.len() * 4) + 1);

        let line = request_with(&value);
        let found = scan_chunks(Check::batch(None), &cut(&line, &cuts));
        match found {
            // Broken quotes and brackets can turn the fields after the body into other things.
            Ok(_) => prop_assert!(is_valid(&line)),
            Err(Fault { kind: FaultKind::InvalidJson { .. }, .. }) => prop_assert!(!is_valid(&line)),
            Err(_) => {}
        }
    }

    #[test]
    fn junk_is_a_fault_or_stays_as_it_is(
        junk in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\":,\\ 0-.eEutn\n\r".to_vec())],
            0..200
        ),
        cuts in cuts()
    ) {
        let chunks = cut(&junk, &cuts);
        prop_assert!(scan_chunks(Check::batch(None), &chunks).is_err());
        let edits = scan_chunks(Check::fine_tune(), &chunks).unwrap().edits;
        prop_assert_eq!(splice_chunks(&edits, chunks, "x"), junk);
    }
}
