//! The body of a record, and where in it something is wrong.
//!
//! Bodies are postcard's: fields one behind the other, numbers as variable-length integers. That is bounded by the body's length and
//! the same on every machine, and says nothing of names. [`Named`] stands between it and the type that is read, and keeps the names of
//! the fields on the way down; after an error they are where it happened.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt::Write as _;

use serde::Serialize;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, SeqAccess, VariantAccess, Visitor,
};

/// A body that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field, with those that it is in before it.
    pub field: String,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a field's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// They end before it does.
    Truncated,
    /// They are none of its values.
    Value,
    /// The body goes on behind the last field.
    Rest {
        /// Bytes that are too many.
        bytes: usize,
    },
}

/// Writes a body. `None` if a type cannot be written at all, which no test lets through.
pub(super) fn to_bytes<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    postcard::to_allocvec(value).ok()
}

/// Reads a body.
///
/// # Errors
/// [`FieldError`].
pub(super) fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FieldError> {
    let path = Path::default();
    let mut inner = postcard::Deserializer::from_bytes(bytes);
    let named = Named {
        inner: &mut inner,
        path: &path,
    };
    let value = T::deserialize(named).map_err(|error| FieldError {
        field: path.text(),
        problem: match error {
            postcard::Error::DeserializeUnexpectedEnd => Problem::Truncated,
            _ => Problem::Value,
        },
    })?;
    match inner.finalize() {
        Ok([]) => Ok(value),
        rest => Err(FieldError {
            field: "the end".to_string(),
            problem: Problem::Rest {
                bytes: rest.map_or(0, <[u8]>::len),
            },
        }),
    }
}

#[derive(Clone, Copy)]
enum Step {
    Field(&'static str),
    Element(usize),
}

/// The fields that the reader is in.
#[derive(Default)]
struct Path(RefCell<Vec<Step>>);

impl Path {
    fn text(&self) -> String {
        let mut text = String::new();
        for step in &*self.0.borrow() {
            // A string takes all that is written.
            let _ = match step {
                Step::Field(name) if text.is_empty() => write!(text, "{name}"),
                Step::Field(name) => write!(text, ".{name}"),
                Step::Element(index) => write!(text, "[{index}]"),
            };
        }
        text
    }
}

/// Something of postcard's, or of who reads, with the way to it.
struct Named<'p, T> {
    inner: T,
    path: &'p Path,
}

impl<'p, T> Named<'p, T> {
    fn with<U>(&self, inner: U) -> Named<'p, U> {
        Named {
            inner,
            path: self.path,
        }
    }
}

/// A list of fields or elements that is being read.
struct List<'p, A> {
    inner: Named<'p, A>,
    names: &'static [&'static str],
    next: usize,
}

/// A visitor that is given named things.
struct NamedVisitor<'p, V> {
    inner: Named<'p, V>,
    names: &'static [&'static str],
}

macro_rules! forward {
    ($($method:ident)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
                self.inner.$method(visitor)
            }
        )*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Named<'_, D> {
    type Error = D::Error;

    forward! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
        deserialize_bytes deserialize_byte_buf deserialize_unit deserialize_map deserialize_identifier
        deserialize_ignored_any
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let inner = self.with(visitor);
        self.inner
            .deserialize_option(NamedVisitor { inner, names: &[] })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inner = self.with(visitor);
        self.inner
            .deserialize_newtype_struct(name, NamedVisitor { inner, names: &[] })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let inner = self.with(visitor);
        self.inner
            .deserialize_seq(NamedVisitor { inner, names: &[] })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        count: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inner = self.with(visitor);
        self.inner
            .deserialize_tuple(count, NamedVisitor { inner, names: &[] })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        count: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inner = self.with(visitor);
        self.inner
            .deserialize_tuple_struct(name, count, NamedVisitor { inner, names: &[] })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inner = self.with(visitor);
        self.inner
            .deserialize_struct(name, names, NamedVisitor { inner, names })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let inner = self.with(visitor);
        self.inner
            .deserialize_enum(name, variants, NamedVisitor { inner, names: &[] })
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for NamedVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.inner.inner.expecting(formatter)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.inner.visit_none()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        let deserializer = self.inner.with(deserializer);
        self.inner.inner.visit_some(deserializer)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<V::Value, D::Error> {
        let deserializer = self.inner.with(deserializer);
        self.inner.inner.visit_newtype_struct(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let inner = self.inner.with(access);
        self.inner.inner.visit_seq(List {
            inner,
            names: self.names,
            next: 0,
        })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<V::Value, A::Error> {
        let access = self.inner.with(access);
        self.inner.inner.visit_enum(access)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for List<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        let step = match self.names.get(self.next) {
            Some(name) => Step::Field(name),
            None => Step::Element(self.next),
        };
        self.next += 1;
        let path = self.inner.path;
        path.0.borrow_mut().push(step);
        let seed = self.inner.with(seed);
        let element = self.inner.inner.next_element_seed(seed)?;
        // After an error it stays: it is the way there.
        path.0.borrow_mut().pop();
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.inner.size_hint()
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Named<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let deserializer = self.with(deserializer);
        self.inner.deserialize(deserializer)
    }
}

impl<'de, 'p, A: EnumAccess<'de>> EnumAccess<'de> for Named<'p, A> {
    type Error = A::Error;
    type Variant = Named<'p, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let path = self.path;
        let (value, inner) = self.inner.variant_seed(seed)?;
        Ok((value, Named { inner, path }))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Named<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        let seed = self.with(seed);
        self.inner.newtype_variant_seed(seed)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        count: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let inner = self.with(visitor);
        self.inner
            .tuple_variant(count, NamedVisitor { inner, names: &[] })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let inner = self.with(visitor);
        self.inner
            .struct_variant(names, NamedVisitor { inner, names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::vec;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Inner {
        count: u8,
        flag: bool,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        None,
        Some { inner: Inner },
        One(Inner),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Outer {
        name: String,
        list: Vec<Inner>,
        kind: Kind,
        last: Option<[u16; 2]>,
    }

    fn outer() -> Outer {
        let inner = |count| Inner { count, flag: true };
        Outer {
            name: "abc".into(),
            list: vec![inner(1), inner(2)],
            kind: Kind::Some { inner: inner(3) },
            last: Some([4, 5]),
        }
    }

    /// What is said of a body in which a byte is another, or that ends there.
    fn fault(at: usize, byte: Option<u8>) -> (String, Problem) {
        let mut bytes = to_bytes(&outer()).expect("is written");
        match byte {
            Some(byte) => bytes[at] = byte,
            None => bytes.truncate(at),
        }
        let error = from_bytes::<Outer>(&bytes).expect_err("is refused");
        (error.field, error.problem)
    }

    #[test]
    fn a_value_comes_back_and_what_is_behind_it_is_refused() {
        for kind in [
            Kind::None,
            Kind::One(Inner {
                count: 9,
                flag: false,
            }),
        ] {
            let value = Outer { kind, ..outer() };
            let bytes = to_bytes(&value).expect("is written");
            assert_eq!(from_bytes(&bytes), Ok(value));
        }
        let mut bytes = to_bytes(&outer()).expect("is written");
        bytes.push(0);
        let error = from_bytes::<Outer>(&bytes).expect_err("is refused");
        assert_eq!(error.problem, Problem::Rest { bytes: 1 });
    }

    #[test]
    fn an_error_names_the_field_with_all_that_it_is_in() {
        // 3 a b c | 2: 1 1, 2 1 | 1: 3 1 | 1: 4 5
        assert_eq!(fault(2, None), ("name".into(), Problem::Truncated));
        assert_eq!(fault(8, Some(2)), ("list[1].flag".into(), Problem::Value));
        assert_eq!(fault(9, Some(7)), ("kind".into(), Problem::Value));
        assert_eq!(
            fault(11, Some(9)),
            ("kind.inner.flag".into(), Problem::Value)
        );
        assert_eq!(fault(14, None), ("last[1]".into(), Problem::Truncated));
        assert_eq!(fault(12, Some(2)), ("last".into(), Problem::Value));
    }
}
