//! Numbers with units, as people write them: `"512k"`, `"2GiB"`, `"1h30m"`.
//!
//! Reading is exact: `"1.5k"` is 1500, and a number that is not whole in the type's smallest unit
//! is an error rather than rounded. It must not know which keys use which unit.

mod quantity;
mod time_span;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use quantity::Quantity;
use quantity::{QuantityVisitor, Unit, parse_one};
pub use time_span::TimeSpan;

/// A text that is no quantity, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// There is nothing to read.
    #[error("it is empty")]
    Empty,
    /// The part before the unit is not a number.
    #[error("`{number}` is not a number")]
    Number {
        /// What stands in the number's place.
        number: String,
    },
    /// The unit is not one of this quantity's.
    #[error("unknown unit `{unit}`, expected {expected}")]
    Unit {
        /// What stands in the unit's place.
        unit: String,
        /// The units there are, as a phrase.
        expected: String,
    },
    /// A later part of a time span that is a bare number.
    #[error("`{number}` has no unit")]
    NoUnit {
        /// The number.
        number: String,
    },
    /// A time span whose units do not get smaller from left to right.
    #[error("units go from large to small, each once, as in `1h30m`")]
    Order,
    /// A fraction that the smallest unit cannot express.
    #[error("it is not a whole number of {smallest}")]
    Fraction {
        /// The smallest unit, in the plural.
        smallest: &'static str,
    },
    /// More than the type can hold.
    #[error("it is too large")]
    TooLarge,
}

/// A count: `2000`, `"2_000"`, `"512k"`, `"1.5M"`; k is a thousand, M a million, G 10⁹.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Count(pub u64);

const COUNT_UNITS: &[Unit] = &[
    Unit {
        name: "k",
        size: 1_000,
    },
    Unit {
        name: "M",
        size: 1_000_000,
    },
    Unit {
        name: "G",
        size: 1_000_000_000,
    },
];

impl Quantity for Count {
    const EXPECTS: &'static str = "a count such as 2000 or \"512k\"";

    fn from_integer(value: u64) -> Self {
        Self(value)
    }
}

impl FromStr for Count {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_one(text, COUNT_UNITS, "ones").map(Self)
    }
}

/// The shortest exact spelling.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&shortest(self.0, COUNT_UNITS, ""))
    }
}

/// A plain integer, which needs no knowledge of units to be read by other programs.
impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_integer(self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor::new())
    }
}

/// Bytes: `4096`, `"16MiB"`, `"1.5GB"`; KiB, MiB, GiB, TiB are powers of 1024, kB, MB, GB, TB of 1000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

// Where two spellings are equally short, the first wins.
const BYTE_UNITS: &[Unit] = &[
    Unit { name: "B", size: 1 },
    Unit {
        name: "KiB",
        size: 1 << 10,
    },
    Unit {
        name: "MiB",
        size: 1 << 20,
    },
    Unit {
        name: "GiB",
        size: 1 << 30,
    },
    Unit {
        name: "TiB",
        size: 1 << 40,
    },
    Unit {
        name: "kB",
        size: 1_000,
    },
    Unit {
        name: "MB",
        size: 1_000_000,
    },
    Unit {
        name: "GB",
        size: 1_000_000_000,
    },
    Unit {
        name: "TB",
        size: 1_000_000_000_000,
    },
];

impl Quantity for ByteSize {
    const EXPECTS: &'static str = "a size such as 4096 or \"16MiB\"";

    fn from_integer(value: u64) -> Self {
        Self(value)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_one(text, BYTE_UNITS, "bytes").map(Self)
    }
}

/// The shortest exact spelling.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&shortest(self.0, BYTE_UNITS, "B"))
    }
}

/// The shortest exact spelling; a plain integer where a unit would not make it shorter.
impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let spelling = shortest(self.0, BYTE_UNITS, "");
        if spelling.ends_with('B') {
            serializer.serialize_str(&spelling)
        } else {
            serialize_integer(self.0, serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor::new())
    }
}

/// The shortest of the plain number and its exact spellings in `units`.
fn shortest(value: u64, units: &[Unit], plain_suffix: &str) -> String {
    let mut best = format!("{value}{plain_suffix}");
    for unit in units.iter().filter(|unit| unit.size > 1 && value > 0) {
        let size = u64::try_from(unit.size).expect("units of whole counts fit in 64 bits");
        if value.is_multiple_of(size) {
            let spelling = format!("{}{}", value / size, unit.name);
            if spelling.len() < best.len() {
                best = spelling;
            }
        }
    }
    best
}

/// TOML's integers end at `i64::MAX`; what is larger goes as a string of digits.
fn serialize_integer<S: Serializer>(value: u64, serializer: S) -> Result<S::Ok, S::Error> {
    if i64::try_from(value).is_ok() {
        serializer.serialize_u64(value)
    } else {
        serializer.serialize_str(&value.to_string())
    }
}

#[cfg(test)]
mod tests;
