//! Settings from the environment: `LONGSHORE__SECTION__KEY` lies over `section.key` of the file.

use std::collections::BTreeMap;

use super::{
    document,
    problem::{KeyPath, Place, Problem, Segment},
    tree::{Content, Node, Text},
};

/// The environment, as `main` read it.
pub type Variables = BTreeMap<String, String>;

const PREFIX: &str = "LONGSHORE__";
/// No setting is deeper than `providers[0].api_key`; the limit keeps recursion over the tree shallow.
const DEEPEST: usize = 6;

/// One variable that is a setting. Its value is taken as it is: `${…}` means nothing in it.
pub(super) struct Override<'a> {
    pub(super) path: KeyPath,
    variable: &'a str,
    value: &'a str,
}

/// The variables that are settings, those of a table before those of what is in it.
pub(super) fn overrides<'a>(
    variables: &'a Variables,
    problems: &mut Vec<Problem>,
) -> Vec<Override<'a>> {
    let mut overrides: Vec<Override<'a>> = Vec::new();
    for (variable, value) in variables {
        let Some(rest) = setting_name(variable) else { continue };
        match path(rest) {
            Some(path) => overrides.push(Override { path, variable, value }),
            None => problems.push(problem(
                variable,
                KeyPath::default(),
                "this names no setting; write it like `LONGSHORE__SERVER__LISTEN`".to_owned(),
            )),
        }
    }
    overrides.sort_by(|a, b| a.path.cmp(&b.path));
    for pair in overrides.windows(2) {
        if pair[0].path == pair[1].path {
            let message =
                format!("`{}` is set by `{}` too; keep one", pair[1].path, pair[0].variable);
            problems.push(problem(pair[1].variable, pair[1].path.clone(), message));
        }
    }
    overrides
}

/// A sentence on what the environment sets; `None` where it sets nothing.
pub(super) fn summary(overrides: &[Override<'_>]) -> Option<String> {
    let paths: Vec<String> = overrides.iter().map(|given| format!("`{}`", given.path)).collect();
    (!paths.is_empty()).then(|| format!("set by the environment: {}", paths.join(", ")))
}

/// Lays `overrides` over `root`, making the tables and entries that are not there yet.
pub(super) fn apply(root: &mut Node, overrides: &[Override<'_>], problems: &mut Vec<Problem>) {
    for Override { path, variable, value } in overrides {
        let place = Place::Variable((*variable).to_owned());
        match entry(root, path, &place) {
            Ok(node) => {
                let text =
                    Text { value: (*value).to_owned(), written: (*value).to_owned(), loose: true };
                *node = Node::new(place, Content::Text(text));
            }
            Err(message) => problems.push(problem(variable, path.clone(), message)),
        }
    }
}

fn setting_name(variable: &str) -> Option<&str> {
    let (prefix, rest) = variable.split_at_checked(PREFIX.len())?;
    prefix.eq_ignore_ascii_case(PREFIX).then_some(rest)
}

fn path(name: &str) -> Option<KeyPath> {
    let segments: Vec<Segment> = name
        .split("__")
        .map(|part| match part.parse() {
            Ok(index) => Segment::Index(index),
            Err(_) => Segment::Key(part.to_ascii_lowercase()),
        })
        .collect();
    let named =
        segments.iter().all(|segment| !matches!(segment, Segment::Key(key) if key.is_empty()));
    (named && segments.len() <= DEEPEST).then_some(KeyPath(segments))
}

fn entry<'n>(root: &'n mut Node, path: &KeyPath, place: &Place) -> Result<&'n mut Node, String> {
    let mut node = root;
    for (depth, segment) in path.0.iter().enumerate() {
        let inner = spelled_out(node);
        node = match segment {
            Segment::Key(key) => table_entry(inner, key, place),
            Segment::Index(index) => {
                let list = KeyPath(path.0[..depth].to_vec());
                list_entry(inner, *index, &list, place)?
            }
        };
    }
    Ok(node)
}

/// `LONGSHORE__MODELS=[…]` can be refined by `LONGSHORE__MODELS__0__NAME=…`, so a list written as text becomes one.
fn spelled_out(node: &mut Node) -> &mut Node {
    if let Content::Text(text) = &node.content
        && text.loose
        && let Some(content) = document::parse_value(&text.value, &node.place)
    {
        node.content = content;
    }
    node
}

fn table_entry<'n>(node: &'n mut Node, key: &str, place: &Place) -> &'n mut Node {
    if !matches!(node.content, Content::Table(_)) {
        *node = Node::empty_table(place.clone());
    }
    let Content::Table(table) = &mut node.content else { unreachable!("it was just made a table") };
    table.entry(key.to_owned()).or_insert_with(|| Node::empty_table(place.clone()))
}

fn list_entry<'n>(
    node: &'n mut Node,
    index: usize,
    path: &KeyPath,
    place: &Place,
) -> Result<&'n mut Node, String> {
    match &node.content {
        Content::List(_) => {}
        Content::Table(table) if !table.is_empty() => {
            return Ok(table_entry(node, &index.to_string(), place));
        }
        _ => *node = Node::new(place.clone(), Content::List(Vec::new())),
    }
    let Content::List(list) = &mut node.content else { unreachable!("it was just made a list") };
    let length = list.len();
    if index > length {
        return Err(format!("`{path}` has no entry {length} yet; number them from 0 without gaps"));
    }
    if index == length {
        list.push(Node::empty_table(place.clone()));
    }
    Ok(&mut list[index])
}

fn problem(variable: &str, path: KeyPath, message: String) -> Problem {
    Problem { place: Place::Variable(variable.to_owned()), path, message }
}
