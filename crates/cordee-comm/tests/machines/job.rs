//! A job on several machines: ranks as threads, a memory for each machine, a port for each rank.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use cordee_comm::{Machines, MachinesGroup, Neighbours, Result};
use cordee_memory::SharedMemory;
use cordee_protocol::Secret;

/// Long enough for a loaded machine; only a bug waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn secret() -> Secret {
    Secret::of_text("the job of this test")
}

/// What a rank needs to join.
pub(crate) struct Seat {
    pub(crate) memory: SharedMemory,
    pub(crate) local_rank: usize,
    pub(crate) machines: Machines,
    pub(crate) neighbours: Neighbours,
}

impl Seat {
    pub(crate) fn join(self, timeout: Duration) -> Result<MachinesGroup> {
        let Self {
            memory,
            local_rank,
            machines,
            neighbours,
        } = self;
        MachinesGroup::join(memory, local_rank, machines, &neighbours, timeout)
    }
}

/// What the ranks of machines with so many ranks each need, by rank.
pub(crate) fn seats(sizes: &[usize]) -> Vec<Seat> {
    let rails = Machines::new(sizes, 0).rails();
    let mut below: Vec<SocketAddr> = Vec::new();
    let mut seats = Vec::new();
    for (machine, &size) in sizes.iter().enumerate() {
        let memory = SharedMemory::create("comm-test").unwrap();
        let mut listening = Vec::new();
        for local_rank in 0..size {
            let listener = (local_rank < rails).then(|| TcpListener::bind("127.0.0.1:0").unwrap());
            listening.extend(listener.as_ref().map(|it| it.local_addr().unwrap()));
            seats.push(Seat {
                memory: memory.try_clone().unwrap(),
                local_rank,
                machines: Machines::new(sizes, machine),
                neighbours: Neighbours {
                    listener,
                    below: below.get(local_rank).copied().into_iter().collect(),
                    secret: secret(),
                },
            });
        }
        below = listening;
    }
    seats
}

/// Runs `body` on every rank at once and returns what each gave, by rank.
pub(crate) fn ranks<R: Send>(seats: Vec<Seat>, body: impl Fn(usize, Seat) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let body = &body;
        let start = |(rank, seat)| scope.spawn(move || body(rank, seat));
        let ranks: Vec<_> = seats.into_iter().enumerate().map(start).collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("no rank panics"))
            .collect()
    })
}
