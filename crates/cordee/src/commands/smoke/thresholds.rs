//! What is good enough: a file that a site can edit.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, anyhow};
use cordee_config::ByteSize;
use cordee_protocol::Check;
use serde::{Deserialize, Deserializer, de::Error as _};

/// What holds where no other file is named.
const SHIPPED: &str = include_str!("../../../../../configs/smoke/h100.toml");

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Thresholds {
    /// For every machine.
    #[serde(default)]
    any: BTreeMap<Check, Bound>,
    /// For machines with certain GPUs.
    #[serde(default)]
    gpu: Vec<OfGpu>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfGpu {
    /// Part of their name.
    name: String,
    checks: BTreeMap<Check, Bound>,
}

/// What a number must keep to; all that is given holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bound {
    #[serde(default, deserialize_with = "number")]
    pub(super) at_least: Option<f64>,
    #[serde(default, deserialize_with = "number")]
    pub(super) at_most: Option<f64>,
    /// Share of the median of all that were measured alike.
    #[serde(default, deserialize_with = "number")]
    pub(super) of_median: Option<f64>,
    /// The number of ranks for which it holds; any, if absent.
    pub(super) ranks: Option<usize>,
}

/// A number, or a size such as `"1GiB"`.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(f64),
        Size(String),
    }
    match Written::deserialize(deserializer)? {
        Written::Number(number) if number.is_nan() => Err(D::Error::custom("nan bounds nothing")),
        Written::Number(number) => Ok(Some(number)),
        Written::Size(text) => match text.parse::<ByteSize>() {
            Ok(size) => Ok(Some(size.0 as f64)),
            Err(error) => Err(D::Error::custom(error)),
        },
    }
}

impl Thresholds {
    /// Those of `file`, or those that the program brings.
    pub(super) fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = file else {
            return Self::parse(SHIPPED).context("the thresholds that the program brings");
        };
        let text = fs_err::read_to_string(path)?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let thresholds: Self = toml::from_str(text)?;
        let of_gpus = thresholds.gpu.iter().flat_map(|gpu| &gpu.checks);
        for (check, bound) in thresholds.any.iter().chain(of_gpus) {
            if [bound.at_least, bound.at_most, bound.of_median] == [None; 3] {
                return Err(anyhow!(
                    "`{check}` has neither at_least nor at_most nor of_median"
                ));
            }
        }
        Ok(thresholds)
    }

    /// What holds on a machine with these GPUs.
    pub(super) fn of<'a>(&'a self, gpus: &[&str]) -> Bounds<'a> {
        let fits = |of: &&OfGpu| gpus.iter().all(|name| name.contains(&of.name));
        Bounds {
            any: &self.any,
            gpu: self
                .gpu
                .iter()
                .filter(|_| !gpus.is_empty())
                .find(fits)
                .map(|of| &of.checks),
        }
    }
}

/// What holds on one machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<'a> {
    any: &'a BTreeMap<Check, Bound>,
    gpu: Option<&'a BTreeMap<Check, Bound>>,
}

impl Bounds<'_> {
    /// What holds for a check, with so many ranks. What is said of GPUs does not hold for the
    /// processors beside them (`of_processor`).
    pub(super) fn of(&self, check: Check, ranks: usize, of_processor: bool) -> Option<Bound> {
        let holds = |bound: &&Bound| bound.ranks.is_none_or(|of| of == ranks);
        let of_gpus = self.gpu.filter(|_| !of_processor);
        [of_gpus, Some(self.any)]
            .into_iter()
            .flatten()
            .find_map(|bounds| bounds.get(&check).filter(holds))
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: &str = "NVIDIA H100 80GB HBM3";

    #[test]
    fn what_the_program_brings_is_read_and_knows_the_h100() {
        let shipped = Thresholds::load(None).unwrap();
        let (h100, other) = (shipped.of(&[H100, H100]), shipped.of(&["NVIDIA L4"]));
        let bound = h100.of(Check::GpuAllReduce, 8, false).unwrap();
        assert_eq!(bound.at_least, Some(414.0));
        assert!(h100.of(Check::GpuAllReduce, 4, false).is_none());
        assert!(shipped.of(&[H100, "NVIDIA L4"]).gpu.is_none());
        for bounds in [other, shipped.of(&[])] {
            assert!(bounds.of(Check::MatmulBf16, 8, false).is_none());
            let clock = bounds.of(Check::Clock, 8, false).unwrap();
            assert_eq!(clock.at_most, Some(10.0));
        }
        let (gpu, processor) = (
            h100.of(Check::MemoryBandwidth, 8, false).unwrap(),
            h100.of(Check::MemoryBandwidth, 8, true).unwrap(),
        );
        assert_eq!(gpu.at_least, Some(2300.0));
        assert_eq!(processor.at_least, None);
        let memory = h100.of(Check::LockedMemory, 8, false).unwrap();
        assert_eq!(memory.at_least, Some(f64::INFINITY));
        let room = h100.of(Check::SharedMemory, 8, false).unwrap();
        assert_eq!(room.at_least, Some(f64::from(1 << 30)));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (text, named) in [
            ("[any]\nclok = { at_most = 1 }", "unknown variant `clok`"),
            ("[any]\nclock = { atmost = 1 }", "unknown field `atmost`"),
            ("[all]\n", "unknown field `all`"),
            ("[any]\nclock = { ranks = 2 }", "`clock` has neither"),
            ("[any]\nmemory = { at_least = \"1XB\" }", "1XB"),
            ("[[gpu]]\nnam = \"H100\"\n", "unknown field `nam`"),
        ] {
            let error = format!("{:#}", Thresholds::parse(text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }
}
