//! Reading TOML into a [`Node`] tree that remembers its lines.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use toml_edit::{Document, Item, TableLike, Value};

use super::{
    problem::{KeyPath, Place, Problem},
    tree::{Content, Node, Text},
};

/// Reads `text`; `name` is what messages call the file.
pub(super) fn parse(text: &str, name: &Arc<str>) -> Result<Node, Problem> {
    let lines = Lines::new(text, name);
    let document = Document::parse(text).map_err(|error| Problem {
        place: lines.place(error.span()),
        path: KeyPath::default(),
        // Not the error's `Display`: it prints the line, and the line may hold a secret.
        message: not_toml(error.message()),
    })?;
    let whole = Place::File { name: name.clone(), line: None };
    Ok(table(document.as_table(), whole, &lines))
}

fn not_toml(message: &str) -> String {
    let message = message.replace('\n', " ");
    // An address or a time without quotes reads like a number that goes wrong.
    let hint =
        if ["float", "integer", "number", "duration"].iter().any(|word| message.contains(word)) {
            "; where it is a text, it stands in quotes: `listen = \"127.0.0.1:4700\"`"
        } else {
            ""
        };
    format!("this is not TOML: {message}{hint}")
}

/// Reads one value in TOML's inline notation, such as `["a", "b"]`. All of it is written at `place`.
pub(super) fn parse_value(text: &str, place: &Place) -> Option<Content> {
    let parsed: Value = text.trim().parse().ok()?;
    Some(value(&parsed, place, &Everywhere(place.clone())))
}

/// Tells where the piece of text is from which a value was read.
trait Places {
    fn at(&self, span: Option<Range<usize>>, around: &Place) -> Place;
}

struct Everywhere(Place);

impl Places for Everywhere {
    fn at(&self, _: Option<Range<usize>>, _: &Place) -> Place {
        self.0.clone()
    }
}

struct Lines {
    name: Arc<str>,
    /// The offset at which each line begins, in bytes.
    starts: Vec<usize>,
}

impl Lines {
    fn new(text: &str, name: &Arc<str>) -> Self {
        let after_breaks = text.match_indices('\n').map(|(offset, _)| offset + 1);
        Self { name: name.clone(), starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    fn place(&self, span: Option<Range<usize>>) -> Place {
        let line = span.map(|span| self.starts.partition_point(|start| *start <= span.start));
        Place::File { name: self.name.clone(), line }
    }
}

impl Places for Lines {
    fn at(&self, span: Option<Range<usize>>, around: &Place) -> Place {
        if span.is_some() { self.place(span) } else { around.clone() }
    }
}

fn table(table: &dyn TableLike, place: Place, places: &dyn Places) -> Node {
    let mut entries = BTreeMap::new();
    for (name, item) in table.iter() {
        let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
        if let Some(entry) = item_node(item, places.at(span, &place), places) {
            entries.insert(name.to_owned(), entry);
        }
    }
    Node::new(place, Content::Table(entries))
}

fn item_node(item: &Item, place: Place, places: &dyn Places) -> Option<Node> {
    match item {
        Item::None => None,
        Item::Value(inner) => {
            let content = value(inner, &place, places);
            Some(Node::new(place, content))
        }
        Item::Table(inner) => Some(table(inner, place, places)),
        Item::ArrayOfTables(inner) => {
            let elements =
                inner.iter().map(|entry| table(entry, places.at(entry.span(), &place), places));
            let content = Content::List(elements.collect());
            Some(Node::new(place, content))
        }
    }
}

fn value(value_read: &Value, place: &Place, places: &dyn Places) -> Content {
    match value_read {
        Value::String(text) => {
            let value = text.value().clone();
            Content::Text(Text { written: value.clone(), value, loose: false })
        }
        Value::Integer(number) => Content::Integer(*number.value()),
        Value::Float(number) => Content::Float(*number.value()),
        Value::Boolean(claim) => Content::Boolean(*claim.value()),
        Value::Datetime(_) => Content::Time,
        Value::Array(array) => Content::List(
            array
                .iter()
                .map(|element| {
                    let place = places.at(element.span(), place);
                    let content = value(element, &place, places);
                    Node::new(place, content)
                })
                .collect(),
        ),
        Value::InlineTable(inline) => table(inline, place.clone(), places).content,
    }
}
