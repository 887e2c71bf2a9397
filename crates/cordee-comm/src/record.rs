//! What ranks noted of their calls: where each of them stands when something has gone wrong.

use std::fmt;

use crate::Call;

/// Where a rank stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The rank.
    pub rank: usize,
    /// The last call that it began; `None` before the first.
    pub begun: Option<Call>,
    /// Every call up to this number is known to be done on that rank.
    pub completed: u64,
}

/// Where every rank stands, by rank; empty in a world of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records(pub Vec<Record>);

impl Records {
    /// The ranks that have not begun the call of this number.
    pub fn behind(&self, sequence: u64) -> Vec<usize> {
        let begun = |record: &&Record| record.begun.as_ref().map_or(0, |call| call.sequence);
        let behind = self.0.iter().filter(|record| begun(record) < sequence);
        behind.map(|record| record.rank).collect()
    }
}

/// ` (ranks 0, 2: all_reduce #17 of 4096 bytes begun, #16 completed; rank 1: …)`, ranks that stand at the
/// same place together; nothing where there is nothing to tell.
impl fmt::Display for Records {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.iter().all(|record| record.begun.is_none()) {
            return Ok(());
        }
        let mut places: Vec<(String, Vec<usize>)> = Vec::new();
        for record in &self.0 {
            let place = match &record.begun {
                None => "nothing begun".to_owned(),
                Some(call) if record.completed >= call.sequence => {
                    format!("{} completed", call.brief())
                }
                Some(call) => format!("{} begun, #{} completed", call.brief(), record.completed),
            };
            match places.iter_mut().find(|(known, _)| *known == place) {
                Some((_, ranks)) => ranks.push(record.rank),
                None => places.push((place, vec![record.rank])),
            }
        }
        formatter.write_str(" (")?;
        for (index, (place, ranks)) in places.iter().enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(formatter, "{between}{}: {place}", list(ranks))?;
        }
        formatter.write_str(")")
    }
}

/// `rank 3` or `ranks 1, 2, 5`.
pub(crate) fn list(ranks: &[usize]) -> String {
    let numbers: Vec<_> = ranks.iter().map(ToString::to_string).collect();
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    format!("{word} {}", numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use cordee_memory::DType;

    use super::*;
    use crate::{Operation, Place};

    fn record(rank: usize, begun: u64, completed: u64) -> Record {
        let place = Some(Place {
            dtype: DType::F32,
            range: 0..1024,
            allocation: None,
            on_device: true,
        });
        Record {
            rank,
            begun: (begun > 0).then_some(Call {
                sequence: begun,
                operation: Operation::AllReduce,
                place,
                root: None,
            }),
            completed,
        }
    }

    #[test]
    fn ranks_that_stand_together_are_told_together() {
        let records = Records(vec![
            record(0, 17, 16),
            record(1, 16, 16),
            record(2, 17, 16),
        ]);
        assert_eq!(
            records.to_string(),
            " (ranks 0, 2: all_reduce #17 of 4096 bytes begun, #16 completed; \
             rank 1: all_reduce #16 of 4096 bytes completed)"
        );
        assert_eq!(records.behind(17), [1]);
        assert_eq!(Records(vec![record(0, 0, 0)]).to_string(), "");
        let records = Records(vec![record(0, 2, 1), record(1, 0, 0)]);
        assert_eq!(
            records.to_string(),
            " (rank 0: all_reduce #2 of 4096 bytes begun, #1 completed; rank 1: nothing begun)"
        );
    }
}
