//! From the tree to the typed settings: a serde deserializer whose errors know which setting they are about.

use std::{collections::btree_map, fmt, slice};

use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor,
};

use super::{
    document,
    problem::{KeyPath, Segment, quotable},
    tree::{Content, Node, Text},
};

/// What a message says where the value as it was written belongs. Messages about secrets leave it out.
pub(super) const VALUE: &str = "{value}";

/// Why a tree is not a configuration. Only the first reason: serde stops there.
#[derive(Debug)]
pub(super) struct Fault {
    /// From the setting outwards, as the error travels.
    inside_out: Vec<Segment>,
    pub(super) kind: FaultKind,
}

#[derive(Debug)]
pub(super) enum FaultKind {
    /// A key that no setting has; these are the settings there are.
    Unknown(&'static [&'static str]),
    /// A table lacks this key.
    Missing(&'static str),
    /// A value will not do.
    Wrong(String),
}

impl Fault {
    fn new(kind: FaultKind) -> Self {
        Self { inside_out: Vec::new(), kind }
    }

    pub(super) fn path(&self) -> KeyPath {
        KeyPath(self.inside_out.iter().rev().cloned().collect())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FaultKind::Unknown(_) => f.write_str("not a setting"),
            FaultKind::Missing(key) => write!(f, "no `{key}`"),
            FaultKind::Wrong(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(FaultKind::Wrong(message.to_string()))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(FaultKind::Unknown(expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(FaultKind::Missing(field))
    }

    // The two below would print the value, which may be a secret.

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("must be {expected}"))
    }
}

impl Node {
    fn kind(&self) -> &'static str {
        match &self.content {
            Content::Text(_) => "a string",
            Content::Integer(_) => "a whole number",
            Content::Float(_) => "a fraction",
            Content::Boolean(_) => "true or false",
            Content::Time => "a date",
            Content::List(_) => "a list",
            Content::Table(_) => "a table",
        }
    }

    fn mismatch(&self, wanted: &str) -> Fault {
        de::Error::custom(format_args!("must be {wanted}, not {}", self.kind()))
    }

    /// What a text from the environment spells where a `wanted` is needed.
    fn spelled(&self, wanted: &str) -> Result<Self, Fault> {
        if let Content::Text(text) = &self.content
            && text.loose
            && let Some(content) = document::parse_value(&text.value, &self.place)
            && !matches!(content, Content::Text(_))
        {
            return Ok(Self::new(self.place.clone(), content));
        }
        Err(self.mismatch(wanted))
    }

    /// Completes a fault on its way out of `self`, which is at `segment` of what is around it.
    fn locate(&self, mut fault: Fault, segment: Segment) -> Fault {
        if fault.inside_out.is_empty()
            && let FaultKind::Wrong(message) = &mut fault.kind
        {
            *message = message.replace(VALUE, &self.written());
        }
        fault.inside_out.push(segment);
        fault
    }

    fn written(&self) -> String {
        match &self.content {
            Content::Text(Text { written, .. }) => quotable(written),
            Content::Integer(number) => number.to_string(),
            Content::Float(number) => number.to_string(),
            Content::Boolean(claim) => claim.to_string(),
            Content::Time | Content::List(_) | Content::Table(_) => self.kind().to_owned(),
        }
    }
}

impl<'de> Deserializer<'de> for &Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.content {
            Content::Text(text) => visitor.visit_str(&text.value),
            Content::Integer(number) => visitor.visit_i64(*number),
            Content::Float(number) => visitor.visit_f64(*number),
            Content::Boolean(claim) => visitor.visit_bool(*claim),
            Content::Time => Err(self.mismatch("something else")),
            Content::List(_) => self.deserialize_seq(visitor),
            Content::Table(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.content {
            Content::Boolean(claim) => visitor.visit_bool(*claim),
            _ => self.spelled("true or false")?.deserialize_bool(visitor),
        }
    }

    /// A count of at least one.
    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.content {
            Content::Integer(number) => match u32::try_from(*number) {
                Ok(count @ 1..) => visitor.visit_u32(count),
                _ => Err(de::Error::custom(format_args!(
                    "must be a whole number from 1 to {}, not `{VALUE}`",
                    u32::MAX
                ))),
            },
            _ => self.spelled("a whole number")?.deserialize_u32(visitor),
        }
    }

    /// A limit: 0 is none.
    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.content {
            Content::Integer(number) => match u64::try_from(*number) {
                Ok(limit) => visitor.visit_u64(limit),
                Err(_) => Err(de::Error::custom(format_args!(
                    "must be a whole number, or 0 for none, not `{VALUE}`"
                ))),
            },
            _ => self.spelled("a whole number")?.deserialize_u64(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.content {
            Content::Text(text) => visitor.visit_str(&text.value),
            _ => Err(self.mismatch("a string")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.content {
            Content::List(list) => visitor.visit_seq(Elements { rest: list.iter(), index: 0 }),
            _ => self.spelled("a list")?.deserialize_seq(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.content {
            Content::Table(table) => visitor.visit_map(Entries { rest: table.iter(), next: None }),
            _ => self.spelled("a table")?.deserialize_map(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

/// The sound elements of a list, with the positions they were written at.
struct Elements<'n> {
    rest: slice::Iter<'n, Node>,
    index: usize,
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        for node in self.rest.by_ref() {
            let index = self.index;
            self.index += 1;
            if !node.broken {
                let value = seed.deserialize(node);
                return value.map(Some).map_err(|fault| node.locate(fault, Segment::Index(index)));
            }
        }
        Ok(None)
    }
}

/// The sound entries of a table.
struct Entries<'n> {
    rest: btree_map::Iter<'n, String, Node>,
    next: Option<(&'n String, &'n Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.next = self.rest.by_ref().find(|(_, node)| !node.broken);
        let Some((key, node)) = self.next else { return Ok(None) };
        let read = seed.deserialize(key.as_str().into_deserializer());
        read.map(Some).map_err(|fault| node.locate(fault, Segment::Key(key.clone())))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.next.take().expect("serde asks for a value after its key");
        seed.deserialize(node).map_err(|fault| node.locate(fault, Segment::Key(key.clone())))
    }
}
