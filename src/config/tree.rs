//! A configuration before it is typed: tables, lists and values, each knowing where it was written.

use std::collections::BTreeMap;

use super::problem::{KeyPath, Place, Segment};

/// A value with its place. It has no `Debug`: what is in it may be a secret.
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) content: Content,
    /// A problem with it was reported. It counts as absent from then on, so that the rest can be looked at.
    pub(super) broken: bool,
}

pub(super) enum Content {
    Text(Text),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Time,
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

pub(super) struct Text {
    pub(super) value: String,
    /// What may be shown of it in a message: the text before interpolation.
    pub(super) written: String,
    /// It came out of the environment, where everything is text: it may spell a number, a list, a table.
    pub(super) loose: bool,
}

impl Node {
    pub(super) fn new(place: Place, content: Content) -> Self {
        Self { place, content, broken: false }
    }

    pub(super) fn empty_table(place: Place) -> Self {
        Self::new(place, Content::Table(BTreeMap::new()))
    }

    pub(super) fn child(&self, segment: &Segment) -> Option<&Self> {
        match (&self.content, segment) {
            (Content::Table(table), Segment::Key(key)) => table.get(key),
            (Content::List(list), Segment::Index(index)) => list.get(*index),
            _ => None,
        }
    }

    fn child_mut(&mut self, segment: &Segment) -> Option<&mut Self> {
        match (&mut self.content, segment) {
            (Content::Table(table), Segment::Key(key)) => table.get_mut(key),
            (Content::List(list), Segment::Index(index)) => list.get_mut(*index),
            _ => None,
        }
    }

    /// Whether anything was written at `path`.
    pub(super) fn holds(&self, path: &KeyPath) -> bool {
        path.0.iter().try_fold(self, |node, segment| node.child(segment)).is_some()
    }

    /// Where `path` was written; for what was not written at all, where the table around it was.
    pub(super) fn place_of(&self, path: &KeyPath) -> Place {
        let mut node = self;
        for segment in &path.0 {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.place.clone()
    }

    /// Marks as broken what is at `path`, or the innermost thing around it that exists.
    pub(super) fn break_at(&mut self, path: &KeyPath) {
        let mut node = self;
        for segment in &path.0 {
            if node.child(segment).is_none() {
                break;
            }
            node = node.child_mut(segment).expect("it was there a line ago");
        }
        node.broken = true;
    }
}
