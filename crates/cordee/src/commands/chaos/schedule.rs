//! Which faults there are and when: a pure function of a seed.

use serde::Serialize;

use super::kind::FaultKind;

/// Saves that a run has at least, so that there is room for every kind of fault.
pub(super) const LEAST_SAVES: u64 = 16;

/// Saves at the end that no fault is planned for: those that are late by then end in them, and the last
/// save of all must not be refused.
const SAVES_AT_THE_END: u64 = 6;

/// A fault that is to come.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Fault {
    /// From 1.
    pub(super) number: usize,
    pub(super) kind: FaultKind,
    /// It is injected once this step is done.
    pub(super) step: u64,
    /// Whom it hits, where it hits one rank.
    pub(super) rank: usize,
    /// The host that it hits, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) host: Option<usize>,
    /// How long after that, in steps: most of all places where a fault can hit are within one.
    pub(super) pause: f64,
    /// Decides what else there is to decide, such as which byte is changed.
    pub(super) seed: u64,
}

/// What of a run decides when faults can come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) steps: u64,
    /// Steps from save to save.
    pub(super) every: u64,
    pub(super) ranks: usize,
    /// Machines; each has as many ranks as every other.
    pub(super) hosts: usize,
}

impl Shape {
    /// Ranks of each host.
    pub(super) fn ranks_per_host(self) -> usize {
        self.ranks / self.hosts
    }

    /// The host that a fault hits, where there are several.
    fn host(self, kind: FaultKind, rank: usize, seed: u64) -> Option<usize> {
        let any = || Draws(seed).below(self.hosts as u64) as usize;
        (self.hosts > 1).then(|| match kind {
            FaultKind::Kill | FaultKind::Stop => rank / self.ranks_per_host(),
            FaultKind::LauncherKill => 0,
            FaultKind::AgentKill => 1 + Draws(seed).below(self.hosts as u64 - 1) as usize,
            _ => any(),
        })
    }

    /// Steps that a fault takes during which training goes on: a save that it is too late for, one that it
    /// hits, and one that succeeds again.
    fn steps_for_saves(self) -> u64 {
        3 * self.every
    }

    /// The last step of a fault.
    fn last(self) -> u64 {
        self.steps
            .saturating_sub(SAVES_AT_THE_END * self.every)
            .max(1)
    }

    /// How many faults it has room for during which training goes on.
    fn room(self) -> usize {
        (self.last().saturating_sub(1) / self.steps_for_saves()) as usize
    }
}

/// So many faults of these kinds, by step. Every kind occurs about as often as every other, but for
/// those that a run has no room for; where there are as many faults as kinds, each occurs.
pub(super) fn draw(
    seed: u64,
    count: usize,
    kinds: &[FaultKind],
    shape: Shape,
) -> Result<Vec<Fault>, String> {
    let mut draws = Draws(seed);
    let mut room = shape.room();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count {
        let mut deck = kinds.to_vec();
        draws.shuffle(&mut deck);
        let before = chosen.len();
        for kind in deck {
            if kind.takes_saves() {
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            chosen.push(kind);
        }
        if chosen.len() == before {
            return Err(format!(
                "{} steps with a save every {} have room for {} faults of these kinds",
                shape.steps,
                shape.every,
                shape.room()
            ));
        }
    }
    chosen.truncate(count);
    draws.shuffle(&mut chosen);
    let saves = chosen.iter().filter(|kind| kind.takes_saves()).count() as u64;
    // Steps are drawn as if faults took none, and what the earlier ones take is added.
    let span = shape.last() - saves * shape.steps_for_saves();
    let mut steps: Vec<u64> = chosen.iter().map(|_| 1 + draws.below(span)).collect();
    steps.sort_unstable();
    let mut taken = 0;
    let faults = chosen.into_iter().zip(steps).enumerate();
    Ok(faults
        .map(|(index, (kind, step))| {
            let step = step + taken;
            if kind.takes_saves() {
                taken += shape.steps_for_saves();
            }
            let rank = draws.below(shape.ranks as u64) as usize;
            let pause = draws.below(1000) as f64 / 1000.0;
            let seed = draws.next();
            Fault {
                number: index + 1,
                kind,
                step,
                rank,
                host: shape.host(kind, rank, seed),
                pause,
                seed,
            }
        })
        .collect())
}

/// Random numbers that are the same everywhere (`SplitMix64`, Steele et al. 2014).
pub(super) struct Draws(pub(super) u64);

impl Draws {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to `limit`, which is left out and is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::kind::{OF_HOSTS, OF_ONE_MACHINE},
        *,
    };

    const SHAPE: Shape = Shape {
        steps: 320,
        every: 10,
        ranks: 4,
        hosts: 1,
    };

    fn all(seed: u64, count: usize) -> Vec<Fault> {
        draw(seed, count, &OF_ONE_MACHINE, SHAPE).unwrap()
    }

    #[test]
    fn a_seed_gives_the_same_faults_and_another_one_others() {
        assert_eq!(all(3, 20), all(3, 20));
        assert_ne!(all(3, 20), all(4, 20));
    }

    #[test]
    fn ten_faults_are_of_every_kind_in_order_and_end_before_the_last_saves() {
        for seed in 0..200 {
            let faults = all(seed, 10);
            assert_eq!(faults.len(), 10);
            for kind in &OF_ONE_MACHINE {
                assert!(faults.iter().any(|fault| fault.kind == *kind), "{kind:?}");
            }
            let mut free = 1;
            for (index, fault) in faults.iter().enumerate() {
                assert_eq!(fault.number, index + 1);
                assert!(fault.rank < 4 && (0.0..1.0).contains(&fault.pause));
                assert!(fault.step >= free, "{faults:?}");
                free = if fault.kind.takes_saves() {
                    fault.step + SHAPE.steps_for_saves()
                } else {
                    fault.step
                };
            }
            assert!(free <= SHAPE.last() + 1, "{free}: {faults:?}");
        }
    }

    #[test]
    fn every_rank_and_kind_has_its_turn() {
        let faults = all(1, 400);
        for rank in 0..4 {
            let hits = faults.iter().filter(|fault| fault.rank == rank).count();
            assert!((60..140).contains(&hits), "rank {rank}: {hits}");
        }
        let saves = faults.iter().filter(|fault| fault.kind.takes_saves());
        assert_eq!(saves.count(), SHAPE.room());
        for kind in [FaultKind::Kill, FaultKind::HalfWrittenCheckpoint] {
            let hits = faults.iter().filter(|fault| fault.kind == kind).count();
            assert!((60..100).contains(&hits), "{kind:?}: {hits}");
        }
    }

    #[test]
    fn the_shortest_run_has_room_for_every_kind() {
        let shape = Shape {
            steps: LEAST_SAVES * 5,
            every: 5,
            ranks: 1,
            hosts: 1,
        };
        for seed in 0..100 {
            draw(seed, 10, &OF_ONE_MACHINE, shape).unwrap();
        }
        let error = draw(1, 10, &[FaultKind::SlowDisk], shape).unwrap_err();
        assert!(error.contains("room for 3 faults"), "{error}");
    }

    #[test]
    fn a_fault_of_several_hosts_names_the_one_that_it_hits() {
        let shape = Shape { hosts: 2, ..SHAPE };
        let faults = draw(5, 200, &OF_HOSTS, shape).unwrap();
        for fault in &faults {
            let host = fault.host.unwrap();
            match fault.kind {
                FaultKind::Kill | FaultKind::Stop => assert_eq!(host, fault.rank / 2),
                FaultKind::LauncherKill => assert_eq!(host, 0),
                FaultKind::AgentKill => assert_eq!(host, 1),
                _ => assert!(host < 2),
            }
        }
        for kind in [FaultKind::NodeStop, FaultKind::LinkCut] {
            let hosts = |host| {
                let hits = faults.iter().filter(|it| it.kind == kind);
                hits.filter(|it| it.host == Some(host)).count()
            };
            assert!(hosts(0) > 5 && hosts(1) > 5, "{kind:?}");
        }
        assert!(all(5, 10).iter().all(|fault| fault.host.is_none()));
    }
}
