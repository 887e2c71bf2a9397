//! Reading a number and a unit, exactly.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::de::{Error, Unexpected, Visitor};

use super::UnitError;
use crate::names::alternatives;

/// A type that is written as a number, or as a string with a unit.
pub(crate) trait Quantity: Sized + FromStr<Err = UnitError> {
    /// What it is and how it is written, to complete "expected …".
    const EXPECTS: &'static str;

    /// The meaning of a number without a unit.
    fn from_integer(value: u64) -> Self;

    /// The meaning of a decimal number without a unit, where it has one.
    fn from_float(_value: f64) -> Option<Self> {
        None
    }
}

/// A unit, in terms of the smallest one of its quantity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub(super) name: &'static str,
    pub(super) size: u128,
}

/// A decimal number: `digits / 10^decimals`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal {
    digits: u128,
    decimals: u32,
}

impl Decimal {
    /// The number in smallest units, if that is a whole number.
    pub(super) fn times(self, size: u128, smallest: &'static str) -> Result<u128, UnitError> {
        let scaled = self.digits.checked_mul(size).ok_or(UnitError::TooLarge)?;
        match 10u128.checked_pow(self.decimals) {
            Some(divisor) if scaled.is_multiple_of(divisor) => Ok(scaled / divisor),
            _ => Err(UnitError::Fraction { smallest }),
        }
    }
}

impl FromStr for Decimal {
    type Err = UnitError;

    /// Digits, with `_` between digits as in TOML, and at most one point between digits.
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError::Number {
            number: text.to_owned(),
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let group = |group: &str| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit());
        if ![whole, fraction]
            .into_iter()
            .all(|part| part.split('_').all(group))
        {
            return Err(wrong());
        }
        let fraction = fraction.replace('_', "");
        let fraction = fraction.trim_end_matches('0');
        let digits = whole.replace('_', "") + fraction;
        // A text of digits only fails to be read when it is too large.
        let digits = digits.parse().map_err(|_| UnitError::TooLarge)?;
        Ok(Self {
            digits,
            decimals: u32::try_from(fraction.len()).map_err(|_| wrong())?,
        })
    }
}

/// Splits off the number at the start of `text`: the number, and the rest.
pub(super) fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'));
    text.split_at(end.unwrap_or(text.len()))
}

/// The unit of that name.
pub(super) fn find_unit(name: &str, units: &[Unit]) -> Result<Unit, UnitError> {
    units
        .iter()
        .find(|unit| unit.name == name)
        .copied()
        .ok_or_else(|| UnitError::Unit {
            unit: name.to_owned(),
            expected: alternatives(units.iter().map(|unit| unit.name)),
        })
}

/// Reads one number with at most one unit.
pub(super) fn parse_one(
    text: &str,
    units: &[Unit],
    smallest: &'static str,
) -> Result<u64, UnitError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(UnitError::Empty);
    }
    let (number, unit) = split_number(text);
    if number.is_empty() {
        return Err(UnitError::Number {
            number: text.to_owned(),
        });
    }
    let number: Decimal = number.parse()?;
    let unit = unit.trim_start();
    let size = if unit.is_empty() {
        1
    } else {
        find_unit(unit, units)?.size
    };
    u64::try_from(number.times(size, smallest)?).map_err(|_| UnitError::TooLarge)
}

/// Reads a quantity from whatever a document holds.
pub(super) struct QuantityVisitor<T>(PhantomData<T>);

impl<T> QuantityVisitor<T> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Quantity> Visitor<'_> for QuantityVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTS)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        Ok(T::from_integer(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        u64::try_from(value)
            .map(T::from_integer)
            .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<T, E> {
        T::from_float(value).ok_or_else(|| E::invalid_value(Unexpected::Float(value), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse()
            .map_err(|error| E::custom(format_args!("`{text}` is not {}: {error}", T::EXPECTS)))
    }
}
