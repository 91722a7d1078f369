//! Reads the typed settings from the tree, and goes on after a mistake, so that one start shows them all.

use super::{
    Config,
    deserializer::{Fault, FaultKind},
    problem::{KeyPath, Place, Problem, Segment},
    tree::Node,
};

/// How many mistakes are worth reading about at once. It also bounds the work on a file that is all mistakes.
const ENOUGH: usize = 25;

/// Reads `tree`, adding what is wrong to `problems` and marking it broken.
///
/// `None` when there were too many mistakes to get through to the end.
pub(super) fn read(tree: &mut Node, problems: &mut Vec<Problem>) -> Option<Config> {
    for _ in 0..ENOUGH {
        let fault = match serde::Deserialize::deserialize(&*tree) {
            Ok(config) => return Some(config),
            Err(fault) => fault,
        };
        let path = Fault::path(&fault);
        if !follows_from_another(&fault, &path, tree) {
            let message = message(&fault, &path);
            problems.push(Problem { place: tree.place_of(&path), path: path.clone(), message });
        }
        tree.break_at(&path);
    }
    problems.push(Problem {
        place: without_line(tree.place.clone()),
        path: KeyPath::default(),
        message: format!("there may be more: reading stopped after {ENOUGH} mistakes"),
    });
    None
}

/// A key that is there, but broken, was reported already; to serde it looks missing.
fn follows_from_another(fault: &Fault, path: &KeyPath, tree: &Node) -> bool {
    let FaultKind::Missing(key) = &fault.kind else { return false };
    let around = path.0.iter().try_fold(tree, |node, segment| node.child(segment));
    around
        .and_then(|table| table.child(&Segment::Key((*key).to_owned())))
        .is_some_and(|node| node.broken)
}

fn message(fault: &Fault, path: &KeyPath) -> String {
    match &fault.kind {
        // `[providers]` instead of `[[providers]]`.
        FaultKind::Wrong(message)
            if message == "must be a list, not a table"
                && ["providers", "models", "auth.keys"].contains(&path.to_string().as_str()) =>
        {
            format!("`{path}`: {message}; write `[[{path}]]`, with two brackets, for each of them")
        }
        FaultKind::Wrong(message) => format!("`{path}`: {message}"),
        FaultKind::Missing(key) => {
            format!("`{path}` has no `{key}`; add it, as `longshore config example` shows it")
        }
        FaultKind::Unknown(settings) => {
            let key = match path.0.last() {
                Some(Segment::Key(key)) => key.as_str(),
                _ => "",
            };
            format!("`{path}` is not a setting; {}", instead(key, settings))
        }
    }
}

fn instead(key: &str, settings: &[&str]) -> String {
    let nearest = settings
        .iter()
        .map(|setting| (strsim::damerau_levenshtein(key, setting), setting))
        .min_by_key(|(distance, _)| *distance);
    match nearest {
        // A third of the letters wrong is a slip; more is another word.
        Some((distance, setting)) if distance <= (setting.len() / 3).max(1) => {
            format!("did you mean `{setting}`?")
        }
        _ => format!("there are `{}`", settings.join("`, `")),
    }
}

fn without_line(place: Place) -> Place {
    match place {
        Place::File { name, .. } => Place::File { name, line: None },
        Place::Variable(_) => place,
    }
}
