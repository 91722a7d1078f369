//! Payloads as released versions have written them: `tests/payloads` has a file for each kind of job, to which each
//! version adds what it writes, and from which nothing is ever taken.

use std::path::Path;

use longshore::jobs::Work;
use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;

/// What is in a file.
#[derive(Deserialize)]
struct Golden {
    /// What some version writes.
    written: Vec<Map<String, Value>>,
    /// What an older version may have left out, or a newer one may add.
    read: Vec<Map<String, Value>>,
}

fn golden(kind: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/payloads/{kind}.json"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: write down what it carries", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn read(kind: &str, payload: &Map<String, Value>) -> Work {
    let text = serde_json::to_string(payload).unwrap();
    Work::read(kind, &text).unwrap_or_else(|error| panic!("{kind} {text}: {error}"))
}

#[test]
fn payloads_of_every_version_are_read_and_what_is_written_now_the_older_ones_read_too() {
    for kind in Work::KINDS {
        let Golden { written, read: others } = golden(kind);
        assert!(!written.is_empty() && !others.is_empty(), "{kind}");
        for payload in others {
            read(kind, &payload);
        }
        for payload in written {
            let now = read(kind, &payload).payload().unwrap();
            let now: Map<String, Value> = serde_json::from_str(&now).unwrap();
            // An older version may need each field that it writes itself; those that it does not know it passes over.
            for (field, value) in &payload {
                assert_eq!(
                    now.get(field),
                    Some(value),
                    "{kind}: `{field}` is what older versions read"
                );
            }
        }
    }
}

#[test]
fn every_file_is_of_a_kind_that_is_still_known() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payloads");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut kinds = Work::KINDS.map(str::to_owned);
    files.sort();
    kinds.sort();
    assert_eq!(files, kinds, "jobs of a kind that is not known any more would be left for ever");
}
