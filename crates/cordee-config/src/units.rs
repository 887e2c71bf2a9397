//! Numbers with units, as people write them: `"2GiB"`, `"30m"`, `"512k"`. (being written)
use serde::{Deserialize, Serialize};
/// A count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Count(pub u64);
/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);
/// Time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimeSpan(pub std::time::Duration);
impl TimeSpan {
    /// Seconds.
    pub const fn from_secs(s: u64) -> Self { Self(std::time::Duration::from_secs(s)) }
}
