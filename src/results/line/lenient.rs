//! Reading JSON of which little matters: what has another type than it should is as if it were not there.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::IgnoredAny;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;

use crate::results::stored;

/// An object that is a whole text; none where that is something else, or no JSON.
pub fn whole<'l, T: Object<'l>>(text: &'l str) -> Option<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let Lenient(object) = Lenient::deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    Some(object)
}

/// An object of which some keys are read.
pub trait Object<'l>: Default {
    fn take<A: MapAccess<'l>>(&mut self, key: &[u8], map: &mut A) -> Result<(), A::Error>;
}

pub fn pass_over<'l, A: MapAccess<'l>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// An object whose values are read one by one; nothing of it where there is something else.
pub fn object<'l, T: Object<'l>>(value: &'l RawValue) -> T {
    let is_object = value.get().starts_with('{');
    is_object.then(|| whole(value.get())).flatten().unwrap_or_default()
}

/// A text, as it is stored; none for anything else. A long one is cut before it is copied.
pub fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    struct Text;

    impl<'l> Visitor<'l> for Text {
        type Value = Cow<'l, str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_borrowed_bytes<E>(self, bytes: &'l [u8]) -> Result<Self::Value, E> {
            Ok(stored(bytes))
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            Ok(Cow::Owned(stored(bytes).into_owned()))
        }
    }

    // As bytes, since half of a surrogate pair is no reason to refuse a line.
    serde_json::Deserializer::from_str(value.get()).deserialize_bytes(Text).ok()
}

/// A whole number that is not negative, also where it is written as a text; none for anything else.
pub fn number(value: &RawValue) -> Option<u64> {
    let written = value.get();
    let written = written.strip_prefix('"').and_then(|it| it.strip_suffix('"')).unwrap_or(written);
    written.parse().ok().or_else(|| {
        let number: f64 = written.parse().ok()?;
        // Beyond 2^53 it is not known which number was meant.
        let is_whole = number.fract() == 0.0 && (0.0..9e15).contains(&number);
        is_whole.then_some(number as u64)
    })
}

/// The inside of a text, borrowed where it has no escapes.
struct Bytes<'l>(Cow<'l, [u8]>);

impl<'l> Deserialize<'l> for Bytes<'l> {
    fn deserialize<D: Deserializer<'l>>(deserializer: D) -> Result<Self, D::Error> {
        struct Inside;

        impl<'l> Visitor<'l> for Inside {
            type Value = Bytes<'l>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'l [u8]) -> Result<Bytes<'l>, E> {
                Ok(Bytes(Cow::Borrowed(bytes)))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes<'l>, E> {
                Ok(Bytes(Cow::Owned(bytes.to_vec())))
            }
        }

        deserializer.deserialize_bytes(Inside)
    }
}

/// An object, or nothing of it where there is something else.
pub struct Lenient<T>(pub T);

impl<'l, T: Object<'l>> Deserialize<'l> for Lenient<T> {
    fn deserialize<D: Deserializer<'l>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<T>(PhantomData<T>);

        impl<'l, T: Object<'l>> Visitor<'l> for Any<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'l>>(self, mut map: A) -> Result<T, A::Error> {
                let mut object = T::default();
                while let Some(key) = map.next_key::<Bytes<'l>>()? {
                    object.take(&key.0, &mut map)?;
                }
                Ok(object)
            }

            fn visit_seq<A: SeqAccess<'l>>(self, mut items: A) -> Result<T, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(T::default())
            }

            fn visit_bool<E>(self, _: bool) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_i64<E>(self, _: i64) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_u64<E>(self, _: u64) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_f64<E>(self, _: f64) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_str<E>(self, _: &str) -> Result<T, E> {
                Ok(T::default())
            }

            fn visit_unit<E>(self) -> Result<T, E> {
                Ok(T::default())
            }
        }

        deserializer.deserialize_any(Any(PhantomData)).map(Self)
    }
}
