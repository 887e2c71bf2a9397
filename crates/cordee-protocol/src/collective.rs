//! How fast ranks exchange memory.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A collective operation that moves memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Collective {
    /// Everybody gets the sum of what all have.
    AllReduce,
    /// Everybody gets a shard of that sum.
    ReduceScatter,
    /// Everybody gets the shards of all.
    AllGather,
    /// Everybody gets what one has.
    Broadcast,
}

impl Collective {
    /// Every operation.
    pub const ALL: [Self; 4] = [
        Self::AllReduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::Broadcast,
    ];

    /// Its name, as it is typed and printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Broadcast => "broadcast",
        }
    }

    /// What the bytes of a range divided by the time are multiplied by, so that the result is what the
    /// slowest link carries and can be compared with what the hardware promises, whatever the number
    /// of ranks *n*: 2 (n - 1) / n, (n - 1) / n or 1, as nccl-tests has it ("Bus bandwidth" in
    /// <https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md>).
    pub fn bus_factor(self, world_size: usize) -> f64 {
        let share = (world_size - 1) as f64 / world_size as f64;
        match self {
            Self::AllReduce => 2.0 * share,
            Self::ReduceScatter | Self::AllGather => share,
            Self::Broadcast => 1.0,
        }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Collective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|it| it.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is none of {names}")
        })
    }
}

/// One operation on ranges of one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectiveReport {
    /// What was done.
    pub operation: Collective,
    /// Bytes of the whole range, on each rank: of an all-gather what every rank ends with, of a
    /// reduce-scatter what every rank begins with.
    pub bytes: u64,
    /// Ranks.
    pub world: usize,
    /// Rounds that count.
    pub rounds: usize,
    /// Milliseconds of the middle round; of each round what its slowest rank took.
    pub ms: f64,
    /// Milliseconds of the shortest round.
    pub ms_min: f64,
    /// Milliseconds that nine of ten rounds stay within.
    pub ms_p90: f64,
    /// 10⁹ bytes a second: bytes by the time of the middle round.
    pub algbw_gbs: f64,
    /// The same times [`Collective::bus_factor`].
    pub busbw_gbs: f64,
    /// Elements that were not what they should have been, over all ranks.
    pub wrong: u64,
}

impl CollectiveReport {
    /// Of the seconds of at least one round, in ascending order.
    pub fn new(
        operation: Collective,
        bytes: u64,
        world: usize,
        seconds: &[f64],
        wrong: u64,
    ) -> Self {
        let at = |share: f64| seconds[(share * (seconds.len() - 1) as f64).round() as usize];
        let middle = at(0.5);
        let algbw_gbs = bytes as f64 / middle / 1e9;
        Self {
            operation,
            bytes,
            world,
            rounds: seconds.len(),
            ms: middle * 1e3,
            ms_min: at(0.0) * 1e3,
            ms_p90: at(0.9) * 1e3,
            algbw_gbs,
            busbw_gbs: algbw_gbs * operation.bus_factor(world),
            wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidths_are_those_of_nccl_tests() {
        let report = |operation, world| {
            CollectiveReport::new(operation, 8_000_000_000, world, &[1.0, 2.0, 9.0], 0)
        };
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-12, "{found} and {expected}");
        };
        let all_reduce = report(Collective::AllReduce, 4);
        close(all_reduce.ms, 2000.0);
        close(all_reduce.ms_min, 1000.0);
        close(all_reduce.algbw_gbs, 4.0);
        for (operation, world, busbw_gbs) in [
            (Collective::AllReduce, 4, 6.0),
            (Collective::ReduceScatter, 4, 3.0),
            (Collective::AllGather, 4, 3.0),
            (Collective::Broadcast, 4, 4.0),
            (Collective::AllReduce, 1, 0.0),
        ] {
            close(report(operation, world).busbw_gbs, busbw_gbs);
        }
    }

    #[test]
    fn names_are_read_back() {
        for operation in Collective::ALL {
            assert_eq!(operation.name().parse(), Ok(operation));
            assert_eq!(
                serde_json::to_value(operation).unwrap(),
                operation.name(),
                "the same name in JSON"
            );
        }
        let unknown = "allreduce".parse::<Collective>().unwrap_err();
        assert!(unknown.contains("all_reduce, reduce_scatter"), "{unknown}");
    }
}
