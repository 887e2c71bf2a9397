//! What the schema looks like at run time: sections, keys, their types and their documentation.
//!
//! The macros [`section!`] and [`choice!`] pass an item through unchanged and record what it says,
//! so that the reference, the checks and the hints have the same source as the types. It must not
//! know any key.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use toml::Value;

use crate::units::{ByteSize, Count, Quantity, TimeSpan, UnitError};

/// A table with fixed keys.
#[derive(Debug)]
pub(crate) struct Section {
    /// Its doc comment, line by line as written.
    pub(crate) doc: &'static str,
    pub(crate) keys: &'static [Key],
}

/// A key of a section.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
    /// Whether a config without it is an error.
    pub(crate) required: bool,
    pub(crate) shape: Shape,
}

/// What stands behind a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// `[key]`
    Section(&'static Section),
    /// `[[key]]`
    Sections(&'static Section),
    /// `key = value`
    Leaf(&'static Leaf),
}

/// A type of values.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// In one or two words, for the reference.
    pub(crate) name: &'static str,
    /// With its article and an example, to complete "must be …".
    pub(crate) expects: &'static str,
    /// The words it can be; empty for types that are not a choice of words.
    pub(crate) choices: &'static [Choice],
    /// Whether it is a path, which is relative to the file that gives it.
    pub(crate) is_path: bool,
    pub(crate) read: fn(&Value) -> Result<(), Unreadable>,
}

/// One of a choice of words.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) name: &'static str,
    pub(crate) doc: &'static str,
}

/// A value is not of a leaf's type.
#[derive(Debug)]
pub(crate) struct Unreadable {
    /// What is wrong with it, where there is more to say than that its type is another.
    pub(crate) because: Option<UnitError>,
}

/// A type that can stand behind a key.
pub(crate) trait Described {
    const SHAPE: Shape;
}

/// Records a `struct` as a section.
macro_rules! section {
    (
        $(#[$($outer:tt)*])*
        pub struct $section:ident { $( $(#[$($inner:tt)*])* pub $key:ident: $type:ty, )* }
    ) => {
        $(#[$($outer)*])*
        pub struct $section { $( $(#[$($inner)*])* pub $key: $type, )* }

        impl $section {
            const DEFAULTS_ALL: bool =
                false $(|| $crate::describe::has_default!($($outer)*))*;
        }

        impl $crate::describe::Described for $section {
            const SHAPE: $crate::describe::Shape =
                $crate::describe::Shape::Section(&$crate::describe::Section {
                    doc: concat!($($crate::describe::doc_line!($($outer)*)),*),
                    keys: &[$($crate::describe::Key {
                        name: stringify!($key),
                        doc: concat!($($crate::describe::doc_line!($($inner)*)),*),
                        required: !($section::DEFAULTS_ALL
                            $(|| $crate::describe::has_default!($($inner)*))*),
                        shape: <$type as $crate::describe::Described>::SHAPE,
                    }),*],
                });
        }
    };
}

/// Records an `enum` as a choice of words; each variant needs its `serde(rename)`.
macro_rules! choice {
    (
        $(#[$($outer:tt)*])*
        pub enum $choice:ident { $( $(#[$($inner:tt)*])* $variant:ident, )* }
    ) => {
        $(#[$($outer)*])*
        pub enum $choice { $( $(#[$($inner)*])* $variant, )* }

        impl $crate::describe::Described for $choice {
            const SHAPE: $crate::describe::Shape =
                $crate::describe::Shape::Leaf(&$crate::describe::Leaf {
                    name: "word",
                    expects: "a word",
                    choices: &[$($crate::describe::Choice {
                        name: concat!($($crate::describe::rename!($($inner)*)),*),
                        doc: concat!($($crate::describe::doc_line!($($inner)*)),*),
                    }),*],
                    is_path: false,
                    read: $crate::describe::read::<$choice>,
                });
        }
    };
}

/// The text of an attribute that is a doc comment, else nothing.
macro_rules! doc_line {
    (doc = $text:literal) => {
        concat!($text, "\n")
    };
    ($($other:tt)*) => {
        ""
    };
}

/// The name that an attribute gives to serde, else nothing.
macro_rules! rename {
    (serde(rename = $name:literal)) => {
        $name
    };
    ($($other:tt)*) => {
        ""
    };
}

/// Whether an attribute tells serde what a missing key means.
macro_rules! has_default {
    (serde(default $($rest:tt)*)) => {
        true
    };
    (serde(deny_unknown_fields, default)) => {
        true
    };
    ($($other:tt)*) => {
        false
    };
}

pub(crate) use {choice, doc_line, has_default, rename, section};

/// Whether `value` is a `T`.
pub(crate) fn read<T: DeserializeOwned>(value: &Value) -> Result<(), Unreadable> {
    match value.clone().try_into::<T>() {
        Ok(_) => Ok(()),
        Err(_) => Err(Unreadable { because: None }),
    }
}

/// Whether `value` is a `T`, and what its unit lacks if not.
fn read_quantity<T: Quantity + DeserializeOwned>(value: &Value) -> Result<(), Unreadable> {
    match value.as_str().map(T::from_str) {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(Unreadable {
            because: Some(error),
        }),
        None => read::<T>(value),
    }
}

/// A type that is not a choice of words.
const fn leaf(
    name: &'static str,
    expects: &'static str,
    read: fn(&Value) -> Result<(), Unreadable>,
) -> Leaf {
    Leaf {
        name,
        expects,
        choices: &[],
        is_path: false,
        read,
    }
}

const INTEGER: &str = "a non-negative integer";

impl Described for usize {
    const SHAPE: Shape = Shape::Leaf(&leaf("integer", INTEGER, read::<Self>));
}

impl Described for u64 {
    const SHAPE: Shape = Shape::Leaf(&leaf("integer", INTEGER, read::<Self>));
}

impl Described for f64 {
    const SHAPE: Shape = Shape::Leaf(&leaf("number", "a number", read::<Self>));
}

impl Described for [f64; 2] {
    const SHAPE: Shape = Shape::Leaf(&leaf(
        "two numbers",
        "an array of two numbers",
        read::<Self>,
    ));
}

impl Described for bool {
    const SHAPE: Shape = Shape::Leaf(&leaf("boolean", "`true` or `false`", read::<Self>));
}

impl Described for String {
    const SHAPE: Shape = Shape::Leaf(&leaf("string", "a string", read::<Self>));
}

impl Described for PathBuf {
    const SHAPE: Shape = Shape::Leaf(&Leaf {
        is_path: true,
        ..leaf("path", "a path, which is a string", read::<Self>)
    });
}

impl Described for Count {
    const SHAPE: Shape = Shape::Leaf(&leaf("count", Self::EXPECTS, read_quantity::<Self>));
}

impl Described for ByteSize {
    const SHAPE: Shape = Shape::Leaf(&leaf("size", Self::EXPECTS, read_quantity::<Self>));
}

impl Described for TimeSpan {
    const SHAPE: Shape = Shape::Leaf(&leaf("time span", Self::EXPECTS, read_quantity::<Self>));
}

impl<T: Described> Described for Option<T> {
    const SHAPE: Shape = T::SHAPE;
}

impl<T: Described + DeserializeOwned> Described for Vec<T> {
    const SHAPE: Shape = match T::SHAPE {
        Shape::Section(section) => Shape::Sections(section),
        Shape::Leaf(_) => Shape::Leaf(const { &leaf("list", "an array", read::<Self>) }),
        Shape::Sections(_) => panic!("lists of lists are not described"),
    };
}

/// A doc comment as one paragraph.
pub(crate) fn paragraph(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}
