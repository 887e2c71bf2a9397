//! Numbers that JSON cannot write.
//!
//! JSON knows neither NaN nor infinities. Both are written as `null`, which every reader takes
//! without further ado and plots as a gap; a string in a column of numbers would turn the whole
//! column into text. `null` reads back as NaN.

use serde::{Deserialize, Deserializer};

/// For `deserialize_with`: a number, or NaN for `null`.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// For `deserialize_with` of a field that may be absent: it is there, and `null` is NaN.
pub(crate) fn null_is_some_nan<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<f64>, D::Error> {
    null_is_nan(deserializer).map(Some)
}
