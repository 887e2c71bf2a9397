//! Spans of time, which are the one quantity written in several units at once.

use std::{
    fmt::{self, Write},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    UnitError,
    quantity::{Decimal, Quantity, QuantityVisitor, Unit, find_unit, split_number},
};

/// A span of time: `90`, `"90s"`, `"1h30m"`, `"250ms"`; a plain number is in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeSpan(pub Duration);

const SECOND: u128 = 1_000_000_000;

/// From large to small.
const TIME_UNITS: &[Unit] = &[
    Unit {
        name: "d",
        size: 86_400 * SECOND,
    },
    Unit {
        name: "h",
        size: 3_600 * SECOND,
    },
    Unit {
        name: "m",
        size: 60 * SECOND,
    },
    Unit {
        name: "s",
        size: SECOND,
    },
    Unit {
        name: "ms",
        size: 1_000_000,
    },
    Unit {
        name: "us",
        size: 1_000,
    },
    Unit {
        name: "ns",
        size: 1,
    },
];

impl TimeSpan {
    /// A span of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    fn from_nanos(nanos: u128) -> Result<Self, UnitError> {
        let seconds = u64::try_from(nanos / SECOND).map_err(|_| UnitError::TooLarge)?;
        Ok(Self(Duration::new(seconds, (nanos % SECOND) as u32)))
    }
}

impl Quantity for TimeSpan {
    const EXPECTS: &'static str = "a time span such as 90, \"30m\" or \"1h30m\"";

    fn from_integer(value: u64) -> Self {
        Self::from_secs(value)
    }

    fn from_float(value: f64) -> Option<Self> {
        // Through the decimal spelling, so that 0.1 is a tenth of a second and not its nearest
        // binary fraction.
        let number: Decimal = value.to_string().parse().ok()?;
        Self::from_nanos(number.times(SECOND, "nanoseconds").ok()?).ok()
    }
}

impl FromStr for TimeSpan {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(UnitError::Empty);
        }
        if let Ok(seconds) = rest.parse::<Decimal>() {
            return Self::from_nanos(seconds.times(SECOND, "nanoseconds")?);
        }
        let mut total: u128 = 0;
        let mut last = u128::MAX;
        while !rest.is_empty() {
            let (number, after) = split_number(rest);
            let after = after.trim_start();
            let end = after
                .find(|c: char| !c.is_alphabetic())
                .unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            if number.is_empty() {
                return Err(UnitError::Number {
                    number: rest.to_owned(),
                });
            }
            if name.is_empty() {
                return Err(UnitError::NoUnit {
                    number: number.to_owned(),
                });
            }
            let number: Decimal = number.parse()?;
            let unit = find_unit(name, TIME_UNITS)?;
            if unit.size >= last {
                return Err(UnitError::Order);
            }
            last = unit.size;
            let nanos = number.times(unit.size, "nanoseconds")?;
            total = total.checked_add(nanos).ok_or(UnitError::TooLarge)?;
            rest = after.trim_start();
        }
        Self::from_nanos(total)
    }
}

/// The shortest exact spelling in whole units.
impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        if nanos == 0 {
            return f.pad("0s");
        }
        let mut compound = String::new();
        let mut rest = nanos;
        for unit in TIME_UNITS {
            if rest >= unit.size {
                write!(compound, "{}{}", rest / unit.size, unit.name)?;
                rest %= unit.size;
            }
        }
        let single = TIME_UNITS
            .iter()
            .find(|unit| nanos.is_multiple_of(unit.size))
            .map(|unit| format!("{}{}", nanos / unit.size, unit.name));
        match single {
            Some(single) if single.len() < compound.len() => f.pad(&single),
            _ => f.pad(&compound),
        }
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor::new())
    }
}
