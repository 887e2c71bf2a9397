//! Which ranks are on which machine.

use std::ops::Range;

/// The machines of a group, in the order of their ranks: those of a machine follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machines {
    /// The first rank of each, and after the last how many ranks there are.
    starts: Vec<usize>,
    own: usize,
}

impl Machines {
    /// Machines with so many ranks each, as number `own` of them sees it.
    ///
    /// # Panics
    ///
    /// When there is no such machine, or one without ranks.
    pub fn new(ranks: &[usize], own: usize) -> Self {
        assert!(
            own < ranks.len(),
            "machine {own} is not one of {}",
            ranks.len()
        );
        assert!(!ranks.contains(&0), "every machine has ranks");
        let mut starts = vec![0];
        for count in ranks {
            starts.push(starts[starts.len() - 1] + count);
        }
        Self { starts, own }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Which of them this is.
    pub fn own(&self) -> usize {
        self.own
    }

    /// All ranks.
    pub fn world_size(&self) -> usize {
        self.starts[self.count()]
    }

    /// The ranks of a machine.
    pub fn ranks_of(&self, machine: usize) -> Range<usize> {
        self.starts[machine]..self.starts[machine + 1]
    }

    /// Where a rank is.
    pub fn machine_of(&self, rank: usize) -> usize {
        self.starts.partition_point(|&start| start <= rank) - 1
    }

    /// How many ranks of each machine are connected to others: as many as the smallest one has.
    pub fn rails(&self) -> usize {
        let sizes = (0..self.count()).map(|machine| self.ranks_of(machine).len());
        sizes.min().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_a_machine_follow_each_other() {
        let machines = Machines::new(&[2, 3, 1], 1);
        assert_eq!(
            (machines.count(), machines.world_size(), machines.rails()),
            (3, 6, 1)
        );
        assert_eq!(machines.ranks_of(1), 2..5);
        let found: Vec<_> = (0..6).map(|rank| machines.machine_of(rank)).collect();
        assert_eq!(found, [0, 0, 1, 1, 1, 2]);
    }
}
